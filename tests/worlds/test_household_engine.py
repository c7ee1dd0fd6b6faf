"""The household against ALFWorld's own engine: the same rooms, the same actions, the same words and the same end.

REACT_RECIPES_ENGINE_ROOMS=300 plays more rooms than the 60 of a plain run.
"""

import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import orjson
import pytest

from tests.parts.household import problem
from tests.parts.household.engine import Engine
from tools.worlds.household import alfworld, episodes
from tools.worlds.household.expert import Expert
from tools.worlds.household.facts import facts
from tools.worlds.household.rooms import make_room
from tools.worlds.household.world import NOTHING, Room, World

pytestmark = pytest.mark.slow
ROOMS = int(os.environ.get("REACT_RECIPES_ENGINE_ROOMS", "60"))
MOVES = 40
WELCOME = "-= Welcome to TextWorld, ALFRED! =-\n\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as running:
        yield running


@pytest.fixture(scope="module")
def logic(engine: Engine) -> dict[str, str]:
    """ALFWorld's own domain and grammar."""
    told = engine.ask(logic=True)
    return {"pddl_domain": told["domain"], "grammar": told["grammar"]}


def rooms() -> Iterator[Room]:
    """All tasks and rooms by turns."""
    return episodes.drawn_rooms(7, list(facts().tasks), list(facts().rooms))


def save(path: Path, logic: dict[str, str], room: Room, text: str) -> None:
    """Make a game file as alfworld-generate does."""
    grammar = logic["grammar"].replace("UNKNOWN GOAL", room.goal)
    path.write_bytes(orjson.dumps({**logic, "grammar": grammar, "pddl_problem": text, "walkthrough": None}))


def any_action(rng: random.Random, room: Room) -> str:
    """An action of names in the room, most often one that cannot be done; now and then none at all."""
    places = list(room.receptacles)
    things = [thing for held in room.receptacles.values() for thing in held] or places
    thing, other, place = rng.choice(things), rng.choice(things), rng.choice(places)
    verb = rng.choice(["heat", "cool", "clean"])
    return rng.choice(
        [
            f"go to {place}",
            f"go to {thing}",
            f"open {place}",
            f"close {place}",
            f"take {thing} from {place}",
            f"move {thing} to {place}",
            f"put {thing} in/on {place}",
            f"{verb} {thing} with {place}",
            f"use {thing}",
            f"slice {thing} with {other}",
            f"examine {thing}",
            f"examine {place}",
            f"Go to {place}",
            f"take {thing}",
            f"go to {place}.",
            "look around",
            "inventory now",
            "dance",
            "",
        ]
    )


def one_of_each_verb(rng: random.Random, admissible: list[str]) -> str:
    """An action that can be done: first a verb, then one of its actions, since most of them go somewhere."""
    verb = rng.choice(sorted({action.split(" ")[0] for action in admissible}))
    return rng.choice([action for action in admissible if action.split(" ")[0] == verb])


def compare(engine: Engine, game: Path, room: Room, names: dict[str, str] | None = None) -> int:
    """Play a room in both, by the expert and at random; the number of observations, all of them equal."""
    rng = random.Random(room.seed)
    moves = 0
    for player in ("expert", "random", "random"):
        world, told = World(room), engine.ask(load=str(game), names=names)
        assert told["observation"] == WELCOME + room.introduction
        assert told["won"] == world.won
        expert, observation = Expert(room.introduction, rng, slip=0.5), room.introduction
        for _ in range(MOVES):
            if player == "expert":
                action = expert.act(observation)[1]
            else:
                action = one_of_each_verb(rng, told["admissible"]) if rng.random() < 0.7 else any_action(rng, room)
            possible = action.strip() in told["admissible"]
            observation, told = world.step(action), engine.ask(do=action)
            where = f"room {room.seed} ({room.task}), {player}: {action!r}"
            assert observation == told["observation"], where
            assert possible == (observation != NOTHING), where
            assert world.won == told["won"], where
            moves += 1
            if player == "expert" and world.won:
                break
        assert player != "expert" or world.won
    return moves


