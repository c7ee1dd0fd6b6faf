"""A recipe for a person's own episodes: a sequence that holds them, and how a machine trains it."""

import itertools
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tools import BadInput
from tools.core import catalog, files, machine, quote, run_folder, trajectory
from tools.core.catalog import Method, Model, Tier
from tools.gguf import base, find_base
from tools.recipes import commands, index, plan, render
from tools.recipes.plan import Plan

# The share of the episodes that the sequence holds, and what its length is a multiple of.
HELD = 0.99
STEP = 256
# With few episodes the method's epochs are too few updates to learn from: epochs are added up to so many updates, and
# at most to those of LIMA, which trains on 1,000 examples (https://arxiv.org/abs/2305.11206, section 3).
LEAST_UPDATES = 100
MOST_EPOCHS = 15
# Updates of warm-up, at most: Alpaca-LoRA's (https://github.com/tloen/alpaca-lora, finetune.py).
MOST_WARMUP = 100
# The share of the memory that a change must save to be named.
WORTHWHILE = 0.05


@dataclass(frozen=True)
class Schedule:
    """How long a training lasts: its epochs, its updates in all, and the share of them that warms up."""

    epochs: int
    updates: int
    warmup_ratio: float


def fit_recipe(
    data: str,
    model: str,
    out: str,
    method: str = "",
    tier: str = "",
    gpu: str = "",
    gpus: int = 0,
    base_name: str = "",
    seq: int = 0,
    force: bool = False,
) -> None:
    """Write a recipe of a model (by key) for the episodes in `data` to the file `out`, and say what it does and takes.

    `method`: by default LoRA where it fits with its base in 16 bits, else QLoRA. `tier`, `gpu`, `gpus`: see `tier_of`.
    `base_name`: a folder or hub name whose tokenizer counts, in place of the model's. `seq`: the sequence length, 0 to
    have it chosen. Raises BadInput with what would fit where this does not, or for what is not there.
    """
    known, on = catalog.pick("model", model, catalog.models()), tier_of(tier, gpu, gpus)
    ways = [catalog.pick("method", method, catalog.supervised())] if method else default_methods()
    if seq > known.context:
        raise BadInput(f"SEQ={seq} (--seq): the context of {known.title} ends at {known.context} tokens")
    files.check_output(out, force, [data])
    lengths = token_lengths(Path(data), base_name or known.hub, render.chat(known.family))
    length = seq or sequence_for(lengths, known.context)
    chosen = first_fit(known, ways, on, length)
    if chosen is None:
        possible = [each for each in ways if not index.impossible(known, each, on, length)]
        raise BadInput(refusal(known, (possible or ways)[-1], on, lengths, length))
    way, found = chosen
    kept = [each for each in lengths if each <= length]
    if not kept:
        raise BadInput(f"{data}: no episode has at most {length} tokens; the shortest has {min(lengths)}")
    planned = schedule(len(kept), episodes_an_update(found, kept), way, on)
    own = {"num_epochs": planned.epochs, "warmup_ratio": planned.warmup_ratio}
    text = render.recipe_text(on, known, way, found, path_in_recipe(Path(data)), own)
    commands.write_own(out, f"{on.key}/{render.name(known, way)}", text, force, [data])
    for line in report(data, lengths, way, found, planned):
        print(quote.visible(line))
    asked = [f"RECIPE={out}", *([f"BASE={base_name}"] if base_name else [])]
    print(f"{out}: make train {shlex.join(asked)}")


def tier_of(tier: str, gpu: str, gpus: int) -> Tier:
    """The tier to plan for: by name, or that of `gpus` (0: one) of a GPU, or of this machine (0: all of its GPUs).

    Raises BadInput for a tier together with a GPU or a number of them, and for more GPUs than are here.
    """
    if gpus and not gpu:
        if tier:
            raise BadInput(f"TIER={tier} (--tier) has its own number of GPUs; leave out GPUS= (--gpus)")
        return catalog.tiers()[machine.tier(commands.devices_here(gpus))]
    return catalog.pick("tier", commands.tier_for(tier, gpu, gpus) or machine.tier(), catalog.tiers())


