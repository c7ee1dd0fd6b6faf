"""A room as a folder of ALFWorld's json_2.1.1 has it: initial_state.pddl and traj_data.json."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import orjson

from tools.worlds.household.facts import facts
from tools.worlds.household.world import Room, kind

PUT = "(objectType ?o {object}Type) (receptacleType ?r {target}Type) (inReceptacle ?o ?r)"
GOALS = {
    "put": PUT,
    "clean": f"(cleanable ?o) (isClean ?o) {PUT}",
    "heat": f"(heatable ?o) (isHot ?o) {PUT}",
    "cool": f"(coolable ?o) (isCool ?o) {PUT}",
    "two": f"{PUT} (exists (?p - object) (and (not (= ?o ?p)) {PUT.replace('?o', '?p')}))",
}
LOOK = """(exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot {target}Type)
  (toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))
(exists (?o - object ?a - agent) (and (objectType ?o {object}Type) (holds ?a ?o)))"""
CAN = {
    "heat": "heatable",
    "cool": "coolable",
    "clean": "cleanable",
    "use": "toggleable",
    "slice": "sliceable",
    "hold": "isReceptacleObject",
}


def ids(room: Room) -> dict[str, str]:
    """For each thing's name an identifier as ALFWorld's, from which its engine makes the same name again.

    Of each kind the highest number comes first in the order of identifiers.
    """
    names = [*room.receptacles, *(thing for things in room.receptacles.values() for thing in things)]
    counted = Counter(kind(name) for name in names)
    made = {}
    for name in names:
        word, number = name.split()
        head, tail = (word.removesuffix("basin"), f"_bar_{word}") if word.endswith("basin") else (word, "")
        made[name] = f"{head}_bar__plus_{counted[word] - int(number):02d}_dot_00_bar__minus_01_dot_50{tail}"
    return made


def ids_in_order(room: Room) -> dict[str, str]:
    """Identifiers in the order in which the room is told; the engine must be given the names."""
    names = [*room.receptacles, *(thing for things in room.receptacles.values() for thing in things)]
    return {name: f"t{number:03d}_bar_{number}" for number, name in enumerate(names)}


def problem(room: Room, keys: Mapping[str, str], together: int = 1) -> str:
    """The room in PDDL; `together`: how many receptacles stand at one place, as some of ALFWorld's do."""
    known = facts()
    places = {name: f"loc_bar_{number // together}_bar_45" for number, name in enumerate(room.receptacles)}
    lying = {thing: name for name, things in room.receptacles.items() for thing in things}
    init = ["(atLocation agent1 loc_bar_99_bar_30)"]
    for name, place in places.items():
        init += [f"(receptacleType {keys[name]} {kind(name)}Type)", f"(receptacleAtLocation {keys[name]} {place})"]
        init += [f"(openable {keys[name]})"] * bool(known.receptacles[kind(name)].openable)
    for thing, name in lying.items():
        init += [f"(objectType {keys[thing]} {kind(thing)}Type)", f"(inReceptacle {keys[thing]} {keys[name]})"]
        init += [f"(objectAtLocation {keys[thing]} {places[name]})"]
        init += [f"(pickupable {keys[thing]})"] * bool(known.objects[kind(thing)].taken_by)
        init += [f"({CAN[verb]} {keys[thing]})" for verb in known.objects[kind(thing)].can if verb in CAN]
    init += [
        f"(canContain {place}Type {each}Type)"
        for each, thing in known.objects.items()
        for place in thing.taken_by
        if each in map(kind, lying) and place in map(kind, places)
    ]
    goal = (
        LOOK if room.task == "look" else f"(exists (?r - receptacle) (exists (?o - object) (and {GOALS[room.task]})))"
    )
    objects = ["agent1 - agent", "loc_bar_99_bar_30 - location"]
    objects += [f"{place} - location" for place in dict.fromkeys(places.values())]
    objects += [f"{each}Type - otype" for each in known.objects]
    objects += [f"{each}Type - rtype" for each in known.receptacles]
    objects += [f"{keys[name]} - receptacle" for name in places] + [f"{keys[thing]} - object" for thing in lying]
    lines = ["(define (problem plan)", "(:domain alfred)", "(:objects", *objects, ")", "(:init", *init, ")"]
    return "\n".join([*lines, f"(:goal (and {goal.format(object=room.object, target=room.target)})))", ""])


def oddities(room: Room, keys: Mapping[str, str]) -> list[str]:
    """What ALFWorld's data has beside: open doors, things in vessels, in two receptacles or elsewhere, cool, clean."""
    lying = {each: name for name, things in room.receptacles.items() for each in things}
    others = [each for each in lying if kind(each) not in (room.object, room.target)]
    first, last = next(iter(room.receptacles)), list(room.receptacles)[-1]
    odd = [f"(opened {keys[name]})" for name in room.receptacles if facts().receptacles[kind(name)].openable][:2]
    for each in others[:2]:
        odd += [f"(inReceptacle {keys[each]} {keys[name]})" for name in (first, last) if name != lying[each]]
        odd += [
            f"(isCool {keys[each]})",
            f"(isClean {keys[each]})",
            f"(objectAtLocation {keys[each]} loc_bar_99_bar_30)",
        ]
    vessels = [each for each in lying if "hold" in facts().objects[kind(each)].can]
    return odd + [f"(inReceptacleObject {keys[each]} {keys[vessel]})" for vessel in vessels[:1] for each in others[-2:]]


def trial(room: Room) -> dict[str, object]:
    """What a traj_data.json says of the task."""
    target = {"toggle_target": room.target} if room.task == "look" else {"parent_target": room.target}
    params = {"object_target": room.object, "parent_target": "", "toggle_target": "", "mrecep_target": ""}
    return {
        "task_id": f"trial_{room.seed}",
        "task_type": facts().tasks[room.task].alfworld,
        "pddl_params": {**params, **target, "object_sliced": False},
        "turk_annotations": {"anns": [{"task_desc": "Do it.", "high_descs": []}]},
    }


def write(folder: Path, room: Room, together: int = 1, odd: bool = False) -> None:
    """Make the folder of a trial, as ALFWorld's data has it before its games are made."""
    folder.mkdir(parents=True)
    text = problem(room, ids(room), together)
    if odd:
        text = text.replace("(:init", "\n".join(["(:init", *oddities(room, ids(room))]))
    (folder / "initial_state.pddl").write_text(text)
    (folder / "traj_data.json").write_bytes(orjson.dumps(trial(room)))
