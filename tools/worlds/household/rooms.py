"""Rooms made from a seed: what stands where, what lies in it, and a task that can be done there."""

import hashlib
import random
from collections.abc import Collection, Iterable, Sequence
from functools import cache

from tools.worlds.household.facts import facts
from tools.worlds.household.world import Room, kind

# A kitchen as full as ALFWorld's own: a place like kitchen and bedroom, but not one of those that "all" means.
LARGE = "large"


def places_of(task: str) -> tuple[str, ...]:
    """The places where ALFRED sets a task; where that is a kitchen, a LARGE one too."""
    places = facts().tasks[task].rooms
    return (*places, LARGE) if "kitchen" in places else places


def make_room(seed: int) -> Room:
    """A room as the committed episodes have them; the same seed gives the same room on every machine."""
    committed, rng = facts().committed, random.Random(seed)
    while True:
        room = _draw(rng, seed, committed.room, committed.tasks)
        if room:
            return room


def held_out(receptacles: Iterable[str]) -> bool:
    """Whether rooms with this set of receptacles are for evaluation alone: one set of four, chosen by its hash."""
    return hashlib.sha256("\n".join(sorted(receptacles)).encode()).digest()[0] < 64


def make_room_for(seed: int, task: str, place: str, evaluation: bool = False) -> Room:
    """A room of a place with a task that is set there, told in ALFWorld's order.

    Its set of receptacles is one that is `held_out` for `evaluation`, and else one that is not.
    """
    rng = random.Random(seed)
    while True:
        room = _draw(rng, seed, place, (task,))
        if room and held_out(room.receptacles) == evaluation:
            break
    inside = {name: _in_order(room.receptacles[name]) for name in _in_order(room.receptacles)}
    order = _in_order([thing for things in inside.values() for thing in things])
    return Room(seed, task, room.object, room.target, room.goal, inside, order)


def _in_order(names: Collection[str]) -> tuple[str, ...]:
    """By name, the highest number first, as ALFWorld numbers what it tells."""
    split = [(name.rsplit(" ", 1), name) for name in names]
    return tuple(name for _, name in sorted(split, key=lambda each: (each[0][0], -int(each[0][1]))))


@cache
def _fitting(place: str) -> dict[str, list[str]]:
    """For each receptacle, the room's objects that it takes."""
    known = facts()
    things = known.rooms[place].objects
    return {each: [thing for thing in things if each in known.objects[thing].taken_by] for each in known.receptacles}


@cache
def _doable(place: str, task: str) -> list[str]:
    """The room's objects that a task can be about."""
    known = facts()
    things = known.rooms[place].objects
    return [thing for thing in things if task in ("put", "look", "two", *known.objects[thing].can)]


def _draw(rng: random.Random, seed: int, place: str, tasks: Sequence[str]) -> Room | None:
    """One try at a room; None when the drawn task cannot be set in it."""
    known, large = facts(), place == LARGE
    place = "kitchen" if large else place
    room = known.rooms[place]
    standing = known.large.receptacles if large else room.receptacles
    kinds = sorted(standing)
    if rng.random() < 0.5:
        rng.shuffle(kinds)
    names: list[str] = []
    for each in kinds:
        numbers = list(range(1, rng.randint(*standing[each]) + 1))
        names += [f"{each} {number}" for number in (numbers if rng.random() < 0.5 else reversed(numbers))]

    task = rng.choice(tasks)
    object_kind = rng.choice(_doable(place, task))
    thing = known.objects[object_kind]
    if task == "look":
        assert room.lamp, "ALFRED sets this task where there is a lamp"
        target = room.lamp
    else:
        present = {kind(name) for name in names}
        targets = [each for each in thing.taken_by if each in present and each != known.tasks[task].at]
        if not targets:
            return None
        target = rng.choice(targets)
    places = [name for name in names if kind(name) in thing.taken_by and kind(name) != target]
    likely = [name for name in places if kind(name) in known.likely[thing.kind]]
    unlikely = [name for name in places if name not in likely]
    if not likely:
        return None

    wanted: list[str] = [rng.choice(unlikely if unlikely and rng.random() < 0.16 else likely)]
    if task == "two":
        wanted.append(rng.choice(unlikely if unlikely and rng.random() < 0.16 else likely))
    if rng.random() < 0.25:
        wanted.append(rng.choice(likely))
    set_out = [(name, object_kind) for name in wanted]
    if lamp := room.lamp:
        stands = known.likely[known.objects[lamp].kind]
        set_out.append((rng.choice([name for name in names if kind(name) in stands]), lamp))
    inside = _fill(rng, names, object_kind, set_out, _fitting(place), large)
    goal = rng.choice(known.tasks[task].say).format(object=object_kind, target=target)
    return Room(seed, task, object_kind, target, goal, inside)


def _fill(
    rng: random.Random,
    names: list[str],
    object_kind: str,
    set_out: list[tuple[str, str]],
    fitting: dict[str, list[str]],
    large: bool,
) -> dict[str, tuple[str, ...]]:
    """What lies where: things as `set_out` has them, others around them but for the task's, all numbered at random."""
    receptacles, more = facts().receptacles, facts().large.most if large else {}
    lying: dict[str, list[str]] = {name: [] for name in names}
    for name, thing in set_out:
        lying[name].append(thing)
    for name in names:
        room_for = rng.randint(0, more.get(kind(name), receptacles[kind(name)].most)) - len(lying[name])
        fits = [each for each in fitting[kind(name)] if each != object_kind]
        count = min(max(room_for, 0), len(fits))
        lying[name] += rng.choices(fits, k=count) if large and count else rng.sample(fits, count)
    spots = [(name, index) for name in names for index in range(len(lying[name]))]
    rng.shuffle(spots)
    counted: dict[str, int] = {}
    for name, index in spots:
        each = lying[name][index]
        counted[each] = counted.get(each, 0) + 1
        lying[name][index] = f"{each} {counted[each]}"
    for things in lying.values():
        rng.shuffle(things)
    return {name: tuple(things) for name, things in lying.items()}
