"""The catalog and its recipes for a person at the keyboard: list, recommend, plan, copy, compare, add."""

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tools import BadInput
from tools.core import catalog, files, machine, quote
from tools.core.catalog import Method, Model, Tier
from tools.recipes import index, memory, plan, recipe, render, schema, values
from tools.recipes.memory import Settings
from tools.recipes.plan import Plan

if TYPE_CHECKING:
    from rich.table import Table


def show(tier: str, model: str) -> None:
    """Print the models and the smallest tier on which each method fits; or all recipes of one tier.

    `model`: a part of the keys of those to show. Raises BadInput for a tier or a model that there is not.
    """
    from rich.console import Console

    models = [each for each in catalog.models().values() if model in each.key]
    if not models:
        catalog.pick("model", model, catalog.models())
    drawn = of_tier(catalog.pick("tier", tier, catalog.tiers()), models) if tier else of_all_tiers(models)
    Console().print(drawn)


def of_tier(tier: Tier, models: list[Model]) -> "Table":
    """The recipes of one tier, a row each."""
    from rich.table import Table

    heads = ("recipe", "GiB", "sequence", "micro batch", "tokens/s")
    drawn = Table(*heads, title=f"recipes/{tier.key}", title_justify="left", box=None, pad_edge=False)
    for each in models:
        for method in catalog.methods().values():
            if method.written(each) and (found := plan.choose(each, method, tier)):
                s = found.settings
                speed = f"{found.tokens_per_second:.0f}" if found.seconds else ""
                cells = (f"{found.total:.1f}", str(s.sequence_len), str(s.micro_batch), speed)
                drawn.add_row(quote.cell(render.name(each, method)), *cells)
    return drawn


def of_all_tiers(models: list[Model]) -> "Table":
    """The models, a row each: the smallest tier with a recipe of each method, and whether a CPU trains it."""
    from rich.table import Table

    title = "the smallest tier for each method (make list TIER=24gb: one tier's recipes)"
    methods = [method.key for method in catalog.main_methods()]
    heads = ("model", "billion parameters", *methods, "without a GPU")
    drawn = Table(*heads, title=title, title_justify="left", box=None, pad_edge=False)
    gpus = [tier for tier in catalog.tiers().values() if tier.gpu]
    for each in models:
        there = {method: recipe.tiers_of(f"{each.key}-{method}") for method in methods}
        least = [next((tier.key for tier in gpus if tier.key in found), "") for found in there.values()]
        cpu = next((method for method, found in there.items() if "cpu" in found), "")
        drawn.add_row(quote.cell(each.key), f"{each.text_parameters / 1e9:.1f}", *least, cpu)
    return drawn


def recommend(gpu: str, gpus: int) -> None:
    """Print what to train on this machine or on a GPU: for each method the largest models that fit, and the command.

    `gpus`: how many of them, 0 for one GPU, or all of this machine. Raises BadInput for more than there are here.
    """
    if gpu:
        known = catalog.gpu_of(gpu)
        tier, what = plan.for_gpu(known, gpus or 1), f"{gpus or 1} x {known.title}"
    else:
        tier = catalog.tiers()[machine.tier(devices_here(gpus))]
        what = f"this machine ({machine.gpu() or 'no GPU'})"
    named = tier if tier.key in catalog.tiers() else catalog.tiers()[near(tier)]
    print(f"{what}: recipes/{named.key}, {named.usable_gib} GiB a device\n")
    methods = catalog.main_methods()
    for method in methods:
        for found in largest_fits(method, named):
            s = found.settings
            speed = f", about {found.tokens_per_second:.0f} tokens/s" if found.seconds else ""
            title = render.name(found.model, method)
            takes = f"{found.total:.1f} GiB, {s.sequence_len} tokens{speed}"
            base = " over a base in 8 bits" if s.bits == 8 else ""
            line = f"  make train RECIPE={title:24} {found.model.title}, {method.title}{base}: {takes}"
            print(quote.visible(line))
    for first in (each for each in catalog.models().values() if each.first_try):
        if any(plan.choose(first, method, named) for method in methods):
            print(f"\nStart small: {first.title} soon shows whether your data teach what they should.")


def largest_fits(method: Method, tier: Tier) -> list[Plan]:
    """The plans of the three largest models that a method trains on a tier; fewer where fewer fit."""
    fits = [found for model in catalog.models().values() if (found := plan.choose(model, method, tier))]
    return sorted(fits, key=lambda each: -each.model.text_parameters)[:3]


def devices_here(gpus: int) -> list[machine.Device]:
    """So many of this machine's GPUs; 0: all. Raises BadInput for more than there are."""
    here = machine.devices()
    if gpus > len(here):
        raise BadInput(f"GPUS={gpus}, and this machine has {len(here) or 'none'}; GPU= names another, GPU=rtx4090")
    return here[:gpus] if gpus else here


