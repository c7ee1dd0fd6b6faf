"""The facts of catalog/: models, GPUs, tiers and methods, each figure beside its source in the YAML."""

import difflib
import re
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from tools import BadInput
from tools.core import yaml_text

CATALOG = Path(__file__).resolve().parents[2] / "catalog"
T = TypeVar("T", bound="Fact")
Content = TypeVar("Content")
# Any size of a model, its context in tokens too: the longest known, Llama 4 Scout's, is 10,485,760.
Size = Annotated[int, Field(ge=1, le=2**24)]
Probability = Annotated[float, Field(ge=0, le=1, strict=True)]


class Part(BaseModel):
    """A part of a catalog file. A key that its class does not name is refused: most likely it is misspelt."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Fact(Part):
    """One entry of a file of entries; `key` is its own there."""

    key: str = ""


class Package(Fact):
    """A Python package that holds a model's weights as a GGUF, for machines that reach no model hub."""

    project: str
    gguf: str
    pre_tokenizer: dict[str, JsonValue]


class Architecture(Fact):
    """What a model's type says beside its sizes: transformers' name, its biases and norms, the kernels that know it."""

    model_type: str
    layer: str
    qkv_bias: bool
    qk_norm: bool
    norms: int
    fused: bool
    lora_kernels: bool
    liger: bool
    cut_cross_entropy: bool
    tied: bool = False
    full_every: Size = 1


class Sizes(Fact):
    """The sizes of a decoder, as in config.json; head_dim is the width of one attention head."""

    hidden: Size
    layers: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    intermediate: Size
    vocab: Size
    tied: bool


class Model(Fact):
    """A base model. `context`: tokens; `parameters`: elements of all weights on the hub.

    `window`: tokens that a layer looks back, but for every so manyth (`full_every` of its architecture); None: all.

    `tower`: those of them beside the language model; `stored_twice`: those that are loaded once. `strips`: control
    tokens beside `eos` that its tokenizer lets take the white space around them. `auto_map`: its settings on the hub
    name code for an older transformers, which has a class of its own for it since. `first_try`: the one to try new data
    with.
    """

    title: str
    first_try: bool = False
    hub: str
    licence: str
    gated: bool
    family: str
    eos: str
    strips: tuple[str, ...] = ()
    context: Size
    window: Size | None = None
    architecture: str
    sizes: Sizes
    parameters: int
    tower: int = 0
    stored_twice: int = 0
    auto_map: bool = False
    package: Package | None = None

    @cached_property
    def shape(self) -> Architecture:
        """The facts of its architecture."""
        return architectures()[self.architecture]

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one decoder layer: name -> (inputs, outputs), as transformers' classes hold them."""
        s = self.sizes
        query, key = s.heads * s.head_dim, s.kv_heads * s.head_dim
        out, down = {"o_proj": (query, s.hidden)}, {"down_proj": (s.intermediate, s.hidden)}
        if self.shape.fused:
            return {
                "qkv_proj": (s.hidden, query + 2 * key),
                **out,
                "gate_up_proj": (s.hidden, 2 * s.intermediate),
                **down,
            }
        parts = {"q_proj": (s.hidden, query), "k_proj": (s.hidden, key), "v_proj": (s.hidden, key), **out}
        return {**parts, "gate_proj": (s.hidden, s.intermediate), "up_proj": (s.hidden, s.intermediate), **down}

    @cached_property
    def layer_linear(self) -> int:
        """Elements of one layer's linear weights: what a quantised base holds in 4 or 8 bits."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @cached_property
    def layer_rest(self) -> int:
        """Elements of one layer's norms and biases."""
        s = self.sizes
        bias = (s.heads + 2 * s.kv_heads) * s.head_dim if self.shape.qkv_bias else 0
        return bias + self.shape.norms * s.hidden + (2 * s.head_dim if self.shape.qk_norm else 0)

    @cached_property
    def embedding(self) -> int:
        """Elements of the embedding matrix."""
        return self.sizes.vocab * self.sizes.hidden

    @cached_property
    def text_parameters(self) -> int:
        """Elements of the language model: embeddings, layers, final norm and, where it is not tied, the head."""
        s = self.sizes
        heads = 1 if s.tied else 2
        return heads * self.embedding + s.layers * (self.layer_linear + self.layer_rest) + s.hidden

    @cached_property
    def linear_parameters(self) -> int:
        """Elements of the linear weights of all layers."""
        return self.sizes.layers * self.layer_linear

    def targeted(self, targets: tuple[str, ...] | None) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one decoder layer that an adapter is on; None: of all."""
        return [size for name, size in self.linears.items() if targets is None or name in targets]

    def adapter_parameters(self, rank: int, layers: int | None = None, targets: tuple[str, ...] | None = None) -> int:
        """Elements of a LoRA adapter on the `targets` of `layers` decoder layers (all of them by default).

        rank x (inputs + outputs) for each: https://arxiv.org/abs/2106.09685, section 4.1.
        """
        width = self.all_widths if targets is None else sum(map(sum, self.targeted(targets)))
        return rank * width * (self.sizes.layers if layers is None else layers)

    @cached_property
    def all_widths(self) -> int:
        """Inputs and outputs of all linear layers of one decoder layer, summed once: the planner asks 80,000 times."""
        return sum(map(sum, self.linears.values()))


class Gpu(Fact):
    """A GPU: memory as sold (GB) and as a program sees it (GiB), bandwidth (GB/s), dense 16-bit tensor TFLOP/s.

    `context_gib`: GiB of a CUDA context on it, None where nobody measured it.
    """

    title: str
    names: list[str]
    memory_gb: int
    usable_gib: float | None = None
    context_gib: float | None = None
    architecture: Literal["volta", "turing", "ampere", "ada", "hopper", "blackwell"]
    compute_capability: str
    bandwidth_gb_s: float
    tensor_tflops: float
    link: Literal["none", "nvlink"]
    source: str

    @property
    def usable(self) -> float:
        """GiB that a program can allocate; where no log shows it, 97 % of a GPU's memory, as most of them have."""
        return self.usable_gib or round(0.97 * self.memory_gb, 2)

    @property
    def modern(self) -> bool:
        """Whether it has bf16, FlashAttention 2 and Triton's kernels: compute capability 8.0 and up.

        https://github.com/Dao-AILab/flash-attention (Ampere, Ada, Hopper), https://github.com/triton-lang/triton.
        """
        return float(self.compute_capability) >= 8.0


