"""How a model is trained on a tier: which settings fit, which of them is fastest, what to change when none does.

The rules, in one place:
1. A plan fits when its predicted peak leaves 8 % of the device free, and 10 % of the machine's memory.
2. The sequence comes first: 2048 tokens, and less, down to 1024, only when nothing fits at more. LoRA keeps its base in
   16 bits as long as any of these sequences fits, and in 8 bits only then.
3. Among what fits, the fastest wins, in tokens of the data a second, padding not counted: packing, micro batch,
   checkpointing, optimizer and sharding are tried together.
4. An update has the method's tokens at least, in the fewest rows that the devices share evenly, and at most 1.5 times
   as many. That leaves 16 devices without packing: 16 packed rows of 2048 tokens would be three times as many.
5. Kernels follow the device: FlashAttention 2, Liger with its fused loss and the LoRA kernels from Ampere on; on
   Turing, PyTorch's own attention and loss, and adapters only: torch's gradient scaler refuses gradients of weights in
   fp16 (torch/amp/grad_scaler.py). Cut Cross-Entropy saves what Liger's fused loss saves, the logits, and is taken only
   where Liger does not know the model: Axolotl 0.19 refuses the package of that name and asks for its own fork by an
   address on GitHub (axolotl/integrations/cut_cross_entropy/__init__.py), which no package index has and no lock pins.
6. A sharded base is ZeRO-3 for LoRA, FSDP2 for QLoRA (DeepSpeed cannot shard 4-bit weights), whose checkpoints are
   sharded too, since a full one would hold the first process's part of the adapter; full training takes the fastest
   ZeRO stage. Only when nothing fits, the optimizer is offloaded to the machine's memory, then parameters.
7. A sequence longer than rule 2's that does not fit with layers recomputed: their inputs are offloaded to the machine's
   memory; then its rows are split over the GPUs of a machine (context parallelism), as far as Axolotl can (`splits`);
   then there is no validation, which holds all logits of a row (`memory.device`).
8. Preference pairs (DPO) are never packed (Axolotl refuses it), and the loss reads all logits. Left out, as untried: a
   sharded base, offloaded inputs, and TRL's fused loss (`dpo_use_liger_kernel`), which on several devices passes by
   DDP's forward, so that no gradient is exchanged (trl 1.9, DPOTrainer.compute_loss). The reference is computed in each
   step: it takes less than the backward pass, and in one epoch each pair needs it once.
9. A game that the model plays (GRPO) is a row, as long as a shipped episode, and is never packed. All games of a task
   are in one update, on one device: of several, Axolotl asks that each has a whole group. The plan also counts the keys
   and values of all games at their longest, and the time to play them. Nothing is sharded, offloaded or validated.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tools import BadInput
from tools.core import catalog
from tools.core.catalog import Gpu, Method, Model, Tier
from tools.recipes import memory
from tools.recipes.memory import Settings

SPARE = 0.08
HOST_SPARE = 0.10
SEQUENCES = (2048, 1536, 1024)
OFFLOADS: tuple[Any, ...] = ("none", "optimizer", "parameters")
# The share of a GPU's tensor throughput that training reaches with long micro batches: 40 to 55 % in
# https://arxiv.org/abs/2104.04473 (table 1) and https://github.com/mosaicml/llm-foundry (throughput tables).
EFFICIENCY = 0.45
# Axolotl's activation_offloading for what we plan: memory.Settings.
OFFLOADING = "hidden_states"
# The keys of a recipe without validation.
UNVALIDATED: Mapping[str, Any] = {"val_set_size": 0, "evals_per_epoch": None, "load_best_model_at_end": False}
# Tokens of an update, at most: so many times the method's.
MOST_TOKENS = 1.5
# Tokens of a micro batch with which half of that is reached: smaller products leave most of a GPU idle.
HALF_TOKENS = 512
# Seconds that a processor takes to launch what one layer does, forward and backward, with all of it trained or with an
# adapter: no pass is faster, however fast the GPU is. Measured beside an H100 on 16 virtual cores (bench/gpu.py: the
# cases 0.5b-full and demo, whose micro batches are small); a fast desktop processor may take half.
LAUNCH_SECONDS = 0.006
LAUNCH_SECONDS_ADAPTER = 0.010
# So many times as long where a layer's weights are gathered before each pass; estimated, not measured.
LAUNCH_SHARDED = 1.5
# Tokens of a game that are the model's own: four of ten of an episode's (training/cpu_plugin.py), one after the other.
OWN_TOKENS = 0.4
# LLM.int8 splits each product in two and casts: about half the speed of 16 bits for tokens in the thousands;
# https://arxiv.org/abs/2208.07339, appendix D.
INT8_SLOWER = 2.0
# Devices of a machine, at most: the largest that are joined as one, NVIDIA's NVL576, have 576.
MOST_DEVICES = 1024
# DeepSpeed's CPU Adam: bytes of weights, gradients and states each second, https://arxiv.org/abs/2101.06840, table 4.
CPU_ADAM_GB_S = 30.0


@dataclass(frozen=True)
class Plan:
    """A model's training on a tier with these settings: what it takes, whether it fits, how long an update takes.

    `parts` and `host` in GiB; `seconds` for one update, 0 on a CPU, for which none is foreseen.
    """

    model: Model
    tier: Tier
    settings: Settings
    parts: Mapping[str, float]
    host: Mapping[str, float]
    seconds: float

    @property
    def total(self) -> float:
        """GiB on each device."""
        return sum(self.parts.values())

    @property
    def limit(self) -> float:
        """GiB that a device may take for a plan to fit."""
        return self.tier.usable_gib * (1 - SPARE)

    @property
    def fits(self) -> bool:
        """Whether device and machine keep what is to be spare."""
        return self.total <= self.limit and sum(self.host.values()) <= self.tier.host_gib * (1 - HOST_SPARE)

    @property
    def rows(self) -> int:
        """Rows of an update on all devices: packed ones, or episodes."""
        return self.settings.micro_batch * self.settings.accumulation * replicas(self.settings, self.tier)

    @property
    def update_tokens(self) -> float:
        """Tokens of an update, of episodes like the shipped ones, padding not counted."""
        return self.rows * row_tokens(self.settings)

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second on all devices together, padding not counted; 0 where no speed is foreseen."""
        return self.update_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Change:
    """One thing to change: in words, as keys of a recipe, GiB won on each device, how much slower (0.2: 20 %)."""

    words: str
    keys: Mapping[str, Any]
    plan: Plan
    won: float
    slower: float