def near(tier: Tier) -> str:
    """The catalog's tier that a machine of one's own can use."""
    device = machine.Device(tier.key, tier.usable_gib, tier.precision == "bf16")
    return machine.tier([device] * tier.devices, tier.nodes)


def open_asked(
    name: str, tier: str, gpu: str, gpus: int, base: str, pairs: list[str], seq: int, data: str
) -> recipe.Recipe:
    """The recipe that check, train and submit are asked for; see `tier_for`, `with_length`, `recipe.open_recipe`."""
    on = tier_for(tier, gpu, gpus)
    return recipe.open_recipe(name, on, base, with_length(pairs, seq, name, on), data)


def tier_for(tier: str, gpu: str, gpus: int) -> str:
    """The tier to train on: `tier`, or that of `gpus` (0: one) of a GPU by name; empty for this machine's.

    Raises BadInput for both, or a GPU that is not known.
    """
    if tier and gpu:
        raise BadInput(f"a tier or a GPU, not both: TIER={tier} (--tier) and GPU={gpu} (--gpu); leave one out")
    if not gpu:
        return tier
    found = plan.for_gpu(catalog.gpu_of(gpu), gpus or 1)
    return found.key if found.key in catalog.tiers() else near(found)


def with_length(pairs: list[str], seq: int, name: str, tier: str) -> list[str]:
    """Changes of a recipe (key=value) and, where it is not 0, the sequence length in tokens.

    For a recipe by name (`name`, on `tier` or this machine's) also what else makes it fit, but for keys in `pairs`.
    """
    if not seq or name.endswith((".yaml", ".yml")):
        return [*pairs, f"sequence_len={seq}"] if seq else pairs
    path = recipe.find(name, tier)
    model, method, _ = model_and_method(path.stem)
    found = plan.choose(model, method, catalog.tiers()[path.parent.name])
    own = recipe.overrides(pairs)
    text = index.changes(found, index.at_length(found, found.tier, seq)) if found else f"sequence_len={seq}"
    more = {key: value for key, value in recipe.overrides([text]).items() if key not in own}
    return [*pairs, index.assignments(more)]


def plan_of(
    name: str, tier: str, gpu: str, gpus: int, asked: Mapping[str, int], pairs: list[str], as_json: bool
) -> None:
    """Print what a recipe takes with these changes: parts, total, speed, and what to change when it does not fit."""
    wanted = dict(asked)
    seq = wanted.pop("sequence_len", 0)
    found = planned(name, tier, gpu, gpus, wanted | recipe.overrides(pairs), seq)
    if as_json:
        print(orjson.dumps(plan.as_json(found), option=orjson.OPT_INDENT_2).decode())
        return
    from rich.console import Console
    from rich.text import Text

    s, largest = found.settings, max(found.parts.values())
    title = f"{found.model.title} on {found.tier.key}: {s.micro_batch} x {s.sequence_len} tokens x {s.accumulation}"
    spread = f", {found.tier.world} devices, {s.sharding}" if found.tier.world > 1 else ""
    Console().print(Text.assemble((quote.visible(title), "bold"), spread))
    if not (tier or gpu or "/" in name) and found.tier.key != machine.tier():
        print(f"  (this machine is {machine.tier()}; TIER= or GPU= plans for another)")
    print(f"  settings: {index.how(s)}")
    for part, value in sorted(found.parts.items(), key=lambda each: -each[1]):
        print(f"  {part:20} {value:7.2f} GiB  {'█' * round(30 * value / largest)}")
    word = "fits" if found.fits else "does not fit"
    of = f"of {found.tier.usable_gib} on each device: {word} ({plan.SPARE:.0%} are kept free)"
    print(f"  {'in all':20} {found.total:7.2f} GiB {of}")
    if found.host:
        print(f"  {'the machine':20} {sum(found.host.values()):7.1f} GiB of {found.tier.host_gib:.0f}")
    print(f"  {'disk':20} {sum(plan.disk(found).values()):7.1f} GiB, up to the GGUF")
    remembered = min(max(memory.GROWTH * s.sequence_len, memory.LEAST), found.model.context)
    cache = memory.kv_cache(found.model, remembered)
    print(f"  {'when served':20} {cache:7.2f} GiB, the KV cache of a conversation of {remembered} tokens")
    if found.seconds:
        print(f"  {'speed':20} {found.tokens_per_second:7.0f} tokens/s, roughly")
    changes = plan.advice(found)
    if changes:
        print("less memory:" if found.fits else "to make it fit, best option first:")
        for each in changes[:6]:
            speed = f", {each.slower:+.0%} time" if found.seconds else ""
            mark = "fits" if each.plan.fits else "not enough alone"
            mark += "; drops longer episodes" if "sequence_len" in each.keys else ""
            print(f"  {each.words:42} {each.won:6.2f} GiB won{speed}; {mark}   {index.assignments(each.keys)}")