class Link(Fact):
    """What joins two devices: GB/s each way."""

    gb_s: float


class Licence(Fact):
    """What the hub calls a licence."""

    hub: str


class Tier(Fact):
    """A class of machines: its nodes, the devices in each, what one device holds and how they are joined.

    `memory_gb`: of a device as sold, in 10^9 bytes; `usable_gib`: what a program can allocate of it; `host_gib`: the
    machine's memory that plans may use, in GiB. `trained`: the share of the layers that carry an adapter; `changes`:
    keys of a recipe that this tier sets itself.
    """

    nodes: int
    devices: int
    gpu: str = ""
    memory_gb: int
    usable_gib: float
    host_gib: float
    precision: Literal["bf16", "fp16", "fp32"]
    link: Literal["none", "nvlink"]
    trained: float | None = None
    changes: Mapping[str, int | float] = {}

    @property
    def world(self) -> int:
        """Training processes: one for each device, and one on a CPU."""
        return max(1, self.nodes * self.devices)


class Method(Fact):
    """A way to train: the adapter (None: every weight), and what it sets for every tier.

    `update_tokens`: tokens of the data per update, at least; `by_size`: learning rates from so many billion parameters
    on; `advised`: the range of learning rates outside of which a check warns. `variant_of`: the method that this is a
    more careful form of. `rl`: what it learns by from pairs (dpo) or from games that it plays (grpo), empty where it
    learns from episodes; `beta`: the weight of its distance to the reference; `group`: games of a task that are
    compared, at a `temperature`; `after`: the method whose merged result it starts from. `families`, `models`: those
    that have its recipes, all where empty. `experimental`: no GPU has run it yet.
    """

    title: str
    purpose: str
    variant_of: str = ""
    rl: Literal["", "dpo", "grpo"] = ""
    beta: float = 0.0
    group: int = 0
    temperature: float = 0.0
    after: str = ""
    families: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    experimental: bool = False
    adapter: Literal["lora", "qlora"] | None
    rank: int = 0
    alpha: int = 0
    dropout: float = 0.0
    update_tokens: int
    epochs: int
    learning_rate: float
    by_size: dict[float, float] = {}
    advised: tuple[float, float]
    weight_decay: float

    def rate(self, model: Model) -> float:
        """The learning rate for a model of this size."""
        sizes = [size for size in sorted(self.by_size) if model.text_parameters >= size * 1e9]
        return self.by_size[sizes[-1]] if sizes else self.learning_rate

    def written(self, model: Model) -> bool:
        """Whether recipes/ has its recipes for this model; `make new` makes the others."""
        named = not self.models or model.key in self.models
        return named and (not self.families or model.family in self.families)


