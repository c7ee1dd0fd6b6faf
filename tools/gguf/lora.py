"""An adapter as arithmetic on single tensors of its base: what it changes, whether it fits, and the changed tensor.

The sums are those of peft's merge_and_unload on a float32 model, in its order, so that the results are its bits.
"""

import contextlib
import itertools
import json
import math
import re
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tools import BadInput
from tools.core import files, hf_folder
from tools.core.hf_folder import Settings
from tools.gguf import adapter_tensors
from tools.gguf.adapter_tensors import AdapterTensors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

FLOAT16 = 65504.0  # the largest number that it has
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What a quantised base of bitsandbytes says of a 4-bit tensor lies beside it, under these ends of its name.
FOUR_BIT = re.compile(r"(.+)\.quant_state\.bitsandbytes__(?:nf4|fp4)")
FOUR_BIT_NOTE = 2**16  # bytes of it, at most; it has some 200
# What peft calls the tensors of a module: the matrix A, what lies beside it, and single tokens of an embedding.
MATRIX_A = re.compile(r"(.+)\.lora_(embedding_)?A(?:\.weight)?")
BESIDE_A = re.compile(r"\.lora_(?:embedding_)?B(?:\.weight)?$|\.lora_magnitude_vector(?:\.weight)?$")
LAYER = re.compile(r"\.(\d+)\.")
TRAINED_TOKENS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta")
# A tensor that modules_to_save or new rows left as it was, which peft saves beside the trained one.
ORIGINAL = re.compile(r"(.+)\.original_module\.(.+)")
# Keys of adapter_config.json that are understood here, or say nothing of the arithmetic.
UNDERSTOOD = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config"),
    *("exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
    *("loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core"),
    *("modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"),
    *("runtime_config", "target_modules", "task_type", "trainable_token_indices", "use_dora", "use_rslora"),
}
# Keys of peft 0.20 whose kind of LoRA the sums below are not right for, and peft's merge is.
BY_PEFT = {"ensure_weight_tying", "fan_in_fan_out", "lora_bias", "target_parameters"}
# Keys of peft 0.20 whose kind of LoRA is no change of the base's weights, or is not tried here.
NOT_MERGED = {
    *("alora_invocation_tokens", "arrow_config", "layer_replication", "monteclora_config", "use_bdlora", "use_qalora"),
    "velora_config",
}
# Seconds that an adapter's regular expressions may take on all names of a model. 900 names and a pattern for each, of
# a model with 126 layers, take 0.5; one that is made never to end takes years.
PATTERN_SECONDS = 1.5
# Ways to begin a training that leave the base as it is; the others take a part of it away. peft draws the same part
# again for some of them; for the rest it depends on random numbers, data or a quantisation that the adapter has not.
PLAIN_STARTS = ("true", "false", "none", "gaussian", "eva", "orthogonal")
REPEATED_STARTS = ("pissa", "olora")


@dataclass(frozen=True)
class FourBit:
    """A tensor before bitsandbytes stored it in 4 bits; `dtype` as torch names it."""

    shape: tuple[int, ...]
    dtype: str


class Unsupported(Exception):
    """A good adapter that the arithmetic here does not cover; the text says what of it."""


@dataclass(frozen=True)
class LowRank:
    """W + scale B A; with a magnitude (DoRA), each row scaled to that length. `embedding`: its transpose is stored."""

    a: str
    b: str
    scale: float
    magnitude: str | None = None
    embedding: bool = False


@dataclass(frozen=True)
class Saved:
    """The adapter has the tensor itself. `own`: a module of its own, also where the base shares its weights."""

    name: str
    own: bool


@dataclass(frozen=True)
class Rows:
    """Some rows of an embedding were trained."""

    name: str
    indices: tuple[int, ...]