def default_methods() -> list[Method]:
    """The methods to try where a person names none."""
    return [catalog.methods()[key] for key in ("lora", "qlora")]


def token_lengths(data: Path, name: str, template: str) -> list[int]:
    """The tokens of each episode of a file, by the tokenizer of a base (a folder or hub name).

    `template`: the chat template in place of the tokenizer's own; empty for that. Raises BadInput with file:line for
    what is no episode, Failed where the tokenizer cannot be had.
    """
    trajectory.check_beginning(data)
    tokenizer = find_base.tokenizer(name)
    if template:
        tokenizer.chat_template = template
    episodes = trajectory.followed(trajectory.read(data), "counting tokens")
    return [base.tokens(tokenizer, episode["messages"]) for episode in episodes]


def sequence_for(lengths: Sequence[int], context: int) -> int:
    """The least multiple of STEP that holds the share HELD of the episodes, and no more than the model's context."""
    longest = sorted(lengths)[math.ceil(HELD * len(lengths)) - 1]
    return min(math.ceil(longest / STEP) * STEP, context)


def first_fit(model: Model, ways: Sequence[Method], tier: Tier, length: int) -> tuple[Method, Plan] | None:
    """The first method that fits a tier with this sequence, its base in the bits that it has by itself, and its plan.

    An 8-bit base, about half as fast, is taken only where no other method is left to try.
    """
    for way in ways:
        found = plan.search(model, way, tier, (length,))
        if found and (found.settings.bits != 8 or way is ways[-1]):
            return way, found
    return None


def episodes_an_update(found: Plan, lengths: Sequence[int]) -> float:
    """How many episodes of these lengths an update learns from, on average: a packed row holds several."""
    if not found.settings.packed:
        return found.rows
    return found.update_tokens / (sum(lengths) / len(lengths))


def schedule(episodes: int, batch: float, method: Method, tier: Tier) -> Schedule:
    """The epochs and warm-up for so many episodes that fit the sequence, `batch` of them an update.

    The method's (or the tier's own), more epochs where there would be fewer than LEAST_UPDATES updates.
    """
    says = {**catalog.training().model_dump(), "num_epochs": method.epochs, **tier.changes}
    an_epoch = max(1, math.ceil(episodes * (1 - says["val_set_size"]) / batch))
    epochs = max(says["num_epochs"], min(MOST_EPOCHS, math.ceil(LEAST_UPDATES / an_epoch)))
    updates = epochs * an_epoch
    return Schedule(epochs, updates, round(min(says["warmup_ratio"], MOST_WARMUP / updates), 4))


def path_in_recipe(data: Path) -> str:
    """A file's path as a recipe names it: from where its relative paths start, or whole where it lies elsewhere."""
    whole, home = data.resolve(), run_folder.home().resolve()
    return str(whole.relative_to(home) if whole.is_relative_to(home) else whole)


def padded(lengths: Sequence[int], size: int) -> float:
    """The mean length, in tokens, of the longest of `size` episodes drawn at random: what each is padded to."""
    count = len(lengths)
    shares = ((number / count) ** size for number in range(count + 1))
    return sum(length * (b - a) for length, (a, b) in zip(sorted(lengths), itertools.pairwise(shares), strict=True))


def seconds(found: Plan, lengths: Sequence[int], updates: int) -> float:
    """Seconds of a training of episodes of these lengths, by the planner; 0 where it foresees no speed."""
    if not found.tier.gpu:
        return 0.0
    if found.settings.packed:
        return updates * found.seconds
    real = max(1, round(padded(lengths, found.settings.micro_batch)))
    s = replace(found.settings, sequence_len=real)
    return updates * plan.seconds(found.model, found.tier, s, s.tokens)


def cut(lengths: Sequence[int], length: int) -> str:
    """The share of the episodes that a sequence cuts off, in words."""
    long = sum(each > length for each in lengths)
    share = f"{long} of {len(lengths)} episodes ({long / len(lengths):.1%})"
    return f"{share} are longer and dropped" if long else "holds all"