class Training(Part):
    """What every recipe says, by Axolotl's keys.

    `val_set_size`: a share of the episodes; `warmup_ratio`: a share of the updates; `logging_steps`: updates.
    `lora_kernels`: the keys that switch the fused LoRA kernels.
    """

    seed: int
    lr_scheduler: str
    warmup_ratio: float
    max_grad_norm: float
    val_set_size: float
    eval_batch_size: int
    saves_per_epoch: int
    evals_per_epoch: int
    save_total_limit: int
    logging_steps: int
    fsdp_version: int
    lora_kernels: tuple[str, ...]


class Episodes(Part):
    """The shipped episodes as rows of training: their `count`, the `mean` of their tokens, what of the rows they fill.

    `packed`: share by tokens of a row; `padded`: share by unpacked episodes in a micro batch, for the nearest below.
    """

    count: int
    mean: int
    packed: dict[int, float]
    padded: dict[int, float]


class Sampling(Part):
    """How answers are sampled, each as Ollama names it; None: as the server does by default.

    Temperature divides the logits (0: always the likeliest token); top_p and min_p are probabilities; top_k counts
    tokens (0: all of them).
    """

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, strict=True)] | None = None
    min_p: Probability | None = None
    repeat_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] | None = None

    @property
    def values(self) -> dict[str, float]:
        """What is set, by Ollama's names."""
        return self.model_dump(include=set(Sampling.model_fields), exclude_none=True)


class AdvisedSampling(Sampling):
    """What a family's makers advise. `replaces_own`: also where the base has a generation_config.json that samples."""

    source: str
    replaces_own: bool = False


class SamplingFacts(Part):
    """catalog/sampling.yaml. `always`: for every model; `families`: by a model's `family`."""

    always: Sampling
    families: Mapping[str, AdvisedSampling]


def entries(name: str, kind: type[T]) -> Mapping[str, T]:
    """All entries of catalog/<name>.yaml, by key. Raises BadInput as `content`."""
    found: dict[str, T] = content(name, dict[str, kind])  # type: ignore[valid-type]
    return {key: each.model_copy(update={"key": key}) for key, each in found.items()}


def content(name: str, kind: type[Content]) -> Content:
    """catalog/<name>.yaml, all of it as one `kind`.

    Raises BadInput, with file:line, for what is no YAML or breaks the schema: a key that it does not know, most of all.
    """
    path = CATALOG / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    try:
        return TypeAdapter(kind).validate_python(yaml.load(text, Loader=yaml_text.LOADER))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or error
        raise BadInput(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {why}") from error
    except ValidationError as error:
        # A required key that is misspelt is missing too.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        why = "no such key" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadInput(
            f"{path}:{yaml_text.line_of(text, *first['loc'])}: {'.'.join(map(str, first['loc']))}: {why}"
        ) from error


@cache
def architectures() -> Mapping[str, Architecture]:
    """All architectures, by key. Raises BadInput as `read`."""
    return entries("architectures", Architecture)


@cache
def models() -> Mapping[str, Model]:
    """All models, by key. Raises BadInput as `read`."""
    return entries("models", Model)


@cache
def gpus() -> Mapping[str, Gpu]:
    """All GPUs, by key. Raises BadInput as `read`."""
    return entries("gpus", Gpu)


@cache
def links() -> Mapping[str, Link]:
    """All links, by key. Raises BadInput as `read`."""
    return entries("links", Link)


@cache
def licences() -> Mapping[str, Licence]:
    """What the hub calls each licence that it has a name for, by the name in models.yaml. Raises BadInput as `read`."""
    return entries("licences", Licence)


