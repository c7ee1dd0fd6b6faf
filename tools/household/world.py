"""A kitchen that answers in ALFWorld's words: rooms made from a seed, and the world that plays one."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from tools import run

NOTHING = "Nothing happens."
INTRO = "You are in the middle of a room. Looking quickly around you, you see {}."


@cache
def facts() -> dict[str, Any]:
    """catalog/household.yaml: receptacles, objects, where things are, tasks."""
    return yaml.safe_load((run.ROOT / "catalog" / "household.yaml").read_bytes())


@dataclass(frozen=True)
class Room:
    """A room as it stands before the first action. `receptacles` are in the order in which they are told."""

    seed: int
    task: str
    object: str
    target: str
    goal: str
    receptacles: dict[str, tuple[str, ...]]

    @property
    def introduction(self) -> str:
        """The first observation: the receptacles and the task."""
        return f"{INTRO.format(listing(self.receptacles))}\n\nYour task is to: {self.goal}."


def kind(name: str) -> str:
    """The type of a numbered thing: "countertop 2" is a countertop."""
    return name.rsplit(" ", 1)[0]


def listing(names: Any) -> str:
    """Things as ALFWorld lists them: "a mug 1, a cup 2, and an apple 1" (the article is always "a")."""
    items = [f"a {name}" for name in names]
    if not items:
        return "nothing"
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])}, and {items[-1]}"


def make_room(seed: int) -> Room:
    """The room of a seed: the same seed gives the same room on every machine."""
    rng = random.Random(seed)
    while True:
        room = _draw(rng, seed)
        if room:
            return room


def _draw(rng: random.Random, seed: int) -> Room | None:
    """One try at a room; None when the drawn task cannot be set in it."""
    known = facts()
    kinds = sorted(known["receptacles"])
    if rng.random() < 0.5:
        rng.shuffle(kinds)
    names: list[str] = []
    for each in kinds:
        numbers = list(range(1, rng.randint(*known["receptacles"][each]["count"]) + 1))
        names += [f"{each} {number}" for number in (numbers if rng.random() < 0.5 else reversed(numbers))]

    task = rng.choice(sorted(known["tasks"]))
    object_kind = rng.choice([name for name, thing in known["objects"].items() if task in ("put", *thing["can"])])
    thing = known["objects"][object_kind]
    state_at = known["tasks"][task].get("at")
    targets = [each for each in thing["in"] if each != state_at and any(kind(name) == each for name in names)]
    target = rng.choice(targets)
    places = [name for name in names if kind(name) in thing["in"] and kind(name) != target]
    likely = [name for name in places if kind(name) in known["likely"][thing["kind"]]]
    unlikely = [name for name in places if name not in likely]
    if not likely:
        return None

    wanted: list[str] = [rng.choice(unlikely if unlikely and rng.random() < 0.16 else likely)]
    if rng.random() < 0.25:
        wanted.append(rng.choice(likely))
    inside = _fill(rng, names, object_kind, wanted)
    goal = rng.choice(known["tasks"][task]["say"]).format(object=object_kind, receptacle=target)
    return Room(seed, task, object_kind, target, goal, inside)


def _fill(rng: random.Random, names: list[str], object_kind: str, wanted: list[str]) -> dict[str, tuple[str, ...]]:
    """What lies where: the task's object in `wanted`, other kinds of object around it, all numbered at random."""
    known = facts()
    lying: dict[str, list[str]] = {name: [] for name in names}
    for name in wanted:
        lying[name].append(object_kind)
    for name in names:
        room_for = rng.randint(0, known["receptacles"][kind(name)]["holds"]) - len(lying[name])
        fits = [each for each, thing in known["objects"].items() if kind(name) in thing["in"] and each != object_kind]
        lying[name] += rng.sample(fits, min(max(room_for, 0), len(fits)))
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


