"""A GGUF's tokenizer as a table: a right one has no finding, and each way to break it is found and named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parts import models
from tests.parts.metadata import with_metadata
from tools import BadInput
from tools.gguf import convert, find_base
from tools.parity import vocabulary
from tools.parity.vocabulary import KEYS, Tokenizer

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("quick_conversions")]

MUG = "Ġmug".encode()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of SmolLM2, of the kind that Qwen and Llama 3 have, as a GGUF without tensors."""
    out = tmp_path_factory.mktemp("table") / "bpe.gguf"
    convert.tokenizer_to_gguf(find_base.resolve("smollm2-135m"), None, out)
    return out


@pytest.fixture(scope="module")
def trained(gguf: Path) -> Tokenizer:
    return vocabulary.read(gguf)


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Gemma's, the largest known: 262,144 tokens with scores."""
    folder = tmp_path_factory.mktemp("gemma3")
    models.make("gemma3", folder)
    convert.tokenizer_to_gguf(folder, None, folder / "tokenizer.gguf")
    return vocabulary.read(folder / "tokenizer.gguf")


def found(mine: Tokenizer, theirs: Tokenizer) -> list[vocabulary.TableDifference]:
    return list(vocabulary.differences(mine, theirs))


def values(**changed: object) -> Callable[[Tokenizer], Tokenizer]:
    """A break: single values, None for a key that is not there."""

    def change(one: Tokenizer) -> Tokenizer:
        both: dict[str, Any] = {**one.values, **changed}
        return replace(one, values={key: value for key, value in both.items() if value is not None})

    return change


def array(key: str, change: Callable[[Any], None]) -> Callable[[Tokenizer], Tokenizer]:
    """A break: an array, changed in a copy."""

    def changed(one: Tokenizer) -> Tokenizer:
        copy = one.arrays[key].copy()
        change(copy)
        return replace(one, arrays={**one.arrays, key: copy})

    return changed


def put(at: int, value: object) -> Callable[[Any], None]:
    return lambda table: table.__setitem__(at, value)


def swap(first: int, second: int) -> Callable[[Any], None]:
    def change(table: Any) -> None:
        table[first], table[second] = table[second], table[first]

    return change


