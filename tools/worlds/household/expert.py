"""An expert that plays from what it has been told alone, and says why before each action.

Its thoughts are made for a small model to learn from: each restates what was just seen, then names the next step by
words that stand in the context, so that the next step is copied and never counted or recalled. In the terse style a
thought is the next step alone.
"""

import random
import re
from collections.abc import Collection
from functools import cache
from typing import NamedTuple

from tools.worlds.household.facts import facts
from tools.worlds.household.world import NOTHING, kind, listing

SYSTEM = (
    "Solve the household task. Each turn: one Thought, one Action. Actions: go to R, open R, take O from R, "
    "move O to R, heat O with R, cool O with R, clean O with R. R is a receptacle and O an object, with their numbers."
)
STYLES = ("full", "terse")
NAMED = re.compile(r"\ba (\w+ \d+)")


def system(tasks: Collection[str]) -> str:
    """The system prompt for these tasks: it names the lamp's action only where a task needs it."""
    return SYSTEM.replace(". R is", ", use O. R is") if "look" in tasks else SYSTEM


class Goal(NamedTuple):
    """What is asked for: the task, the kind of object, and the kind of receptacle or lamp."""

    task: str
    object: str
    target: str


class Move(NamedTuple):
    """What is known, what follows from it, and the action."""

    known: str
    next: str
    action: str


class Lost(Exception):
    """The expert has tried all it knows to try."""


@cache
def _goals() -> list[tuple[str, re.Pattern[str]]]:
    """Each way to put a task, as a pattern."""
    words = {"object": r"(?P<object>\w+)", "target": r"(?P<target>\w+)"}
    tasks = facts().tasks
    return [(task, re.compile(say.format(**words))) for task in tasks for say in tasks[task].say]


def read_goal(goal: str) -> Goal:
    """What a goal's words ask for; raises ValueError for other words than the household's."""
    for task, pattern in _goals():
        if match := pattern.fullmatch(goal):
            return Goal(task, match["object"], match["target"])
    raise ValueError(f"not a task of this household: {goal}")