Change = LowRank | Saved | Rows
# By the name of the base's tensor, what happens to it, in this order.
Plan = dict[str, list[Change]]
# The largest sizes of a model are some 10^5; a rank above them is no low rank.
Value = TypeVar("Value")
Rank = Annotated[int, Field(ge=1, le=2**20, strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Names = list[str] | None
Rows_ = list[Annotated[int, Field(ge=0, le=2**31, strict=True)]]


class Config(BaseModel):
    """The keys of adapter_config.json that our own code computes with, and their types; defaults are peft's."""

    model_config = ConfigDict(extra="allow")

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    r: Rank = 8
    lora_alpha: Number = 8
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Number] | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: Names = None
    trainable_token_indices: Rows_ | dict[str, Rows_] | None = None


def check_adapter(folder: Path) -> Settings:
    """The adapter's configuration. Raises BadInput unless the folder holds it and complete safetensors, and no code.

    Pickle that is not read, such as training_args.bin, may lie beside them.
    """
    if (folder / "adapter_model.bin").is_file() and not (folder / "adapter_model.safetensors").is_file():
        raise BadInput(
            f"{folder}: adapter_model.bin is pickle, which can run code: save the adapter as adapter_model.safetensors"
        )
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise BadInput(f"{folder}: not an adapter: it has no {name}; `make train` makes one")
    hf_folder.check_safetensors(folder / "adapter_model.safetensors")
    hf_folder.check_folder(folder)
    path = folder / "adapter_config.json"
    config = files.read_object(path)
    try:
        Config.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise hf_folder.wrong(path, key, config[key], f"what peft has there: {first['msg']}") from error
    # What peft would import to find the model's class, or the layers of Megatron.
    mapping = config.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if library is not None and (not isinstance(library, str) or library.split(".")[0] != "transformers"):
        raise BadInput(f"{path}: auto_mapping names a library that is not transformers, which is code; remove it")
    if config.get("megatron_config"):
        raise BadInput(f"{path}: megatron_config makes peft import Megatron, which is not used here; remove it")
    return config


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a base model, by the name that it has in a text model; 4-bit ones as they were."""
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    names = hf_folder.shards(folder)
    for path in sorted(folder.glob("model*.safetensors")):
        if names is not None and path.name not in names:
            continue
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if packed := FOUR_BIT.fullmatch(name):
                    found[text_name(packed[1])] = four_bit(file.get_tensor(name)).shape
                else:
                    found.setdefault(text_name(name), tuple(file.get_slice(name).get_shape()))
    return found


def four_bit(packed: "npt.NDArray[np.uint8] | torch.Tensor") -> FourBit:
    """What bitsandbytes notes of a 4-bit tensor, as bytes of JSON in a tensor. Raises BadInput for anything else."""
    found = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(bytes(packed.flatten()[:FOUR_BIT_NOTE].tolist()))
    shape, dtype = (found.get("shape"), found.get("dtype")) if isinstance(found, dict) else (None, None)
    good = isinstance(shape, list) and all(type(each) is int and 0 < each < 2**31 for each in shape)
    if not isinstance(shape, list) or not good or dtype not in ("float16", "bfloat16", "float32"):
        raise BadInput("the base's quant_state of a 4-bit tensor is not as bitsandbytes writes it; copy it again")
    return FourBit(tuple(shape), dtype)


def text_name(name: str) -> str:
    """A tensor's or module's name in the text model alone, as llama.cpp's converter sees it.

    Models that also see images keep theirs in a part of their own: on disk language_model.model.layers..., in
    memory model.language_model.layers...
    """
    return name.replace("language_model.", "")


def plan(folder: Path) -> Plan:
    """What the adapter changes of its base. Raises BadInput for one that cannot be read, Unsupported."""
    config = check_adapter(folder)
    refuse_other_kinds(config, folder)
    tensors = adapter_tensors.of_adapter(folder)
    ranks = {name: size[0] if len(size) == 2 else 0 for name, size in tensors.shapes.items()}
    with in_time(folder):
        return planned(config, ranks, folder)


def planned(config: Settings, ranks: Mapping[str, int], folder: Path) -> Plan:
    """The plan of `plan`. `ranks`: the rows of each tensor that is a matrix, else 0.

    Raises BadInput where the tensors and adapter_config.json do not say the same, Unsupported for another kind.
    """
    changes: Plan = {}
    for name in sorted(ranks, key=order):
        module = name.removeprefix(adapter_tensors.PREFIX)
        change: Change
        if found := MATRIX_A.fullmatch(module):
            target = f"{text_name(found[1])}.weight"
            change = low_rank_change(name, found[1], bool(found[2]), config, ranks, folder)
        elif found := TRAINED_TOKENS.fullmatch(module):
            target = f"{text_name(found[1])}.weight"
            change = Rows(name, rows(config, found[1], folder))
        elif BESIDE_A.search(module) or ORIGINAL.fullmatch(module) or again(name, ranks):
            continue  # read with its matrix A; not trained; saved twice
        elif "lora_" in module:
            raise Unsupported(f"{name}")
        else:
            target = re.sub(r"\.(modules_to_save|base_layer)(?=\.)", "", text_name(module))
            own = any(
                f".{target.rpartition('.')[0]}".endswith(f".{each}") for each in config.get("modules_to_save") or []
            )
            change = Saved(name, own)
        changes.setdefault(target, []).append(change)
    return changes


def again(name: str, names: Collection[str]) -> bool:
    """Whether peft saved a trained module under a second name, as it does where the vocabulary was resized.

    It reads the first (peft 0.20, set_peft_model_state_dict), which has the same values.
    """
    return ".modules_to_save." in name and name.replace(".modules_to_save.", ".") in names


def low_rank_change(
    a: str, module: str, embedding: bool, config: Settings, ranks: Mapping[str, int], folder: Path
) -> LowRank:
    """The change by the matrix `a` of a module and what lies beside it.

    Raises BadInput where its matrix B is missing, or its rank or DoRA is not as adapter_config.json says.
    """
    b = a.replace("lora_embedding_A", "lora_embedding_B").replace("lora_A", "lora_B")
    if b not in ranks:
        raise BadInput(f"{folder}: {a} has no {b.rpartition('model.')[2]} beside it")
    rank, scale = scaling(config, module)
    if rank != ranks[a]:
        raise BadInput(f"{folder}: {a} has rank {ranks[a]}, and {rank} in adapter_config.json")
    magnitude = next((each for each in magnitudes(a) if each in ranks), None)
    if bool(config.get("use_dora")) != bool(magnitude):
        raise BadInput(f"{folder}: {a}: DoRA in adapter_config.json or in the tensors, not in both")
    return LowRank(a, b, scale, magnitude, embedding)


def order(name: str) -> tuple[bool, bool, str]:
    """Saved tensors first, then as peft merges: the embedding before the head that shares its weights."""
    return "lora_" in name or "trainable_tokens" in name, "lm_head" in name, name


def refuse_other_kinds(config: Settings, folder: Path) -> None:
    """Raise Unsupported for what the arithmetic here is not right for, by what adapter_config.json says.

    Raises BadInput for what peft does not merge right either.
    """
    if config.get("peft_type") != "LORA":
        raise Unsupported(f"its kind is {config.get('peft_type')}")
    path = folder / "adapter_config.json"
    keys = {key for key, value in config.items() if value}
    if new := sorted(keys - UNDERSTOOD - BY_PEFT - NOT_MERGED):
        raise BadInput(
            f"{path}: {', '.join(new)}: a newer peft, or another tool, wrote this, and what it does to the weights is "
            "not known here; merge the adapter with that tool, and give the merged folder as MODEL="
        )
    if other := sorted(keys & NOT_MERGED):
        raise BadInput(f"{path}: {', '.join(other)}: an adapter of this kind is not merged into its base; peft runs it")
    start = str(config.get("init_lora_weights", True)).lower()
    if start in REPEATED_STARTS:
        raise Unsupported(f"init_lora_weights is {start}, which changes the base")
    if start not in PLAIN_STARTS:
        raise BadInput(
            f"{path}: init_lora_weights is {start}: its training changed the base too, and how cannot be computed "
            "again. Give the changed (residual) base that was saved then, BASE=, and set init_lora_weights to true"
        )
    if by_peft := sorted(keys & BY_PEFT):
        raise Unsupported(f"it has {', '.join(by_peft)}")


def scaling(config: Settings, module: str) -> tuple[int, float]:
    """Rank and factor of one module: rank_pattern, alpha_pattern and rsLoRA counted in."""

    def of(patterns: Mapping[str, Value] | None, otherwise: Value) -> Value:
        return next((value for key, value in (patterns or {}).items() if pattern(key).match(module)), otherwise)

    rank = of(config.get("rank_pattern"), config.get("r", 8))
    alpha = of(config.get("alpha_pattern"), config.get("lora_alpha", 8))
    return rank, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


@cache
def pattern(key: str) -> re.Pattern[str]:
    """What a key of rank_pattern means: the first that a module's name ends with; peft.utils.other.get_pattern_key."""
    return re.compile(rf"(.*\.)?({key})$")


def check_patterns(config: Settings, names: Iterable[str], folder: Path) -> None:
    """Raise BadInput for a regular expression in an adapter's configuration that is none, or takes too long.

    `names`: of the base's tensors, which peft matches with them.
    """
    modules = [name.removesuffix(".weight") for name in names]
    with in_time(folder):
        for key in ("target_modules", "exclude_modules"):
            if isinstance(config.get(key), str):
                expression = re.compile(config[key])
                any(expression.fullmatch(each) for each in modules)
        for key in ("rank_pattern", "alpha_pattern"):
            any(pattern(each).match(name) for each in config.get(key) or {} for name in modules)


@contextlib.contextmanager
def in_time(folder: Path) -> Iterator[None]:
    """Have the regular expressions of an adapter end within PATTERN_SECONDS seconds: re sees to signals while it runs.

    Raises BadInput for one that does not, or that is none. Outside of the main thread nothing can be stopped.
    """

    def late(*_: object) -> None:
        raise BadInput(
            f"{path}: a pattern that takes longer than {PATTERN_SECONDS} s on the model's names; make it simpler"
        )

    path, main = folder / "adapter_config.json", threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, late) if main else None
    try:
        if main:
            signal.setitimer(signal.ITIMER_REAL, PATTERN_SECONDS)
        yield
    except (re.error, RecursionError, OverflowError) as error:
        raise BadInput(f"{path}: a pattern that is no regular expression: {error}") from error
    finally:
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def magnitudes(a: str) -> tuple[str, str]:
    """The names that the lengths of DoRA may have beside a matrix A."""
    stem = re.sub(r"lora_(embedding_)?A(\.weight)?$", "lora_magnitude_vector", a)
    return stem, f"{stem}.weight"


