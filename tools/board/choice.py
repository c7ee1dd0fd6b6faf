"""What a person chose on the page, and what follows from it: the recipe, its plan, the commands."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tools import BadInput
from tools.core import catalog, machine, run_folder
from tools.core.catalog import Tier
from tools.core.run_folder import Run
from tools.recipes import commands, plan, recipe, render
from tools.recipes.plan import Plan


@dataclass(frozen=True)
class Command:
    """A command of ours. `options`: by name, the recipe among them; "1" for a switch, "" for one that is left out."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """As `python -m tools` takes it."""
        given = {key: value for key, value in self.options.items() if value and key != "recipe"}
        said = [f"--{key}" if value == "1" else f"--{key}={value}" for key, value in given.items()]
        return [self.name, *said, *(["--", self.options["recipe"]] if "recipe" in self.options else [])]

    @property
    def make(self) -> str:
        """As make takes it, for a person to copy."""
        given = [f"{key.upper()}={value}" for key, value in self.options.items() if value]
        return shlex.join(["make", self.name, *given])


@dataclass(frozen=True)
class Choice:
    """A model and a method by their keys, a device ("tier 24gb" or "gpu rtx4090"), data, a recipe of the person's own.

    `data`: a file in place of the recipe's, or "". `own`: a recipe in place of the generated one, or "".
    """

    model: str
    method: str
    device: str
    data: str = ""
    own: str = ""

    @property
    def name(self) -> str:
        """The recipe, as commands take it."""
        return self.own or f"{self.model}-{self.method}"

    @property
    def gpu(self) -> str:
        """The GPU that was chosen; empty where a tier was."""
        kind, _, key = self.device.partition(" ")
        return key if kind == "gpu" else ""

    @property
    def tier(self) -> str:
        """The key of the tier whose recipes are taken. Raises BadInput for a GPU with less memory than any."""
        return commands.tier_for("" if self.gpu else self.device.partition(" ")[2], self.gpu, 0)

    @property
    def file(self) -> Path:
        """The recipe's file. Raises BadInput where there is none: what does not fit has none."""
        return Path(self.own) if self.own else recipe.find(self.name, self.tier)

    @property
    def run(self) -> Run:
        """The folder of its run."""
        return recipe.open_recipe(self.name, self.tier).run

    def plans(self) -> dict[str, Plan]:
        """For each method of the model, the one that was chosen first, what it takes on this device, fit or not."""
        keys = [self.method, *(each for each in methods(self.model) if each != self.method)]
        tier = "" if self.gpu else self.tier
        return {key: commands.planned(f"{self.model}-{key}", tier, self.gpu, 0, {}) for key in keys}

    def command(self, name: str, **options: str) -> Command:
        """A command on this recipe; on the data too, where it reads any."""
        asked = {"recipe": self.name, "tier": self.tier}
        if name in ("check", "train"):
            asked["data"] = self.data
        if name == "plan" and self.gpu:
            asked = {"recipe": self.name, "gpu": self.gpu}
        return Command(name, asked | options)


def methods(model: str) -> list[str]:
    """The methods with which recipes are written for a model."""
    return [key for key, each in catalog.methods().items() if each.written(catalog.models()[model])]


def first() -> Choice:
    """What the page opens with: this machine, and the model to try first on it, else the smallest that fits."""
    try:
        tier = catalog.tiers()[machine.tier()]
    except BadInput:  # a GPU of less memory than any tier has
        tier = catalog.tiers()["cpu"]
    known = recipe.names(tier.key)
    there = [
        (model, method)
        for method in catalog.main_methods()
        for model in catalog.models().values()
        if render.name(model, method) in known
    ]
    model, method = min(there, key=lambda each: (not each[0].first_try, each[0].text_parameters))
    return Choice(model.key, method.key, f"tier {tier.key}")


@cache
def largest(tier: str, gpu: str) -> dict[str, list[Plan]]:
    """The largest models that fit a tier, or a GPU, by the titles of the main methods."""
    on: Tier = plan.for_gpu(catalog.gpus()[gpu]) if gpu else catalog.tiers()[tier]
    return {method.title: commands.largest_fits(method, on) for method in catalog.main_methods()}


def shown(path: Path) -> str:
    """A file as commands take it: from the project's root where it lies in it."""
    home = run_folder.home()
    return str(path.relative_to(home) if path.is_relative_to(home) else path)
