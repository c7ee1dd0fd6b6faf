"""catalog/household.yaml as it is checked and read: rooms, receptacles, objects, where things mostly are, tasks."""

from collections.abc import Mapping
from functools import cache
from typing import Literal

from pydantic import Field

from tools.core import catalog
from tools.core.catalog import Part

Can = Literal["heat", "cool", "clean", "slice", "use", "hold", "cut"]


class Committed(Part):
    """The kind of room and the tasks of the committed episodes."""

    room: str
    tasks: tuple[str, ...]


class OwnGames(Part):
    """ALFWorld's own games by split, and the most steps of one."""

    games: Mapping[str, int]
    steps: int


class Receptacle(Part):
    """What holds things: how many objects at most at the start, and whether it must be opened."""

    most: int
    openable: bool = False


class RoomKind(Part):
    """A kind of room: its receptacles, the least and most of each, what lies about in it, and its lamp, if any."""

    receptacles: Mapping[str, tuple[int, int]]
    objects: tuple[str, ...]
    lamp: str | None = None


class LargeKitchen(Part):
    """A kitchen as full as ALFWorld's own: its receptacles, and the most things in those that hold more here."""

    receptacles: Mapping[str, tuple[int, int]]
    most: Mapping[str, int]


class Thing(Part):
    """A kind of object. `taken_by` (`in` in the file): the receptacles that take it; `can`: what it can be used for."""

    kind: str
    taken_by: tuple[str, ...] = Field(alias="in")
    can: tuple[Can, ...]


class Task(Part):
    """A kind of task: ALFWorld's name, its wordings, its rooms, the state it asks for and where that is reached."""

    alfworld: str
    say: tuple[str, ...]
    rooms: tuple[str, ...]
    state: str | None = None
    at: str | None = None


class Household(Part):
    """catalog/household.yaml. `likely`: by kind of thing, the receptacles where such a thing mostly is."""

    committed: Committed
    alfworld: OwnGames
    receptacles: Mapping[str, Receptacle]
    rooms: Mapping[str, RoomKind]
    large: LargeKitchen
    likely: Mapping[str, tuple[str, ...]]
    objects: Mapping[str, Thing]
    tasks: Mapping[str, Task]


@cache
def facts() -> Household:
    """catalog/household.yaml. Raises BadInput, with file:line, where it breaks its schema."""
    return catalog.content("household", Household)