def rows(config: Settings, module: str, folder: Path) -> tuple[int, ...]:
    """The token ids whose rows of an embedding were trained. Raises BadInput when adapter_config.json names none."""
    indices = config.get("trainable_token_indices")
    if isinstance(indices, dict):
        fits = (value for key, value in indices.items() if module == key or module.endswith(f".{key}"))
        indices = next(fits, None)
    if indices is None:
        raise BadInput(f"{folder}: {module} has trained tokens, and adapter_config.json names none for it")
    return tuple(indices)


def fit(changes: Plan, base: Mapping[str, tuple[int, ...]], folder: Path) -> tuple[Plan, list[str]]:
    """The plan for one base, by the names of its tensors, and a line for each tensor that does not fit it.

    `base`: its `shapes`. A head that the base ties to its embedding is the embedding, unless only one of them was
    trained, or each by itself: then both are in the plan, and the head begins as the embedding was. Raises BadInput
    for a part of the adapter that is not there.
    """
    tensors = adapter_tensors.of_adapter(folder)
    shared = HEAD not in base and EMBEDDING in base  # one matrix for both, "tied embeddings"
    fitted: Plan = {}
    lines = []
    for target, steps in changes.items():
        there = target if shared and target == HEAD else name_in(base, target)
        if not there:
            lines += [f"{tensors_of(step)[0]} is in the adapter alone" for step in steps]
            continue
        fitted.setdefault(there, []).extend(steps)
        shape = base.get(there, base.get(EMBEDDING, ()))
        for step in steps:
            lines += misfits(step, shape, tensors.shapes)
            if isinstance(step, Saved):  # an embedding may have been resized
                shape = tensors.shapes[step.name]
    if shared:
        fitted = untied(fitted, tensors, folder)
    refuse_missing(fitted, base, folder)
    return fitted, lines


