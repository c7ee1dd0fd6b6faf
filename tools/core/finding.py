"""What a check finds: in a recipe, in episodes."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "advice"]


@dataclass(frozen=True)
class Finding:
    """One thing found: how grave, what, where (file:line), and how to fix it. An error stops a training."""

    level: Level
    what: str
    where: str
    fix: str