def report(data: str, lengths: Sequence[int], method: Method, found: Plan, planned: Schedule) -> Iterator[str]:
    """What a recipe does with the data and what it takes, a line each; then what would make it take less."""
    s, tier = found.settings, found.tier
    kept = [each for each in lengths if each <= s.sequence_len]
    mean = round(sum(lengths) / len(lengths))
    yield f"{data}: {len(lengths)} episodes, {mean} tokens on average, {max(lengths)} at most"
    base_bits = f", base in {s.bits} bits" if s.rank else ""
    yield f"  method     {method.title} of {found.model.title}{base_bits}"
    yield f"  sequence   {s.sequence_len} tokens: {cut(lengths, s.sequence_len)}"
    spread = render.spread(found)
    rows = "packed rows" if s.packed else "episodes"
    ways = [f"{s.micro_batch} x {s.accumulation}{spread} = {found.rows} {rows} an update"]
    ways += [f"about {episodes_an_update(found, kept):.0f} episodes"] if s.packed else []
    ways.append("layers recomputed" if s.checkpointing else "no layer recomputed")
    ways += ["their inputs in the machine's memory"] if s.activation_offloading else []
    ways += ["no validation"] if s.evaluation == 0 and tier.gpu else []
    ways += [s.sharding] if tier.world > 1 else []
    ways += [f"{s.offload} offloaded"] if s.offload != "none" else []
    yield f"  batch      {', '.join(ways)}"
    warm = math.ceil(planned.warmup_ratio * planned.updates)
    yield f"  schedule   {planned.epochs} epochs = {planned.updates} updates, {warm} of them warm-up"
    each_device = " on each device" if tier.world > 1 else ""
    yield f"  memory     {found.total:.1f} of {tier.usable_gib} GiB{each_device} (TIER={tier.key})"
    took = seconds(found, kept, planned.updates)
    yield f"  time       {f'about {duration(took)}' if took else 'not predicted without a GPU'}"
    worthwhile = (each for each in plan.advice(found) if each.won >= WORTHWHILE * found.total)
    for each in itertools.islice(worthwhile, 3):
        length = each.keys.get("sequence_len")
        drops = f"; {cut(lengths, length)}" if length else ""
        yield f"  on less    {each.plan.total:.1f} GiB with {each.words}{drops}: {index.assignments(each.keys)}"
    for way, smaller in least_tiers(found.model, s.sequence_len):
        if tier.gpu and smaller.tier.usable_gib < tier.usable_gib * tier.world:
            yield f"  on less    {smaller.total:.1f} GiB with TIER={smaller.tier.key} METHOD={way.key}"


def duration(took: float) -> str:
    """Seconds in the unit that a person would use."""
    return f"{took / 3600:.1f} hours" if took >= 2 * 3600 else f"{max(1, round(took / 60))} min"


def least_tiers(model: Model, length: int) -> Iterator[tuple[Method, Plan]]:
    """The smallest single GPU on which each adapter method trains sequences of this length, and its plan there."""
    for way in default_methods():
        alone = (tier for tier in catalog.tiers().values() if tier.gpu and tier.world == 1)
        plans = (plan.search(model, way, tier, (length,)) for tier in sorted(alone, key=lambda each: each.usable_gib))
        if found := next(filter(None, plans), None):
            yield way, found


def refusal(model: Model, method: Method, tier: Tier, lengths: Sequence[int], length: int) -> str:
    """Why a sequence cannot be trained on a tier, and what can: a shorter one, or another tier."""
    title = f"{render.name(model, method)} on {tier.key}"
    if why := index.impossible(model, method, tier, length):
        return f"{title}: {why}"
    shorter = range((length - 1) // STEP * STEP, 0, -STEP)
    found = plan.search(model, method, tier, shorter)
    ways = [f"SEQ={(fits := found.settings.sequence_len)} fits: {cut(lengths, fits)}"] if found else []
    ways += [f"TIER={each.tier.key} METHOD={way.key} holds it" for way, each in least_tiers(model, length)]
    return f"{title}: sequences of {length} tokens do not fit; {'; '.join(ways) or 'a smaller model does'}"
