"""What a person asked for: a recipe, the tier that it is for, another base, changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.core import catalog, machine
from tools.core.catalog import Tier
from tools.gguf import find_base
from tools.recipes import recipe


@dataclass(frozen=True)
class Job:
    """One recipe as a person asked for it: its file, the tier it is for, another base, changes to its keys."""

    path: Path
    tier: Tier
    other: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)


def find_job(name: str, tier: str = "", other: str = "", pairs: Sequence[str] = (), data: str = "") -> Job:
    """The job of a recipe's name or path. Raises BadInput for what is not there or cannot be read."""
    path = find_recipe(name, tier)
    wanted = catalog.tiers()[tier] if tier else recipe.tier_of(path) or catalog.tiers()[machine.tier()]
    return Job(path, wanted, other, recipe.overrides(list(pairs), data, path))


def find_recipe(name: str, tier: str = "") -> Path:
    """The file of a recipe by name or path, on `tier` or on this machine's own. Raises BadInput as `recipe.find`."""
    return recipe.find(name, tier, machine.tier())


def base_folder(path: Path, other: str) -> Path:
    """The folder of the base model: `other` (BASE=) where it is given, else the recipe's."""
    return find_base.resolve(other or recipe.load(path)["base_model"])
