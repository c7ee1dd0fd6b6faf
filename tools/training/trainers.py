"""What a recipe says, in the words of another trainer: its names for our keys, and what all of them share."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from tools import BadInput
from tools.core import catalog
from tools.core.catalog import Part
from tools.recipes.recipe import Recipe

# Keys that only the functions here read, each of them together with others.
READ = {
    *("adapter", "datasets", "chat_template", "chat_template_jinja", "special_tokens", "excess_length_strategy"),
    *("load_in_4bit", "load_in_8bit", "lora_target_linear", "lora_target_modules", "lora_modules_to_save"),
    *("peft_layers_to_transform", "unfrozen_parameters", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("sample_packing", "saves_per_epoch", "evals_per_epoch", "save_strategy", "save_steps", "eval_strategy"),
    *("eval_steps", "plugins", "use_tensorboard", "wandb_project"),
}
# The linear layers of a decoder layer, where an adapter is for some layers alone.
LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


class Words(Part):
    """catalog/llamafactory.yaml, catalog/trl.yaml and catalog/unsloth.yaml; the first says what each figure is."""

    title: str
    version: str
    names: Mapping[str, str] = {}
    values: Mapping[str, Mapping[str, str]] = {}
    speed: tuple[str, ...] = ()


def renamed(recipe: Recipe, words: Words, read: Collection[str] = READ) -> dict[str, Any]:
    """The keys of a recipe under a trainer's names, but for those that are `read` elsewhere.

    Raises BadInput, with file:line, for a key or a value that it has nothing for.
    """
    found: dict[str, Any] = {}
    for key, value in recipe.settings.items():
        if value is None or key in read or key in words.speed:
            continue
        if key not in words.names:
            raise cannot(recipe, key, words, "has nothing for it")
        name = words.names[key]
        value = words.values.get(name, {}).get(str(value), value)
        if value == "":
            raise cannot(recipe, key, words, f"does not know {recipe.settings[key]}")
        # PyYAML reads 2e-4 as a text.
        found[name] = float(value) if name == "learning_rate" else value
    return found | {words.names["base_model"]: recipe.base}


def check_data(recipe: Recipe, words: Words) -> None:
    """Raise BadInput for pairs, games, several data sets, and for a recipe that trains more than a chat's answers."""
    if recipe.settings.get("rl"):
        raise cannot(recipe, "rl", words, "gets episodes from here, neither preference pairs nor games")
    if len(recipe.settings["datasets"]) > 1:
        raise cannot(recipe, "datasets", words, "gets one data set from here")
    roles = list(recipe.dataset.get("roles_to_train") or ["assistant"])
    if recipe.dataset.get("type") != "chat_template" or roles != ["assistant"]:
        raise cannot(recipe, "datasets", words, "trains every answer of a chat and nothing else")


def target(recipe: Recipe, words: Words, everything: str) -> list[str]:
    """The modules that get an adapter; `everything`: the trainer's word for all linear layers of the language part."""
    modules, layers = recipe.settings.get("lora_target_modules"), recipe.settings.get("peft_layers_to_transform")
    if isinstance(modules, str) and not re.search(r"language_model.*\(.*(q|gate).*\)", modules):
        raise cannot(recipe, "lora_target_modules", words, "takes names, not a pattern")
    named = list(modules) if isinstance(modules, list) else []
    if layers is None:
        return named or [everything]
    return [f"layers.{layer}.{each}" for layer in layers for each in (named or LINEAR)]


def saving(recipe: Recipe) -> dict[str, Any]:
    """When checkpoints and validations are; those an epoch become shares of all updates, as transformers takes them.

    A validation has the rows of a micro batch at a time, as in Axolotl; transformers takes 8 where it is told nothing.
    """
    s = recipe.settings
    epochs = float(s.get("num_epochs") or 1)
    made: dict[str, Any] = {}
    for name, count in (("save", s.get("saves_per_epoch")), ("eval", s.get("evals_per_epoch"))):
        strategy, steps = s.get(f"{name}_strategy"), s.get(f"{name}_steps")
        if name == "eval" and not s.get("val_set_size"):
            continue
        if count:
            strategy, steps = "steps", math.floor(1e6 / (float(count) * epochs)) / 1e6
        made |= {f"{name}_strategy": strategy or "epoch"} | ({f"{name}_steps": steps} if steps else {})
    if s.get("val_set_size"):
        made["per_device_eval_batch_size"] = s.get("eval_batch_size") or s.get("micro_batch_size") or 1
    return made


def reporting(recipe: Recipe) -> dict[str, str]:
    """Where a training's losses go."""
    if recipe.settings.get("wandb_project"):
        return {"report_to": "wandb"}
    return {"report_to": "tensorboard" if recipe.settings.get("use_tensorboard") else "none"}


def liger(recipe: Recipe) -> bool:
    """Whether a recipe computes with Liger's kernels."""
    return any("LigerPlugin" in str(each) for each in recipe.settings.get("plugins") or [])


def sees_images(recipe: Recipe) -> bool:
    """Whether the recipe's model has a part beside its language model."""
    model = catalog.model_of(str(recipe.settings["base_model"])) or catalog.model_of(recipe.base)
    return model is not None and model.tower > 0


def cannot(recipe: Recipe, key: str, words: Words, why: str) -> BadInput:
    """The refusal of a recipe that a trainer cannot train as it says."""
    return BadInput(f"{recipe.at(key)}: {key}: {words.title} {why}; make train RECIPE={recipe.name} does it")