# A break, its kind, and what the one line says of it.
BREAKS: dict[str, tuple[Callable[[Tokenizer], Tokenizer], str, str]] = {
    "a rare token's text": (
        array("tokens", put(40000, MUG)),
        "token_texts",
        "1 of 49,152 tokens differ, first 40000",
    ),
    "two tokens swapped": (array("tokens", swap(300, 30000)), "token_texts", "2 of 49,152 tokens differ, first 300: "),
    "a token left out": (array("tokens", lambda table: table.pop()), "token_texts", "first 49151: "),
    "a control token as text": (array("token_type", put(2, 1)), "token_types", "2: control in training, normal in"),
    "two merges swapped": (array("merges", swap(100, 101)), "merges", "2 of 48,900 merges differ, first 100: "),
    "the last merge left out": (array("merges", lambda table: table.pop()), "merges", "nothing in the GGUF"),
    "eos": (values(eos_token_id=3), "special_token", "eos_token_id: 2 ('<|im_end|>') in training, 3 ('<repo_name>')"),
    "bos": (values(bos_token_id=None), "special_token", "11 ('<jupyter_start>') in the GGUF"),
    "pad": (values(padding_token_id=0), "special_token", "padding_token_id: 2 ('<|im_end|>') in training, 0 "),
    "eot a line feed": (
        values(eot_token_id=198),
        "special_token",
        "none in training, 198 ('Ċ') in the GGUF",
    ),
    "eom a colon": (values(eom_token_id=42), "special_token", "eom_token_id: none in training, 42 "),
    "an end by another key": (values(fim_pad_token_id=198), "special_token", "fim_pad_token_id: none in training, 198"),
    "eot beyond the vocabulary": (values(eot_token_id=10**6), "special_token", "1000000 (no such token)"),
    "add_eos": (values(add_eos_token=True), "switch", "add_eos_token: false in training, true in the GGUF"),
    "add_bos": (values(add_bos_token=True), "switch", "add_bos_token: false in training, true in the GGUF"),
    "a space before": (values(add_space_prefix=True), "switch", "add_space_prefix: false in training, true"),
    "another pre-tokenizer": (values(pre="qwen2"), "pre_tokenizer", "tokenizer.ggml.pre: smollm in training, qwen2"),
    "no pre-tokenizer": (values(pre=None), "pre_tokenizer", "tokenizer.ggml.pre: smollm in training"),
    "no template": (lambda one: replace(one, template=False), "template_missing", "no chat template in the GGUF"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_tokenizer_broken_in_one_way_is_found_and_named(name: str, trained: Tokenizer) -> None:
    damage, kind, says = BREAKS[name]
    first = found(trained, damage(trained))[0]
    assert first["kind"] == kind and says in first["cause"], first["cause"]
    assert first["fix"] and len(first["cause"].splitlines()) == 1 and len(first["cause"]) < 500


def test_other_tokens_that_end_an_answer_are_all_named(trained: Tokenizer) -> None:
    apart = found(trained, values(eot_token_id=198, eom_token_id=42)(trained))
    last = apart[-1]
    assert last["kind"] == "ends" and last["differ"] == 2
    assert "198 ('Ċ') in the GGUF" in last["cause"] and "nothing in training" in last["cause"]


def test_many_that_differ_are_counted_and_the_first_shown(trained: Tokenizer) -> None:
    many = array("tokens", lambda table: table.__setitem__(slice(1000, 2000), [b"x"] * 1000))
    first = found(trained, many(trained))[0]
    assert (first["differ"], first["of"], len(first["first"])) == (1000, 49152, 3)
    assert first["first"][0]["at"] == 1000 and first["first"][0]["served"] == "'x'"


def test_what_llama_cpp_takes_by_itself_is_no_difference(trained: Tokenizer, sentence_piece: Tokenizer) -> None:
    """Converters of other versions name what others leave out."""
    named = values(add_bos_token=False, add_eos_token=False, eot_token_id=2, add_space_prefix=False)
    assert found(trained, named(trained)) == []
    arrays = {
        **trained.arrays,
        "tokens": [*trained.tokens, b"[PAD49152]"],
        "token_type": np.append(np.asarray(trained.arrays["token_type"]), vocabulary.UNUSED),
    }
    filled = replace(trained, arrays=arrays)
    assert found(trained, filled) == [] and found(filled, trained) == []
    assert found(sentence_piece, values(add_bos_token=None)(sentence_piece)) == []


def test_scores_of_a_sentence_piece_vocabulary(sentence_piece: Tokenizer) -> None:
    assert found(sentence_piece, sentence_piece) == []
    first = found(sentence_piece, array("scores", put(5000, -1.5))(sentence_piece))[0]
    assert first["kind"] == "token_scores" and "1 of 262,144 token scores differ, first 5000: " in first["cause"]


def test_a_file_is_compared_with_the_folder_that_trained(gguf: Path, tmp_path: Path) -> None:
    """A folder of a tokenizer needs no weights, but the settings of its model."""
    source = find_base.resolve("smollm2-135m")
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (alone / name).write_bytes((source / name).read_bytes())
    with pytest.raises(BadInput, match=r"no config\.json"):
        vocabulary.compare_tokenizers(alone, None, gguf, tmp_path / "log")
    (alone / "config.json").write_bytes((source / "config.json").read_bytes())
    broken = with_metadata(gguf, tmp_path / "broken.gguf", {f"{KEYS}eot_token_id": 198}, {"tokenizer.chat_template"})
    tables = vocabulary.compare_tokenizers(alone, None, broken, tmp_path / "log")
    assert (tables["equal"], tables["tokens"], tables["merges"]) == (False, 49152, 48900)
    kinds = [each["kind"] for each in tables["differences"]]
    assert kinds == ["template_missing", "special_token", "ends"]
    assert len(vocabulary.words(tables).splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"alone", "broken.gguf"}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rope.freq_base", 5e6, "100000.0 in training, 5000000.0 in the GGUF"),
        ("rope.freq_base", None, "100000.0 in training, 10000.0 in the GGUF"),
        ("rope.scaling.factor", 4.0, "1.0 in training, 4.0 in the GGUF"),
        ("block_count", 29, "30 in training, 29 in the GGUF"),
        ("attention.head_count_kv", 9, "3 in training, 9 in the GGUF"),
        ("context_length", 64, "8192 in training, 64 in the GGUF"),
    ],
)
def test_another_setting_of_the_model_is_named(trained: Tokenizer, key: str, value: float | None, says: str) -> None:
    key = f"llama.{key}"
    changed = {name: each for name, each in trained.model.items() if name != key}
    changed |= {} if value is None else {key: value}
    only = found(trained, replace(trained, model=changed))
    assert [each["kind"] for each in only] == ["setting"] and f"{key}: {says}" in only[0]["cause"]
    tables: vocabulary.Tables = {"equal": False, "tokens": 1, "merges": 1, "differences": only}
    assert vocabulary.words(tables).startswith("the settings in the GGUF are not training's: another setting")


def test_settings_that_do_the_same_are_no_difference(trained: Tokenizer) -> None:
    """A longer context, rows that fill up the vocabulary, a key that is not there and is not known to matter."""
    changed = {**trained.model, "llama.context_length": 32768, "llama.vocab_size": 49280}
    changed = {key: value for key, value in changed.items() if "rope.dimension_count" not in key}
    assert found(trained, replace(trained, model=changed)) == []
