"""A room that answers in ALFWorld's words. Rules: alfworld 0.4.2, data/alfred.pddl; words: data/alfred.twl2.

Where the engine does something else than those two files seem to say, the engine is followed, and a comment says so.
Left out is what ALFWorld leaves out itself: tasks of slices and of vessels, and putting things into vessels.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from tools.worlds.household.facts import facts

NOTHING = "Nothing happens."
INTRO = "You are in the middle of a room. Looking quickly around you, you see {}."
HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""
# Names reach this number in a generated room; it never has so many of a kind.
HIGHEST = 24


@dataclass(frozen=True)
class Rules:
    """What can be done with what, by name with number; it never changes in a game.

    `openable`: receptacles that are closed unless opened; `takes`: for each receptacle the objects it takes; `can`: the
    objects that can be taken, heated, cooled, cleaned, used, sliced (take ... slice), that slice others (cut) and that
    hold others (hold); `at`: the receptacles where one can heat, cool and clean.
    """

    openable: Collection[str]
    takes: Mapping[str, Collection[str]]
    can: Mapping[str, Collection[str]]
    at: Mapping[str, Collection[str]]


@cache
def rules() -> Rules:
    """The rules of all generated rooms, of catalog/household.yaml."""
    known = facts()

    def numbered(kinds: Iterable[str]) -> frozenset[str]:
        return frozenset(f"{each} {number}" for each in kinds for number in range(1, HIGHEST + 1))

    things, places, tasks = known.objects, known.receptacles, known.tasks
    takes: dict[str, Collection[str]] = {}
    for place in places:
        taken = numbered(each for each, thing in things.items() if place in thing.taken_by)
        takes |= dict.fromkeys(numbered([place]), taken)
    verbs = ("heat", "cool", "clean", "use", "slice", "cut", "hold")
    can = {verb: numbered(each for each, thing in things.items() if verb in thing.can) for verb in verbs}
    return Rules(
        openable=numbered(place for place, fact in places.items() if fact.openable),
        takes=takes,
        can=can | {"take": numbered(each for each, thing in things.items() if thing.taken_by)},
        at={task: numbered([fact.at]) for task, fact in tasks.items() if fact.at},
    )


@dataclass(frozen=True)
class Room:
    """A room as it stands before the first action.

    `target`: the kind of receptacle, or of lamp, that the task names; `receptacles`: what each holds, in the order in
    which they are told; `order`: all objects, in the order in which any list has them (empty: as they are told).

    The others are for rooms of ALFWorld's own data. `places`: where a receptacle stands, when not at a place of its
    own; `start`: the place where the game starts; `lying`: objects and the places where the data has them; `opened`:
    receptacles open from the start; `within`: what vessels hold; `states`: what is hot, cool, clean or sliced; `name`:
    the game's own.
    """

    seed: int
    task: str
    object: str
    target: str
    goal: str
    receptacles: dict[str, tuple[str, ...]]
    order: tuple[str, ...] = ()
    rules: Rules = field(default_factory=rules, repr=False)
    places: Mapping[str, str] = field(default_factory=dict)
    start: str = ""
    lying: tuple[tuple[str, str], ...] = ()
    opened: tuple[str, ...] = ()
    within: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    states: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    name: str = ""

    @property
    def introduction(self) -> str:
        """The first observation: the receptacles and the task. ALFWorld's own has a line of welcome before it."""
        return f"{INTRO.format(listing(self.receptacles))}\n\nYour task is to: {self.goal}."


def kind(name: str) -> str:
    """The type of a numbered thing: "countertop 2" is a countertop."""
    return name.rsplit(" ", 1)[0]


def listing(names: Iterable[str]) -> str:
    """Things as ALFWorld lists them: "a mug 1, a cup 2, and a apple 1" (the article is always "a")."""
    return joined([f"a {name}" for name in names])


