"""The proof by those who read it: Axolotl and LLaMA-Factory load every format and train on the same text in each."""

import os
import subprocess
import sys
from collections.abc import Mapping
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
from tools.training import data_checks, tokens

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


BAD, GOOD = "Thought: bad.\nAction: go to moon", "Thought: done.\nAction: finish[it]"
MASKED = [
    {"role": "user", "content": "Find it."},
    {"role": "assistant", "content": BAD, "weight": 0},
    {"role": "user", "content": "Observation: It is.", "weight": None},
    {"role": "assistant", "content": GOOD, "weight": 1},
]


def read_by_axolotl(
    folder: Path, entry: Mapping[str, object], rows: list[Any], **settings: object
) -> list[tuple[str, list[str]]]:
    """The text of each row and of its trained spans, as Axolotl reads it by this entry of `datasets:`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = dict(recipe.open_recipe("smollm2-135m-lora").settings) | settings
    made = tokens.tokenise(folder, entry, rows, 4096, own)
    return [
        (str(tokenizer.decode(ids)), [str(tokenizer.decode(span)) for span in data_checks.spans(ids, labels)])
        for ids, labels in made
    ]


@pytest.mark.heavy
def test_axolotl_leaves_out_what_says_so_in_each_format_it_reads(folder: Path, file_set: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(orjson.dumps({"messages": MASKED}) + b"\n")
    (sharegpt,) = yaml.safe_load((file_set / "axolotl.yaml").read_text())["datasets"]
    for to, entry in (("messages", recipe.open_recipe("smollm2-135m-lora").dataset), ("sharegpt", sharegpt)):
        convert.convert_files([str(tmp_path / "in.jsonl")], str(tmp_path / f"{to}.jsonl"), Task(to))
        rows = [orjson.loads(line) for line in (tmp_path / f"{to}.jsonl").read_bytes().splitlines()]
        ((text, spans),) = read_by_axolotl(folder, entry, rows)
        assert BAD in text and spans == [f"{GOOD}<|im_end|>"]


@pytest.mark.heavy
def test_axolotl_tells_tools_in_the_words_of_the_episode(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(orjson.dumps(CALLS[2]) + b"\n")
    convert.convert_files([str(tmp_path / "in.jsonl")], str(tmp_path / "out.jsonl"), Task("messages"))
    rows = [orjson.loads((tmp_path / "out.jsonl").read_bytes())]
    entry = recipe.open_recipe("smollm2-135m-lora").dataset
    ((text, spans),) = read_by_axolotl(folder, entry, rows, chat_template="qwen_25")
    assert "<tools>" not in text and text.count('"name":"get_time"') == 1
    assert spans[0].startswith('Thought: I look.\nAction: get_time\nAction Input: {"town":"Ulm"}')
    # With `tools` beside them the template would tell them in its own words.
    ((text, _),) = read_by_axolotl(folder, entry, [rows[0] | {"tools": [TOOL]}], chat_template="qwen_25")
    assert "<tools>" in text


def by_llamafactory(script: str, folder: Path, model: Path, where: Path, entries: list[str]) -> Any:
    """What a script of tests/parts, run by LLaMA-Factory's Python, says of these entries of a folder's files."""
    return orjson.loads(llamafactory.script(script, where, [str(folder), str(model), "smollm2", *entries]))


@pytest.mark.slow
def test_llamafactory_trains_on_the_assistant_s_turns_alone_in_every_format(
    folder: Path, file_set: Path, tmp_path: Path
) -> None:
    entries = ["react_training", "react_training_sharegpt", "react_testing", "react_testing_sharegpt", "steps"]
    found = by_llamafactory("llamafactory_spans.py", file_set, folder, tmp_path, entries)
    # Its templates end an answer with the newline after the token that ends the turn, and train on it.
    train, test = (
        [[f"{text}\n" for text in spans] for spans in answers(file_set / f"{split}.jsonl")]
        for split in ("train", "test")
    )
    assert found["react_training"] == found["react_training_sharegpt"] == train
    assert found["react_testing"] == found["react_testing_sharegpt"] == test
    assert found["steps"] == [[text] for spans in train for text in spans]


TOWN = {"type": "object", "properties": {"town": {"type": "string", "description": "where"}}, "required": ["town"]}
TOOL = {"type": "function", "function": {"name": "get_time", "description": "the time", "parameters": TOWN}}


def tool_chat(content: str | None, arguments: object) -> dict[str, Any]:
    """A chat with one call of a tool, which `content` stands beside."""
    call = {"id": "a1", "type": "function", "function": {"name": "get_time", "arguments": arguments}}
    turns = [
        {"role": "user", "content": f"Time in {content}?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a1", "content": "09:10"},
        {"role": "assistant", "content": "Ten past nine."},
    ]
    return {"messages": turns, "tools": [TOOL]}


CALLS = [
    tool_chat(None, '{"town": "Ulm"}'),
    tool_chat("", {"town": "Ulm", "days": [1, 2]}),
    tool_chat("I look.", '{"town":"Ulm"}'),
    tool_chat("<think>\nI look.\n</think>\n\n", '{ "town": "Ulm" }'),
]


@pytest.mark.slow
def test_llamafactory_reads_calls_and_tools_as_they_were(folder: Path, tmp_path: Path) -> None:
    for split, rows in (("train", CALLS), ("test", [{"messages": ODD}])):
        (tmp_path / f"{split}.jsonl").write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in rows))
    inputs = [str(tmp_path / f"{split}.jsonl") for split in ("train", "test")]
    convert.file_set(inputs, str(tmp_path / "set"), Task("llamafactory", calls=True))
    entries = ["react_training_sharegpt", "react_testing_sharegpt"]
    found = by_llamafactory("llamafactory_turns.py", tmp_path / "set", folder, tmp_path, entries)
    assert [row["_tools"] for row in found["react_testing_sharegpt"]] == [""]
    for row, chat in zip(found["react_training_sharegpt"], CALLS, strict=True):
        assert orjson.loads(row["_tools"]) == chat["tools"]
        asked, called, seen, said = row["_prompt"] + row["_response"]
        assert [each["role"] for each in (asked, called, seen, said)] == [
            "user",
            "function",
            "observation",
            "assistant",
        ]
        assert seen["content"] == "09:10" and said["content"] == "Ten past nine."
        thought, _, call = called["content"].rpartition("</think>")
        (given,) = chat["messages"][1]["tool_calls"]
        arguments = given["function"]["arguments"]
        arguments = orjson.loads(arguments) if isinstance(arguments, str) else arguments
        assert orjson.loads(call) == {"name": "get_time", "arguments": arguments}
        assert ("I look." in thought) == ("I look." in (chat["messages"][1]["content"] or ""))
    spans = by_llamafactory("llamafactory_spans.py", tmp_path / "set", folder, tmp_path, entries[:1])
    for (called, _), chat in zip(spans["react_training_sharegpt"], CALLS, strict=True):
        assert called.count("<think>") == ("I look." in (chat["messages"][1]["content"] or ""))
        assert '"town": "Ulm"' in called and "\\" not in called
