"""What a recipe asks of the model, the optimizers or the schedulers and they do not have."""

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tools.core import catalog, files, hf_folder
from tools.core.finding import Finding
from tools.recipes.recipe import Recipe

if TYPE_CHECKING:
    from torch.nn import Module

# Learning-rate schedules of Axolotl's own (axolotl 0.19, core/builders/base.py, _configure_scheduler).
AXOLOTL_SCHEDULERS = ("one_cycle", "rex")
# The keys under fsdp_config: that name the classes of layers, as Axolotl has it now and had it before.
LAYER_KEYS = ("transformer_layer_cls_to_wrap", "fsdp_transformer_layer_cls_to_wrap")
# Recipe keys that name modules of the model.
MODULE_KEYS = ("lora_target_modules", "lora_modules_to_save", "peft_layers_to_transform")


def findings(recipe: Recipe, base: Path | str) -> Iterator[Finding]:
    """All that this module checks. `base`: the model's folder; of a hub name, what the catalog knows. Loads torch."""
    yield from optimizer(recipe)
    yield from scheduler(recipe)
    yield from sequence(recipe, base)
    sharded = recipe.settings.get("fsdp_config") or {}
    layers = next((key for key in LAYER_KEYS if sharded.get(key)), "")
    if not layers and not any(recipe.settings.get(key) for key in MODULE_KEYS):
        return
    if model := skeleton(base if isinstance(base, Path) else str(recipe.settings["base_model"])):
        if layers:
            yield from sharded_layers(recipe, layers, model)
        yield from targets(recipe, model)
        yield from saved(recipe, model)
        yield from transformed(recipe, model)


def optimizer(recipe: Recipe) -> Iterator[Finding]:
    """An optimizer that neither transformers nor Axolotl has."""
    from axolotl.utils.schemas.enums import CustomSupportedOptimizers
    from transformers.training_args import OptimizerNames

    known = [str(each.value) for kind in (OptimizerNames, CustomSupportedOptimizers) for each in kind]
    named = recipe.settings.get("optimizer")
    if named and named not in known:
        yield Finding("error", f"{named}: no such optimizer", recipe.at("optimizer"), nearest(str(named), known))


def scheduler(recipe: Recipe) -> Iterator[Finding]:
    """A schedule of the learning rate that nobody has, or one that does not take its lr_scheduler_kwargs."""
    import torch
    from transformers import SchedulerType, get_scheduler

    named = recipe.settings.get("lr_scheduler")
    known = [*(str(each.value) for each in SchedulerType), *AXOLOTL_SCHEDULERS]
    if not named or named in AXOLOTL_SCHEDULERS:
        return
    if named not in known:
        fix = nearest(str(named), known)
        yield Finding("error", f"{named}: no such schedule of the learning rate", recipe.at("lr_scheduler"), fix)
        return
    trial = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    own = dict(recipe.settings.get("lr_scheduler_kwargs") or {})
    try:
        get_scheduler(named, trial, num_warmup_steps=1, num_training_steps=100, scheduler_specific_kwargs=own)
    except (TypeError, ValueError) as error:
        what = f"{named} does not take its lr_scheduler_kwargs: {' '.join(str(error).split())}"
        where = recipe.at("lr_scheduler_kwargs" if own else "lr_scheduler")
        yield Finding("error", what, where, "correct them; lr_scheduler: cosine takes none")


def sequence(recipe: Recipe, base: Path | str) -> Iterator[Finding]:
    """Sequences longer than the model's context, unless the recipe changes its positions."""
    length = int(recipe.settings.get("sequence_len") or 0)
    own = context(base if isinstance(base, Path) else str(recipe.settings["base_model"]))
    if own and length > own and not recipe.settings.get("overrides_of_model_config"):
        what = f"sequences of {length} tokens, and the model's own context ends at {own}: it knows no later positions"
        yield Finding("warning", what, recipe.at("sequence_len"), f"sequence_len: {own}")