class World:
    """A room being played. Rules: alfworld 0.4.2, data/alfred.pddl; words: data/alfred.twl2."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.inside = {name: list(things) for name, things in room.receptacles.items()}
        self.at: str | None = None
        self.held: str | None = None
        self.opened: set[str] = set()
        self.states: dict[str, set[str]] = {}

    @property
    def won(self) -> bool:
        """Whether an object as the task wants it lies where the task wants it."""
        state = facts()["tasks"][self.room.task].get("state")
        return any(
            kind(thing) == self.room.object and (state is None or state in self.states.get(thing, ()))
            for name, things in self.inside.items()
            if kind(name) == self.room.target
            for thing in things
        )

    def step(self, action: str) -> str:
        """Do one action, e.g. "go to fridge 1"; returns the observation, `NOTHING` for all that cannot be done."""
        action = action.strip()
        for pattern, do in _ACTIONS:
            if match := re.fullmatch(pattern, action):
                return do(self, *match.groups()) or NOTHING
        return NOTHING

    def _closed(self, name: str) -> bool:
        return bool(facts()["receptacles"][kind(name)].get("openable")) and name not in self.opened

    def _contents(self, name: str) -> str:
        if self._closed(name):
            return f"The {name} is closed."
        if name in self.opened:
            return f"The {name} is open. In it, you see {listing(self.inside[name])}."
        return f"On the {name}, you see {listing(self.inside[name])}."

    def _look(self) -> str:
        if self.at is None:
            return INTRO.format(listing(self.inside))
        return f"You are facing the {self.at}. Next to it, you see nothing."

    def _inventory(self) -> str:
        return f"You are carrying: {listing([self.held])}." if self.held else "You are not carrying anything."

    def _go(self, name: str) -> str | None:
        if name not in self.inside or name == self.at:
            return None
        self.at = name
        return f"You arrive at {name}. {self._contents(name)}"

    def _open(self, name: str) -> str | None:
        if name != self.at or not self._closed(name):
            return None
        self.opened.add(name)
        return f"You open the {name}. {self._contents(name)}"

    def _close(self, name: str) -> str | None:
        if name != self.at or name not in self.opened:
            return None
        self.opened.remove(name)
        return f"You close the {name}."

    def _take(self, thing: str, name: str) -> str | None:
        if name != self.at or self.held or self._closed(name) or thing not in self.inside[name]:
            return None
        self.inside[name].remove(thing)
        self.held = thing
        return f"You pick up the {thing} from the {name}."

    def _move(self, thing: str, name: str) -> str | None:
        fits = thing == self.held and kind(name) in facts()["objects"][kind(thing)]["in"]
        if name != self.at or not fits or self._closed(name):
            return None
        self.inside[name].append(thing)
        self.held = None
        return f"You move the {thing} to the {name}."

    def _change(self, verb: str, thing: str, name: str) -> str | None:
        task = facts()["tasks"][verb]
        if name != self.at or thing != self.held or kind(name) != task["at"]:
            return None
        if verb not in facts()["objects"][kind(thing)]["can"]:
            return None
        states = self.states.setdefault(thing, set())
        states -= {"heat": {"cool"}, "cool": {"hot"}}.get(verb, set())
        states.add(task["state"])
        return f"You {verb} the {thing} using the {name}."

    def _examine(self, name: str) -> str | None:
        if name == self.at:
            return self._contents(name)
        near = self.inside[self.at] if self.at and not self._closed(self.at) else []
        if name != self.held and name not in near:
            return None
        words = [state for state in ("hot", "cool", "clean") if state in self.states.get(name, ())]
        if not words:
            return f"There's nothing special about {name}."
        # The grammar says cold of what is cool and nothing more.
        return f"This is a {'cold' if words == ['cool'] else ' and '.join(words)} {name}."


_ACTIONS: list[tuple[str, Callable[..., str | None]]] = [
    (r"look", World._look),
    (r"inventory", World._inventory),
    (r"go to (.+)", World._go),
    (r"open (.+)", World._open),
    (r"close (.+)", World._close),
    (r"take (.+) from (.+)", World._take),
    (r"move (.+) to (.+)", World._move),
    (r"(heat|cool|clean) (.+) with (.+)", World._change),
    (r"examine (.+)", World._examine),
]
