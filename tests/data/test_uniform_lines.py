"""Uniform lines, read a chunk at once, are the episodes that the format's own reader makes; others are left to it."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.data import formats
from tools.data.formats import rows, uniform_lines

TURNS = [{"role": "user", "content": 'Go "on"\n\u2028 \U0001f600 \x7f'}, {"role": "assistant", "content": ""}]
ROW: dict[str, Any] = {"id": "a", "messages": TURNS, "n": [1.5, None, True], "o": {"x": -1}}
SHARED = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "id": 1}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT, st.lists, max_leaves=4
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXT})


@pytest.fixture(autouse=True, scope="module")
def no_decoders_of_other_tests() -> Iterator[None]:
    """As in a process that has just begun: the sets of keys that are read at once are few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uniform_lines, "DECODERS", {})
        yield


def one_by_one(source: str, data: bytes) -> list[formats.Read]:
    """What the format's own reader makes of the lines."""
    return [rows.READERS[source](orjson.loads(line)) for line in data.splitlines()]


@pytest.mark.parametrize(("source", "row"), [("messages", ROW), ("sharegpt", SHARED)])
def test_uniform_lines_are_what_the_reader_makes_of_them(source: str, row: dict[str, Any]) -> None:
    data = (orjson.dumps(row) + b"\n") * 3
    found = uniform_lines.read_chunk(source, data)
    assert found and len(found) == 3
    for (episode, plain), (wanted, _) in zip(found, one_by_one(source, data), strict=True):
        made = formats.with_messages(episode, plain)
        assert orjson.dumps(made) == orjson.dumps(formats.with_messages(wanted, plain))


@pytest.mark.parametrize(
    "line",
    [
        b'{"messages": [{"role": "user", "content": "spaces"}]}',
        b'{"messages":[]}',
        b'{"messages":[{"content":"a","role":"user"}]}',
        b'{"messages":[{"role":"tool","content":"a"}]}',
        b'{"messages":[{"role":"user","content":null}]}',
        b'{"messages":[{"role":"user","content":"a","weight":0}]}',
        b'{"messages":[{"role":"user","content":"a"}],"x":1,"x":1}',
        b'{"messages":[{"role":"user","content":"a"}],"x":{"y":1,"y":1}}',
        b'{"messages":[{"role":"user","content":"a"}],"x":NaN}',
        b'{"messages":[{"role":"user","content":"a"}],"x":18446744073709551617}',
        b'{"messages":[{"role":"user","content":"a"}],"x":[18446744073709551617]}',
        b'{"messages":[{"role":"user","content":"a"}],"x":[[1]]}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"user","content":"\xff"}]}',
        b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"other":1}',
        b'["messages"]',
        b'"messages"',
        b"7",
        b"",
    ],
)
def test_any_other_line_is_left_to_the_reader(line: bytes) -> None:
    uniform = orjson.dumps({"messages": TURNS})
    for data in (line + b"\n", line, uniform + b"\n" + line + b"\n", line + b"\n" + uniform + b"\n"):
        assert uniform_lines.read_chunk("messages", data) is None


def test_keys_that_a_reader_of_sharegpt_takes_are_left_to_it() -> None:
    for row in (SHARED | {"system": "s"}, SHARED | {"messages": []}):
        assert uniform_lines.read_chunk("sharegpt", orjson.dumps(row) + b"\n") is None


@given(st.lists(st.fixed_dictionaries({"messages": st.lists(TURN, max_size=4), "x": JSON}), min_size=1, max_size=4))
def test_whatever_is_read_at_once_is_read_the_same(rows: list[dict[str, Any]]) -> None:
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    if (found := uniform_lines.read_chunk("messages", data)) is None:
        return
    assert [formats.with_messages(*each) for each in found] == [episode for episode, _ in one_by_one("messages", data)]


def test_a_file_of_ever_other_keys_does_not_fill_the_memory() -> None:
    """Beyond a bound of sets of keys, lines are left to the reader; those of sets that are known are read at once."""
    most = uniform_lines.MOST_KEY_SETS
    chunks = [orjson.dumps({"messages": TURNS, f"key{number}": 1}) + b"\n" for number in range(2 * most)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uniform_lines, "DECODERS", {})
        at_once = [uniform_lines.read_chunk("messages", each) is not None for each in chunks]
        assert at_once == [True] * most + [False] * most
        assert uniform_lines.read_chunk("messages", chunks[0])
