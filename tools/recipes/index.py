"""The index of recipes/: README.md for GitHub, index.html to pick by GPU; every figure in them is a plan's."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson

from tools.core import catalog, machine, templates
from tools.core.catalog import Gpu, Method, Model, Tier
from tools.recipes import plan
from tools.recipes.memory import Settings
from tools.recipes.plan import Plan

# What the page offers: tokens of a sequence, and GPUs as (machines, GPUs in each).
SEQUENCES = (1024, 1536, 2048, 4096, 8192)
COUNTS = {1: (1, 1), 2: (1, 2), 4: (1, 4), 8: (1, 8), 16: (2, 8)}
# GB of a device up to which the matrix calls it small.
SMALL_GB = 16
# Which method is the best of those that fit: the one that trains most.
MOST = (None, "lora", "qlora")
# A recipe's keys, and the settings that they set, of which one length can need others than another.
KEYS = {
    "sequence_len": "sequence_len",
    "micro_batch_size": "micro_batch",
    "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "checkpointing",
    "optimizer": "optimizer",
}

Planned = Iterable[tuple[Tier, Model, Method, Plan]]


def pages(planned: Planned) -> dict[str, str]:
    """README.md and index.html of recipes/, by name; the same bytes for the same catalog.

    `planned`: all that fits (render.planned).
    """
    found = list(planned)
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


def assignments(keys: Mapping[str, Any]) -> str:
    """A recipe's keys with their values as SET= takes them: texts bare, all else as JSON, which is YAML."""
    written = {key: value if isinstance(value, str) else orjson.dumps(value).decode() for key, value in keys.items()}
    return " ".join(f"{key}={value}" for key, value in written.items())


def readme(planned: Planned) -> dict[str, Any]:
    """What recipes/README.md shows: the plans by recipe, the tables of the matrix, the best of each cell, methods."""
    tiers, models = list(catalog.tiers().values()), list(catalog.models().values())
    plans = {f"{tier.key}/{model.key}-{method.key}": found for tier, model, method, found in planned}
    best = {}
    for tier in tiers:
        for model in models:
            methods = sorted(catalog.methods().values(), key=lambda each: MOST.index(each.adapter))
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
    }


def kin(method: Method) -> tuple[Any, ...]:
    """What of a method decides on memory: methods of one kin have the same plans."""
    return method.adapter, method.rank, bool(method.dropout), method.effective_batch


