"""The index of recipes/: README.md for GitHub, index.html to pick by GPU; every figure in them is a plan's."""

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from math import inf

import orjson

from tools.core import catalog, machine, templates
from tools.core.catalog import Gpu, Method, Model, Tier
from tools.recipes import plan
from tools.recipes.memory import Settings, Sharding
from tools.recipes.plan import Plan

# What the page offers: tokens of a sequence, and GPUs as (machines, GPUs in each).
SEQUENCES = (1024, 1536, 2048, 4096, 8192, 16384, 32768)
# Of those, the ones that are shown side by side.
COMPARED = (2048, 8192)
COUNTS = {1: (1, 1), 2: (1, 2), 4: (1, 4), 8: (1, 8), 16: (2, 8)}
# GB of a device up to which the matrix calls it small.
SMALL_GB = 16
# Adapters from the method that trains most to the one that trains least; None trains every weight.
MOST = (None, "lora", "qlora")
# The keys of a recipe that may change with its sequence length, and the settings that they set.
KEYS = {
    "sequence_len": "sequence_len",
    "micro_batch_size": "micro_batch",
    "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "checkpointing",
    "optimizer": "optimizer",
    "context_parallel_size": "context_parallel",
}

Planned = Iterable[tuple[Tier, Model, Method, Plan]]
# The keys of a tier, a model and a method.
Key = tuple[str, str, str]


def pages(planned: Planned) -> dict[str, str]:
    """README.md and index.html of recipes/, by name; the same bytes for the same catalog.

    `planned`: all that fits (render.planned). They show the methods that learn from episodes: the others begin where
    those end, on a device that holds them.
    """
    found = [each for each in planned if not each[2].rl]
    return {
        "README.md": templates.template("report/recipes.md.j2").render(readme(found)),
        "index.html": templates.template("report/index.html.j2").render(data=embedded(found)),
    }


def label(tier: Tier) -> str:
    """A tier in a few words."""
    if not tier.gpu:
        return f"CPU, {tier.memory_gb} GB"
    kind = " (Volta, Turing)" if tier.precision == "fp16" else ""
    devices = f"{tier.devices} GPUs" if tier.devices > 1 else "one GPU"
    words = f"{tier.nodes} machines, {tier.devices} GPUs each" if tier.nodes > 1 else devices
    return f"{words} of {tier.memory_gb} GB{kind}"


def number(value: float) -> str:
    """A figure as a person writes it: 0.1, 7e-4, 2.5e-5."""
    return re.sub(r"\.?0*e-0*", "e-", f"{value:e}") if 0 < value < 1e-2 else f"{value:g}"


def assignments(keys: Mapping[str, object]) -> str:
    """A recipe's keys with their values as SET= takes them: texts bare, all else as JSON, which is YAML."""
    written = {key: value if isinstance(value, str) else orjson.dumps(value).decode() for key, value in keys.items()}
    return " ".join(f"{key}={value}" for key, value in written.items())


def readme(planned: Planned) -> dict[str, object]:
    """What recipes/README.md shows: the plans by recipe, the tables of the matrix, the best of each cell, methods."""
    tiers, models = list(catalog.tiers().values()), list(catalog.models().values())
    plans = {f"{tier.key}/{model.key}-{method.key}": found for tier, model, method, found in planned}
    best = {}
    for tier in tiers:
        for model in models:
            methods = sorted(catalog.supervised().values(), key=lambda each: MOST.index(each.adapter))
            there = (each for each in methods if f"{tier.key}/{model.key}-{each.key}" in plans)
            if first := next(there, None):
                best[tier.key, model.key] = first
    alone = [tier for tier in tiers if tier.world == 1]
    tables = {
        "One small GPU, or none": [tier for tier in alone if tier.memory_gb <= SMALL_GB],
        "One large GPU": [tier for tier in alone if tier.memory_gb > SMALL_GB],
        "Several GPUs": [tier for tier in tiers if tier.world > 1],
    }
    rates = {
        method.key: "; ".join(
            [number(method.learning_rate)]
            + [f"{number(value)} from {size:g} billion parameters on" for size, value in sorted(method.by_size.items())]
        )
        for method in catalog.methods().values()
    }
    return {
        "plans": plans,
        "best": best,
        "tables": tables,
        "models": models,
        "methods": list(catalog.methods().values()),
        "rates": rates,
        "label": label,
        "spare": plan.SPARE,
        "own": [tier.key for tier in tiers if tier.changes],
        "compared": COMPARED,
        "at_length": at_length,
    }


