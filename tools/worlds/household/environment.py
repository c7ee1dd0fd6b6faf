"""The household as a world to play: its tasks by split, all six families or some."""

import itertools
from collections.abc import Iterator

from tools import BadInput
from tools.worlds.household import episodes
from tools.worlds.household.expert import system
from tools.worlds.household.facts import facts
from tools.worlds.household.rooms import LARGE, make_room, make_room_for, places_of
from tools.worlds.household.world import NOTHING, Room
from tools.worlds.household.world import World as Game
from tools.worlds.world import Task

# Tasks of a split. More make an evaluation longer than it is worth: the 95 % interval of 1,000 is 6 points wide.
TASKS = 1000


class Household:
    """The household's rooms, one game at a time.

    `families`: names with a comma between them, or "all" six; the default is those of the committed episodes. Those are
    played in kitchens like the committed episodes', all others in all kinds of room, told in ALFWorld's order. "large"
    are the families of the committed episodes in kitchens as full as ALFWorld's own.

    The splits: "unseen" has rooms with a set of receptacles that no training episode has; "train" has rooms where
    training episodes may be made, none of them a committed one; "seen" has rooms with the receptacles of a committed
    training episode where other things lie, and where all families are played, rooms as they are drawn for training.
    The expert wins each of them in `steps` actions. Raises BadInput for a family that is not known.
    """

    nothing = NOTHING

    def __init__(self, families: str = "") -> None:
        committed = facts().committed.tasks
        self.large = families == LARGE
        asked = families and not self.large
        self.families = episodes.chosen("tasks", families, facts().tasks) if asked else list(committed)
        self.as_committed = set(self.families) <= set(committed) and not self.large
        self.steps = facts().alfworld.steps if self.large else episodes.MOST_STEPS
        self.system_prompt = system(self.families)
        self.game: Game | None = None

    def tasks(self, split: str) -> Iterator[Task]:
        """At most 1,000 tasks of a split, families by turns or as drawn. Raises BadInput for another split."""
        if split not in ("train", "seen", "unseen"):
            raise BadInput(f"{split}: the household's splits are train, seen, unseen")
        if not self.as_committed:
            yield from itertools.islice(self._drawn(split), TASKS)
            return
        for room in _kitchens(split):
            if room.task in self.families:
                yield Task(f"household-{room.seed}", room.task, room.goal)

    def _drawn(self, split: str) -> Iterator[Task]:
        first = episodes.FIRST_SEED[{"train": "collect", "seen": "seen", "unseen": "play"}[split]]
        told: set[str] = set()
        turns = episodes.turns(self.families, [LARGE] if self.large else list(facts().rooms))
        for seed, (task, place) in enumerate(turns, first):
            room = make_room_for(seed, task, place, split == "unseen")
            if room.introduction in told or (split == "unseen" and not episodes.is_unseen(room)):
                continue
            if episodes.episode(room, slip=0, steps=self.steps):
                told.add(room.introduction)
                yield Task(f"household-{split}-{task}-{place}-{seed}", task, room.goal)

    def reset(self, task: Task) -> str:
        """Start a task anew: the room and the task, as the first user turn. Raises BadInput for an unknown id."""
        self.game = Game(_room(task.id))
        return self.game.room.introduction

    def step(self, action: str) -> str:
        """Do an action; the observation, `nothing` for what cannot be done."""
        return self._started().step(action)

    @property
    def won(self) -> bool:
        """Whether the task is fulfilled as things stand."""
        return self._started().won

    @property
    def done(self) -> bool:
        """A household has no end but that the task is fulfilled."""
        return self.won

    def _started(self) -> Game:
        assert self.game, "reset starts a game"
        return self.game


def _kitchens(split: str) -> Iterator[Room]:
    if split == "unseen":
        return episodes.unseen_rooms(TASKS)
    if split == "train":
        return episodes.rooms("collect", TASKS, allowed=episodes.may_teach)
    known = episodes.introductions(episodes.train_episodes())
    return episodes.rooms("seen", TASKS, known, allowed=lambda room: frozenset(room.receptacles) in episodes.taught())


def _room(name: str) -> Room:
    """The room of a task's id."""
    match name.split("-"):
        case ["household", seed] if seed.isdecimal():
            return make_room(int(seed))
        case ["household", split, task, place, seed] if (
            seed.isdecimal() and task in facts().tasks and place in places_of(task)
        ):
            return make_room_for(int(seed), task, place, split == "unseen")
    raise BadInput(f"{name}: not a task of the household")
