"""A world of one's own: find a number by guessing. `make eval WORLD=docs/examples/my_world.py:MyWorld` plays it."""

import random
from collections.abc import Iterator
from typing import NamedTuple


class Task(NamedTuple):
    """What a game is: an id for the tables, equal on every machine, a kind to group by, and the goal in words."""

    id: str
    kind: str
    goal: str


class MyWorld:
    """One game at a time: a number is hidden, each guess is told whether it is too low or too high."""

    system_prompt = "Find the hidden number. Each turn: one Thought, one Action. Action: guess N"
    nothing = "Nothing happens."  # what an action is answered that does nothing; "" if there is no such sentence
    won = False

    def tasks(self, split: str) -> Iterator[Task]:
        """The tasks of "train", "seen" or "unseen": no game of one split may be known from another."""
        first = {"train": 0, "seen": 1000, "unseen": 2000}[split]
        for seed in range(first, first + 200):
            kind = "small" if seed % 2 else "large"
            yield Task(f"number-{seed}", kind, f"find a number from 1 to {20 if kind == 'small' else 100}")

    def reset(self, task: Task) -> str:
        """Start a task; what the model is told first."""
        seed = int(task.id.removeprefix("number-"))
        self.hidden = random.Random(seed).randint(1, 20 if task.kind == "small" else 100)
        self.guesses, self.won = 0, False
        return f"Your task is to: {task.goal}. You have 10 guesses."

    def step(self, action: str) -> str:
        """Do what the model wrote after `Action:`; what it is told then."""
        verb, _, number = action.partition(" ")
        if verb != "guess" or not number.isdecimal():
            return self.nothing
        self.guesses += 1
        self.won = int(number) == self.hidden
        return "That is it." if self.won else f"{number} is too {'low' if int(number) < self.hidden else 'high'}."

    @property
    def done(self) -> bool:
        """Whether the game is over, won or lost."""
        return self.won or self.guesses == 10
