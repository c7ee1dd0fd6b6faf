"""The task that an episode was played on, so that it can be played again."""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from tools import BadInput
from tools.worlds.load import Loaded, load
from tools.worlds.world import Task


class Named(NamedTuple):
    """A task with the name of its world, as `load` takes it."""

    world: str
    id: str
    kind: str
    goal: str

    @property
    def task(self) -> Task:
        """The task as its world takes it."""
        return Task(self.id, self.kind, self.goal)


@cache
def world_of(name: str) -> Loaded:
    """`load`, once for each name."""
    return load(name)


def task_of(episode: Mapping[str, object]) -> Named:
    """The task of an episode: its provenance says it where `collect` made the episode, else its `id`, of the household.

    An episode that says neither gets an id that no world knows.
    """
    told = episode.get("provenance")
    made: Mapping[str, object] = told if isinstance(told, Mapping) else {}
    named = made.get("task") or episode.get("id") or ""
    world, kind = made.get("world") or "household", episode.get("task") or ""
    return Named(str(world), str(named), str(kind), str(made.get("goal") or ""))


def fault(episode: Mapping[str, object]) -> str | None:
    """Why an episode's task cannot be played again, in words; None where its world begins as the episode does.

    Raises BadInput or WorldFailed where the world itself cannot be had.
    """
    named = task_of(episode)
    world = world_of(named.world).make()
    try:
        shown = world.reset(named.task)
    except BadInput as error:
        return str(error)
    messages = episode["messages"]
    assert isinstance(messages, list)  # what was read as an episode has them
    told = [turn["content"] for turn in messages[:2]]
    if told != [world.system_prompt, shown]:
        return f"{named.id}: {named.world} does not begin as this episode does"
    return None