def of(model: Model, tier: Tier, settings: Settings) -> Plan:
    """The plan of these very settings on a tier."""
    context = catalog.gpus()[tier.gpu].context_gib if tier.gpu else None
    parts = memory.device(model, settings, tier.world, memory.CONTEXT_GIB if context is None else context)
    # On a CPU the one process is the device.
    host = memory.host(model, settings, tier.devices, tier.world) if tier.devices else {}
    return Plan(model, tier, settings, parts, host, seconds(model, tier, settings) if tier.gpu else 0.0)


def replicas(s: Settings, tier: Tier) -> int:
    """Groups of devices that each work at rows of their own."""
    return max(1, tier.world // s.context_parallel)


def row_tokens(s: Settings) -> float:
    """Tokens of a row that are no padding, for episodes like the shipped ones, or two such for a pair."""
    known = catalog.episodes()
    if s.packed:
        return s.sequence_len * nearest_below(known.packed, s.sequence_len)
    return s.sides * min(known.mean, s.sequence_len)


def slots(s: Settings) -> float:
    """Tokens that a micro batch computes, padding counted: packed rows are padded to their full length."""
    if s.packed:
        return s.tokens
    share = nearest_below(catalog.episodes().padded, s.micro_batch)
    return min(s.tokens, s.micro_batch * row_tokens(s) / share)


def nearest_below(shares: Mapping[int, float], size: int) -> float:
    """The share of the largest size that is not above `size`, else that of the smallest."""
    return shares[max((each for each in shares if each <= size), default=min(shares))]


def seconds(model: Model, tier: Tier, s: Settings, tokens: float = 0.0) -> float:
    """Seconds of one update: its micro steps, then the exchange of gradients and the optimizer's step.

    `tokens`: what a micro batch computes, padding counted; 0: that of episodes like the shipped ones.

    A rough figure, good for comparing settings: 2 operations a weight and token forward, as many backward for what is
    frozen and twice for what is trained, once more where layers are recomputed (https://arxiv.org/abs/2205.05198).
    Attention reaches over an episode, packed or not (FlashAttention's varlen), half of it on average; PyTorch's, over
    packed rows, computes all of a row and masks it. Devices that share a row are taken to have equal shares of its
    attention, as with many episodes in it, and to wait for the keys and values of the others, though some of that is
    hidden (ring-flash-attn 0.1.8, llama3_flash_attn_varlen.py): in the forward pass, when it is run again, and twice in
    the backward pass.
    """
    z, gpu = model.sizes, catalog.gpus()[tier.gpu]
    link = catalog.links()["network" if tier.nodes > 1 else tier.link].gb_s * 1e9
    alone = tier.world == 1
    head, layers = model.embedding, model.linear_parameters
    tokens = (tokens or slots(s)) / s.context_parallel
    reach = s.sequence_len if s.packed and s.attention != "flash" else min(s.sequence_len, catalog.episodes().mean) / 2
    attention = 4 * reach * z.heads * z.head_dim * z.layers
    forward = (2 * (layers + head) + attention) * tokens
    again = 2 * layers * tokens if s.checkpointing else 0.0
    # A pair's reference is one more pass forward.
    operations = forward * ((2 if s.rank else 3) + s.pairs) + again
    speed = gpu.tensor_tflops * 1e12 * EFFICIENCY * tokens / (tokens + HALF_TOKENS)
    compute = operations / speed * (INT8_SLOWER if s.bits == 8 else 1.0)
    passes = (3 if s.checkpointing else 2) + s.pairs
    launch = z.layers * (LAUNCH_SECONDS_ADAPTER if s.rank else LAUNCH_SECONDS) * (passes + 1) / 3
    if s.sharded and not alone:
        launch *= LAUNCH_SHARDED
    if s.bits == 4:  # Weights are read in 4 bits, written and read again in 16, at each pass.
        compute += passes * 4.5 * layers / (gpu.bandwidth_gb_s * 1e9)
    if s.context_parallel > 1:
        others = 2 * s.width * z.kv_heads * z.head_dim * z.layers * tokens * (s.context_parallel - 1)
        compute += (passes + 1) * others / link
    trained = memory.trainable(model, s)
    host = catalog.links()["none"].gb_s * 1e9
    moved = 0.0
    if s.sharded and not alone:
        moved += 2 * memory.weight_bytes(model, s) / link
    if s.sharding in ("zero2", "zero3") and not alone:
        moved += 2.0 * trained / link
    if s.offload == "parameters":
        moved += 2 * memory.weight_bytes(model, s) / tier.world / host
    if s.activation_offloading:
        moved += 2 * s.flow * z.hidden * z.layers * tokens / host
    # What is sent while layers compute is hidden behind them, and so is launching them where it is the shorter.
    step = max(compute, moved, launch)
    update = 16.0 * trained / (gpu.bandwidth_gb_s * 1e9) + playing_seconds(model, tier, s)
    if s.optimizer.startswith("paged"):
        update += 2 * 2.0 * trained / host
    if s.sharding in ("ddp", "zero1") and not alone:
        update += 4.0 * trained / link
    if s.sharding in ("zero1", "zero2") and not alone:
        update += 2.0 * trained / link
    if s.offload != "none":
        share = trained / tier.world
        update += 4.0 * share / host + 16.0 * trained / tier.nodes / (CPU_ADAM_GB_S * 1e9)
    return s.accumulation * step + update


def playing_seconds(model: Model, tier: Tier, s: Settings) -> float:
    """Seconds in which an update's games are played, side by side: estimated, not measured.

    Each own token is a forward pass, bound by reading the weights or by launching its layers.
    """
    if not s.group:
        return 0.0
    reading = memory.weight_bytes(model, s) / (catalog.gpus()[tier.gpu].bandwidth_gb_s * 1e9)
    launch = model.sizes.layers * LAUNCH_SECONDS_ADAPTER / 3
    return OWN_TOKENS * row_tokens(s) * max(reading, launch)


def rows(s: Settings, tokens: int, world: int) -> int:
    """The fewest rows that `world` devices share evenly, in whole groups, and that hold so many tokens of the data."""
    least = s.group or world
    return least * math.ceil(tokens / (row_tokens(s) * least))


def packings(s: Settings, method: Method, tier: Tier) -> Iterator[Settings]:
    """The settings packed and not, where an update then has no more tokens than the method allows."""
    ways = [replace(s, packed=True, evaluation=None), replace(s, packed=False)]
    for each in ways[1:] if s.pairs or s.group else ways:
        if shares_update(each, method, tier):
            yield each


def shares_update(s: Settings, method: Method, tier: Tier) -> bool:
    """Whether an update of the fewest rows that the devices share evenly has no more tokens than the method allows."""
    tokens = rows(s, method.update_tokens, replicas(s, tier)) * row_tokens(s)
    return tokens <= MOST_TOKENS * method.update_tokens


def splits(model: Model, s: Settings, tier: Tier) -> list[int]:
    """Devices that can share each row (context_parallel_size), fewest first, as Axolotl 0.19 has it.

    It needs FlashAttention 2 and one packed row at a time (utils/schemas/validation.py, check_context_parallel_size).
    Beside it, FSDP2 shards the weights over several such groups, or each device of one group holds them all; DeepSpeed,
    and several groups without a shard, are not supported (Axolotl's docs/nd_parallelism.qmd). Left out are models whose
    attention has a window, which would be compared with a share of the row (monkeypatch/ring_attn/patch.py).
    """
    if not s.packed or s.attention != "flash" or model.window:
        return []
    if s.sharding == "fsdp2":
        return [size for size in range(2, tier.devices + 1) if tier.devices % size == 0 and size < tier.world]
    return [tier.world] if s.sharding == "ddp" and tier.nodes == 1 else []


def split(s: Settings, length: int, devices: int) -> Settings:
    """Settings for rows of another length that `devices` share; an update's tokens stay as nearly as rows allow."""
    there = at_length(replace(s, micro_batch=1, accumulation=s.micro_batch * s.accumulation * devices), length)
    return replace(there, checkpointing=True, context_parallel=devices)


def plain(s: Settings, method: Method, tier: Tier) -> list[Settings]:
    """The settings packed and not, spread over the devices in each way."""
    return [spread for way in packings(s, method, tier) for spread in spreads(way, tier)]


def longer(model: Model, s: Settings, method: Method, tier: Tier) -> Iterator[list[Settings]]:
    """The ways to train rows longer than SEQUENCES, by rule 7: each list only where nothing of those before it fits."""
    yield (whole := plain(s, method, tier))
    if s.pairs or s.group:
        yield [replace(each, evaluation=0) for each in whole]
        return
    yield (offloaded := [replace(each, activation_offloading=True) for each in whole])
    shared = [
        replace(spread, context_parallel=size)
        for spread in spreads(replace(s, packed=True, evaluation=None), tier)
        for size in splits(model, spread, tier)
    ]
    shared = [each for each in shared if shares_update(each, method, tier)]
    yield (shared := [*shared, *(replace(each, activation_offloading=True) for each in shared)])
    yield [replace(each, evaluation=0) for each in (*whole, *offloaded, *shared)]


def at_length(s: Settings, length: int) -> Settings:
    """Settings with another sequence length; packed, a device keeps the tokens of an update as nearly as rows allow."""
    if not s.packed:
        return replace(s, sequence_len=length)
    share = max(1, round(s.tokens * s.accumulation / length))
    size = max(each for each in range(1, s.micro_batch + 1) if share % each == 0)
    return replace(s, sequence_len=length, micro_batch=size, accumulation=share // size)


def base_settings(model: Model, method: Method, tier: Tier) -> Settings:
    """The settings that method, model and tier decide alone; the rest is at its least memory, and nothing is packed."""
    lora = method.adapter is not None
    modern = tier.precision == "bf16"
    shape = model.shape
    loss: Any = "plain" if not modern else "fused" if shape.liger else "cut" if shape.cut_cross_entropy else "plain"
    first = Settings(
        rank=method.rank,
        bits=32 if tier.precision == "fp32" else 4 if method.adapter == "qlora" else 16,
        sequence_len=min(SEQUENCES[0], model.context),
        micro_batch=1,
        dropout=method.dropout,
        attention="flash" if modern else "sdpa",
        loss="plain" if method.rl else loss,
        # The LoRA kernels want the adapter on the model before the trainer has it; for pairs TRL adds it. Untried for
        # games.
        kernels=lora and modern and shape.lora_kernels and not method.rl,
        pairs=method.rl == "dpo",
        group=method.group,
        evaluation=0 if method.group else 1,
        liger=modern and shape.liger,
        optimizer="adamw_torch_fused",
    )
    return replace(first, accumulation=rows(first, method.update_tokens, tier.world) // tier.world)


def spreads(s: Settings, tier: Tier) -> Iterator[Settings]:
    """The ways to spread a training over a tier's devices, or with `s.offload` into its machine's memory, by rule 6."""
    alone = tier.world == 1
    if s.offload != "none":
        if not s.rank:
            stages: tuple[Any, ...] = ("zero2", "zero3") if s.offload == "optimizer" else ("zero3",)
            yield from (replace(s, sharding=stage) for stage in stages)
        return
    if s.rank:
        yield replace(s, sharding="none" if alone else "ddp")
        yield replace(s, sharding="none" if alone else "ddp", optimizer="adamw_8bit")
        if not alone and s.bits in (4, 16) and tier.precision == "bf16" and not s.pairs:
            # The fused LoRA kernels read whole weights, which a shard has not.
            yield replace(s, sharding="fsdp2" if s.bits == 4 else "zero3", kernels=False)
        return
    if alone:
        for optimizer in ("adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"):
            yield replace(s, optimizer=optimizer)
    else:
        for stage in ("zero1", "zero2", "zero3"):
            yield replace(s, sharding=stage)


def choose(model: Model, method: Method, tier: Tier) -> Plan | None:
    """The fastest plan that fits, by the rules above; None where none fits with at least 1024 tokens."""
    found = chosen(model.key, decisive(method), tier.key)
    if found and found.settings.dropout:
        return replace(found, settings=replace(found.settings, dropout=method.dropout))
    return found


def decisive(method: Method) -> tuple[object, ...]:
    """What of a method decides on its plan."""
    return method.adapter, method.rl, method.group, method.rank, bool(method.dropout), method.update_tokens


@cache
def chosen(model: str, decides: tuple[object, ...], tier: str) -> Plan | None:
    """`choose` by keys, so that methods which differ in nothing that decides (`decisive`) share one plan."""
    method = next(each for each in catalog.methods().values() if decisive(each) == decides)
    return search(catalog.models()[model], method, catalog.tiers()[tier])


def search(model: Model, method: Method, tier: Tier, sequences: Sequence[int] = SEQUENCES) -> Plan | None:
    """`choose`, without a memory of earlier answers: for models and tiers that the catalog does not hold.

    `sequences`: the lengths in tokens to try, the first that fits being taken.
    """
    if tier.precision == "fp32":
        return on_cpu(model, method, tier, sequences)
    if not possible(method, tier):
        return None
    first = base_settings(model, method, tier)
    widths: list[Any] = [first.bits]
    if method.adapter == "lora" and quantisable(first, tier):
        widths.append(8)
    for bits in widths:
        # The LoRA kernels do not take an 8-bit base.
        wide = replace(first, bits=bits, kernels=first.kernels and bits != 8)
        lengths = [each for each in sequences if each <= model.context]
        for length, offload in itertools.product(lengths, OFFLOADS):
            s = replace(wide, sequence_len=length, offload=offload)
            for tried in longer(model, s, method, tier) if length > SEQUENCES[0] else [plain(s, method, tier)]:
                found = [plan for each in tried for plan in fitting(model, tier, each, method.update_tokens)]
                if found:
                    return max(found, key=lambda plan: plan.tokens_per_second)
    return None


def possible(method: Method, tier: Tier) -> bool:
    """Whether a method can be run on a tier: by its precision, and an episode a device makes no update too large."""
    if method.group and tier.world > 1:
        return False
    sides = 2 if method.rl == "dpo" else 1
    small = tier.world * sides * catalog.episodes().mean <= MOST_TOKENS * method.update_tokens
    return small and (method.adapter is not None or tier.precision != "fp16")


def quantisable(s: Settings, tier: Tier) -> bool:
    """Whether a base may be quantised: TRL 1.9 then casts the adapter to bf16, which the scaler of fp16 refuses."""
    return not ((s.pairs or s.group) and tier.precision == "fp16")


def fitting(model: Model, tier: Tier, s: Settings, tokens: int) -> Iterator[Plan]:
    """The plans of one spread that fit, by micro batch and checkpointing; memory grows with both, so it stops early.

    `tokens`: those of an update, at least.
    """
    share = rows(s, tokens, replicas(s, tier)) // replicas(s, tier)
    sizes = [size for size in range(1, share + 1) if share % size == 0 and (size == 1 or s.context_parallel == 1)]
    for checkpointing in (True,) if s.activation_offloading else (True, False):
        for size in sizes:
            tried = replace(s, micro_batch=size, accumulation=share // size, checkpointing=checkpointing)
            plan = of(model, tier, tried)
            if not plan.fits:
                if size == 1 and checkpointing:
                    return
                break
            yield plan


def on_cpu(model: Model, method: Method, tier: Tier, sequences: Sequence[int]) -> Plan | None:
    """The plan without a GPU: LoRA in float32, nothing recomputed, one episode at a time, the upper layers.

    An update is one episode, or the games of one task.
    """
    if method.adapter != "lora" or not tier.trained:
        return None
    first = base_settings(model, method, tier)
    layers = round(tier.trained * model.sizes.layers)
    batch = max(1, method.group)
    settings = replace(first, accumulation=batch, checkpointing=False, optimizer="adamw_torch", trained_layers=layers)
    settings = replace(settings, dropout=0.0, evaluation=0)
    plans = (of(model, tier, replace(settings, sequence_len=length)) for length in sequences)
    return next((plan for plan in plans if plan.fits), None)


def recomputing(s: Settings, tier: Tier) -> dict[str, Any]:
    """The keys of a recipe that has layers recomputed; on one device Axolotl itself chooses how."""
    how = {"gradient_checkpointing_kwargs": {"use_reentrant": s.reentrant}} if tier.world > 1 else {}
    return {"gradient_checkpointing": True, **how}


def advice(plan: Plan) -> list[Change]:
    """What to change to take less memory: what makes it fit alone first, by least speed lost, then the rest by GiB won.

    Only changes that win something are named.
    """
    s, model, tier = plan.settings, plan.model, plan.tier
    batch = s.micro_batch * s.accumulation
    tried: list[tuple[str, Mapping[str, Any], Settings]] = []
    if not s.checkpointing:
        tried.append(("recompute layers", recomputing(s, tier), replace(s, checkpointing=True)))
    if s.micro_batch > 1:
        less = replace(s, micro_batch=1, accumulation=batch)
        tried.append(("a micro batch of 1", {"micro_batch_size": 1, "gradient_accumulation_steps": batch}, less))
    if s.rank and s.bits == 16 and not s.sharded and quantisable(s, tier):
        four = {"adapter": "qlora", "load_in_4bit": True}
        tried.append(("a base in 4 bits (QLoRA)", four, replace(s, bits=4)))
        eight = {"load_in_8bit": True}
        if s.kernels:
            eight |= dict.fromkeys(catalog.training().lora_kernels, False)
        tried.append(("a base in 8 bits", eight, replace(s, bits=8, kernels=False)))
    if s.bits == 8:
        four = {"adapter": "qlora", "load_in_8bit": False, "load_in_4bit": True}
        tried.append(("a base in 4 bits (QLoRA)", four, replace(s, bits=4)))
    if s.checkpointing and s.sequence_len > SEQUENCES[0]:
        if not (s.activation_offloading or s.pairs or s.group):
            offloaded = replace(s, activation_offloading=True)
            tried.append(("layer inputs in the machine's memory", {"activation_offloading": OFFLOADING}, offloaded))
        if s.evaluation != 0:
            tried.append(("no validation", UNVALIDATED, replace(s, evaluation=0)))
        for size in splits(model, s, tier) if s.context_parallel == 1 else ():
            rows = {"micro_batch_size": 1, "gradient_accumulation_steps": batch * size}
            shared = replace(s, context_parallel=size, micro_batch=1, accumulation=batch * size)
            tried.append((f"each row on {size} GPUs", {"context_parallel_size": size, **rows}, shared))
    for length in (s.sequence_len // 2, s.sequence_len // 4):
        if length >= 512:
            shorter, keys = at_length(s, length), {"sequence_len": length}
            if shorter.accumulation != s.accumulation:
                keys["gradient_accumulation_steps"] = shorter.accumulation
            tried.append((f"sequences of {length} tokens", keys, shorter))
    if "8bit" not in s.optimizer and s.sharding in ("none", "ddp"):
        tried.append(("an 8-bit optimizer", {"optimizer": "adamw_8bit"}, replace(s, optimizer="adamw_8bit")))
    if not s.rank and s.optimizer == "adamw_8bit":
        paged = {"optimizer": "paged_adamw_8bit"}
        tried.append(("an optimizer whose states can leave the GPU", paged, replace(s, optimizer="paged_adamw_8bit")))
    if s.rank > 8:
        tried.append(("rank 8", {"lora_r": 8, "lora_alpha": 16}, replace(s, rank=8)))
    if not s.rank:
        words = "LoRA in place of full training"
        lora = catalog.methods()["lora"]
        adapter = {"adapter": "lora", "lora_r": lora.rank, "lora_alpha": lora.alpha, "lora_target_linear": True}
        adapter |= {"learning_rate": lora.rate(model)} | ({"deepspeed": None} if s.sharding.startswith("zero") else {})
        tried.append(
            (words, adapter, replace(s, rank=lora.rank, sharding="none" if tier.world == 1 else "ddp", offload="none"))
        )
    found = []
    for words, needed, settings in tried:
        other = of(model, tier, settings)
        slower = other.tokens_per_second and plan.tokens_per_second / other.tokens_per_second - 1
        if plan.total - other.total >= 0.05:
            found.append(Change(words, needed, other, plan.total - other.total, slower))
    return sorted(found, key=lambda each: (not each.plan.fits, each.slower if each.plan.fits else -each.won))


def disk(plan: Plan) -> Mapping[str, float]:
    """GiB on the disk by part, up to the GGUF."""
    return memory.disk(plan.model, plan.settings, catalog.training().save_total_limit)


def for_gpu(gpu: Gpu, devices: int = 1, nodes: int = 1, host_gib: float = 0.0) -> Tier:
    """A tier of one's own: so many of this GPU. Without `host_gib`, the machine has 4 times the GPUs' memory.

    Raises BadInput for more devices than a machine has.
    """
    check_devices(devices)
    return Tier(
        key=f"{nodes}x{devices}x{gpu.key}" if nodes > 1 else f"{devices}x{gpu.key}" if devices > 1 else gpu.key,
        nodes=nodes,
        devices=devices,
        gpu=gpu.key,
        memory_gb=gpu.memory_gb,
        usable_gib=gpu.usable,
        host_gib=host_gib or 4.0 * gpu.memory_gb * devices,
        precision="bf16" if gpu.modern else "fp16",
        link=gpu.link,
    )


def check_devices(count: int) -> None:
    """Raise BadInput for more devices than a machine has."""
    if count > MOST_DEVICES:
        raise BadInput(f"{count} GPUs in one machine; {MOST_DEVICES} are the most that are planned for")


def from_recipe(recipe: Mapping[str, Any], tier: Tier) -> Settings:
    """The settings that a recipe's keys say, whoever wrote them; what it leaves out is as Axolotl 0.19 has it."""
    adapter = recipe.get("adapter")
    layers = recipe.get("peft_layers_to_transform")
    bits: Any = 4 if recipe.get("load_in_4bit") else 8 if recipe.get("load_in_8bit") else 16
    attention = str(recipe.get("attn_implementation") or ("flash" if recipe.get("flash_attention") else "sdpa"))
    sharding, offload = "none" if tier.world == 1 else "ddp", "none"
    if deepspeed := str(recipe.get("deepspeed") or ""):
        sharding = next((f"zero{stage}" for stage in "123" if f"zero{stage}" in deepspeed), sharding)
        offload = "parameters" if "offload_all" in deepspeed else "optimizer" if "offload" in deepspeed else "none"
    elif recipe.get("fsdp_config") or recipe.get("fsdp"):
        sharding = "fsdp2"
    plugins = " ".join(recipe.get("plugins") or [])
    targets = recipe.get("lora_target_modules")
    validates = recipe.get("val_set_size") or recipe.get("test_datasets")
    packed = bool(recipe.get("sample_packing"))
    batch = int(recipe.get("eval_batch_size") or recipe.get("micro_batch_size") or 1)
    evaluation: int | None = batch if validates else 0
    if validates and packed and recipe.get("eval_sample_packing") is not False:
        evaluation = None
    learns = recipe.get("rl")
    # 8: TRL 1.9, GRPOConfig.
    group = int((recipe.get("trl") or {}).get("num_generations") or 8) if learns == "grpo" else 0
    cut = bool(recipe.get("cut_cross_entropy")) and "CutCrossEntropy" in plugins and not learns
    fused = bool(recipe.get("liger_fused_linear_cross_entropy")) and "Liger" in plugins and not learns
    return Settings(
        rank=int(recipe.get("lora_r") or 8) if adapter else 0,
        bits=32 if tier.precision == "fp32" else bits,
        sequence_len=int(recipe.get("sequence_len") or 512),
        micro_batch=int(recipe.get("micro_batch_size") or 1),
        accumulation=int(recipe.get("gradient_accumulation_steps") or 1),
        dropout=float(recipe.get("lora_dropout") or 0.0),
        checkpointing=bool(recipe.get("gradient_checkpointing")),
        attention="flash" if "flash" in attention else "eager" if attention == "eager" else "sdpa",
        loss="cut" if cut else "fused" if fused else "chunked" if recipe.get("chunked_cross_entropy") else "plain",
        kernels=any(recipe.get(key) for key in catalog.training().lora_kernels),
        liger="Liger" in plugins,
        optimizer=str(recipe.get("optimizer") or "adamw_torch_fused"),
        sharding=sharding,  # type: ignore[arg-type]
        offload=offload,  # type: ignore[arg-type]
        trained_layers=len(layers) if isinstance(layers, list) else None,
        targets=tuple(targets) if isinstance(targets, list) and not recipe.get("lora_target_linear") else None,
        whole=len(recipe.get("lora_modules_to_save") or []) if adapter else 0,
        evaluation=evaluation,
        packed=packed,
        pairs=bool(learns) and not group,
        group=group,
        activation_offloading=recipe.get("activation_offloading") == OFFLOADING,
        context_parallel=int(recipe.get("context_parallel_size") or 1),
        # Axolotl 0.19, loaders/model.py, _configure_embedding_dtypes.
        wide=not adapter and tier.precision != "fp32" and "flash" not in attention and sharding != "fsdp2" and not cut,
    )


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan for machines: parts, total and limit in GiB, tier, whether it fits, and what to change first."""
    return {
        "model": plan.model.key,
        "tier": plan.tier.key,
        "fits": plan.fits,
        "total_gib": round(plan.total, 2),
        "limit_gib": round(plan.limit, 2),
        "usable_gib": plan.tier.usable_gib,
        "parts_gib": {name: round(value, 3) for name, value in plan.parts.items()},
        "host_gib": {name: round(value, 2) for name, value in plan.host.items()},
        "tokens_per_second": round(plan.tokens_per_second),
        "settings": {name: getattr(plan.settings, name) for name in Settings.__slots__},
        "changes": [
            {
                "change": each.words,
                "keys": dict(each.keys),
                "gib_won": round(each.won, 2),
                "slower": round(each.slower, 2),
                "fits": each.plan.fits,
            }
            for each in advice(plan)
        ],
    }
