"""The demo's training on a GPU: more episodes and more epochs than a CPU has time for (catalog/demo.yaml)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import orjson

from tools.core import catalog, files, progress, quote, trajectory
from tools.core.catalog import Model, Part, Tier
from tools.pipeline.fit import duration
from tools.recipes import plan
from tools.recipes.recipe import Recipe
from tools.worlds.household import episodes


class Demo(Part):
    """catalog/demo.yaml, which says what each figure is."""

    like_shipped: int
    of_all_tasks: int
    tokens: int
    seconds: int
    most_epochs: int
    learning_rate: Mapping[str, float]

    @property
    def episodes(self) -> int:
        """Episodes in all."""
        return self.like_shipped + self.of_all_tasks


@cache
def facts() -> Demo:
    """catalog/demo.yaml. Raises BadInput, with file:line, where it breaks its schema."""
    return catalog.content("demo", Demo)


def on_gpu(recipe: Recipe) -> Recipe:
    """The recipe as the demo trains it: on a GPU's tier with the demo's own episodes, which are written first.

    Without a GPU, and with a person's own data, it stays as it is. Prints one line on what was chosen and why.
    """
    model = catalog.model_of(str(recipe.settings["base_model"]))
    if not recipe.tier.gpu or model is None or recipe.data.resolve() != trajectory.TRAIN_DATA:
        return recipe
    changes = changed(recipe, model, find_spec("flash_attn") is not None)
    longer = replace(recipe, settings={**recipe.settings, **changes}, changes=changes)
    print(quote.visible(chosen(longer, model)))
    data = recipe.run.folder / "episodes.jsonl"
    with progress.step(f"demo: the expert plays {facts().episodes:,} episodes"):
        made = episodes.demo_episodes(facts().like_shipped, facts().of_all_tasks)
        files.write(data, b"".join(orjson.dumps(each) + b"\n" for each in made))
    own = {"datasets": [{**recipe.dataset, "path": str(data.resolve())}]}
    # A check warns of a learning rate beyond what is advised for the method, unless it is the tier's own.
    tier = recipe.tier.model_copy(update={"changes": {**recipe.tier.changes, **own_rate(recipe)}})
    return replace(longer, settings={**longer.settings, **own}, changes={**changes, **own}, tier=tier)


def changed(recipe: Recipe, model: Model, flash: bool) -> dict[str, Any]:
    """The keys that the demo changes in a recipe for a GPU; what a person changed (SET=) stays.

    `flash`: whether flash-attn is installed. Without it Axolotl would ask the hub for a kernel; PyTorch's own attention
    needs no hub.
    """
    named = "flash" in str(recipe.settings.get("attn_implementation"))
    changes: dict[str, Any] = {"attn_implementation": "sdpa"} if named and not flash else {}
    changes |= {**own_rate(recipe), **recipe.changes}
    epoch = epoch_seconds(model, recipe.tier, {**recipe.settings, **changes})
    return {"num_epochs": max(1, min(facts().most_epochs, round(facts().seconds / epoch)))} | changes


def own_rate(recipe: Recipe) -> dict[str, float]:
    """The learning rate that the demo sets, as a recipe has it; nothing for most recipes."""
    rate = facts().learning_rate.get(recipe.name)
    return {} if rate is None else {"learning_rate": rate}


def epoch_seconds(model: Model, tier: Tier, settings: Mapping[str, Any]) -> float:
    """Seconds of an epoch of the demo's episodes, by the planner."""
    trained = facts().episodes * facts().tokens * (1 - float(settings.get("val_set_size") or 0))
    return trained / plan.of(model, tier, plan.from_recipe(settings, tier)).tokens_per_second


def chosen(recipe: Recipe, model: Model) -> str:
    """What the demo trains and why, in one line. `recipe`: with the demo's changes."""
    tier, epochs = recipe.tier, recipe.settings["num_epochs"]
    memory = f"{tier.usable_gib:g} GiB" + (f" on each of {tier.world} GPUs" if tier.world > 1 else "")
    took = duration(epochs * epoch_seconds(model, tier, recipe.settings))
    parts = [f"demo: {tier.key}/{recipe.name}, by the GPU's memory ({memory})"]
    parts.append(f"{facts().episodes:,} episodes of six task families, num_epochs={epochs}: about {took} by prediction")
    if recipe.changes.get("attn_implementation") == "sdpa":
        parts.append("PyTorch's attention, since flash-attn is not installed")
    if (other := larger(tier)) and other.text_parameters > model.text_parameters:
        parts.append(f"a larger model, from the hub: make demo RECIPE={other.key}-lora")
    return "; ".join(parts)


def larger(tier: Tier) -> Model | None:
    """The largest model, open to all on the hub, whose LoRA fits a tier and has an epoch in the demo's time."""
    lora = catalog.methods()["lora"]
    found = (plan.choose(model, lora, tier) for model in catalog.models().values() if not model.gated)
    tokens = facts().episodes * facts().tokens
    quick = [each.model for each in found if each and tokens <= facts().seconds * each.tokens_per_second]
    return max(quick, key=lambda model: model.text_parameters, default=None)