def test_rooms_told_in_alfworlds_order_play_as_in_its_engine(
    engine: Engine, logic: dict[str, str], tmp_path: Path
) -> None:
    moves = 0
    for room in islice(rooms(), ROOMS * 2 // 3):
        save(tmp_path / "game.tw-pddl", logic, room, problem.problem(room, problem.ids(room)))
        moves += compare(engine, tmp_path / "game.tw-pddl", room)
    print(f"{ROOMS * 2 // 3} rooms, {moves} moves")


def test_large_kitchens_play_as_in_alfworlds_engine(engine: Engine, logic: dict[str, str], tmp_path: Path) -> None:
    drawn = episodes.drawn_rooms(7, list(facts().tasks), ["large"])
    short = (room for room in drawn if episodes.episode(room, slip=0, steps=MOVES // 2))
    for room in islice(short, ROOMS // 10):
        save(tmp_path / "game.tw-pddl", logic, room, problem.problem(room, problem.ids(room)))
        compare(engine, tmp_path / "game.tw-pddl", room)


def test_rooms_of_the_committed_kind_play_as_in_alfworlds_engine(
    engine: Engine, logic: dict[str, str], tmp_path: Path
) -> None:
    moves = 0
    for seed in range(ROOMS - ROOMS * 2 // 3):
        room = make_room(seed)
        keys = problem.ids_in_order(room)
        save(tmp_path / "game.tw-pddl", logic, room, problem.problem(room, keys))
        moves += compare(engine, tmp_path / "game.tw-pddl", room, {key: name for name, key in keys.items()})
    print(f"{ROOMS - ROOMS * 2 // 3} rooms, {moves} moves")


def test_games_of_alfworlds_own_layout_are_played_as_in_its_engine(engine: Engine, tmp_path: Path) -> None:
    """Folders made by ALFWorld's own alfworld-generate, several receptacles at one place, and more of its oddities."""
    data = tmp_path / "json_2.1.1"
    for number, room in enumerate(islice(rooms(), 24)):
        folder = data / "train" / f"{room.task}-{number:02d}" / "trial_T1"
        problem.write(folder, room, together=1 + number % 3, odd=number % 2 == 0)
    solved = engine.ask(make=str(data))["made"]
    played = []
    for game in sorted((tmp_path / "made").rglob("game.tw-pddl")):
        if found := alfworld.game(game.parent):
            compare(engine, game, found)
            played.append(found.task)
    assert len(played) == len(list(alfworld.games(tmp_path / "made"))) == solved
    assert set(played) == set(facts().tasks)


def test_the_catalog_has_alfworlds_facts(engine: Engine) -> None:
    told, known = engine.ask(facts=True), facts()
    holds = {place.lower(): {thing.lower() for thing in things} for place, things in told["holds"].items()}
    for thing, fact in known.objects.items():
        assert set(fact.taken_by) == {place for place in known.receptacles if thing in holds.get(place, ())}, thing
    for verb, kind in {"heat": "Heatable", "cool": "Coolable", "clean": "Cleanable", "slice": "Sliceable"}.items():
        able = {thing.lower() for thing in told["can"][kind]}
        assert {thing for thing, fact in known.objects.items() if verb in fact.can} == able & set(known.objects)
    openable = {place.lower() for place in told["openable"]}
    assert {place for place, fact in known.receptacles.items() if fact.openable} == openable - {"box"}
    vessels = {thing.lower() for thing in told["vessels"]}
    assert {thing for thing, fact in known.objects.items() if "hold" in fact.can} == vessels
    for task in known.tasks.values():
        assert set(task.rooms) == {room.lower() for room in told["rooms"][task.alfworld]}, task
        assert [say.format(object="{obj}", target="{t}") for say in task.say] == [
            say.replace("{recep}", "{t}").replace("{toggle}", "{t}") for say in told["say"][task.alfworld]
        ]