def planned(name: str, tier: str, gpu: str, gpus: int, changes: Mapping[str, Any], seq: int = 0) -> Plan:
    """The plan of a recipe, with changes, on a tier, on a GPU, or where it belongs.

    `seq`: tokens of a sequence, for which a recipe by name is planned anew before the `changes`; 0: its own.
    A name without a recipe on that tier (what does not fit has none) is planned from its model and method all the same.
    Raises BadInput for what is not known.
    """
    plan.check_devices(gpus)
    by_path = name.endswith((".yaml", ".yml"))
    model, method, inside = (None, None, "") if by_path else model_and_method(name)
    given = tier or inside
    on = catalog.pick("tier", given, catalog.tiers()) if given else None
    if gpu:
        on = plan.for_gpu(catalog.gpu_of(gpu), gpus or 1)
    if model and method:
        on = on or default_tier(recipe.tiers_of(render.name(model, method)))
        return planned_name(model, method, with_devices(on, gpus), changes, seq)
    length = {"sequence_len": seq} if seq else {}
    found = recipe.read_recipe(recipe.find(name), on, changes={**length, **changes})
    schema.check_keys(found)
    on, base = with_devices(found.tier, gpus), str(found.settings["base_model"])
    if not (known := catalog.model_of(base)):
        raise BadInput(f"{found.at('base_model')}: {base} is not in the catalog; make add-model HUB=... adds it")
    return plan.of(known, on, plan.from_recipe(found.settings, on))


def default_tier(there: list[str]) -> Tier:
    """The tier of a recipe that is on those `there`: this machine's, as all other commands take it, else the least."""
    own = machine.tier()
    return catalog.tiers()[own if own in there or not there else there[0]]


def with_devices(tier: Tier, gpus: int) -> Tier:
    """A tier with so many devices in each machine; as it is where `gpus` is 0."""
    return tier.model_copy(update={"devices": gpus}) if gpus else tier


def planned_name(model: Model, method: Method, tier: Tier, changes: Mapping[str, Any], seq: int = 0) -> Plan:
    """The plan of a model and method with changes; what does not fit is shown with the settings that take the least.

    `seq`: as in `planned`. Raises BadInput for more tokens than the model's context.
    """
    if seq > model.context:
        raise BadInput(f"SEQ={seq} (--seq): the context of {model.title} ends at {model.context} tokens")
    found = plan.search(model, method, tier)
    least = plan.base_settings(model, method, tier)
    least = replace(least, sharding="none" if tier.world == 1 else "ddp", optimizer="adamw_8bit")
    if seq:
        found, least = found and index.at_length(found, tier, seq), replace(least, sequence_len=seq)
    return plan.of(model, tier, changed(found.settings if found else least, changes))


