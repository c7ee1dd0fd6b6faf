"""What an environment offers, so that an agent can be played in it: tasks, reset, step, won."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol


class Task(NamedTuple):
    """A task of a world. `id` names it in tables and files, equal on every machine; `kind` groups tasks in tables."""

    id: str
    kind: str
    goal: str


class World(Protocol):
    """An environment in which one game at a time is played; games side by side each have a world of their own.

    `system_prompt`: the system turn of each game. `nothing`: the observation of an action that did nothing, "" where
    the world has no such sentence.
    """

    system_prompt: str
    nothing: str

    def tasks(self, split: str) -> Iterable[Task]:
        """The tasks of a split ("train", "seen", "unseen"), in an order that never changes."""
        ...

    def reset(self, task: Task) -> str:
        """Start a task anew; its first observation, which is the first user turn."""
        ...

    def step(self, action: str) -> str:
        """Do an action; what is observed then."""
        ...

    @property
    def won(self) -> bool:
        """Whether the task is done as asked."""
        ...

    @property
    def done(self) -> bool:
        """Whether the game is over, won or lost."""
        ...
