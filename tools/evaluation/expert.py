"""What the household's expert would do first, to hold a model's first action against."""

import random

from tools.worlds.household.expert import Expert, Lost


def first_action(introduction: str) -> str | None:
    """The expert's first action in a room, by its first observation; None where it cannot read the task."""
    try:
        return Expert(introduction, random.Random(0)).act(introduction)[1]
    except (ValueError, KeyError, Lost):
        return None