def context(base: Path | str) -> int:
    """The tokens of a model's own context, by its folder's config.json or the catalog; 0 where neither says it."""
    if isinstance(base, Path):
        own = hf_folder.text_settings(files.read_object(base / "config.json")).get("max_position_embeddings")
        return own if isinstance(own, int) else 0
    known = catalog.model_of(base)
    return known.context if known else 0


@cache
def skeleton(base: Path | str) -> "Module | None":
    """A model's modules without weights, by its folder's config.json or the catalog; None where neither knows it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    known = catalog.model_of(str(base))
    try:
        if isinstance(base, Path):
            config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        elif known:  # Names depend on the kind and the number of layers alone.
            config = AutoConfig.for_model(known.shape.model_type, num_hidden_layers=known.sizes.layers)
        else:
            return None
        with torch.device("meta"):
            model: Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # A model that transformers cannot make so is left for the training, which says why.
        return None
    return model


def linears(model: "Module") -> list[str]:
    """The last parts of the names of a model's linear layers, sorted."""
    import torch

    layers = (name for name, each in model.named_modules() if isinstance(each, torch.nn.Linear))
    return sorted({name.rpartition(".")[2] for name in layers})


def sharded_layers(recipe: Recipe, key: str, model: "Module") -> Iterator[Finding]:
    """Classes of layers that FSDP would shard by, and that the model does not have."""
    there = {type(each).__name__ for each in model.modules()}
    layers = sorted(each for each in there if each.endswith(("Layer", "Block")))
    for named in str(recipe.settings["fsdp_config"][key]).split(","):
        if named.strip() not in there:
            what = f"{named.strip()}: the model has no layer of this class"
            yield Finding("error", what, recipe.at("fsdp_config", key), f"{key}: {', '.join(layers)}")


def targets(recipe: Recipe, model: "Module") -> Iterator[Finding]:
    """Target modules that the model does not have, or that are no layer which takes an adapter; peft decides."""
    import torch
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    named = recipe.settings.get("lora_target_modules") or []
    takes = (torch.nn.Linear, torch.nn.Embedding)
    names = [name for name, each in model.named_modules() if isinstance(each, takes) or "Conv" in type(each).__name__]
    for each in [named] if isinstance(named, str) else named:
        if each == "all-linear":
            continue
        # A text is a pattern, an entry of a list the end of a name.
        config = LoraConfig(target_modules=each if isinstance(named, str) else [each])
        try:
            found = any(check_target_module_exists(config, name) for name in names)
        except re.error:
            found = False
        if not found:
            fix = f"the linear layers are {', '.join(linears(model))}; lora_target_linear: true takes them"
            what = f"{each}: no layer of the model that takes an adapter has this name"
            yield Finding("error", what, recipe.at("lora_target_modules"), fix)


def saved(recipe: Recipe, model: "Module") -> Iterator[Finding]:
    """Modules to train whole beside an adapter that the model does not have; peft passes over them in silence."""
    names = [name for name, _ in model.named_modules()]
    for each in recipe.settings.get("lora_modules_to_save") or ():
        if not any(name == each or name.endswith(f".{each}") for name in names):
            what = f"{each}: the model has no such module, so nothing of it would be trained"
            fix = nearest(each, {name.rpartition(".")[2] for name in names})
            yield Finding("error", what, recipe.at("lora_modules_to_save"), fix)


def transformed(recipe: Recipe, model: "Module") -> Iterator[Finding]:
    """Layers to put an adapter on beyond the model's last; peft passes over them in silence."""
    named = recipe.settings.get("peft_layers_to_transform")
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    count = int(config.num_hidden_layers)
    beyond = [each for each in (named if isinstance(named, list) else [named]) if (each or 0) >= count]
    if beyond:
        what = f"the model has {count} layers, 0 to {count - 1}; {', '.join(map(str, beyond))} would get no adapter"
        yield Finding("error", what, recipe.at("peft_layers_to_transform"), "name layers that it has")


def nearest(name: str, known: Iterable[str]) -> str:
    """What to write in place of a name that nobody knows."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"one of {', '.join(sorted(choices)[:12])}"
