"""The bytes that a training needs, part by part: on each device, in the machine's memory, on the disk.

Sizes are in GiB (2^30 bytes) unless a name says otherwise. Symbols: h hidden, i intermediate, q heads x head_dim,
k kv_heads x head_dim, V vocabulary, T tokens of a micro batch (micro batch x sequence length). Figures that are no
formula were read in the source that stands beside them, or measured by bench/memory.py.
"""

import math
from dataclasses import dataclass
from typing import Literal

from tools.core.catalog import Model

GIB = 2**30
# NF4, blocks of 64 with an 8-bit scale, and a 32-bit scale for 256 of those: 0.127 bits a weight beside the 4;
# https://arxiv.org/abs/2305.14314, section 3, "Double Quantization".
NF4_BYTES = (4 + 0.127) / 8
# One 8-bit state for each weight and a 32-bit scale for 256 of them; https://arxiv.org/abs/2110.02861, section 2.
STATE_8BIT_BYTES = 1 + 4 / 256
# A CUDA context with the kernels of torch, cuBLAS and bitsandbytes, and cuBLAS's workspaces: what nvidia-smi shows
# beyond torch's own count, on a GPU for which gpus.yaml has no measured `context_gib`.
# https://huggingface.co/docs/transformers/model_memory_anatomy has 1.3 GB of kernels that were all loaded at once;
# CUDA 12 loads each when it is first used.
CONTEXT_GIB = 0.5
# NCCL's buffers for one communicator on up to 8 devices; https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
# (NCCL_BUFFSIZE: 4 MiB a channel and peer).
NCCL_GIB = 0.6
# What the caching allocator holds and cannot hand out, by what comes and goes, and by what stays. Packed rows are all
# of one length: there it was 0.2 to 1.4 % of the whole (bench/gpu.py, reserved against allocated).
FRAGMENTATION = 0.06
FRAGMENTATION_STATIC = 0.02
# Inputs of a layer that are held while layers are recomputed and weights are sharded: its own, and as much again.
# No document says so; runs of two sources, on 7 to 70 billion parameters and 1 to 10 sequences, take twice
# (bench/published.yaml, fsdpqlora-* and fms-*-fsdp).
SHARDED_COPIES = 2
# Inputs of layers that are on the device while the others are offloaded: two on their way to the machine's memory
# (Axolotl 0.19, monkeypatch/checkpoint_activation_offload.py, max_fwd_stash_size) and what the last layer puts out.
INPUTS_LEFT = 3
# Elements of a bucket in our DeepSpeed files (templates/deepspeed): one is filled while the other is sent.
BUCKET = 200_000_000
# Bytes of the loss of a preference pair, or of a game, at its peak, by logit: see logits().
RL_LOGITS = 16.0
# Python, torch and Axolotl in one process's memory, before a model: measured on a CPU.
PROCESS_GIB = 1.8
# Tokens that llama-server computes at once: its default of --ubatch-size.
SERVER_BATCH = 512
# Tokens that a served model remembers at least, where the model and the memory allow: a conversation with a person has
# no end at the last step.
LEAST = 8192
# How much longer a conversation may become than the longest episode of training.
GROWTH = 2

Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp2"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What of a recipe decides on memory and speed. `rank` 0: every weight is trained. `bits`: of the base's weights.

    loss: plain (all logits at once), chunked (in 32 bits an eighth at a time), fused (a few rows at a time, Liger's) or
    cut (never held, Cut Cross-Entropy). targets: the linear layers that carry an adapter, None for all.
    whole: matrices of the size of the embeddings that are trained whole beside an adapter (lora_modules_to_save).
    kernels: Axolotl's LoRA kernels; liger: Liger's norms, rotary embedding and gated product.
    trained_layers: the upper layers that carry an adapter, None for all. evaluation: sequences of a validation batch, 0
    without validation, None for as many as training has: a packed one's, whatever eval_batch_size says (Axolotl 0.19,
    core/trainers/base.py, _create_multipack_sampler). packed: rows hold several episodes; uneven: those of a batch
    differ in length. wide: embeddings,
    norms and what flows between the layers have 32 bits, as where Axolotl trains every weight without FlashAttention.
    pairs: a row is a preference pair, two sequences, and each is also computed without the adapter, as the reference.
    group: games of a task that are compared, where a row is a game that the model played itself; 0 where it is read.
    activation_offloading: the inputs of recomputed layers wait in the machine's memory (Axolotl's "hidden_states"; with
    an adapter, its `true` would offload all activations and recompute nothing). context_parallel: devices that share
    each row.
    """

    rank: int
    bits: Literal[4, 8, 16, 32]
    sequence_len: int
    micro_batch: int
    accumulation: int = 1
    dropout: float = 0.0
    checkpointing: bool = True
    attention: Literal["flash", "sdpa", "eager"] = "flash"
    loss: Literal["plain", "chunked", "fused", "cut"] = "fused"
    kernels: bool = False
    liger: bool = False
    optimizer: str = "adamw_8bit"
    sharding: Sharding = "none"
    offload: Literal["none", "optimizer", "parameters"] = "none"
    trained_layers: int | None = None
    targets: tuple[str, ...] | None = None
    whole: int = 0
    evaluation: int | None = 1
    packed: bool = False
    uneven: bool = True
    wide: bool = False
    pairs: bool = False
    group: int = 0
    activation_offloading: bool = False
    context_parallel: int = 1

    @property
    def repeats(self) -> bool:
        """Whether attention repeats the keys and values of each group of heads.

        Eager attention does (transformers 5.16, repeat_kv). PyTorch's does where rows are packed (Axolotl 0.19,
        monkeypatch/attention/sdpa_varlen.py) or need a mask (transformers 5.16, integrations/sdpa_attention.py,
        use_gqa_in_sdpa); FlashAttention 2 never does.
        """
        masked = self.packed or (self.uneven and (self.micro_batch > 1 or self.pairs))
        return self.attention == "eager" or (self.attention == "sdpa" and masked)

    @property
    def tokens(self) -> int:
        """Tokens of a micro batch at its fullest, on all devices that share its rows."""
        return self.sides * self.micro_batch * self.sequence_len

    @property
    def validated(self) -> int:
        """Tokens of a validation batch at its fullest."""
        return self.sides * self.sequence_len * (self.micro_batch if self.evaluation is None else self.evaluation)

    @property
    def sides(self) -> int:
        """Sequences of a row: 2 where it is a preference pair."""
        return 2 if self.pairs else 1

    @property
    def row(self) -> str:
        """What a row is, in a word or two."""
        return "packed row" if self.packed else "pair" if self.pairs else "game" if self.group else "episode"

    @property
    def width(self) -> int:
        """Bytes of an activation: 2, and 4 on a CPU."""
        return 4 if self.bits == 32 else 2

    @property
    def flow(self) -> int:
        """Bytes of an element of what flows between the layers."""
        return 4 if self.wide else self.width

    @property
    def sharded(self) -> bool:
        """Whether the weights themselves are spread over the devices."""
        return self.sharding in ("zero3", "fsdp2")

    @property
    def reentrant(self) -> bool:
        """Whether layers are recomputed by torch's reentrant checkpointing, on several devices.

        An adapter under ZeRO-3 needs it. Without it the first backward pass raises CheckpointError (deepspeed 0.18.9,
        torch 2.13; https://github.com/huggingface/transformers/issues/47254). Every other way trains without it, and
        DDP takes it only where the graph is static (torch/nn/parallel/distributed.py, `static_graph`).
        """
        return bool(self.rank) and self.sharding == "zero3"


def trainable(model: Model, s: Settings) -> int:
    """Elements that are trained: the adapter's with what is trained whole beside it, or all of the language model's."""
    if not s.rank:
        return model.text_parameters
    return model.adapter_parameters(s.rank, s.trained_layers, s.targets) + s.whole * model.embedding


def weight_bytes(model: Model, s: Settings) -> float:
    """Bytes of the base's weights, unsharded: linear layers in `bits`; embeddings, head, norms and biases in 16.

    bitsandbytes quantises the linear layers but the head; a vision tower is taken as linear.
    Trained without a shard, every weight has 2 bytes; FSDP2 keeps trained weights in 4 (accelerate's
    utils/fsdp_utils.py, fsdp2_prepare_model: upcast of trainable parameters under mixed precision).
    """
    linear = model.linear_parameters + model.tower
    rest = model.text_parameters - model.linear_parameters
    if s.rank == 0 and s.sharding == "fsdp2":
        return 4.0 * (linear + rest)
    each = {4: NF4_BYTES, 8: 1 + 4 / model.sizes.hidden, 16: 2.0, 32: 4.0}[s.bits]
    return each * linear + (4.0 if s.bits == 32 or s.wide else 2.0) * rest


def state_bytes(model: Model, s: Settings) -> tuple[float, float, float]:
    """Bytes for each trained element: its copy beside the base, its gradient, the optimizer's states (master included).

    peft keeps adapters in 32 bits (autocast_adapter_dtype). A full training in bf16 has bf16 gradients and states, with
    torch's AdamW two of them (https://arxiv.org/abs/1910.02054, section 3.1, for 32-bit ones). DeepSpeed trains 16-bit
    copies and holds a 32-bit master and two 32-bit states in the optimizer's shard; FSDP2's weights are the master.
    """
    if s.sharding.startswith("zero"):
        return (2.0 if s.rank else 0.0), 2.0, 12.0
    eight = "8bit" in s.optimizer
    if s.rank or s.bits == 32:
        return (4.0 if s.rank else 0.0), 4.0, 2 * STATE_8BIT_BYTES if eight else 8.0
    wide = 4.0 if s.sharding == "fsdp2" else 2.0
    return 0.0, wide, 2 * STATE_8BIT_BYTES if eight else 2 * wide


def saved(model: Model, s: Settings) -> float:
    """Bytes a token that one layer keeps for its backward pass, when it is not recomputed.

    Read off the forward code of transformers 5.16 (models/qwen2/modeling_qwen2.py), peft 0.20 (tuners/lora/layer.py),
    Liger 0.8 and Axolotl 0.19's LoRA kernels, operation by operation; https://arxiv.org/abs/2205.05198, section 4, does
    the same for an older layer. bench/memory.py holds it against a simulated run of the real classes.
    """
    z, a, shape = model.sizes, s.width, model.shape
    q, k = z.heads * z.head_dim, z.kv_heads * z.head_dim
    # A norm computes in 32 bits and keeps its input so, and, where its weight is trained, what it multiplies it with.
    norm = s.flow * z.hidden if s.liger else (4 + (0 if s.rank else s.flow)) * z.hidden
    kept = shape.norms * norm
    if shape.qk_norm:
        kept += (a if s.liger else 4 + (0 if s.rank else a)) * (q + k)
    # Queries, keys, values and output, and one 32-bit sum a head; eager attention keeps the probabilities as well.
    kept += (4 * q if s.repeats else 2 * q + 2 * k) * a + 4 * z.heads
    if s.attention == "eager":
        kept += z.heads * s.sequence_len * (a + 4)
    if s.kernels:  # Each fused block keeps its input once; the MLP's product is computed again from gate and up.
        # With dropout, each of the blocks (queries to values, output, MLP) keeps a dropped copy of its input and the
        # mask, a byte an element: Axolotl 0.19, kernels/lora.py. bench/gpu.py: 42.7 kB a token and layer more than
        # without on a 7B model, of which the copies and masks are 32.3 and repeated keys and values 12.3.
        dropped = (a + 1) * (2 * z.hidden + q) if s.dropout else 0
        return kept + a * (2 * z.hidden + 2 * z.intermediate) + dropped
    gated = (2 if s.liger else 3) * a * z.intermediate
    if s.rank:  # Each adapter casts and drops its own copy of the input; the frozen weight keeps none.
        mask = 1 if s.dropout else 0
        return kept + gated + sum(inputs * (a + mask) for inputs, _ in model.targeted(s.targets))
    # What is wide is cast for each linear layer anew: three of attention, two of the MLP read the same.
    inputs = 5 if s.wide else 2
    return kept + gated + a * (inputs * z.hidden + q + z.intermediate)


def passing(model: Model, s: Settings) -> float:
    """Bytes a token that come and go while one layer's backward pass runs, at their most (in the MLP, or attention).

    The MLP: the gradients of product, gate and up (a x i each) and, with an adapter outside the kernels, the 32-bit
    copies through its dropout. FlashAttention 2: 32-bit gradient of the queries, keys' and values' spread over all
    query heads (flash_attn/csrc, mha_bwd). Eager attention, beside the two copies of its probabilities that `saved`
    counts: their gradient and that of the scores, 32 bits each, while the MLP's gate and up are gone (transformers
    5.16, models/qwen2/modeling_qwen2.py, eager_attention_forward). Against 12 runs in 16 bits on a T4, of fitcheck-llm
    0.3.1: -1.4 to +7.1 %.
    """
    z, a = model.sizes, s.width
    q = z.heads * z.head_dim
    scores = (4 + 4) * z.heads * s.sequence_len - 2 * a * z.intermediate if s.attention == "eager" else 0
    mlp = 3 * a * z.intermediate + 2 * a * z.hidden
    if s.rank and not s.kernels:
        mlp += 4 * z.intermediate
    return max(mlp, (4 + 3 * a) * q + 2 * a * z.hidden + scores)


def logits(model: Model, s: Settings) -> float:
    """Bytes a token of the loss at its peak.

    plain, each logit: log-softmax, its gradient and the gradient of the logits, 32 bits each, are there at once in the
    backward pass (transformers 5.16, loss/loss_utils.py). chunked: logits and their gradient in 16 bits, and an eighth
    of the rest (Axolotl 0.19, monkeypatch/loss/chunked.py). Otherwise hidden states, their gradient and about as much
    again for the rows at work: Liger 0.8 sizes them so (ops/fused_linear_cross_entropy.py); cut:
    https://arxiv.org/abs/2411.09009. Pairs and games: see RL_LOGITS; what a pair's reference pass takes, and a game's
    entropy, is less, and gone by then.
    """
    z = model.sizes
    if s.pairs or s.group:
        return RL_LOGITS * z.vocab
    each = {"plain": 12.0, "chunked": 4.0 + 12 / 8}.get(s.loss)
    return each * z.vocab if each else 4.0 * s.width * z.hidden


def playing(model: Model, s: Settings) -> float:
    """Bytes that an update's games take at their longest, while they are played side by side and nothing is trained.

    Keys and values, and what the pass of one layer over all their turns holds, as each answer begins with one.
    """
    if not s.group:
        return 0.0
    games = s.micro_batch * s.accumulation
    cache = games * kv_cache(model, s.sequence_len) * GIB * s.width / 2
    layer = s.width * (3 * model.sizes.intermediate + 4 * model.sizes.hidden)
    return cache + games * s.sequence_len * layer


def workspace(model: Model, s: Settings) -> float:
    """Bytes of the largest linear layer's weights in 16 bits, which a quantised base needs at each use.

    Two in 8 bits, where the scaled copy is made of a cast one (bitsandbytes 0.50, autograd/_functions.py).
    """
    largest = max(inputs * outputs for inputs, outputs in model.linears.values())
    return {4: 2.0, 8: 4.0}.get(s.bits, 0.0) * largest


def gathered(model: Model, s: Settings) -> float:
    """Bytes of weights that a shard holds whole while it computes: this layer and the next, or the embeddings.

    https://arxiv.org/abs/2304.11277, section 3.2 (prefetch of one unit); DeepSpeed's stage3_prefetch_bucket_size is set
    to as much. No more is held for the backward pass, with layers recomputed or not, where DeepSpeed's own linear
    function stands in for torch's, as it does when Axolotl loads the model; with torch's, a training that does not
    recompute keeps all gathered weights (bench/zero3.py counts both).
    """
    each = {4: NF4_BYTES, 8: 1.0, 16: 2.0, 32: 4.0}[s.bits]
    return max(2 * each * model.layer_linear, 2.0 * model.embedding)


def device(model: Model, s: Settings, world: int, context: float = CONTEXT_GIB) -> dict[str, float]:
    """GiB on each device by part, for `world` devices that train together. Their sum is the predicted peak.

    `context`: GiB of the CUDA context.

    The peak is reached in the loss, in a layer's backward pass or in validation, whichever is most: "logits" is what
    the first or the last takes beyond the others' parts. Validation holds logits in 16 bits, in 32, and their
    log-softmax whatever the loss: Liger leaves them out in training only (liger_kernel/transformers/model/qwen2.py,
    skip_logits). "games" is what playing them takes beyond all that.
    """
    shards = world if s.sharded else 1
    trained = trainable(model, s)
    copy, gradient, states = state_bytes(model, s)
    on_device = {"none": 1.0, "optimizer": 0.0, "parameters": 0.0}[s.offload]
    if s.sharding.startswith("zero"):
        copy_share, gradient_share, state_share = shards, (1 if s.sharding == "zero1" else world), world
    else:
        copy_share = gradient_share = state_share = shards
    weights = 0.0 if s.offload == "parameters" else weight_bytes(model, s) / shards
    base, t = copy * trained / copy_share, s.tokens / s.context_parallel
    layers = model.sizes.layers
    # Below the lowest layer that is trained nothing is kept.
    deep = layers if s.trained_layers is None else s.trained_layers
    kept: float
    if s.checkpointing:
        copies, inputs = SHARDED_COPIES if s.sharded else 1, deep + 1
        held = (copies - 1) * inputs + min(inputs, INPUTS_LEFT) if s.activation_offloading else copies * inputs
        kept = held * s.flow * model.sizes.hidden * t
        layer = (saved(model, s) + passing(model, s)) * t
    else:
        kept = (deep * saved(model, s) + 2 * s.width * model.sizes.hidden) * t
        layer = passing(model, s) * t
    loss = logits(model, s) * t
    if s.loss in ("fused", "cut") and not s.rank:  # the head's gradient is made with the loss
        loss += 2.0 * model.embedding
    validation = 10.0 * model.sizes.vocab * s.validated / s.context_parallel
    buffers = 0.0
    if s.sharding == "ddp":
        buffers = gradient * trained
    elif s.sharding in ("zero1", "zero2", "zero3"):
        buffers = 2 * 2.0 * min(BUCKET, trained)
    if s.context_parallel > 1:
        # Keys and values of one head over the whole row, those of the next and their gradients (ring-flash-attn 0.1.8,
        # llama3_flash_attn_varlen.py: kv_buffer, its copy, dkv_buffer; Axolotl 0.19 takes one head at a time).
        buffers += 6.0 * s.width * model.sizes.head_dim * s.tokens
    # What is wide has gradients and states of 32 bits too, where they are not 8.
    wide = model.text_parameters - model.linear_parameters if s.wide else 0
    states_of_all = states * trained + (0.0 if "8bit" in s.optimizer else 4.0) * wide
    gradients = gradient * trained + 2.0 * wide
    parts = {
        "weights": weights,
        "adapter": base if s.rank else 0.0,
        "gradients": gradients / gradient_share * (1.0 if s.offload == "none" or s.rank else 0.0),
        "optimizer": states_of_all / state_share * (0.0 if s.optimizer.startswith("paged") else on_device),
        "saved activations": kept,
        "recomputed layer": layer,
        "logits": max(0.0, loss - layer, validation - layer - kept),
        "games": max(0.0, playing(model, s) - kept - max(loss, layer)),
        "dequantisation": workspace(model, s),
        "gathered layers": gathered(model, s) if s.sharded else 0.0,
        "communication": buffers,
    }
    moving = ("saved activations", "recomputed layer", "logits", "games", "dequantisation", "gathered layers")
    loose = sum(parts[name] for name in moving)
    share = FRAGMENTATION_STATIC if s.packed else FRAGMENTATION
    parts["fragmentation"] = share * loose + FRAGMENTATION_STATIC * (sum(parts.values()) - loose)
    sizes = {name: value / GIB for name, value in parts.items() if value}
    if s.bits == 32:
        return sizes | {"process": PROCESS_GIB}
    return sizes | {"CUDA context": context} | ({"NCCL": NCCL_GIB} if world > 1 else {})


def host(model: Model, s: Settings, devices: int, world: int) -> dict[str, float]:
    """GiB of one machine's own memory by part, for its `devices` of `world` processes: what is offloaded, and the rest.

    A model is loaded shard by shard (safetensors are mapped, at most 5 GB a file) except for a sharded quantised one,
    which every process holds whole until it is spread. Offloaded by DeepSpeed: 16-bit weights, 32-bit master and
    states (12 bytes), 32-bit gradients (4); https://arxiv.org/abs/2101.06840, section 4. Offloaded activations: the
    input of each layer, in pinned memory, of which torch 2.13 hands out powers of two (its CachingHostAllocator.h).
    """
    trained, here = trainable(model, s), devices / world
    parts = {"processes": 3.0 * max(1, devices) * GIB, "loading": min(5e9, weight_bytes(model, s)) * max(1, devices)}
    if s.sharding == "fsdp2":
        parts["loading"] = weight_bytes(model, s) * max(1, devices)
    if s.offload != "none":
        parts["optimizer"] = (12.0 + 4.0) * trained * here
    elif s.optimizer.startswith("paged"):
        parts["optimizer"] = 2 * STATE_8BIT_BYTES * trained
    if s.offload == "parameters":
        parts["weights"] = 2.0 * model.text_parameters * here
    if s.activation_offloading:
        layers = model.sizes.layers if s.trained_layers is None else s.trained_layers
        each = s.flow * model.sizes.hidden * s.tokens / s.context_parallel
        parts["activations"] = 2.0 ** math.ceil(math.log2(each)) * layers * max(1, devices)
    return {name: value / GIB for name, value in parts.items()}


def kv_cache(model: Model, tokens: int) -> float:
    """GiB of keys and values, 16 bits each, that a server keeps for one conversation of so many tokens.

    2 x layers x kv_heads x head_dim x 2 bytes a token: https://arxiv.org/abs/2309.06180, section 3, llama.cpp's default
    (--cache-type-k f16). A layer with a window keeps that and one batch (llama.cpp, src/llama-kv-cache-iswa.cpp).
    """
    z, full = model.sizes, model.sizes.layers
    if model.window:
        full //= model.shape.full_every
    windowed = min(tokens, (model.window or 0) + SERVER_BATCH)
    return 2 * 2 * z.kv_heads * z.head_dim * (full * tokens + (z.layers - full) * windowed) / GIB


def disk(model: Model, s: Settings, checkpoints: int, cached: bool = False) -> dict[str, float]:
    """GiB on the disk by part: the download (unless `cached`), checkpoints with their optimizer, merged weights, GGUFs.

    GGUF: the 16-bit file, and a quantised one of at most 8.5 bits a weight (Q8_0: 34 bytes for 32 weights).
    """
    trained = trainable(model, s)
    whole = 2.0 * model.text_parameters
    states = state_bytes(model, s)[2]
    each = (4.0 if s.rank else 2.0) * trained + states * trained
    parts = {
        "download": 0.0 if cached else 2.0 * (model.text_parameters + model.tower),
        # One more than are kept is there while it is written.
        "checkpoints": (checkpoints + 1) * each,
        "result": (4.0 if s.rank else 2.0) * trained,
        "merged weights": whole if s.rank else 0.0,
        "GGUF": whole + 34 / 32 * model.text_parameters,
    }
    return {name: value / GIB for name, value in parts.items() if value}
