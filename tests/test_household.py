"""The household: ALFWorld's words and rules, an expert that wins, episodes that are the same everywhere."""

import itertools
import random

import orjson
import pytest

from tools import run
from tools.household import episodes
from tools.household.expert import Expert
from tools.household.world import NOTHING, Room, World, make_room

ROOM = Room(
    seed=0,
    task="heat",
    object="potato",
    target="diningtable",
    goal="heat some potato and put it in diningtable",
    receptacles={
        "cabinet 1": (),
        "fridge 1": ("potato 1", "mug 1"),
        "microwave 1": (),
        "countertop 1": ("bread 1",),
        "diningtable 1": ("apple 1",),
    },
)


def test_a_game_is_told_in_alfworlds_words() -> None:
    world = World(ROOM)
    assert ROOM.introduction == (
        "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a fridge 1, a microwave 1, "
        "a countertop 1, and a diningtable 1.\n\nYour task is to: heat some potato and put it in diningtable."
    )
    told = {
        "inventory": "You are not carrying anything.",
        "go to fridge 1": "You arrive at fridge 1. The fridge 1 is closed.",
        "open fridge 1": "You open the fridge 1. The fridge 1 is open. In it, you see a potato 1, and a mug 1.",
        "take potato 1 from fridge 1": "You pick up the potato 1 from the fridge 1.",
        "close fridge 1": "You close the fridge 1.",
        "go to countertop 1": "You arrive at countertop 1. On the countertop 1, you see a bread 1.",
        "examine potato 1": "There's nothing special about potato 1.",
        "go to microwave 1": "You arrive at microwave 1. The microwave 1 is closed.",
        "heat potato 1 with microwave 1": "You heat the potato 1 using the microwave 1.",
        "examine potato 1 ": "This is a hot potato 1.",
        "go to diningtable 1": "You arrive at diningtable 1. On the diningtable 1, you see a apple 1.",
        "look": "You are facing the diningtable 1. Next to it, you see nothing.",
    }
    assert {action: world.step(action) for action in told} == told
    assert not world.won
    assert world.step("move potato 1 to diningtable 1") == "You move the potato 1 to the diningtable 1."
    assert world.won


@pytest.mark.parametrize(
    "action",
    [
        "go to cabinet 2",  # not in the room
        "open fridge 1",  # not there
        "take bread 1 from countertop 1",  # not there
        "heat potato 1 with microwave 1",  # not held
        "Go To Fridge 1",
        "dance",
        "",
    ],
)
def test_what_cannot_be_done_does_nothing(action: str) -> None:
    assert World(ROOM).step(action) == NOTHING


def test_a_closed_place_takes_and_gives_nothing() -> None:
    world = World(ROOM)
    world.step("go to fridge 1")
    assert world.step("take potato 1 from fridge 1") == NOTHING
    world.step("open fridge 1")
    world.step("take potato 1 from fridge 1")
    world.step("go to cabinet 1")
    assert world.step("move potato 1 to cabinet 1") == NOTHING


def test_cooling_undoes_heating() -> None:
    world = World(ROOM)
    for action in ("go to fridge 1", "open fridge 1", "take mug 1 from fridge 1", "go to microwave 1"):
        world.step(action)
    world.step("heat mug 1 with microwave 1")
    world.step("go to fridge 1")
    assert world.step("cool mug 1 with fridge 1") == "You cool the mug 1 using the fridge 1."
    assert world.step("examine mug 1") == "This is a cold mug 1."


def test_a_seed_gives_the_same_room() -> None:
    assert make_room(7) == make_room(7) != make_room(8)


def test_the_expert_wins_within_the_steps_and_never_repeats_a_failed_action() -> None:
    for seed in range(500):
        played = episodes.episode(make_room(seed), slip=1.0)
        assert played, f"room {seed} is lost"
        actions = [turn["content"] for turn in played["messages"] if turn["role"] == "assistant"]
        assert len(actions) <= episodes.MOST_STEPS
        assert all(one != next_one for one, next_one in itertools.pairwise(actions))


def test_the_expert_knows_only_what_it_was_told() -> None:
    """Two rooms that have told the same so far get the same action."""
    other = Room(**{**vars(ROOM), "receptacles": {**ROOM.receptacles, "fridge 1": (), "cabinet 1": ("potato 1",)}})
    for room in (ROOM, other):
        expert, world = Expert(room.introduction, random.Random(0)), World(room)
        assert expert.act(room.introduction)[1] == "go to fridge 1"
        assert expert.act(world.step("go to fridge 1"))[1] == "open fridge 1"


def test_the_expert_refuses_other_tasks() -> None:
    with pytest.raises(ValueError, match="juggle"):
        Expert("You see a fridge 1.\n\nYour task is to: juggle.", random.Random(0))


def test_the_committed_episodes_are_those_the_code_makes() -> None:
    for name, made in (("train", episodes.train_episodes()), ("test", episodes.test_episodes())):
        assert (run.ROOT / "data" / f"{name}.jsonl").read_bytes() == b"".join(
            orjson.dumps(each) + b"\n" for each in made
        )


def test_no_layout_stands_in_two_sets() -> None:
    train = episodes.introductions(episodes.train_episodes())
    test = episodes.introductions(episodes.test_episodes())
    play = {room.introduction for room in episodes.unseen_rooms(200)}
    assert len(train) >= 240 and len(test) >= 40 and len(play) == 200
    assert not train & test and not train & play and not test & play
