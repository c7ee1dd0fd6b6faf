"""Split: no room and no near-duplicate on two sides, whatever the data; balanced, repeatable, whole or not at all."""

import hashlib
import random
import tempfile
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.data.test_near_duplicates import agree
from tools import BadInput
from tools.core import run_folder
from tools.data import lint, near_duplicates, split

Episode = dict[str, Any]
PARTS = {"train": 0.6, "validation": 0.2, "test": 0.2}
ANSWER = {"role": "assistant", "content": "Thought: a\nAction: b"}


def told(first: str, *, answers: int = 1, **more: Any) -> Episode:
    """An episode with this first user turn and so many answers, each about something else."""
    messages: list[dict[str, str]] = [{"role": "user", "content": first}]
    for number in range(answers):
        words = hashlib.sha256(f"{first} {number} {more}".encode()).hexdigest()
        thought = " ".join(words[start : start + 3] for start in range(0, 60, 3))
        messages += [
            {"role": "assistant", "content": f"Thought: {thought}\nAction: say"},
            {"role": "user", "content": "Observation: so"},
        ]
    return {"messages": messages[:-1]} | more


def kitchen(receptacles: list[str], goal: str, **more: Any) -> Episode:
    """A game's beginning in ALFWorld's words."""
    listed = ", ".join(f"a {each}" for each in receptacles)
    first = f"You are in the middle of a room. Looking quickly around you, you see {listed}."
    return told(f"{first}\n\nYour task is to: {goal}.", **more)


def write(path: Path, episodes: list[Episode]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in episodes))
    return path


def parts_of(folder: Path) -> dict[str, list[Episode]]:
    """What a split wrote."""
    return {file.stem: [orjson.loads(line) for line in file.read_bytes().splitlines()] for file in folder.iterdir()}


def rooms_of(episodes: list[Episode]) -> set[str]:
    """The rooms of episodes, told in another way than the code does: their receptacles' names."""
    found = set()
    for each in episodes:
        listed = each["messages"][0]["content"].partition("you see ")[2].partition(".")[0]
        found.add(str(sorted(listed.replace("and ", "").split(", "))))
    return found


