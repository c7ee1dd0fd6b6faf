"""The proof by those who read it: Axolotl and LLaMA-Factory load every format and train on the same text in each."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.parts import llamafactory_programs as llamafactory
from tools.core import files, run_folder, trajectory
from tools.data import convert
from tools.data.formats.worker import Task
from tools.gguf import find_base
from tools.recipes import recipe
from tools.training import data_checks

ODD = [
    {"role": "user", "content": "Which word ends a turn? Käse 想 \U0001f600"},
    {"role": "assistant", "content": "Thought: \n```python\nprint('Observation: no')\n```\nAction: say Observation:"},
    {"role": "user", "content": "Observation: Nothing happens.\n\nObservation: still nothing."},
    {"role": "assistant", "content": "Action: finish"},
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return find_base.resolve("smollm2-135m")


@pytest.fixture(scope="module")
def file_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classic file set of a few episodes, an odd one among them, and rows of steps beside it."""
    where = tmp_path_factory.mktemp("set")
    for split in ("train", "test"):
        lines = (run_folder.ROOT / "data" / f"{split}.jsonl").read_bytes().splitlines(keepends=True)[:6]
        odd = {"id": "odd", "task": "odd", "messages": [orjson.loads(lines[0])["messages"][0], *ODD]}
        (where / f"{split}.jsonl").write_bytes(b"".join(lines) + orjson.dumps(odd) + b"\n")
    inputs = [str(where / f"{split}.jsonl") for split in ("train", "test")]
    convert.file_set(inputs, str(where), Task("llamafactory"))
    convert.convert_files(inputs[:1], str(where / "steps.json"), Task("alpaca", steps=True))
    info = orjson.loads((where / "dataset_info.json").read_bytes())
    steps = info["react_training"] | {"file_name": "steps.json"}
    files.write_json(where / "dataset_info.json", info | {"steps": steps})
    return where


def answers(path: Path) -> list[list[str]]:
    """What each episode of a file of messages says in its assistant's turns, with the token that ends a turn."""
    said = lambda turn: f"{turn['content']}<|im_end|>"  # noqa: E731
    return [[said(turn) for turn in each["messages"] if turn["role"] == "assistant"] for each in trajectory.read(path)]


def prepared(folder: Path, entries: list[dict[str, Any]], where: Path) -> list[list[str]]:
    """The text of each span that Axolotl trains on, of each row of these `datasets:`, by its own `preprocess`."""
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    settings = dict(recipe.open_recipe("smollm2-135m-lora").settings) | {"base_model": str(folder), "datasets": entries}
    settings |= {"dataset_prepared_path": str(where / "prepared"), "output_dir": str(where / "out"), "val_set_size": 0}
    settings |= {"sequence_len": 4096, "shuffle_merged_datasets": False}
    config = where / "preprocess.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [str(Path(sys.executable).with_name("axolotl")), "preprocess", str(config)]
    done = subprocess.run(command, env=os.environ | {"AXOLOTL_DO_NOT_TRACK": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (rows,) = (load_from_disk(str(each.parent)) for each in (where / "prepared").rglob("dataset_info.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        found.append([str(tokenizer.decode(span)) for span in data_checks.spans(ids, labels)])
    return found


@pytest.mark.slow
def test_axolotl_trains_on_the_assistant_s_turns_alone_in_every_format(
    folder: Path, file_set: Path, tmp_path: Path
) -> None:
    ours = dict(recipe.open_recipe("smollm2-135m-lora").dataset) | {"path": str(file_set / "train.jsonl")}
    (sharegpt,) = yaml.safe_load((file_set / "axolotl.yaml").read_text())["datasets"]
    steps = {"path": str(file_set / "steps.json"), "type": "alpaca", "ds_type": "json"}
    expected = answers(file_set / "train.jsonl")
    every = [[answer] for episode in expected for answer in episode]
    assert prepared(folder, [ours, sharegpt, steps], tmp_path) == [*expected, *expected, *every]


@pytest.mark.slow
def test_llamafactory_trains_on_the_assistant_s_turns_alone_in_every_format(
    folder: Path, file_set: Path, tmp_path: Path
) -> None:
    entries = ["react_training", "react_training_sharegpt", "react_testing", "react_testing_sharegpt", "steps"]
    found = orjson.loads(
        llamafactory.script("llamafactory_spans.py", tmp_path, [str(file_set), str(folder), "smollm2", *entries])
    )
    # Its templates end an answer with the newline after the token that ends the turn, and train on it.
    train, test = (
        [[f"{text}\n" for text in spans] for spans in answers(file_set / f"{split}.jsonl")]
        for split in ("train", "test")
    )
    assert found["react_training"] == found["react_training_sharegpt"] == train
    assert found["react_testing"] == found["react_testing_sharegpt"] == test
    assert found["steps"] == [[text] for spans in train for text in spans]
