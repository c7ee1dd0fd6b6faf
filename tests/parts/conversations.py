"""Sixty conversations of every kind that is trained: plain, with tools, with turns that are not learned, long ones."""

import itertools
from pathlib import Path
from typing import Any

import orjson

from tools.core import trajectory
from tools.data import convert
from tools.data.formats.worker import Task


def sixty(folder: Path) -> Path:
    """A file of messages: 20 of the shipped episodes as they are, 15 that came as tool calls, every third answer of
    weight 0, 15 with `train: false` at the first answer, and 10 of five episodes' turns each.
    """
    episodes = list(itertools.islice(trajectory.read(trajectory.TRAIN_DATA), 100))
    plain, called, masked, parts = episodes[:20], episodes[20:35], episodes[35:50], episodes[50:100]
    long = [{"messages": joined(parts[at : at + 5])} for at in range(0, 50, 5)]
    for episode in masked:
        episode["messages"] = marked(episode["messages"], "train", False, first=True)
    rows = [*plain, *through_calls(called, folder), *masked, *long]
    file = folder / "sixty.jsonl"
    file.write_bytes(b"".join(orjson.dumps({"messages": each["messages"]}) + b"\n" for each in rows))
    assert len(rows) == 60
    return file


def through_calls(episodes: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Episodes written as calls of tools, some answers with OpenAI's weight of 0, and read again."""
    first, calls, back = (folder / f"{name}.jsonl" for name in ("first", "calls", "back"))
    first.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in episodes))
    convert.convert_files([str(first)], str(calls), Task("messages", calls=True))
    rows = [orjson.loads(line) for line in calls.read_bytes().splitlines()]
    assert any(turn.get("tool_calls") for row in rows for turn in row["messages"])
    for row in rows:
        row["messages"] = marked(row["messages"], "weight", 0)
    calls.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    convert.convert_files([str(calls)], str(back), Task("messages"))
    return list(trajectory.read(back))


def marked(turns: list[dict[str, Any]], key: str, value: object, first: bool = False) -> list[dict[str, Any]]:
    """Turns with `key` set at the first answer, or at every third."""
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    chosen = answers[:1] if first else answers[::3]
    return [{**turn, key: value} if number in chosen else turn for number, turn in enumerate(turns)]


def joined(episodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns of several episodes as one conversation, with the first one's system turn."""
    turns = [turn for each in episodes for turn in each["messages"] if turn["role"] != "system"]
    return [episodes[0]["messages"][0], *turns]
