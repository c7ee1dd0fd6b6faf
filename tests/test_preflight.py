"""The check before training: the mask is the assistant's turns and their end tokens, the data fits the sequence."""

from pathlib import Path

import orjson
import pytest
import yaml

from tools import BadInput, base, gguf, preflight, recipe, run

EPISODES = [orjson.loads(line) for line in (run.ROOT / "data" / "test.jsonl").read_bytes().splitlines()[:4]]


@pytest.fixture(scope="module")
def folder() -> Path:
    return base.resolve("smollm2-135m", gguf.convert)


def make(tmp_path: Path, changes: dict[str, object], data: list[object]) -> Path:
    """A copy of the committed recipe with a few changes and data of its own."""
    (tmp_path / "data.jsonl").write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in data))
    settings = recipe.load(recipe.find("smollm2-135m-lora")) | changes
    settings["datasets"][0] |= {"path": str(tmp_path / "data.jsonl")} | dict(changes.get("entry", {}))  # type: ignore[call-overload]
    settings.pop("entry", None)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return tmp_path / "my.yaml"


def test_a_good_recipe_is_measured_and_shown(tmp_path: Path, folder: Path) -> None:
    found = preflight.check(make(tmp_path, {}, EPISODES), folder)
    assert found.episodes == 4
    assert 0 < found.trained < found.tokens
    assert found.longest <= found.sequence_len == 2048
    green = "".join(
        found.preview.plain[span.start : span.end] for span in found.preview.spans if "green" in str(span.style)
    )
    said = [turn["content"] for turn in EPISODES[0]["messages"] if turn["role"] == "assistant"]
    assert green == "".join(f"{text}<|im_end|>" for text in said)


def test_an_episode_longer_than_the_sequence_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadInput, match=r"data.jsonl:1: \d+ tokens and sequence_len is 256"):
        preflight.check(make(tmp_path, {"sequence_len": 256}, EPISODES), folder)


@pytest.mark.parametrize("wrong", [{"roles_to_train": ["user", "assistant"]}, {"train_on_eos": "none"}])
def test_a_mask_that_trains_something_else_is_refused(tmp_path: Path, folder: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=r"data.jsonl:1: trained is not what the assistant says and its end token"):
        preflight.check(make(tmp_path, {"entry": wrong}, EPISODES), folder)