def changed(s: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with a recipe's keys in place of their own. Raises BadInput for a key that decides nothing here."""
    fields = {
        "sequence_len": "sequence_len",
        "micro_batch_size": "micro_batch",
        "gradient_accumulation_steps": "accumulation",
        "lora_r": "rank",
        "optimizer": "optimizer",
        "gradient_checkpointing": "checkpointing",
        "lora_dropout": "dropout",
        "context_parallel_size": "context_parallel",
    }
    for key, value in changes.items():
        if wrong := values.mistyped(key, value):
            raise BadInput(wrong)
        if value is None:  # as it is
            continue
        if key in ("load_in_4bit", "load_in_8bit"):
            s = replace(s, bits=(4 if "4" in key else 8) if value else 16)
        elif key in fields:
            own: dict[str, Any] = {fields[key]: type(getattr(s, fields[key]))(value)}
            s = replace(s, **own)
        elif key in catalog.training().lora_kernels:
            s = replace(s, kernels=bool(value))
        elif key == "activation_offloading":
            s = replace(s, activation_offloading=value == plan.OFFLOADING)
        elif key == "val_set_size":
            s = replace(s, evaluation=s.evaluation if value else 0)
        elif key not in ("adapter", "lora_alpha", "learning_rate", "lora_target_linear"):
            known = [*fields, "load_in_4bit", "load_in_8bit"]
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{', '.join(known)} do"
            raise BadInput(f"{key}: does not affect the memory plan; {hint}")
    return s


def model_and_method(name: str) -> tuple[Model, Method, str]:
    """Model, method and, if it is named, tier of a recipe's name. Raises BadInput with the nearest names."""
    tier, _, title = name.rpartition("/")
    for method in sorted(catalog.methods(), key=len, reverse=True):
        key = title.removesuffix(f"-{method}")
        if key != title and key in catalog.models():
            return catalog.models()[key], catalog.methods()[method], tier
    catalog.pick(
        "recipe",
        title,
        {f"{model}-{method}": each for model, each in catalog.models().items() for method in catalog.methods()},
    )
    raise AssertionError(title)


def new(model: str, method: str, tier: str, out: str, force: bool = False, seq: int = 0) -> None:
    """Copy the recipe of a model and method to `out`, with its own name, command and output folder.

    `seq`: planned anew for sequences of so many tokens; 0: as it is. `force`: replace a file that is there.
    Raises BadInput when it does not fit the tier, or `out` is there already.
    """
    key = catalog.pick("model", model, catalog.models()).key
    way = catalog.pick("method", method, catalog.methods()).key
    if seq or not catalog.methods()[way].written(catalog.models()[key]):
        source, text = with_sequence(catalog.models()[key], catalog.methods()[way], tier, seq)
    else:
        path = recipe.find(f"{key}-{way}", tier)
        source, text = f"{path.parent.name}/{path.stem}", path.read_text(encoding="utf-8")
    write_own(out, source, text, force)
    print(f"{out}: edit it, then make train {shlex.quote(f'RECIPE={out}')}")


def with_sequence(model: Model, method: Method, tier: str, seq: int) -> tuple[str, str]:
    """The name (tier/model-method) and text of the recipe that is planned for sequences of so many tokens, 0: ours.

    `tier`: by default this machine's. Raises BadInput where it does not fit.
    """
    on = catalog.pick("tier", tier or machine.tier(), catalog.tiers())
    name = f"{on.key}/{render.name(model, method)}"
    if found := plan.search(model, method, on, (seq,)) if seq else plan.choose(model, method, on):
        return name, render.recipe_text(on, model, method, found)
    seq = seq or plan.SEQUENCES[-1]
    why = index.impossible(model, method, on, seq) or f"{seq} tokens do not fit"
    raise BadInput(f"{name}: {why}; make plan RECIPE={name} SEQ={seq} says what to change")


def write_own(out: str, source: str, text: str, force: bool, inputs: Sequence[str] = ()) -> None:
    """Write the text of a generated recipe, `source` (tier/name), to a person's file `out`, as its own recipe.

    Raises BadInput for a name that is no recipe's, for one of `inputs`, and where a file is there already, unless
    `force`.
    """
    target = Path(out)
    if target.suffix not in (".yaml", ".yml"):
        raise BadInput(f"{out}: a recipe's name ends in .yaml")
    with files.output(out, force, [recipe.RECIPES / f"{source}.yaml", *inputs]) as beside:
        beside.write_text(renamed(text, source, target), encoding="utf-8")


def renamed(text: str, source: str, copy: Path) -> str:
    """The text of a generated recipe, `source`, as a `copy` of another name has it: commands and folder the copy's."""
    there = quote.visible(shlex.quote(str(copy)))
    text = render.HASH.sub(f"# from {source}", text, count=1)
    text = text.replace(f"RECIPE={source.rpartition('/')[2]} TIER=", f"RECIPE={there} TIER=", 1)
    text = text.replace(f"recipes/{source}.yaml", there, 1)
    folder = quote.yaml_scalar(f"outputs/{copy.resolve().parent.name}/{copy.stem}/checkpoints")
    return re.sub(r"^output_dir: .*$", lambda _: f"output_dir: {folder}", text, count=1, flags=re.MULTILINE)


def diff(a: str, b: str) -> None:
    """Print what differs between two recipes, key by key: named ones are taken from one tier, this machine's if it can.

    Raises BadInput for what is no recipe.
    """
    common = [tier for tier in recipe.tiers_of(a) or catalog.tiers() if tier in (recipe.tiers_of(b) or catalog.tiers())]
    here = machine.tier()
    here = here if here in common or not common else common[0]
    one, two = (flat(recipe.read_recipe(recipe.find(each, here=here)).settings) for each in (a, b))
    differ = [key for key in one | two if one.get(key) != two.get(key)]
    for key in differ:
        if key not in two:
            print(quote.visible(f"{key}: {one[key]} in the first alone"))
        elif key not in one:
            print(quote.visible(f"{key}: {two[key]} in the second alone"))
        else:
            print(quote.visible(f"{key}: {one[key]} becomes {two[key]}"))
    if not differ:
        print("nothing but comments")


def flat(values: Any, above: str = "") -> dict[str, Any]:
    """Nested values by their whole key: datasets.0.path."""
    if isinstance(values, Mapping):
        pairs = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list) and any(isinstance(each, (Mapping, list)) for each in values):
        pairs = [(str(number), value) for number, value in enumerate(values)]
    else:
        return {above: values}
    return {
        key: value for name, below in pairs for key, value in flat(below, f"{above}.{name}" if above else name).items()
    }
