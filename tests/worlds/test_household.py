"""The household: ALFWorld's words and rules, an expert that wins, episodes that are the same everywhere."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.parts.household import problem
from tools import BadInput, Failed
from tools.core import catalog, run_folder
from tools.worlds.household import alfworld, episodes
from tools.worlds.household.expert import STYLES, Expert, Lost
from tools.worlds.household.facts import facts
from tools.worlds.household.rooms import make_room, make_room_for
from tools.worlds.household.world import NOTHING, Room, World, kind

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
    for action in ("go to fridge 1", "open fridge 1", "take potato 1 from fridge 1", "go to microwave 1"):
        world.step(action)
    world.step("heat potato 1 with microwave 1")
    world.step("go to fridge 1")
    assert world.step("cool potato 1 with fridge 1") == "You cool the potato 1 using the fridge 1."
    assert world.step("examine potato 1") == "This is a cold potato 1."


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


def wide_rooms() -> Iterator[Room]:
    """All tasks and all rooms by turns."""
    return episodes.drawn_rooms(0, list(facts().tasks), list(facts().rooms))


def actions_of(episode: dict[str, Any]) -> list[str]:
    return [turn["content"].split("Action: ")[1] for turn in episode["messages"] if turn["role"] == "assistant"]


BEDROOM = Room(
    seed=0,
    task="look",
    object="book",
    target="desklamp",
    goal="look at book under the desklamp",
    receptacles={"bed 1": ("book 1",), "desk 1": ("desklamp 1", "mug 1"), "drawer 1": ()},
)


def test_a_thing_is_looked_at_by_holding_it_where_a_lamp_is_on() -> None:
    world = World(BEDROOM)
    told = {
        "look": "You are in the middle of a room. Looking quickly around you, you see nothing.",
        "go to desk 1": "You arrive at desk 1. On the desk 1, you see a desklamp 1, and a mug 1.",
        "take desklamp 1 from desk 1": NOTHING,
        "use desklamp 1": "You turn on the desklamp 1.",
        "use desklamp 1 ": "You turn on the desklamp 1.",
        "examine mug 1": NOTHING,  # only what is held, and the receptacle
        "take mug 1 from desk 1": "You pick up the mug 1 from the desk 1.",
        "examine mug 1 ": "This is a normal mug 1. In it, you see nothing.",
        "move mug 1 to desk 1": "You move the mug 1 to the desk 1.",
        "examine desk 1": "On the desk 1, you see a desklamp 1, and a mug 1.",
        "go to bed 1": "You arrive at bed 1. On the bed 1, you see a book 1.",
        "take book 1 from bed 1": "You pick up the book 1 from the bed 1.",
        "use desklamp 1  ": NOTHING,
    }
    assert {action: world.step(action) for action in told} == told
    assert not world.won
    world.step("go to desk 1")
    assert world.won
    world.step("go to bed 1")
    assert not world.won


def test_two_things_must_lie_in_the_same_place() -> None:
    room = Room(0, "two", "cd", "safe", "put two cd in safe", {"desk 1": ("cd 2", "cd 1"), "safe 1": (), "safe 2": ()})
    world = World(room)
    for thing, safe in (("cd 1", "safe 1"), ("cd 2", "safe 2")):
        for action in (
            "go to desk 1",
            f"take {thing} from desk 1",
            f"go to {safe}",
            f"open {safe}",
            f"move {thing} to {safe}",
        ):
            assert world.step(action) != NOTHING
    assert not world.won
    for action in ("take cd 2 from safe 2", "go to safe 1", "move cd 2 to safe 1"):
        assert world.step(action) != NOTHING
    assert world.won
    assert world.step("examine safe 1") == "The safe 1 is open. In it, you see a cd 2, and a cd 1."


def test_a_thing_is_sliced_with_a_knife_in_hand() -> None:
    room = Room(0, "put", "egg", "bowl", "", {"countertop 1": ("knife 1", "tomato 1", "mug 1"), "sinkbasin 1": ()})
    world = World(room)
    world.step("go to countertop 1")
    assert world.step("slice tomato 1 with knife 1") == NOTHING
    world.step("take knife 1 from countertop 1")
    assert world.step("slice mug 1 with knife 1") == NOTHING
    assert world.step("slice tomato 1 with knife 1") == "You sliced the tomato 1 with the knife 1."
    world.step("move knife 1 to countertop 1")
    world.step("take tomato 1 from countertop 1")
    world.step("go to sinkbasin 1")
    world.step("clean tomato 1 with sinkbasin 1")
    assert world.step("examine tomato 1") == "This is a clean sliced tomato 1."


def test_a_misspelt_key_of_the_catalog_is_told_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (catalog.CATALOG / "household.yaml").read_text()
    line = next(number for number, each in enumerate(text.splitlines(), 1) if each.startswith("  safe:"))
    (tmp_path / "household.yaml").write_text(
        text.replace("safe:              {most: 2, openable", "safe: {most: 2, opens")
    )
    monkeypatch.setattr(catalog, "CATALOG", tmp_path)
    with pytest.raises(BadInput, match=rf"household.yaml:{line}: receptacles.safe.opens: no such key"):
        facts.__wrapped__()


def test_all_tasks_in_all_their_rooms_are_made_told_in_alfworlds_order() -> None:
    met: Counter[tuple[str, str]] = Counter()
    for room in itertools.islice(wide_rooms(), 600):
        place = next(
            name for name, known in facts().rooms.items() if {*map(kind, room.receptacles)} <= {*known.receptacles}
        )
        met[room.task, place] += 1
        for names in (list(room.receptacles), *room.receptacles.values()):
            assert list(names) == sorted(names, key=lambda name: (kind(name), -int(name.split()[1])))
    asked = {(task, place) for task, known in facts().tasks.items() for place in known.rooms}
    assert set(met) == asked
    assert make_room_for(7, "look", "bedroom") == make_room_for(7, "look", "bedroom")
    assert make_room_for(7, "look", "bedroom") != make_room_for(8, "look", "bedroom")


def test_the_expert_wins_all_tasks_in_all_rooms_and_never_goes_in_circles() -> None:
    won, rooms = 0, 2000
    for room in itertools.islice(wide_rooms(), rooms):
        world, observation = World(room), room.introduction
        expert, met = Expert(observation, random.Random(room.seed), slip=0.5), set[Any]()
        for _ in range(episodes.MOST_STEPS):
            action = expert.act(observation)[1]
            state = (action, observation, world.held, len(expert.put))
            assert state not in met, f"room {room.seed}: again {action}"
            met.add(state)
            observation = world.step(action)
            if world.won:
                won += 1
                break
    assert won >= 0.99 * rooms


def test_both_styles_play_alike_and_terse_thoughts_are_the_end_of_full_ones() -> None:
    for room in itertools.islice(wide_rooms(), 60):
        full, terse = (episodes.episode(room, slip=0.5, style=style) for style in STYLES)
        assert full and terse and actions_of(full) == actions_of(terse)
        for one, other in zip(full["messages"], terse["messages"], strict=True):
            assert one["content"].endswith(other["content"].removeprefix("Thought: "))
        assert len(orjson.dumps(terse)) < len(orjson.dumps(full))


@pytest.mark.parametrize("seed", range(60))
def test_the_expert_never_tries_again_what_did_nothing_and_gives_up_in_the_end(seed: int) -> None:
    """An unruly world, where things at random cannot be done, now or ever."""
    room = next(itertools.islice(wide_rooms(), seed, None))
    rng, world, observation = random.Random(seed), World(room), room.introduction
    expert, refused = Expert(observation, random.Random(0)), set[str]()
    for _ in range(300):
        try:
            action = expert.act(observation)[1]
        except Lost:
            return
        assert action not in refused or action.startswith("go to")
        observation = NOTHING if rng.random() < 0.4 else world.step(action)
        if observation == NOTHING:
            refused.add(action)
        if world.won:
            return
    pytest.fail("still playing")


def test_episodes_are_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    def made(name: str, seed: int = 1, tasks: str = "all", rooms: str = "all") -> bytes:
        out = tmp_path / name
        assert episodes.make(str(out), 30, seed, tasks, rooms, slip=0.2) == {"episodes": 30, "left out": 0}
        return out.read_bytes()

    one = made("one.jsonl")
    assert one == made("two.jsonl") != made("three.jsonl", seed=2)
    assert Counter(orjson.loads(line)["task"] for line in one.splitlines()) == dict.fromkeys(facts().tasks, 5)
    heat = made("heat.jsonl", tasks="heat,look", rooms="kitchen")
    assert {orjson.loads(line)["task"] for line in heat.splitlines()} == {"heat"}
    counts = episodes.make(str(tmp_path / "large.jsonl"), 30, tasks="heat,look", rooms="large", steps=50)
    large = (tmp_path / "large.jsonl").read_bytes().splitlines()
    assert len(large) == counts["episodes"] == 30 and all(b"toaster 1" in line for line in large)
    assert b"toaster" not in one


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tasks": "juggle"}, "juggle: not among the household's tasks: put, look"),
        ({"rooms": "cellar"}, "cellar: not among the household's rooms: kitchen"),
        ({"tasks": "heat", "rooms": "bathroom"}, "set in none of bathroom"),
        ({"style": "grand"}, "grand: the expert's styles are full, terse"),
        ({"games": "nowhere"}, "nowhere: no such folder"),
        ({"games": "."}, "no game.tw-pddl below it"),
    ],
)
def test_what_cannot_be_made_is_said_and_nothing_is_written(
    asked: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=said):
        episodes.make("out.jsonl", 3, **asked)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_too_few_steps_end_in_words_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="more steps than 2"):
        episodes.make(str(tmp_path / "out.jsonl"), 3, steps=2)
    assert not list(tmp_path.iterdir())


def save_game(folder: Path, room: Room, **other: Any) -> None:
    """A folder of json_2.1.1 with its game, told in a grammar cut down to what is read of it."""
    problem.write(folder, room, together=2)
    text = (folder / "initial_state.pddl").read_text()
    grammar = f'"rhs": "Your task is to: {room.goal}."\ntemplate :: "move {{o}} to {{r}}";'
    game = {"pddl_problem": text, "pddl_domain": "", "grammar": grammar, "solvable": True, "walkthrough": []}
    (folder / "game.tw-pddl").write_bytes(orjson.dumps(game | other))


def test_alfworlds_games_are_played_through_the_same_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    data = tmp_path / "json_2.1.1" / "train"
    for number, room in enumerate(itertools.islice(wide_rooms(), 24)):
        save_game(data / f"{number:02d}-{room.task}" / "trial_T1", room)
    save_game(data / "90-unsolvable" / "trial_T1", BEDROOM, solvable=False)
    save_game(data / "91-AppleSliced" / "trial_T1", BEDROOM)
    for room, own in zip(alfworld.games(alfworld.folder("train")), itertools.islice(wide_rooms(), 24), strict=True):
        assert room.introduction == own.introduction
        assert dict(room.receptacles) == own.receptacles
    out = tmp_path / "out.jsonl"
    assert episodes.make(str(out), 99, steps=50, games="train") == {"episodes": 24, "left out": 0}
    assert orjson.loads(out.read_bytes().splitlines()[0])["id"] == "00-put/trial_T1"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"pddl_problem": None}, "not a game of ALFWorld's json_2.1.1"),
        ({"pddl_problem": "(define)"}, "not a game of ALFWorld's json_2.1.1"),
        ({"grammar": 'Your task is to: dance."'}, "of another ALFWorld than 0.4"),
    ],
)
def test_a_game_that_cannot_be_read_is_named(other: dict[str, Any], said: str, tmp_path: Path) -> None:
    save_game(tmp_path / "trial", BEDROOM, **other)
    with pytest.raises(BadInput, match=said) as told:
        list(alfworld.games(tmp_path))
    assert "trial" in str(told.value)
    (tmp_path / "trial" / "game.tw-pddl").write_text("{")
    with pytest.raises(BadInput, match="game.tw-pddl"):
        list(alfworld.games(tmp_path))


def test_the_expert_refuses_other_tasks() -> None:
    with pytest.raises(ValueError, match="juggle"):
        Expert("You see a fridge 1.\n\nYour task is to: juggle.", random.Random(0))


def test_the_committed_episodes_are_those_the_code_makes() -> None:
    for name, made in (("train", episodes.train_episodes()), ("test", episodes.test_episodes())):
        assert (run_folder.ROOT / "data" / f"{name}.jsonl").read_bytes() == b"".join(
            orjson.dumps(each) + b"\n" for each in made
        )