def name_in(base: Collection[str], target: str) -> str:
    """A target's name in a base: its own, or the one that has more or fewer modules before it; empty for none."""
    if target in base:
        return target
    parts = target.split(".")
    for first in range(1, len(parts) - 2):
        if (shorter := ".".join(parts[first:])) in base:
            return shorter
    longer = [name for name in base if name.endswith(f".{target}")]
    return longer[0] if len(longer) == 1 else ""


def untied(plan: Plan, tensors: AdapterTensors, folder: Path) -> Plan:
    """The plan for a base whose head is its embedding, as the model that was trained computed with the two.

    New rows and trained tokens are of both. A low-rank change and a module of modules_to_save are of one alone, where
    peft's merge changes both: then each has its own steps. Raises BadInput for a mixture that peft does not train.
    """
    steps = {name: plan.pop(name, []) for name in (EMBEDDING, HEAD)}
    own = {
        name: [each for each in mine if isinstance(each, LowRank) or (isinstance(each, Saved) and each.own)]
        for name, mine in steps.items()
    }
    both = [each for name, mine in steps.items() for each in mine if each not in own[name]]
    if not any(own.values()):
        return {EMBEDDING: both, **plan} if both else plan
    if any(isinstance(each, Rows) for each in both):
        raise BadInput(f"{folder}: trained tokens beside a change of an embedding that its base ties to the head")
    # The matrix as it was before, with its new rows.
    before = [Saved(name, False) for name in tensors.shapes if ORIGINAL.fullmatch(name) and "embed_tokens" in name]
    embedding = [*both, *own[EMBEDDING]]
    return ({EMBEDDING: embedding} if embedding else {}) | {HEAD: [*(before or both), *own[HEAD]], **plan}


