"""ALFWorld's own games as rooms: the folders of its json_2.1.1, each with traj_data.json and game.tw-pddl.

What the engine reads of a game.tw-pddl is read here: the problem's facts and the words of the goal. The domain and the
grammar are taken to be those of alfworld 0.4.2, as World has them.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from tools import BadInput
from tools.worlds.household.facts import facts
from tools.worlds.household.world import Room, Rules

FACT = re.compile(r"\((\w+) +([\w ]+?) *\)")
GOAL = re.compile(r'Your task is to: (.*)\."')
STATES = {"ishot": "hot", "iscool": "cool", "isclean": "clean", "issliced": "sliced", "istoggled": "on"}
VERBS = {
    "take": "pickupable",
    "heat": "heatable",
    "cool": "coolable",
    "clean": "cleanable",
    "use": "toggleable",
    "slice": "sliceable",
    "hold": "isreceptacleobject",
}


def folder(name: str) -> Path:
    """A folder of games: a path, or train, valid_seen ... in the json_2.1.1 of ALFWORLD_DATA. Raises BadInput."""
    for path in (Path(name), Path(os.environ.get("ALFWORLD_DATA", ".")) / "json_2.1.1" / name):
        if path.is_dir():
            return path
    raise BadInput(
        f"{name}: no such folder, neither here nor in ALFWORLD_DATA/json_2.1.1; alfworld-download brings the games"
    )


def games(path: Path) -> Iterator[Room]:
    """All games below a folder that ALFWorld itself plays, in the order of their paths; the seed counts them.

    As there, games of slices and of vessels, games without a game.tw-pddl and games marked unsolvable are left out.
    Raises BadInput when there is none, or when one cannot be read.
    """
    count = 0
    for found in sorted(path.rglob("game.tw-pddl")):
        if "movable" in str(found.parent) or "Sliced" in str(found.parent):
            continue
        room = game(found.parent, count)
        if room:
            count += 1
            yield room
    if not count:
        raise BadInput(f"{path}: no game.tw-pddl below it; alfworld-generate makes them from traj_data.json")


def game(path: Path, seed: int = 0) -> Room | None:
    """The game in a folder; None when it is marked unsolvable or its task is none of the six. Raises BadInput."""
    tasks = {known.alfworld: name for name, known in facts().tasks.items()}
    told, trial = _json(path / "game.tw-pddl"), _json(path / "traj_data.json")
    try:
        task, asked = tasks.get(trial["task_type"]), trial["pddl_params"]
        if task is None or told.get("solvable") is False:
            return None
        target = asked["toggle_target"] if task == "look" else asked["parent_target"]
        problem, grammar = told["pddl_problem"].lower(), told["grammar"]
        goal = GOAL.search(grammar)
        if not goal or '"move {o} to {r}"' not in grammar:
            raise BadInput(
                f"{path / 'game.tw-pddl'}: of another ALFWorld than 0.4; make it again with alfworld-generate"
            )
        room = _room(problem, seed, task, asked["object_target"].lower(), target.lower(), goal[1])
        return replace(room, name=f"{path.parent.name}/{path.name}")
    except (KeyError, AttributeError, TypeError, IndexError) as error:
        raise BadInput(f"{path}: not a game of ALFWorld's json_2.1.1: {type(error).__name__} {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise BadInput(f"{path}: {error}") from error


def _facts(problem: str) -> dict[str, list[list[str]]]:
    """The problem's facts by predicate, in the engine's order."""
    found: dict[str, list[list[str]]] = defaultdict(list)
    for predicate, arguments in FACT.findall(problem.split("(:init", 1)[1].split("(:goal", 1)[0]):
        found[predicate].append(arguments.split())
    return defaultdict(list, {predicate: sorted(each) for predicate, each in found.items()})


def _names(found: dict[str, list[list[str]]]) -> dict[str, str]:
    """ALFWorld's names of the things: of each kind the first in order has the highest number."""
    ids = sorted({key for each in found.values() for arguments in each for key in arguments if "_bar_" in key})
    kinds = {key: key.split("_bar_")[0] + ("basin" if "basin" in key else "") for key in ids}
    left: dict[str, int] = defaultdict(int)
    for each in kinds.values():
        left[each] += 1
    names = {}
    for key, each in kinds.items():
        names[key] = f"{each} {left[each]}"
        left[each] -= 1
    return names


def _room(problem: str, seed: int, task: str, thing: str, target: str, goal: str) -> Room:
    found = _facts(problem)
    names = _names(found)
    places = {names[name]: place for name, place in found["receptacleatlocation"]}
    inside: dict[str, list[str]] = {name: [] for name in places}
    for each, name in found["inreceptacle"]:
        inside.setdefault(names[name], []).append(names[each])
    within: dict[str, list[str]] = defaultdict(list)
    for each, vessel in found["inreceptacleobject"]:
        within[names[vessel]].append(names[each])
    states: dict[str, list[str]] = defaultdict(list)
    for predicate, state in STATES.items():
        for (each,) in found[predicate]:
            states[names[each]].append(state)
    return Room(
        seed,
        task,
        thing,
        target,
        goal,
        {name: tuple(inside[name]) for name in places},
        order=tuple(names[each] for each, _ in found["objecttype"] if each in names),
        rules=_rules(found, names),
        places=places,
        start=found["atlocation"][0][1],
        lying=tuple((names[each], place) for each, place in found["objectatlocation"]),
        opened=tuple(names[each] for (each,) in found["opened"]),
        within={vessel: tuple(things) for vessel, things in within.items()},
        states={each: tuple(known) for each, known in states.items()},
    )


def _rules(found: dict[str, list[list[str]]], names: dict[str, str]) -> Rules:
    of_kind: dict[str, set[str]] = defaultdict(set)
    for each, sort in found["objecttype"]:
        of_kind[sort].add(names.get(each, each))
    taken: dict[str, set[str]] = defaultdict(set)
    for sort, other in found["cancontain"]:
        taken[sort] |= of_kind[other]
    sorts = [(names.get(each, each), sort) for each, sort in found["receptacletype"]]
    can = {verb: {names[each] for (each,) in found[predicate]} for verb, predicate in VERBS.items()}
    tasks = {task: f"{known.at}type" for task, known in facts().tasks.items() if known.at}
    return Rules(
        openable={names[each] for (each,) in found["openable"]},
        takes={name: taken[sort] for name, sort in sorts},
        can=can | {"cut": of_kind["knifetype"] | of_kind["butterknifetype"]},
        at={task: {name for name, sort in sorts if sort == wanted} for task, wanted in tasks.items()},
    )
