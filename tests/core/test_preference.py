"""Preference pairs: what is one that can be trained, and what is said of what is none."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from tools import BadInput
from tools.core import preference, trajectory

USER = {"role": "user", "content": "Put a cup on the desk."}
GOOD = {"role": "assistant", "content": "Thought: I look.\nAction: go to desk 1"}
BAD = {"role": "assistant", "content": "Thought: I guess.\nAction: take cup 1 from desk 1"}
SEEN = {"role": "user", "content": "Observation: You see nothing."}
PAIR = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}


def test_pairs_are_read_with_what_their_owner_put_there(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b"".join(orjson.dumps(PAIR | {"task": number}) + b"\n" for number in range(3)))
    assert [each["task"] for each in preference.read(file)] == [0, 1, 2]


BROKEN: list[tuple[Any, str]] = [
    ({"messages": [USER, GOOD]}, "an episode, and rl: dpo learns from preference pairs"),
    ([PAIR], "no JSON object"),
    (PAIR | {"images": []}, '"images" beside a pair: TRL would take it for data of another kind'),
    (PAIR | {"chosen": "Action: look"}, '"chosen" is no list of turns; .*convert --to messages'),
    (PAIR | {"rejected": []}, '"rejected" is no list of turns'),
    (PAIR | {"prompt": [USER, GOOD]}, "the prompt must end with the user's turn"),
    (PAIR | {"prompt": [USER, USER]}, "prompt: message 2 is the user's and must be the assistant's"),
    (PAIR | {"chosen": [GOOD, SEEN, GOOD]}, "chosen has 3 turns, and only its last would be trained"),
    (PAIR | {"rejected": [SEEN]}, "rejected is the user's turn"),
    (PAIR | {"rejected": [GOOD]}, "chosen and rejected are the same"),
    (PAIR | {"chosen": [{"role": "assistant", "content": " "}]}, "chosen, turn 1 .assistant. has no text"),
]


@pytest.mark.parametrize(("row", "said"), BROKEN)
def test_what_is_no_pair_is_told_in_one_line(row: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(orjson.dumps(PAIR) + b"\n" + orjson.dumps(row) + b"\n")
    with pytest.raises(BadInput, match=f"pairs.jsonl:2: {said}") as raised:
        list(preference.read(file))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_told_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="pairs.jsonl: no preference pairs there; DATA= names a file of"):
        list(preference.read(tmp_path / "pairs.jsonl"))


def test_a_reader_of_episodes_knows_a_pair_when_it_meets_one(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(orjson.dumps(PAIR) + b"\n")
    with pytest.raises(BadInput, match="pairs.jsonl:1: a preference pair, and this takes episodes"):
        list(trajectory.read(file))


def test_what_was_learned_from_is_read_as_conversations(tmp_path: Path) -> None:
    file = tmp_path / "both.jsonl"
    file.write_bytes(orjson.dumps(PAIR) + b"\n" + orjson.dumps({"messages": [USER, GOOD]}) + b"\n")
    assert [each["messages"] for each in preference.conversations(file)] == [[USER, GOOD]] * 2
