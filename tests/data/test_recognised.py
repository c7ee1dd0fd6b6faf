"""Rows as other tools write them: what each is read as, and the message for what cannot be read."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.data.test_convert import command, to
from tools import BadInput

ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
TURNS = [ASKED, ANSWERED]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def read(folder: Path, text: str | bytes, name: str = "in.jsonl", **how: Any) -> list[Any]:
    """The rows that a file of this text becomes."""
    path, out = folder / name, folder / "out.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    to(out, path, force=True, **how)
    return [orjson.loads(line) for line in out.open("rb")]


def lines(*rows: object) -> bytes:
    """Rows as lines of JSON."""
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "user", "value": "Hi"}, {"from": "bot", "value": "Hello"}]},
        {"conversations": [{"from": "Human", "value": "Hi"}, {"from": "ChatGPT", "value": "Hello"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "model", "value": "Hello"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"conversations": orjson.dumps(SHARED).decode()},
        {"messages": SHARED},
        {"messages": [{"role": "human", "content": "Hi"}, {"role": "ai", "content": "Hello"}]},
        {"messages": [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "Hel"}, "lo"]}]},
        {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"text": "Hello"}]}]},
        {"conversation": TURNS},
        {"conversation": [{"input": "Hi", "output": "Hello"}]},
        {"data": TURNS},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"prompt": "Hi", "completion": "Hello"},
        {"query": "Hi", "response": "Hello"},
        {"instruction": "Hi", "input": "", "response": "Hello"},
        TURNS,
    ],
)
def test_a_row_in_other_words_is_the_same_episode(tmp_path: Path, row: object) -> None:
    assert read(tmp_path, lines(row)) == [{"messages": TURNS}]


def test_history_system_and_what_else_stands_there_are_kept(tmp_path: Path) -> None:
    (row,) = read(
        tmp_path, lines({"id": 3, "query": "b", "response": "c", "history": [["Hi", "Hello"]], "system": "s"})
    )
    assert row["id"] == 3 and [turn["content"] for turn in row["messages"]] == ["s", "Hi", "Hello", "b", "c"]


def test_calls_of_tools_as_swift_writes_them_are_read(tmp_path: Path) -> None:
    call = {"role": "tool_call", "content": '{"name": "get_time", "arguments": {"town": "Ulm"}}'}
    (row,) = read(tmp_path, lines({"messages": [ASKED, call, {"role": "tool_response", "content": "09:10"}, ANSWERED]}))
    said = [turn["content"] for turn in row["messages"]]
    assert said == ["Hi", 'Action: get_time\nAction Input: {"town":"Ulm"}', "Observation: 09:10", "Hello"]


def test_a_call_without_the_function_around_it_is_read(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "get_time", "arguments": {"town": "Ulm"}}]}
    (row,) = read(tmp_path, lines({"messages": [ASKED, call, {"role": "tool", "content": "09:10"}, ANSWERED]}))
    assert 'Action: get_time\nAction Input: {"town":"Ulm"}' in row["messages"][1]["content"]


EPISODE = {"id": "a", "messages": TURNS}
TEXT = orjson.dumps(EPISODE).decode()
PRETTY = orjson.dumps(EPISODE, option=orjson.OPT_INDENT_2).decode()
LIST = orjson.dumps(TURNS).decode()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (PRETTY, 1),
        (f"{PRETTY}\n{PRETTY}\n", 2),
        (f"{PRETTY},\n{PRETTY}\n", 2),
        (f"{TEXT},\n{TEXT},\n", 2),
        (f"{TEXT}\n\ufeff{TEXT}\n", 2),
        (f"\ufeff{TEXT}\r\n{TEXT}\r\n", 2),
        (f'{{"data": [{TEXT}, {TEXT}]}}', 2),
        (f'{{\n  "version": 1,\n  "data": [\n{PRETTY},\n{PRETTY}\n]\n}}\n', 2),
        (f"[{PRETTY},\n{PRETTY}]", 2),
        (f"[{LIST}, {LIST}]", 2),
        (f"{LIST}\n{LIST}\n", 2),
        (orjson.dumps(TURNS, option=orjson.OPT_INDENT_2).decode(), 1),
        (f"{TEXT}\n" + lines({"conversations": SHARED}).decode(), 2),
    ],
)
def test_rows_are_found_however_the_file_lays_them_out(tmp_path: Path, text: str, count: int) -> None:
    assert [row["messages"] for row in read(tmp_path, text)] == [TURNS] * count
    path = tmp_path / "in.jsonl"  # the same from a pipe
    done = command("-", "-", "--to", "messages", input=path.read_bytes())
    assert [orjson.loads(line)["messages"] for line in done.stdout.splitlines()] == [TURNS] * count


def test_what_was_recognised_is_said(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        lines({"conversations": SHARED}, {"conversations": SHARED}, EPISODE, {"query": "a", "response": "b"})
    )
    done = command(path, tmp_path / "out.jsonl", "--to", "messages")
    assert done.stdout.decode().splitlines()[1] == "recognised: sharegpt 2, messages 1, alpaca 1"


def test_a_role_is_mapped_by_name(tmp_path: Path) -> None:
    row = {"messages": [{"role": "guest", "content": "Hi"}, {"role": "host", "content": "Hello"}]}
    assert read(tmp_path, lines(row), roles={"guest": "user", "host": "assistant"}) == [{"messages": TURNS}]
    swapped = {"messages": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hello"}]}
    assert read(tmp_path, lines(swapped), roles={"user": "assistant", "assistant": "user"}) == [{"messages": TURNS}]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (
            {"messages": [ASKED, {"role": "narrator", "content": "x"}]},
            "turn 2 has role 'narrator'; --role NAME=user",
        ),
        ({"conversations": [{"value": "x"}]}, "turn 1 has no role"),
        ({"messages": [ASKED, "Hello"]}, "turn 2 is no object"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "turn 1 has a part of type 'image_url'"),
        ({"messages": [ASKED, {"role": "assistant", "content": 4}]}, "turn 2 has no text but 4"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": None}]}, "turn 2 has no text;"),
        ({"instruction": "2+2?", "output": 4}, "Expected `str`, got `int` - at `$.output`"),
        ({"conversations": []}, "no turns"),
        ({"conversations": "Hi"}, 'no "conversations"'),
        ({"text": "Hi"}, 'not a known format: an episode has "messages"'),
    ],
)
def test_a_message_names_what_was_found(tmp_path: Path, row: object, why: str) -> None:
    with pytest.raises(BadInput) as error:
        read(tmp_path, lines(row))
    assert f"in.jsonl:1: {why}" in str(error.value)


OTHER = {"role": "assistant", "content": "Go"}
TRL = {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [OTHER], "id": 7}
PAIRS: dict[str, Any] = {
    "messages": TRL,
    "sharegpt": {
        "conversations": SHARED[:1],
        "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "Go"},
        "id": 7,
    },
    "alpaca": {
        "instruction": "Hi",
        "input": "",
        "chosen": "Hello",
        "rejected": "Go",
        "system": "",
        "history": [],
        "id": 7,
    },
}


@pytest.mark.parametrize("source", PAIRS)
@pytest.mark.parametrize("target", PAIRS)
def test_preference_pairs_are_read_and_written_in_each_way(tmp_path: Path, source: str, target: str) -> None:
    assert read(tmp_path, lines(PAIRS[source]), target=target) == [PAIRS[target]]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": TURNS, "rejected": [ASKED, OTHER], "id": 7},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go", "id": 7},
        {"prompt": "Hi", "chosen": TURNS, "rejected": [ASKED, OTHER], "id": 7},
    ],
)
def test_a_prompt_within_the_answers_or_as_a_text_is_the_same_pair(tmp_path: Path, row: object) -> None:
    assert read(tmp_path, lines(row)) == [TRL]


def test_a_pair_that_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="agentinstruct cannot hold this: a preference pair"):
        read(tmp_path, lines(TRL), target="agentinstruct")
    with pytest.raises(BadInput, match="a pair needs a prompt that ends with the user's turn"):
        read(tmp_path, lines({"chosen": [ANSWERED], "rejected": [OTHER]}))
