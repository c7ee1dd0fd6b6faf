"""An adapter as arithmetic on single tensors of its base: what it changes, whether it fits, and the changed tensor.

The sums are those of peft's merge_and_unload on a float32 model, in its order, so that the results are its bits.
"""

import contextlib
import json
import math
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tools import BadInput
from tools.core import files, hf_folder
from tools.core.hf_folder import Settings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What a quantised base of bitsandbytes says of a 4-bit tensor lies beside it, under these ends of its name.
FOUR_BIT = re.compile(r"(.+)\.quant_state\.bitsandbytes__(?:nf4|fp4)")
FOUR_BIT_NOTE = 2**16  # bytes of it, at most; it has some 200
# What peft calls the tensors of a module: the matrix A, what lies beside it, and single tokens of an embedding.
MATRIX_A = re.compile(r"(.+)\.lora_(embedding_)?A(?:\.weight)?")
BESIDE_A = re.compile(r"\.lora_(?:embedding_)?B(?:\.weight)?$|\.lora_magnitude_vector(?:\.weight)?$")
TRAINED_TOKENS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta")
# Keys of adapter_config.json that are understood here, or say nothing of the arithmetic. Any other one with a value
# is a kind of LoRA that the sums below are not right for.
UNDERSTOOD = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config"),
    *("exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
    *("loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core"),
    *("modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"),
    *("runtime_config", "target_modules", "task_type", "trainable_token_indices", "use_dora", "use_rslora"),
}
# Seconds that an adapter's regular expressions may take on all names of a model. 900 names and a pattern for each, of
# a model with 126 layers, take 0.5; one that is made never to end takes years.
PATTERN_SECONDS = 1.5
# Ways to begin a training that leave the base as it is; the others take a part of it away.
PLAIN_STARTS = ("true", "false", "none", "gaussian", "eva", "orthogonal")


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
    from safetensors import safe_open

    config = check_adapter(folder)
    refuse_other_kinds(config)
    with safe_open(folder / "adapter_model.safetensors", framework="numpy") as file:
        sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    ranks = {name: size[0] if len(size) == 2 else 0 for name, size in sizes.items()}
    with in_time(folder):
        return planned(config, ranks, folder)


def planned(config: Settings, ranks: Mapping[str, int], folder: Path) -> Plan:
    """The plan of `plan`. `ranks`: the rows of each tensor that is a matrix, else 0.

    Raises BadInput where the tensors and adapter_config.json do not say the same, Unsupported for another kind.
    """
    changes: Plan = {}
    for name in sorted(ranks, key=order):
        module = name.removeprefix("base_model.model.")
        change: Change
        if found := MATRIX_A.fullmatch(module):
            target = f"{text_name(found[1])}.weight"
            change = low_rank_change(name, found[1], bool(found[2]), config, ranks, folder)
        elif found := TRAINED_TOKENS.fullmatch(module):
            target = f"{text_name(found[1])}.weight"
            change = Rows(name, rows(config, found[1], folder))
        elif BESIDE_A.search(module):
            continue  # read with its matrix A
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


def refuse_other_kinds(config: Settings) -> None:
    """Raise Unsupported for what the arithmetic here is not right for, by what adapter_config.json says."""
    if config.get("peft_type") != "LORA":
        raise Unsupported(f"its kind is {config.get('peft_type')}")
    start = str(config.get("init_lora_weights", True)).lower()
    if start not in PLAIN_STARTS:
        raise Unsupported(f"init_lora_weights is {start}, which changes the base")
    if unknown := sorted(key for key, value in config.items() if value and key not in UNDERSTOOD):
        raise Unsupported(f"it has {', '.join(unknown)}")


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
    """The plan for one base, and a line for each tensor of the adapter that does not fit it.

    `base`: its `shapes`. A head that the base ties to its embedding is the embedding: what is trained of it, too.
    Raises Unsupported.
    """
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="numpy") as file:
        sizes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    shared = HEAD not in base and EMBEDDING in base  # one matrix for both, "tied embeddings"
    fitted: Plan = {}
    lines = []
    for target, steps in changes.items():
        for step in steps:
            apart = isinstance(step, Saved) and step.own
            if target == HEAD and shared and isinstance(step, LowRank) and step.magnitude:
                raise Unsupported("it has DoRA on a head that its base ties to the embedding")
            there = EMBEDDING if target == HEAD and shared and not apart else target
            fitted.setdefault(there, []).append(step)
            if there not in base and not (target == HEAD and shared):
                lines += [f"{each} is in the adapter alone" for each in tensors_of(step)[:1]]
            else:
                lines += misfits(step, base[there] if there in base else base[EMBEDDING], sizes)
    return fitted, lines


def rows_after(changes: Plan, base: Mapping[str, tuple[int, ...]], folder: Path) -> int:
    """Rows of the embedding after the changes. Raises BadInput when the head's differ, Unsupported without one."""
    from safetensors import safe_open

    if EMBEDDING not in base:
        raise Unsupported(f"its base has no {EMBEDDING}")
    if any(len(base.get(name, (0, 0))) != 2 for name in (EMBEDDING, HEAD)):
        raise BadInput(f"{folder}: its base has an embedding or a head that is no matrix")
    count = {name: base.get(name, base[EMBEDDING])[0] for name in (EMBEDDING, HEAD)}
    with safe_open(folder / "adapter_model.safetensors", framework="numpy") as file:
        for name in count:
            for step in changes.get(name, []):
                if isinstance(step, Saved):
                    count[name] = next(iter(file.get_slice(step.name).get_shape()), 0)
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
        resized = step.name.rpartition(".")[0].rpartition(".")[2] in ("embed_tokens", "lm_head", "modules_to_save")
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
