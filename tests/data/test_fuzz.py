"""Rows damaged at random: each is read and written, or refused as bad input; nothing else is ever raised."""

import copy
import random
from typing import Any

import orjson
import pytest

from tests.data.test_formats import CALLED, GAME
from tests.data.test_recognised import PAIRS, SHARED, TURNS
from tools.core.chunks import Lines
from tools.data import formats, reader
from tools.data.formats import worker
from tools.data.formats.worker import Task

CASES = 5000
FLAGGED = [{"from": "human", "loss": None, "value": "Hi"}, {"from": "gpt", "loss": False, "value": "Hello"}]
STEP = {"instruction": "a", "input": "", "output": "b", "system": "", "history": [], "extra": {"step_of": [1, 1]}}
ROWS: list[Any] = [
    GAME,
    CALLED,
    TURNS,
    *PAIRS.values(),
    STEP,
    {"conversations": SHARED, "system": "s", "tools": "[]"},
    {"conversations": FLAGGED, "id": "os_0"},
    {"conversations": [{"from": "function_call", "value": '{"name": "f", "arguments": {}}'}, *SHARED]},
    {"conversations": orjson.dumps(SHARED).decode()},
    {"conversation": [{"system": "s", "input": "Hi", "output": "Hello"}]},
    {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]], "extra": {"messages": [{"weight": 0}]}},
    {"query": "a", "response": "b", "history": [["c", "d"]], "system": None},
    {"prompt": TURNS[:1], "completion": TURNS[1:]},
    {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]},
]
JUNK: list[Any] = [
    None,
    True,
    0,
    -1.5,
    2**63,
    "",
    "x",
    "[",
    "{}",
    "\ufeff",
    [],
    {},
    [[]],
    [{}],
    [None],
    ["a"],
    {"role": 1},
]
JUNK += [
    {"type": "image_url"},
    {"function": None},
    {"role": "user", "content": "x"},
    {"from": "gpt"},
    [TURNS],
    "[null]",
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place within a value: the object or list, and the key or index."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def damaged(row: Any, chance: random.Random) -> bytes:
    """A row with one to three places of it gone, doubled, swapped or replaced, or a few of its bytes."""
    row = copy.deepcopy(row)
    for _ in range(chance.randint(1, 3)):
        if not (found := places(row)):
            break
        within, key = chance.choice(found)
        how = chance.randrange(4)
        if how == 0:
            del within[key]
        elif how == 1:
            within[key] = copy.deepcopy(chance.choice(chance.choice((JUNK, ROWS))))
        elif how == 2:
            other, place = chance.choice(found)
            within[key] = copy.deepcopy(other[place]) if isinstance(other, dict) and place in other else None
        elif isinstance(within, dict):
            within[chance.choice(("role", "content", "from", "value", "tool_calls", "messages", "loss"))] = within[key]
        else:
            within.insert(0, copy.deepcopy(within[key]))
    text = orjson.dumps(row)
    if chance.random() < 0.1:
        at = chance.randrange(len(text) + 1)
        text = (
            text[:at] + chance.choice((b"", b"\xff", b'"', b"}", b",", b"\\ud800")) + text[at + chance.randint(0, 3) :]
        )
    return text


@pytest.mark.parametrize("wanted", ["", *formats.JSON])
def test_a_damaged_row_is_read_and_written_or_refused(wanted: str) -> None:
    chance = random.Random(wanted)
    bad = written = 0
    for number in range(CASES):
        text = damaged(ROWS[number % len(ROWS)], chance)
        to = chance.choice((*formats.JSON, *formats.TEXT, "llamafactory"))
        how = [chance.random() < 0.3 for _ in range(4)]
        task = Task(to, how[0], how[1], how[2], "skip", how[3], wanted, {"x": "user"} if number % 5 == 0 else {})
        made = worker.convert_chunk(wanted or "messages", Lines(text.replace(b"\n", b" ") + b"\n"), task)
        bad += len(made.bad)
        written += made.written
        assert made.read == made.written + len(made.bad) <= 1
        assert [why for _, why, _ in made.bad if not why or "\n" in why] == []
        for _, episode in reader.read_job(Lines(text), {}):
            assert isinstance(episode, str) or isinstance(episode["messages"], list)
    assert bad > CASES / 10 and written > CASES / 100