def economies(found: Plan, tier: Tier, length: int) -> Iterator[Settings]:
    """A recipe's settings with another sequence length, then with one more change each time that saves memory.

    What leaves the result as it is comes first; a sequence longer than all recipes' is also offloaded and split.
    """
    first = found.settings
    s = plan.at_length(first, length)
    yield s
    if s.bits == 32:  # On a CPU layers are never recomputed.
        return
    if not s.checkpointing:
        yield (s := replace(s, checkpointing=True))
    batch = s.micro_batch * s.accumulation
    for size in range(s.micro_batch - 1, 0, -1):
        if s.micro_batch % size == 0:
            yield replace(s, micro_batch=size, accumulation=batch // size)
    s = single = replace(s, micro_batch=1, accumulation=batch)
    if length > plan.SEQUENCES[0] and not (s.pairs or s.group):
        ways = [s, replace(s, activation_offloading=True)]
        for devices in plan.splits(found.model, s, tier):
            split = plan.split(first, length, devices)
            ways += [split, replace(split, activation_offloading=True)]
        yield from (*ways[1:], *(replace(each, evaluation=0) for each in ways))
        s = replace(ways[-1], evaluation=0)
    unsharded = s.sharding in ("none", "ddp")
    for optimizer in ("adamw_8bit",) if s.rank else ("adamw_8bit", "paged_adamw_8bit"):
        if unsharded and not s.optimizer.startswith("paged") and s.optimizer != optimizer:
            yield (s := replace(s, optimizer=optimizer))
    if unsharded and s.rank and s.bits == 16:
        yield replace(s, bits=8, kernels=False)
    if not s.rank and s.offload == "none":
        stage: Sharding = "zero3" if s.sharding == "zero3" else "zero2"
        for each in (single, s):
            yield replace(each, sharding=stage, offload="optimizer", optimizer="adamw_torch_fused")


def at_length(found: Plan, tier: Tier, length: int) -> Plan:
    """A recipe's plan on a tier with another sequence length: as few changes as make it fit, or all of them."""
    if tier is found.tier and length == found.settings.sequence_len:
        return found
    tried = found
    for settings in economies(found, tier, length):
        tried = plan.of(found.model, tier, settings)
        if tried.fits:
            break
    return tried


def least(model: Model, method: Method, tier: Tier, length: int) -> Plan:
    """The plan that takes the least memory of a device, for a model and method that have no recipe there."""
    if not tier.gpu:
        found = plan.search(model, method, tier.model_copy(update={"usable_gib": inf}))
        assert found, f"{model.key}-{method.key} has no plan on {tier.key}, however much memory there is"
        return plan.of(model, tier, plan.at_length(found.settings, length))
    first = replace(plan.base_settings(model, method, tier), sequence_len=length)
    return min(
        (
            plan.of(model, tier, spread)
            for offload in plan.OFFLOADS
            for spread in plan.spreads(replace(first, offload=offload), tier)
        ),
        key=lambda each: each.total,
    )


def changes(recipe: Plan, wanted: Plan) -> str:
    """What gives a recipe the wanted plan's settings, as `make train SET=` takes it; empty where it has them."""
    has, needs = recipe.settings, wanted.settings
    pairs = {key: getattr(needs, name) for key, name in KEYS.items() if getattr(has, name) != getattr(needs, name)}
    if "gradient_checkpointing" in pairs:
        pairs |= plan.recomputing(needs, wanted.tier)
    if needs.activation_offloading != has.activation_offloading:
        pairs["activation_offloading"] = plan.OFFLOADING
    if needs.evaluation == 0 and has.evaluation != 0:
        pairs |= plan.UNVALIDATED
    if needs.bits != has.bits:
        pairs["load_in_8bit"] = True
    if needs.kernels != has.kernels:
        pairs |= dict.fromkeys(catalog.training().lora_kernels, False)
    if needs.offload != has.offload:
        pairs["deepspeed"] = f"recipes/deepspeed/{needs.sharding}_offload_optimizer.json"
    return assignments(pairs)


def next_up(tier: Tier) -> Tier | None:
    """The tier with as many devices of the next larger memory; None where there is none."""
    same = (tier.nodes, tier.devices, tier.precision)
    larger = [
        each
        for each in catalog.tiers().values()
        if (each.nodes, each.devices, each.precision) == same and each.usable_gib > tier.usable_gib
    ]
    return min(larger, key=lambda each: each.usable_gib, default=None)


def impossible(model: Model, method: Method, tier: Tier, length: int) -> str:
    """Why a method cannot be planned on a tier, however much memory it has; empty where it can."""
    if length > model.context:
        return f"the model's context ends at {model.context} tokens"
    if not tier.gpu and method.adapter != "lora":
        return "without a GPU only LoRA is planned"
    if method.group and tier.world > 1:
        return "games are played on one device"
    if method.adapter or tier.precision != "fp16":
        most = f"{plan.MOST_TOKENS:g} times the {method.update_tokens} tokens of the method's update"
        return "" if plan.possible(method, tier) else f"{tier.world} GPUs take more than {most}"
    return "it trains every weight, which needs bf16; GPUs before Ampere have none"


def shown(recipes: Mapping[Key, Plan], key: Key, length: int) -> tuple[Plan, Plan | None]:
    """The plan to show for a tier, model, method and sequence length, and the plan of the recipe that it changes.

    Where the tier has no recipe, that of the next larger tier is changed: a GPU between the two may hold it. Where
    that has none either, the plan is the one with the least memory, and there is no recipe.
    """
    tier, model, method = catalog.tiers()[key[0]], catalog.models()[key[1]], catalog.methods()[key[2]]
    larger = next_up(tier)
    recipe = recipes.get(key) or (recipes.get((larger.key, *key[1:])) if larger else None)
    return (at_length(recipe, tier, length), recipe) if recipe else (least(model, method, tier, length), None)


def part_names(plans: Iterable[Plan]) -> list[str]:
    """The names of all parts, in the order in which each plan has its own."""
    order: list[str] = []
    for found in plans:
        place = len(order)
        for name in reversed(list(found.parts)):
            if name not in order:
                order.insert(place, name)
            place = order.index(name)
    return order


def how(s: Settings) -> str:
    """What of the settings decides on memory, in words."""
    named = "FSDP2" if s.sharding == "fsdp2" else f"ZeRO-{s.sharding[-1]}"
    spread = {"none": "", "ddp": "a whole copy on each device"}.get(s.sharding, f"spread by {named}")
    words = [
        f"base in {s.bits} bits" if s.rank else "every weight trained",
        f"{s.micro_batch} {s.row}{'s' if s.micro_batch > 1 else ''} at a time",
        f"each row on {s.context_parallel} GPUs" if s.context_parallel > 1 else "",
        "layers recomputed" if s.checkpointing else "nothing recomputed",
        "their inputs in the machine's memory" if s.activation_offloading else "",
        "no validation" if s.evaluation == 0 and s.bits != 32 else "",
        s.optimizer,
        spread,
        {"none": "", "optimizer": "optimizer", "parameters": "weights and optimizer"}[s.offload],
    ]
    if words[-1]:
        words[-1] += " in the machine's memory"
    return ", ".join(word for word in words if word)


def gib(value: float) -> float:
    """GiB as the page knows them: to the hundredth."""
    return round(value, 2)


def tier_row(tier: Tier) -> dict[str, object]:
    """What the page knows of a tier; `limit` and `host` are the GiB that a plan may take of device and machine."""
    return {
        "key": tier.key,
        "title": label(tier),
        "nodes": tier.nodes,
        "devices": tier.devices,
        "gpu": catalog.gpus()[tier.gpu].title if tier.gpu else "",
        "usable": gib(tier.usable_gib),
        "limit": gib(tier.usable_gib * (1 - plan.SPARE)),
        "host": gib(tier.host_gib * (1 - plan.HOST_SPARE)),
    }


def gpu_row(gpu: Gpu, places: Mapping[str, int]) -> dict[str, object]:
    """What the page knows of a GPU; `tiers`: for each of COUNTS the place of the tier whose recipes so many can run."""
    device = machine.Device(gpu.title, gpu.usable, gpu.modern)
    return {
        "key": gpu.key,
        "title": gpu.title,
        "kind": gpu.architecture.title(),
        "tiers": [places[machine.tier([device] * devices, nodes)] for nodes, devices in COUNTS.values()],
        "usable": gib(gpu.usable),
        "limit": gib(gpu.usable * (1 - plan.SPARE)),
    }


def embedded(planned: Planned) -> dict[str, object]:
    """What index.html knows, as the JSON in its script element.

    `rows[cells[tier][model][method]]` has an entry for each of SEQUENCES: a text that says why it is impossible, or
    [plan, fits, tier of its recipe or -1, settings, SET=, GiB of the machine's memory where it has less, else 0, tokens
    a second of COMPARED on the tier's own GPU in two digits, or 0].
    Most of it repeats, so each distinct row, plan ([total, part, part ...] in hundredths of a GiB), text of settings
    and text of SET= is stored once and named by its place in its list: a quarter of the bytes.
    """
    tiers, models, methods = catalog.tiers(), catalog.models(), catalog.supervised()
    recipes = {(tier.key, model.key, method.key): found for tier, model, method, found in planned}
    parts = part_names(recipes.values())
    tier_at = {key: place for place, key in enumerate(tiers)}
    rows, plans, hows, sets = (numbered() for _ in range(4))

    def entry(key: Key, length: int) -> Hashable:
        if reason := impossible(models[key[1]], methods[key[2]], tiers[key[0]], length):
            return reason
        found, recipe = shown(recipes, key, length)
        host = sum(found.host.values())
        return (
            plans[tuple(round(100 * size) for size in (found.total, *(found.parts.get(name, 0) for name in parts)))],
            int(found.fits),
            tier_at[recipe.tier.key] if recipe else -1,
            hows[how(found.settings)],
            sets[changes(recipe, found) if recipe else ""],
            gib(host) if host > found.tier.host_gib * (1 - plan.HOST_SPARE) else 0,
            int(float(f"{found.tokens_per_second:.2g}")) if recipe and length in COMPARED else 0,
        )

    def row(key: Key) -> int:
        return rows[tuple(entry(key, length) for length in SEQUENCES)]

    return {
        "sequences": SEQUENCES,
        "compared": COMPARED,
        "counts": list(COUNTS),
        "spare": round(100 * plan.SPARE),
        "tiers": [tier_row(tier) for tier in tiers.values()],
        "gpus": [gpu_row(gpu, tier_at) for gpu in catalog.gpus().values()],
        "models": [{"key": key, "title": model.title, "size": model.text_parameters} for key, model in models.items()],
        "methods": [{"key": key, "title": each.title, "purpose": each.purpose} for key, each in methods.items()],
        "cells": [[[row((tier, model, method)) for method in methods] for model in models] for tier in tiers],
        "rows": list(rows),
        "parts": parts,
        "plans": list(plans),
        "hows": list(hows),
        "sets": list(sets),
    }


def numbered() -> defaultdict[Hashable, int]:
    """A place for each value that is asked for: 0 for the first, then 1; the same value has the same place."""
    return defaultdict(count().__next__)
