"""The household as a world, by its rooms' seeds."""

import random
from collections.abc import Iterator
from itertools import islice

from tools import BadInput
from tools.core.trajectory import system_prompt
from tools.worlds.household import episodes
from tools.worlds.household.expert import Expert, Lost
from tools.worlds.household.rooms import make_room
from tools.worlds.household.world import NOTHING, Room
from tools.worlds.household.world import World as Played
from tools.worlds.world import Task, World

# Seeds of a split are fewer.
ENOUGH = 100_000


class Household:
    """The household's rooms as tasks: "unseen" are in no committed data, "train" and "seen" those of the training set.

    The system prompt is the committed data's own.
    """

    nothing = NOTHING

    def __init__(self) -> None:
        self.system_prompt = str(system_prompt())
        self.played: Played | None = None

    def tasks(self, split: str) -> Iterator[Task]:
        """The tasks of a split, in an order that never changes."""
        if split == "unseen":
            return map(task_of, episodes.unseen_rooms(ENOUGH))
        return map(task_of, episodes.rooms("train", episodes.TRAIN_EPISODES, steps=episodes.TRAIN_STEPS))

    def reset(self, task: Task) -> str:
        """Start a task anew: its first observation."""
        room = make_room(int(task.id.rpartition("-")[2]))
        self.played = Played(room)
        return room.introduction

    def step(self, action: str) -> str:
        """Do an action; what is observed then."""
        assert self.played
        return self.played.step(action)

    @property
    def won(self) -> bool:
        """Whether the task is done."""
        return bool(self.played and self.played.won)

    @property
    def done(self) -> bool:
        """Whether the game is over."""
        return self.won


def task_of(room: Room) -> Task:
    """A room as a task."""
    return Task(f"household-{room.seed}", room.task, room.goal)


def make_world(name: str) -> World:
    """A world by its name. Raises BadInput for another than the household."""
    if name != "household":
        raise BadInput(f"{name}: no such world; there is household")
    return Household()


def first_tasks(world: World, split: str, count: int) -> list[Task]:
    """The first tasks of a split. Raises BadInput where there are none."""
    found = list(islice(world.tasks(split), count))
    if not found:
        raise BadInput(f"{split}: this world has no tasks of that split")
    return found


def first_action(introduction: str) -> str | None:
    """What the household's expert does first; None where it cannot read the task."""
    try:
        return Expert(introduction, random.Random(0)).act(introduction)[1]
    except (ValueError, KeyError, Lost):
        return None