def joined(items: list[str]) -> str:
    """Items as ALFWorld joins them: "a, b, and c", "a, and b", "nothing"."""
    if len(items) < 2:
        return items[0] if items else "nothing"
    return f"{', '.join(items[:-1])}, and {items[-1]}"


class World:
    """A room being played."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.rules = room.rules
        self.inside = {name: list(things) for name, things in room.receptacles.items()}
        self.held: str | None = None
        self.opened = set(room.opened)
        self.states = {name: set(states) for name, states in room.states.items()}
        # The receptacles where the player stands, and the name of that place.
        self.place = room.start
        self.near = [name for name in room.receptacles if room.places.get(name) == room.start] if room.start else []
        self.lying = set(room.lying)
        self.parted: set[tuple[str, str]] = set()

    @property
    def won(self) -> bool:
        """Whether the task is fulfilled as things stand."""
        room = self.room
        wanted = f"{room.object} "
        if room.task == "look":
            lamps = [each for name in self.near for each in self.inside[name] if each.startswith(f"{room.target} ")]
            held = self.held is not None and self.held.startswith(wanted)
            return held and any(self.is_(each, "on") for each in lamps)
        target, state = f"{room.target} ", facts().tasks[room.task].state
        needed = 2 if room.task == "two" else 1
        for name, things in self.inside.items():
            if name.startswith(target):
                right = [each for each in things if each.startswith(wanted) and (not state or self.is_(each, state))]
                if len(right) >= needed:
                    return True
        return False

    def is_(self, thing: str, state: str) -> bool:
        """Whether a thing is hot, cool, clean, sliced or on."""
        return state in self.states.get(thing, ())

    def step(self, action: str) -> str:
        """Do one action, e.g. "go to fridge 1"; returns the observation, `NOTHING` for all that cannot be done."""
        verb, _, rest = action.strip().partition(" ")
        if verb in _ALONE:
            return _ALONE[verb](self) if not rest else NOTHING
        if verb in _WITH_ONE:
            return _WITH_ONE[verb](self, rest) or NOTHING
        if verb == "go":
            return self._go(rest[3:]) or NOTHING if rest.startswith("to ") else NOTHING
        if verb in _WITH_TWO:
            between, do = _WITH_TWO[verb]
            first, found, second = rest.partition(between)
            return do(self, verb, first, second) or NOTHING if found else NOTHING
        return NOTHING

    def _order(self) -> tuple[str, ...]:
        return self.room.order or tuple(each for things in self.room.receptacles.values() for each in things)

    def _closed(self, name: str) -> bool:
        return name in self.rules.openable and name not in self.opened

    def _contents(self, name: str) -> str:
        if name not in self.rules.openable:
            return f"On the {name}, you see {listing(self.inside[name])}."
        if name in self.opened:
            return f"The {name} is open. In it, you see {listing(self.inside[name])}."
        return f"The {name} is closed."

    def _look(self) -> str:
        if not self.near:
            # The engine looks for receptacles at this place alone, unlike in the introduction, and finds none.
            return INTRO.format("nothing")
        facing = f"You are facing the {joined(self.near)}."
        # What was taken from one receptacle and put in another of this place is told as if it lay beside them.
        here = sorted((thing for thing, place in self.lying if place == self.place), key=self._order().index)
        beside = [thing for thing in here for name in self.near if (thing, name) in self.parted]
        return f"{facing} Next to it, you see {listing(beside)}."

    def _inventory(self) -> str:
        return f"You are carrying: a {self.held}." if self.held else "You are not carrying anything."

    def _help(self) -> str:
        return HELP

    def _go(self, name: str) -> str | None:
        if name not in self.inside or name in self.near:
            return None
        places = self.room.places
        self.place = places.get(name, name)
        self.near = [each for each in places if places[each] == self.place] if name in places else [name]
        return f"You arrive at {name}. {self._contents(name)}"

    def _open(self, name: str) -> str | None:
        if name not in self.near or not self._closed(name):
            return None
        self.opened.add(name)
        return f"You open the {name}. {self._contents(name)}"

    def _close(self, name: str) -> str | None:
        if name not in self.near or name not in self.rules.openable or name not in self.opened:
            return None
        self.opened.remove(name)
        return f"You close the {name}."

    def _take(self, _: str, thing: str, name: str) -> str | None:
        if name not in self.near or self.held or self._closed(name) or thing not in self.inside[name]:
            return None
        if thing not in self.rules.can["take"]:
            return None
        self.inside[name].remove(thing)
        self.held = thing
        self.parted.add((thing, name))
        self.lying.discard((thing, self.place))
        return f"You pick up the {thing} from the {name}."

    def _move(self, _: str, thing: str, name: str) -> str | None:
        if name not in self.near or thing != self.held or self._closed(name) or thing not in self.rules.takes[name]:
            return None
        if thing not in self.inside[name]:  # ALFWorld's data has things in two receptacles
            self.inside[name].append(thing)
        self.inside[name].sort(key=self._order().index)
        self.held = None
        self.parted.discard((thing, name))
        self.lying.add((thing, self.place))
        return f"You move the {thing} to the {name}."

    def _change(self, verb: str, thing: str, name: str) -> str | None:
        if name not in self.near or thing != self.held or name not in self.rules.at[verb]:
            return None
        if thing not in self.rules.can[verb]:
            return None
        states = self.states.setdefault(thing, set())
        states -= {"heat": {"cool"}, "cool": {"hot"}}.get(verb, set())
        states.add(str(facts().tasks[verb].state))
        return f"You {verb} the {thing} using the {name}."

    def _use(self, thing: str) -> str | None:
        if thing not in self.rules.can["use"] or not any(thing in self.inside[name] for name in self.near):
            return None
        # It is never turned off: the engine asks whether it was ever used.
        self.states.setdefault(thing, set()).add("on")
        return f"You turn on the {thing}."

    def _slice(self, _: str, thing: str, tool: str) -> str | None:
        if tool != self.held or tool not in self.rules.can["cut"] or thing not in self.rules.can["slice"]:
            return None
        lies = (thing, self.place) in self.lying
        if not (lies if self.room.places else any(thing in self.inside[name] for name in self.near)):
            return None
        self.states.setdefault(thing, set()).add("sliced")
        return f"You sliced the {thing} with the {tool}."

    def _examine(self, name: str) -> str | None:
        if name in self.near:
            return self._contents(name)
        # The domain's other way, for what lies in reach, has a slip of the pen: the engine never finds it true.
        if name != self.held:
            return None
        if name in self.rules.can["hold"]:
            return f"This is a normal {name}. In it, you see {listing(self.room.within.get(name, ()))}."
        warmth = next((state for state in ("hot", "cool") if self.is_(name, state)), "")
        clean, sliced = self.is_(name, "clean"), self.is_(name, "sliced")
        if warmth == "cool" and not clean and not sliced:
            return f"This is a cold {name}."
        words = " and ".join(word for word in (warmth, "clean" if clean else "") if word)
        words = " ".join(word for word in (words, "sliced" if sliced else "") if word)
        if words:
            return f"This is a {words} {name}."
        return f"This {name} is on." if self.is_(name, "on") else f"There's nothing special about {name}."


_ALONE: dict[str, Callable[[World], str]] = {"look": World._look, "inventory": World._inventory, "help": World._help}
_WITH_ONE: dict[str, Callable[[World, str], str | None]] = {
    "open": World._open,
    "close": World._close,
    "use": World._use,
    "examine": World._examine,
}
_WITH_TWO: dict[str, tuple[str, Callable[[World, str, str, str], str | None]]] = {
    "take": (" from ", World._take),
    "move": (" to ", World._move),
    "heat": (" with ", World._change),
    "cool": (" with ", World._change),
    "clean": (" with ", World._change),
    "slice": (" with ", World._slice),
}