RECEPTACLES = ["desk 1", "shelf 1", "shelf 2", "bed 1"]
ROOMS = some.lists(some.sampled_from(RECEPTACLES), min_size=1, max_size=3, unique=True)
GOALS = some.sampled_from(["put a mug in desk", "cool some egg and put it in fridge"])
PLAIN = some.sampled_from([" ".join(random.Random(seed).choices("abcdefghijklmnop", k=30)) for seed in range(6)])
ONE_WORD_MORE = some.builds("{} {}".format, PLAIN, some.sampled_from("uvw"))
EPISODES = some.lists(
    some.builds(kitchen, ROOMS, GOALS, answers=some.integers(1, 3), task=some.sampled_from(["put", "cool"]))
    | some.builds(told, PLAIN | ONE_WORD_MORE, answers=some.integers(1, 3))
    | some.builds(told, PLAIN, room=some.integers(0, 3)),
    min_size=1,
    max_size=25,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(EPISODES, some.integers(0, 5))
def test_nothing_is_ever_on_two_sides(episodes: list[Episode], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data, out = write(Path(folder) / "d.jsonl", episodes), Path(folder) / "out"
        try:
            split.split_files([str(data)], str(out), PARTS, seed, as_json=True)
        except BadInput as error:
            assert "too few" in str(error)
            assert not out.exists()
            return
        made = parts_of(out)
    assert all(made[part] for part in PARTS)
    lines = sorted(orjson.dumps(each) for part in made.values() for each in part)
    assert lines == sorted(orjson.dumps(each) for each in episodes)
    for one, other in combinations(made.values(), 2):
        for mine in one:
            for theirs in other:
                assert not together(mine, theirs), (mine, theirs)


def together(one: Episode, other: Episode) -> bool:
    """Whether two episodes must be on one side: the same room, or near-duplicates, by comparing them."""
    if "room" in one or "room" in other:
        same = one.get("room") == other.get("room")
    elif all("you see" in each["messages"][0]["content"] for each in (one, other)):
        same = rooms_of([one]) == rooms_of([other])
    else:
        same = agree(one["messages"][0]["content"], other["messages"][0]["content"]) >= near_duplicates.THRESHOLD
    return same or agree(lint.conversation(one), lint.conversation(other)) >= near_duplicates.THRESHOLD


def test_the_committed_episodes_are_split_by_room_balanced_and_again_the_same(tmp_path: Path) -> None:
    data = str(run_folder.ROOT / "data" / "train.jsonl")
    ratios = {"train": 0.7, "validation": 0.15, "test": 0.15}
    for out, seed in (("one", 7), ("two", 7), ("three", 8)):
        split.split_files([data], str(tmp_path / out), ratios, seed, as_json=True)
    first, again, other = (
        {file.name: file.read_bytes() for file in (tmp_path / out).iterdir()} for out in ("one", "two", "three")
    )
    assert first == again and first != other
    made = parts_of(tmp_path / "one")
    tellings = {part: {room_of(each) for each in episodes} for part, episodes in made.items()}
    assert not any(tellings[one] & tellings[two] for one, two in combinations(made, 2))
    assert sorted(b"".join(first.values()).splitlines()) == sorted(Path(data).read_bytes().splitlines())
    assert abs(len(made["train"]) - 0.7 * 240) < 3
    for episodes in made.values():
        counted: dict[str, int] = defaultdict(int)
        for each in episodes:
            counted[each["task"]] += 1
        for task, count in counted.items():
            in_all = sum(each["task"] == task for part in made.values() for each in part) / 240
            assert abs(count / len(episodes) - in_all) < 0.06, (task, count)


def room_of(episode: Episode) -> str:
    """The receptacles of a committed episode."""
    return str(rooms_of([{"messages": episode["messages"][1:]}]))


def test_a_rooms_order_and_its_task_do_not_make_it_another() -> None:
    one, other = kitchen(["desk 1", "bed 1"], "put a mug in desk"), kitchen(["bed 1", "desk 1"], "cool some egg")
    assert split.room(one) == split.room(other) == ("bed 1 desk 1", True)
    assert split.room(one | {"room": 7}) == ("7", True)
    assert split.room(told("Who wrote Emma?")) == ("Who wrote Emma?", False)


def test_a_chain_of_likes_is_one_group() -> None:
    """The first and the last share neither room nor words; each is like the one between."""
    talk = told(" ".join(map(str, range(60))), answers=3)
    between = orjson.loads(orjson.dumps(talk)) | {"room": "r"}
    assert split.survey([talk, told("else"), between, told("apart", room="r")]).groups == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("lines", "options", "says"),
    [
        ([b"{no json"], {}, "d.jsonl:1: not JSON"),
        ([orjson.dumps(told("a")), b'{"messages": []}'], {}, 'd.jsonl:2: no "messages"'),
        ([orjson.dumps(told("a"))] * 5, {}, "5 episodes are 1 groups that must stay together: too few for 3 parts"),
        ([orjson.dumps(told("a"))], {"test": 0.8, "validation": 0.4}, "together at most 1"),
    ],
)
def test_what_cannot_be_split_is_one_line(
    tmp_path: Path, lines: list[bytes], options: dict[str, float], says: str
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_bytes(b"".join(line + b"\n" for line in lines))
    ratios = {"train": 1 - sum(options.values()), "validation": 0.1, "test": 0.1} | options
    with pytest.raises(BadInput) as error:
        split.split_files([str(data)], str(tmp_path / "out"), ratios, 0, as_json=True)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_source_is_not_written_over_and_no_older_part_is_left_beside(tmp_path: Path) -> None:
    data = write(tmp_path / "train.jsonl", [told(f"{number} apples") for number in range(9)])
    before = data.read_bytes()
    with pytest.raises(BadInput, match="read and written at once"):
        split.split_files([str(data)], str(tmp_path), PARTS, 0, as_json=True)
    split.split_files([str(data)], str(tmp_path / "out"), PARTS, 0, as_json=True)
    with pytest.raises(BadInput, match=r"validation\.jsonl: stands there from another split"):
        split.split_files([str(data)], str(tmp_path / "out"), PARTS | {"validation": 0}, 0, as_json=True)
    split.split_files([str(data)], str(tmp_path / "two"), {"train": 0.5, "validation": 0, "test": 0.5}, 0, as_json=True)
    assert sorted(parts_of(tmp_path / "two")) == ["test", "train"] and data.read_bytes() == before


def test_the_table_shows_what_was_balanced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20)]
    data = write(tmp_path / "d.jsonl", [told(f"{word}", task="heat" if word < "8" else "put") for word in words])
    split.split_files([str(data)], str(tmp_path / "out"), {"train": 0.8, "test": 0.2}, 0, as_json=False)
    shown = capsys.readouterr().out
    for said in ("80.0% (80.0%)", "20.0% (20.0%)", "groups", "heat", "put", "mean answers", "20 groups, the largest 1"):
        assert said in shown
