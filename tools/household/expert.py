"""An expert that plays from what it has been told alone, and says why before each action.

Its thoughts are made for a small model to learn from: each restates what was just seen, then names the next step by
words that stand in the context, so that the next step is copied and never counted or recalled.
"""

import random
import re

from tools.household.world import NOTHING, facts, kind, listing

SYSTEM = (
    "Solve the household task. Each turn: one Thought, one Action. Actions: go to R, open R, take O from R, "
    "move O to R, heat O with R, cool O with R, clean O with R. R is a receptacle and O an object, with their numbers."
)


class Expert:
    """One game's player. `slip` is the chance that, once in the game, it errs first and mends it after."""

    def __init__(self, introduction: str, rng: random.Random, slip: float = 0.0) -> None:
        self.rng = rng
        told, goal = introduction.split("Your task is to: ")
        self.receptacles = re.findall(r"a (\w+ \d+)", told)
        self.read_goal(goal.rstrip("."))
        self.plan: list[str] = []
        self.at: str | None = None
        self.held: str | None = None
        self.ready = self.task == "put"
        self.slip = rng.choice(["absent", "closed", "far", "unseen"]) if rng.random() < slip else None
        self.failed = ""

    def read_goal(self, goal: str) -> None:
        """Find the task, the object and the target receptacle in the goal's words; raises ValueError for others."""
        for task, known in facts()["tasks"].items():
            for say in known["say"]:
                pattern = say.format(object=r"(?P<object>\w+)", receptacle=r"(?P<target>\w+)")
                if match := re.fullmatch(pattern, goal):
                    self.task, self.object, self.target = task, match["object"], match["target"]
                    return
        raise ValueError(f"not a task of this household: {goal}")

    def act(self, observation: str) -> tuple[str, str]:
        """The next thought and action, given the last observation (the introduction at first)."""
        if observation == NOTHING:
            return self.mend()
        if self.held and not self.ready:
            return self.prepare(observation)
        if self.held:
            return self.deliver(observation)
        return self.search(observation)

    def search(self, observation: str) -> tuple[str, str]:
        """Look for the object: in likely places first, then in all others but where it is wanted."""
        if self.at is None:
            likely = facts()["likely"][facts()["objects"][self.object]["kind"]]
            first = [name for each in likely for name in self.receptacles if kind(name) == each]
            rest = [name for name in self.receptacles if name not in first]
            self.plan = [name for name in first + rest if kind(name) != self.target]
            aim = " ".join(word for word in [facts()["tasks"][self.task].get("state", ""), self.object] if word)
            return self.go(f"I need a {aim} in {self.target}. I look in: {', '.join(self.plan)}.", self.plan[0])
        if observation.endswith("is closed."):
            return f"The {self.at} is closed. I open it.", f"open {self.at}"
        seen = re.findall(r"a (\w+ \d+)", observation)
        found = [name for name in seen if kind(name) == self.object]
        if found:
            self.held = found[0]
            return f"I see {listing(seen)}. I take the {self.held}.", f"take {self.held} from {self.at}"
        return self.search_on(f"I see {listing(seen)}. No {self.object}.")

    def search_on(self, thought: str) -> tuple[str, str]:
        """Go to the place that follows in the plan."""
        name, number = (self.at or "").rsplit(" ", 1)
        if self.slip == "absent":
            absent = f"{name} {int(number) + 5}"
            return self.err(f"{thought} I go to {absent}.", f"go to {absent}")
        if self.slip == "unseen":
            return self.err(f"{thought} I take the {self.object} 1.", f"take {self.object} 1 from {self.at}")
        place = self.plan[self.plan.index(self.at or "") + 1]
        return self.go(f"{thought} After {self.at} comes {place}.", place)

    def prepare(self, observation: str) -> tuple[str, str]:
        """Heat, cool or clean what is held."""
        place = next(name for name in self.receptacles if kind(name) == facts()["tasks"][self.task]["at"])
        if observation.startswith("You pick up") and self.at != place:
            if self.slip == "far":
                return self.err(
                    f"I have the {self.held}. I must {self.task} it.", f"{self.task} {self.held} with {place}"
                )
            return self.go(f"I have the {self.held}. I must {self.task} it at {place}.", place)
        self.ready = True
        return f"I am at {place}. I {self.task} the {self.held}.", f"{self.task} {self.held} with {place}"

    def deliver(self, observation: str) -> tuple[str, str]:
        """Put what is held where the task wants it."""
        place = next(name for name in self.receptacles if kind(name) == self.target)
        if not observation.startswith(("You arrive", "You open")) or self.at != place:
            state = (
                f"The {self.held} is {facts()['tasks'][self.task]['state']}"
                if self.task != "put"
                else f"I have the {self.held}"
            )
            return self.go(f"{state}. It must be in {place}.", place)
        if observation.endswith("is closed."):
            if self.slip == "closed":
                return self.err(f"I am at {place}. I put the {self.held} there.", f"move {self.held} to {place}")
            return f"The {place} is closed. I open it.", f"open {place}"
        return f"I am at {place}. I put the {self.held} there.", f"move {self.held} to {place}"

    def go(self, thought: str, name: str) -> tuple[str, str]:
        """Go to a receptacle."""
        self.at = name
        return thought, f"go to {name}"

    def err(self, thought: str, action: str) -> tuple[str, str]:
        """Make the game's one slip: an action that does nothing."""
        self.failed, self.slip = action, None
        return thought, action

    def mend(self) -> tuple[str, str]:
        """Say why nothing happened, and do what is right instead."""
        verb, rest = self.failed.split(" ", 1)
        if verb == "go":
            return self.search_on(f"Nothing happens: there is no {rest.removeprefix('to ')}.")
        if verb == "take":
            return self.search_on(f"Nothing happens: there is no {self.object} here.")
        if verb == "move":
            return f"Nothing happens: the {self.at} is closed. I open it.", f"open {self.at}"
        place = rest.split(" with ")[1]
        return self.go(f"Nothing happens: I am not at {place}.", place)