def refuse_missing(plan: Plan, base: Collection[str], folder: Path) -> None:
    """Raise BadInput where the file has only some of the layers that adapter_config.json says were trained.

    A layer is looked for where the same part of another layer has an adapter. A `target_modules` of text is a pattern.
    """
    config = check_adapter(folder)
    there = {target for target, steps in plan.items() if any(isinstance(each, LowRank) for each in steps)}
    kinds = {LAYER.sub(".N.", name, count=1) for name in there if LAYER.search(name)}
    alike = [name for name in base if name not in there and LAYER.sub(".N.", name, count=1) in kinds]
    with in_time(folder):
        missing = sorted(name for name in alike if targeted(config, name.removesuffix(".weight")))
    if missing:
        raise BadInput(
            f"{folder}: {len(missing)} of the layers that adapter_config.json names are not in the adapter's file, "
            f"first {missing[0].removesuffix('.weight')}; it was not saved whole, copy or save it again"
        )


def targeted(config: Settings, module: str) -> bool:
    """Whether adapter_config.json has an adapter on a module; peft 0.20, tuners_utils.check_target_module_exists."""

    def named(keys: list[str] | str | None) -> bool:
        if isinstance(keys, str):
            return keys == "all-linear" or bool(re.fullmatch(keys, module))
        return any(f".{module}".endswith(f".{text_name(key)}") for key in keys or [])

    layers = config.get("layers_to_transform")
    if layers is not None:
        number = LAYER.search(module)
        if not number or int(number[1]) not in ([layers] if isinstance(layers, int) else layers):
            return False
    return named(config.get("target_modules")) and not named(config.get("exclude_modules"))


def rows_after(changes: Plan, base: Mapping[str, tuple[int, ...]], folder: Path) -> int:
    """Rows of the embedding after the changes. Raises BadInput when the head's differ, Unsupported without one."""
    if EMBEDDING not in base:
        raise Unsupported(f"its base has no {EMBEDDING}")
    if any(len(base.get(name, (0, 0))) != 2 for name in (EMBEDDING, HEAD)):
        raise BadInput(f"{folder}: its base has an embedding or a head that is no matrix")
    count = {name: base.get(name, base[EMBEDDING])[0] for name in (EMBEDDING, HEAD)}
    sizes = adapter_tensors.of_adapter(folder).shapes
    for name in count:
        for step in changes.get(name, []):
            if isinstance(step, Saved):
                count[name] = next(iter(sizes[step.name]), 0)
    if count[HEAD] != count[EMBEDDING] and (HEAD in base or HEAD in changes):
        raise BadInput(f"{folder}: its embedding has {count[EMBEDDING]} rows and its head {count[HEAD]}")
    return count[EMBEDDING]


def tensors_of(step: Change) -> list[str]:
    """The names in the adapter that one change needs."""
    if isinstance(step, LowRank):
        return [step.a, step.b, *([step.magnitude] if step.magnitude else [])]
    return [step.name]