@cache
def tiers() -> Mapping[str, Tier]:
    """All tiers, by key. Raises BadInput as `read`."""
    return entries("tiers", Tier)


@cache
def methods() -> Mapping[str, Method]:
    """All methods, by key. Raises BadInput as `read`."""
    return entries("methods", Method)


def supervised() -> Mapping[str, Method]:
    """The methods that learn from episodes, by key. Raises BadInput as `read`."""
    return {key: each for key, each in methods().items() if not each.rl}


def main_methods() -> list[Method]:
    """Those of `supervised` but for variants of others, which take the same memory. Raises BadInput as `read`."""
    return [each for each in supervised().values() if not each.variant_of]


@cache
def training() -> Training:
    """What every recipe says. Raises BadInput as `content`."""
    return content("training", Training)


@cache
def episodes() -> Episodes:
    """The shipped episodes as rows of training. Raises BadInput as `content`."""
    return content("episodes", Episodes)


@cache
def sampling() -> SamplingFacts:
    """How each family of models is sampled. Raises BadInput as `content`."""
    return content("sampling", SamplingFacts)


def pick(kind: str, key: str, entries: Mapping[str, T]) -> T:
    """The entry of this key; `kind` (model, tier ...) is what the message calls it. Raises BadInput, with near keys."""
    if key not in entries:
        near = difflib.get_close_matches(key, entries, n=3, cutoff=0.4) or list(entries)
        raise BadInput(f"{key}: no such {kind}; nearest: {', '.join(near)}")
    return entries[key]


def gpu_of(name: str) -> Gpu:
    """The GPU that a person names: its key, its title or the driver's name of it, with or without the maker.

    Raises BadInput with near keys.
    """
    named = plain(name)
    for each in gpus().values():
        if named in map(plain, (each.key, each.title, *each.names)):
            return each
    alike = {key: each for key, each in gpus().items() if plain(key).startswith(named)}
    return pick("GPU", named, alike or gpus())


def plain(name: str) -> str:
    """A GPU's name in letters and digits alone: rtx4090 for "NVIDIA GeForce RTX 4090"."""
    words = re.sub(r"\b(nvidia|geforce|tesla)\b", "", name.lower())
    return re.sub(r"[^a-z0-9]", "", words)


def model_of(base_model: str) -> Model | None:
    """The model of a hub id, of a folder's name, or that a recipe's run merged; None where the catalog has none."""
    *_, above, name = ("", *base_model.rstrip("/").split("/"))
    if name == "merged":  # outputs/<tier>/<model>-<method>/merged
        return next((each for each in models().values() for way in methods() if above == f"{each.key}-{way}"), None)
    name = name.lower()
    return next(
        (each for each in models().values() if base_model == each.hub or name == each.hub.split("/")[-1].lower()), None
    )


def described(config: Mapping[str, Any], key: str, hub: str) -> Model:
    """A model as its config.json describes it: sizes are read, the count of parameters is computed from them.

    A multimodal config is read at its text_config. Raises BadInput for an architecture that the catalog does not know.
    """
    inner = config.get("text_config")
    outer, config = config, inner if isinstance(inner, Mapping) else config
    known = {each.model_type: name for name, each in architectures().items()}
    kind = str(config.get("model_type", ""))[:80].removesuffix("_text")
    architecture = known.get(kind) or known.get(f"{kind}_text")
    if architecture is None:
        raise BadInput(f"{hub}: its config.json is of type {kind!r}; known are {', '.join(sorted(known))}")
    silent = architectures()[architecture].tied
    try:
        sizes = Sizes(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            intermediate=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=config.get("tie_word_embeddings", outer.get("tie_word_embeddings", silent)),
        )
        made = Model(
            key=key,
            title=hub.rstrip("/").split("/")[-1],
            hub=hub,
            licence="see the model's page",
            gated=False,
            family="",
            eos="",
            context=config.get("max_position_embeddings", 4096),
            window=config.get("sliding_window") if architectures()[architecture].full_every > 1 else None,
            architecture=architecture,
            sizes=sizes,
            parameters=0,
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise BadInput(f"{hub}: its config.json lacks a size, or has one that is none: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{hub}: its config.json has a wrong size: {first['loc'][0]}: {first['msg']}") from error
    return made.model_copy(update={"parameters": made.text_parameters})