class Expert:
    """One game's player. `slip` is the chance that, once in the game, it errs first and fixes it after.

    `style`: one of STYLES. Raises ValueError when the introduction's task is none of the household's.
    """

    def __init__(self, introduction: str, rng: random.Random, slip: float = 0.0, style: str = "full") -> None:
        told, goal = introduction.split("Your task is to: ")
        self.receptacles = NAMED.findall(told)
        self.task, self.object, self.target = read_goal(goal.rstrip("."))
        known = facts().tasks[self.task]
        self.state = known.state
        self.state_at = known.at
        self.style = style
        self.slip = rng.choice(["absent", "closed", "far", "unseen"]) if rng.random() < slip else None
        # What was planned and what was seen: the places still to look in, what lies where, what was done.
        self.sought = self.object
        self.plan: list[str] = []
        self.seen: dict[str, list[str]] = {}
        self.closed: set[str] = set()
        self.at: str | None = None
        self.held: str | None = None
        self.ready = self.state is None
        self.put: list[str] = []
        self.useless: set[str] = set()
        self.last = Move("", "", "")
        self.slipped = False

    def act(self, observation: str) -> tuple[str, str]:
        """The next thought and action, given the last observation (the introduction at first).

        Raises Lost when it has tried all that it knows to try.
        """
        if observation == NOTHING and self.last.action:
            slipped, self.slipped = self.slipped, False
            self.last = self.fix(slipped)
        else:
            self.last = self.go_on(observation)
        known, following, action = self.last
        return (f"{known} {following}" if self.style == "full" else following), action

    def go_on(self, observation: str) -> Move:
        """The move that follows from an observation."""
        if self.at and observation.startswith(("You arrive", "You open", f"On the {self.at},", f"The {self.at} is")):
            if observation.endswith("is closed."):
                self.closed.add(self.at)
            else:
                self.seen[self.at] = NAMED.findall(observation)
                self.closed.discard(self.at)
        elif observation.startswith("You pick up"):
            self.held = self.last.action[5:].split(" from ")[0]
            self.seen[self.at or ""].remove(self.held)
        elif observation.startswith(f"You {self.task} "):
            self.ready = True
        elif observation.startswith("You move") and self.held:
            self.put.append(self.held)
            self.held, self.ready = None, self.state is None
            return self.search_again()
        if self.held and not self.ready:
            return self.prepare()
        if self.held:
            return self.shine() if self.task == "look" else self.deliver()
        return self.search()

    # Looking for things

    def search(self) -> Move:
        """Look for the object: in likely places first, then in all others, then where it is wanted."""
        if self.at is None:
            return self.search_first()
        if self.can_open(self.at):
            return self.open(self.at)
        seen = self.seen.get(self.at, [])
        for name in seen:
            action = f"take {name} from {self.at}"
            if kind(name) == self.object and name not in self.put and action not in self.useless:
                return Move(f"I see {listing(seen)}.", f"I take the {name}.", action)
        return self.search_on(f"I see {listing(seen)}. No {self.object}.")

    def search_first(self) -> Move:
        """Say what is wanted, make the plan, and go to its first place."""
        self.plan = [name for name in self.likely_first(self.object) if kind(name) != self.target]
        aim = " ".join(word for word in (self.state, self.object) if word)
        if self.task == "look":
            known = f"I need a {aim} under a {self.target}."
        else:
            known = f"I need {'two' if self.task == 'two' else 'a'} {aim} in {self.target}."
        return self.go_ahead(known, "I look in:")

    def likely_first(self, wanted: str) -> list[str]:
        """All receptacles, those first where a thing of this kind mostly is; as told, for what is not known."""
        thing = facts().objects.get(wanted)
        likely = facts().likely[thing.kind] if thing else ()
        first = [name for each in likely for name in self.receptacles if kind(name) == each]
        return first + [name for name in self.receptacles if name not in first]

    def go_ahead(self, known: str, following: str) -> Move:
        """Go to the plan's next place, telling the whole plan; what was left out of it follows when it is done."""
        self.plan = [name for name in self.plan if self.is_new(name)]
        self.plan = self.plan or [name for name in self.receptacles if self.is_new(name)]
        if not self.plan:
            raise Lost
        return self.go(known, f"{following} {', '.join(self.plan)}.", self.plan[0])

    def is_new(self, name: str) -> bool:
        """Whether a place can still be looked into."""
        if name in self.seen or name == self.at:
            return False
        return f"go to {name}" not in self.useless and f"open {name}" not in self.useless

    def search_on(self, known: str) -> Move:
        """Go to the place that follows in the plan."""
        if self.slip == "absent" and self.at:
            name, number = self.at.rsplit(" ", 1)
            absent = f"{name} {int(number) + 5}"
            return self.err(known, f"I go to {absent}.", f"go to {absent}")
        if self.slip == "unseen" and not self.held:
            return self.err(known, f"I take the {self.object} 1.", f"take {self.object} 1 from {self.at}")
        place = next((name for name in self.plan if self.is_new(name)), None)
        if place:
            return self.go(known, f"After {self.at} comes {place}.", place)
        return self.go_ahead(known, "I look in:")

    def search_again(self) -> Move:
        """One is where it belongs; go for the second: where one was seen, else on with the plan."""
        known = f"The {self.put[-1]} is in {self.at}. I need one more {self.object}."
        for place, things in self.seen.items():
            for name in things:
                if kind(name) == self.object and name not in self.put and place != self.at:
                    return self.go(known, f"I saw {name} at {place}.", place)
        return self.go_ahead(known, "I look on in:")

    # Doing what is asked for

    def prepare(self) -> Move:
        """Heat, cool or clean what is held."""
        places = [name for name in self.receptacles if kind(name) == self.state_at]
        place = next((name for name in places if f"{self.task} {self.held} with {name}" not in self.useless), None)
        if not place:
            raise Lost
        action = f"{self.task} {self.held} with {place}"
        if self.at != place:
            if self.slip == "far":
                return self.err(f"I have the {self.held}.", f"I must {self.task} it.", action)
            return self.go(f"I have the {self.held}.", f"I must {self.task} it at {place}.", place)
        return Move(f"I am at {place}.", f"I {self.task} the {self.held}.", action)

    def deliver(self) -> Move:
        """Put what is held where the task wants it."""
        places = [name for name in self.receptacles if kind(name) == self.target]
        place = next((name for name in places if f"move {self.held} to {name}" not in self.useless), None)
        if not place:
            raise Lost
        if self.at != place:
            known = f"The {self.held} is {self.state}." if self.state else f"I have the {self.held}."
            return self.go(known, f"It must be in {place}.", place)
        move = Move(f"I am at {place}.", f"I put the {self.held} there.", f"move {self.held} to {place}")
        if self.can_open(place):
            return self.err(*move) if self.slip == "closed" else self.open(place)
        return move

    def shine(self) -> Move:
        """Use a lamp by what is held: one that was seen, else look for one."""
        for place, things in self.seen.items():
            for name in things:
                if kind(name) == self.target and f"use {name}" not in self.useless:
                    if place == self.at:
                        return Move(f"I have the {self.held}. Here is {name}.", "I use it.", f"use {name}")
                    return self.go(f"I have the {self.held}.", f"I saw {name} at {place}.", place)
        if self.at and self.can_open(self.at):
            return self.open(self.at)
        if self.sought == self.target:
            return self.search_on(f"I see {listing(self.seen.get(self.at or '', []))}. No {self.target}.")
        self.sought, self.plan = self.target, self.likely_first(self.target)
        return self.go_ahead(f"I have the {self.held}. I need a {self.target}.", "I look in:")

    # Moves

    def go(self, known: str, following: str, name: str) -> Move:
        """Go to a receptacle."""
        self.at = name
        return Move(known, following, f"go to {name}")

    def can_open(self, name: str) -> bool:
        """Whether a place was told to be closed, and opening it has not failed."""
        return name in self.closed and f"open {name}" not in self.useless

    def open(self, name: str) -> Move:
        """Open what is closed."""
        return Move(f"The {name} is closed.", "I open it.", f"open {name}")

    def err(self, known: str, following: str, action: str) -> Move:
        """Make the game's one slip: an action that does nothing."""
        self.slip, self.slipped = None, True
        return Move(known, following, action)

    def fix(self, slipped: bool) -> Move:
        """Say why nothing happened, and do what is right instead; what did nothing once is never tried again."""
        verb, rest = self.last.action.split(" ", 1)
        searching = not self.held or self.sought == self.target
        if not slipped:
            self.useless.add(self.last.action)
        if verb == "go" and not slipped and f"examine {self.at}" not in self.useless:
            # Several receptacles can stand at one place: who is at one cannot go to another, but can reach it.
            return Move(f"Nothing happens: I may be at {self.at} already.", "I examine it.", f"examine {self.at}")
        if verb in ("go", "examine") and searching:
            return self.search_on(f"Nothing happens: there is no {rest.removeprefix('to ')}.")
        if verb == "open" and searching:
            return self.search_on(f"Nothing happens: the {rest} does not open.")
        if verb == "take" and slipped:
            return self.search_on(f"Nothing happens: there is no {self.object} here.")
        if verb == "move" and self.can_open(self.at or ""):
            return Move(f"Nothing happens: the {self.at} is closed.", "I open it.", f"open {self.at}")
        if verb == self.task and slipped:
            place = rest.split(" with ")[1]
            return self.go("Nothing happens:", f"I am not at {place}.", place)
        return self.go_on(NOTHING)