def misfits(step: Change, shape: tuple[int, ...], sizes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """How the shapes of a change differ from those that a base's tensor of `shape` takes; a line for each."""
    wanted: dict[str, tuple[int, ...]]
    if len(shape) != 2 and not isinstance(step, Saved):
        return [f"{tensors_of(step)[0]} changes a matrix, and this base has {list(shape)} there"]
    if isinstance(step, LowRank):
        rows, columns = reversed(shape) if step.embedding else shape
        rank = sizes[step.a][0]
        wanted = {step.a: (rank, columns), step.b: (rows, rank)}
        if step.magnitude:
            wanted[step.magnitude] = (rows,)
    elif isinstance(step, Rows):
        wanted = {step.name: (len(step.indices), shape[1])}
        if max(step.indices, default=0) >= shape[0]:
            return [f"{step.name} has row {max(step.indices)}, and this base {shape[0]} rows"]
    else:
        # An embedding may have been resized; its width is the model's.
        module = step.name.removesuffix(".base_layer.weight").removesuffix(".weight").rpartition(".")[2]
        resized = module in ("embed_tokens", "lm_head", "modules_to_save")
        wanted = {step.name: (*sizes[step.name][:1], *shape[1:]) if resized else shape}
    return [
        f"{name} is {list(sizes[name])} in the adapter and {list(size)} for this base"
        for name, size in wanted.items()
        if sizes[name] != size
    ]


def changed(weight: "torch.Tensor", steps: Sequence[Change], tensor: Callable[[str], "torch.Tensor"]) -> "torch.Tensor":
    """The base's tensor after all changes, in its own shape and dtype: summed in float32, rounded once.

    `tensor(name)` gives a tensor of the adapter. An embedding may have other rows than before.
    """
    import torch

    dtype = weight.dtype
    for step in steps:
        if isinstance(step, Saved):
            weight = tensor(step.name)
        elif isinstance(step, Rows):
            index = torch.tensor(step.indices)
            weight = weight.float().index_copy(0, index, tensor(step.name).float())
        else:
            weight = added(weight.float(), step, tensor)
    return weight.to(dtype)


def added(weight: "torch.Tensor", step: LowRank, tensor: Callable[[str], "torch.Tensor"]) -> "torch.Tensor":
    """A float32 tensor and its low-rank product, as peft.tuners.lora adds them up."""
    import torch

    delta = (tensor(step.b).float() @ tensor(step.a).float()).mul_(step.scale)
    if step.embedding:
        delta = delta.T
    if step.magnitude is None:
        return delta.add_(weight)
    sum_ = weight.T + delta.T if step.embedding else weight + delta
    factor = tensor(step.magnitude).float() / torch.linalg.norm(sum_, dim=1)
    return (factor.view(1, -1) if step.embedding else factor.view(-1, 1)) * (weight + delta)


def check_values(target: str, weight: "torch.Tensor", largest: float) -> None:
    """Raise BadInput for a changed tensor with a value that is no number, or beyond `largest`, a file's own."""
    import torch

    low, high = (float(each) for each in torch.aminmax(weight))
    if not math.isfinite(low + high):
        raise BadInput(f"{target}: values of the adapter or its base are not numbers (NaN or infinite); train again")
    if max(-low, high) > largest:
        raise BadInput(
            f"{target}: {max(-low, high):.3g} after the training is beyond float16, which ends at {FLOAT16:g}: "
            "QUANT=BF16 or QUANT=F32 holds it; a training that goes so far has most often failed"
        )


def remarks(plan: Plan, tensors: AdapterTensors) -> Iterator[str]:
    """What a person should know of an adapter that is taken all the same, a line each."""
    if others := [(name, theirs) for name, theirs in tensors.stored.items() if name != theirs]:
        name, theirs = others[0]
        yield f"{len(others)} tensors are taken by the names that peft gives them: {theirs} is {name}"
    for target, changes in plan.items():
        name = text_name(tensors_of(changes[0])[0]) if changes else ""
        module = target.rpartition(".")[0]
        if name and target not in (EMBEDDING, HEAD) and not name.startswith(f"{adapter_tensors.PREFIX}{module}."):
            yield f"tensors are taken by the names that the base has: {name} is of {module}"
            break
    steps = itertools.chain.from_iterable(plan.values())
    if not any(changes_something(step, tensors.reader()) for step in steps):
        yield "it changes nothing (its B or lora_alpha is zero): what answers is the base"


def changes_something(step: Change, read: "Callable[[str], torch.Tensor]") -> bool:
    """Whether a change is one: not where the scale or the matrix B is zero."""
    if not isinstance(step, LowRank) or step.magnitude:
        return True
    return bool(step.scale) and bool(read(step.b).any())
