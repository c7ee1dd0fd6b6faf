"""The importance matrix, measured by the real llama-imatrix on a small model."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from gguf import GGUFReader
from transformers import AutoTokenizer

from tools import BadInput, Failed
from tools.core import run_folder
from tools.gguf import convert, imatrix

pytestmark = pytest.mark.heavy

TRAIN = run_folder.ROOT / "data" / "train.jsonl"


def episode(turns: int) -> dict[str, Any]:
    """Many short turns: nearly every token is a control token or stands beside one."""
    pair = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "Action: go"}]
    return {"messages": pair * turns}


@pytest.fixture(scope="module")
def tokenizer(small_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(small_base)


@pytest.fixture(scope="module")
def made(small_f16: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A matrix, and how many whole pieces training's tokens of its text make."""
    folder = tmp_path_factory.mktemp("imatrix")
    (folder / "own.jsonl").write_bytes(b"".join(orjson.dumps(episode(60)) + b"\n" for _ in range(2)))
    imatrix.make_imatrix(small_f16, folder / "own.jsonl", tokenizer, folder / "imatrix.gguf")
    ids = tokenizer(imatrix.rendered(tokenizer, [episode(60)] * 2), add_special_tokens=False).input_ids
    return folder / "imatrix.gguf", len(ids) // imatrix.CONTEXT


def test_control_tokens_are_read_as_themselves(made: tuple[Path, int], tokenizer: Any) -> None:
    path, pieces = made
    read = next(each.data for each in GGUFReader(path).tensors if each.name == "blk.0.attn_q.weight.counts").max()
    spelled = tokenizer.tokenize("<|im_end|>", split_special_tokens=True)
    # Letter by letter there would be more than twice as many; it leaves out a few at the ends of a piece.
    assert 0.99 * pieces * imatrix.CONTEXT < read <= pieces * imatrix.CONTEXT and len(spelled) > 3


def test_it_names_the_data_and_covers_every_layer(made: tuple[Path, int]) -> None:
    reader = GGUFReader(made[0])
    assert reader.fields["imatrix.datasets"].contents() == ["own.jsonl"]
    names = {tensor.name.rpartition(".")[0] for tensor in reader.tensors}
    assert {f"blk.{layer}.{part}.weight" for layer in (0, 1) for part in ("attn_q", "ffn_down")} <= names
    assert [item.name for item in made[0].parent.iterdir() if item.name.startswith(".")] == []


def test_a_guided_quantisation_is_another_file_and_says_so(
    small_f16: Path, made: tuple[Path, int], tmp_path: Path
) -> None:
    convert.quantize_gguf(small_f16, tmp_path / "plain.gguf", "Q4_K_M")
    convert.quantize_gguf(small_f16, tmp_path / "guided.gguf", "Q4_K_M", made[0])
    plain, guided = (GGUFReader(tmp_path / f"{name}.gguf") for name in ("plain", "guided"))
    assert guided.fields["quantize.imatrix.dataset"].contents() == "own.jsonl"
    assert "quantize.imatrix.chunks_count" not in plain.fields
    assert not Path(guided.fields["quantize.imatrix.file"].contents()).is_absolute()
    weights = [next(each.data for each in one.tensors if each.name == "blk.0.ffn_up.weight") for one in (plain, guided)]
    assert weights[0].shape == weights[1].shape and (weights[0] != weights[1]).any()


def test_episodes_are_drawn_from_all_of_the_data_the_same_ones_each_time() -> None:
    drawn = imatrix.sample(TRAIN, 20)
    numbers = [int(each["id"].rpartition("-")[2]) for each in drawn]
    everyone = [int(orjson.loads(line)["id"].rpartition("-")[2]) for line in TRAIN.read_bytes().splitlines()]
    assert len(set(numbers)) == 20 and drawn == imatrix.sample(TRAIN, 20)
    assert any(number in everyone[-60:] for number in numbers)
    assert len(imatrix.sample(TRAIN, 10_000)) == len(everyone)


def test_what_is_no_data_or_too_little_is_one_line(small_f16: Path, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match=r'own\.jsonl:1: no "messages"'):
        imatrix.make_imatrix(small_f16, tmp_path / "own.jsonl", tokenizer, tmp_path / "imatrix.gguf")
    (tmp_path / "own.jsonl").write_bytes(orjson.dumps(episode(1)) + b"\n")
    with pytest.raises(Failed, match=r"imatrix\.gguf: measuring failed: .*"):
        imatrix.make_imatrix(small_f16, tmp_path / "own.jsonl", tokenizer, tmp_path / "imatrix.gguf")
    assert [item.name for item in tmp_path.iterdir()] == ["own.jsonl"]