def ladder(s: Settings, length: int) -> Iterator[Settings]:
    """A recipe's settings with another sequence length, then with one change more each time, to less memory."""
    s = replace(s, sequence_len=length)
    yield s
    if s.bits == 32:  # On a CPU layers are never recomputed.
        return
    if not s.checkpointing:
        yield (s := replace(s, checkpointing=True))
    batch = s.micro_batch * s.accumulation
    for size in range(s.micro_batch - 1, 0, -1):
        if s.micro_batch % size == 0:
            yield replace(s, micro_batch=size, accumulation=batch // size)
    s = replace(s, micro_batch=1, accumulation=batch)
    whole = s.sharding in ("none", "ddp")
    for optimizer in ("adamw_8bit",) if s.rank else ("adamw_8bit", "paged_adamw_8bit"):
        if whole and not s.optimizer.startswith("paged") and s.optimizer != optimizer:
            yield (s := replace(s, optimizer=optimizer))
    if whole and s.rank and s.bits == 16:
        yield replace(s, bits=8, kernels=False)
    if not s.rank and s.offload == "none":
        stage: Any = "zero3" if s.sharding == "zero3" else "zero2"
        yield replace(s, sharding=stage, offload="optimizer", optimizer="adamw_torch_fused")


def at_length(found: Plan, tier: Tier, length: int) -> Plan:
    """A recipe's plan with another sequence length, on a tier: changed as little as makes it fit, else at its least."""
    if tier is found.tier and length == found.settings.sequence_len:
        return found
    tried = found
    for settings in ladder(found.settings, length):
        tried = plan.of(found.model, tier, settings)
        if tried.fits:
            break
    return tried


def least(model: Model, method: Method, tier: Tier, length: int) -> Plan:
    """The plan with the least memory on a device, for what has no recipe there."""
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
    if "gradient_checkpointing" in pairs and wanted.tier.world > 1:
        pairs["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
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


def tier_of(gpu: Gpu, nodes: int, devices: int) -> str:
    """The key of the tier whose recipes so many of this GPU can run."""
    return machine.tier([machine.Device(gpu.title, gpu.usable, gpu.modern)] * devices, nodes)


def cell(
    plans: Mapping[tuple[str, str, tuple[Any, ...]], Plan], model: Model, method: Method, tier: Tier, length: int
) -> tuple[Plan, Plan | None] | None:
    """The plan to show for a model, method, tier and length, and the plan of the recipe that it changes, if any.

    Where the tier has no recipe, that of the next larger one is taken: a GPU between the two may hold it. None where
    nothing can be planned: more tokens than the model knows, what the tier cannot run, or a CPU without recipe.
    """
    if length > model.context or not plan.possible(method, tier):
        return None
    larger = next_up(tier)
    recipe = plans.get((tier.key, model.key, kin(method)))
    if recipe is None and larger:
        recipe = plans.get((larger.key, model.key, kin(method)))
    if recipe:
        return at_length(recipe, tier, length), recipe
    return (least(model, method, tier, length), None) if tier.gpu else None


def room(usable: float) -> dict[str, float]:
    """What a device holds, and what a plan may take of it, in GiB."""
    return {"usable": round(usable, 2), "limit": round(usable * (1 - plan.SPARE), 2)}


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
        f"{s.micro_batch} episode{'s' if s.micro_batch > 1 else ''} at a time",
        "layers recomputed" if s.checkpointing else "nothing recomputed",
        s.optimizer,
        spread,
        {"none": "", "optimizer": "optimizer", "parameters": "weights and optimizer"}[s.offload],
    ]
    if words[-1]:
        words[-1] += " in the machine's memory"
    return ", ".join(word for word in words if word)


def embedded(planned: Planned) -> dict[str, Any]:
    """What index.html knows, for the JSON in its script element; GiB of plans are in hundredths.

    cells[tier][model][kin][sequence]: 0, or [plan, fits, recipe's tier or -1, how, set, GiB of the machine's memory
    where it has less]; plan, how and set are places in `plans` ([total, part, part ...]), `hows` (the settings in
    words) and `sets` (what SET= says to have them).
    """
    tiers, methods = list(catalog.tiers().values()), list(catalog.methods().values())
    places = {tier.key: place for place, tier in enumerate(tiers)}
    kins = {kin(method): method for method in reversed(methods)}
    plans = {(tier.key, model.key, kin(method)): found for tier, model, method, found in planned}
    names = part_names(plans.values())
    distinct: dict[tuple[int, ...], int] = {}
    hows: dict[str, int] = {}
    sets: dict[str, int] = {}

    def numbers(found: Plan, recipe: Plan | None) -> list[int]:
        row = (round(100 * found.total), *(round(100 * found.parts.get(name, 0.0)) for name in names))
        words = how(found.settings)
        change = changes(recipe, found) if recipe else ""
        needed, there = sum(found.host.values()), found.tier.host_gib * (1 - plan.HOST_SPARE)
        return [
            distinct.setdefault(row, len(distinct)),
            int(found.fits),
            places[recipe.tier.key] if recipe else -1,
            hows.setdefault(words, len(hows)),
            sets.setdefault(change, len(sets)),
            round(needed) if needed > there else 0,
        ]

    def row(tier: Tier, model: Model, method: Method) -> list[Any]:
        shown = (cell(plans, model, method, tier, length) for length in SEQUENCES)
        return [numbers(*each) if each else 0 for each in shown]

    cells = [
        [[row(tier, model, method) for method in kins.values()] for model in catalog.models().values()]
        for tier in tiers
    ]
    order = list(kins)
    return {
        "sequences": SEQUENCES,
        "counts": list(COUNTS),
        "tiers": [
            {"key": tier.key, "title": label(tier), "nodes": tier.nodes, "devices": tier.devices, "host": tier.host_gib}
            | room(tier.usable_gib)
            for tier in tiers
        ],
        "gpus": [
            {"key": gpu.key, "title": gpu.title, "kind": gpu.architecture.title()}
            | {"tiers": [places[tier_of(gpu, *count)] for count in COUNTS.values()]}
            | room(gpu.usable)
            for gpu in catalog.gpus().values()
        ],
        "models": [
            {"key": model.key, "title": model.title, "context": model.context, "size": model.text_parameters}
            for model in catalog.models().values()
        ],
        "methods": [
            {"key": method.key, "title": method.title, "purpose": method.purpose, "kin": order.index(kin(method))}
            for method in methods
        ],
        "parts": names,
        "plans": list(distinct),
        "hows": list(hows),
        "sets": list(sets),
        "cells": cells,
    }
