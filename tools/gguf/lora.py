"""An adapter as arithmetic on single tensors of its base: what it changes, whether it fits, and the changed tensor.

The sums are those of peft's merge_and_unload on a float32 model, in its order, so that the results are its bits.
"""

import contextlib
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools import BadInput
from tools.core import files, hf_folder
from tools.core.hf_folder import Settings
from tools.gguf import adapter_config, adapter_tensors
from tools.gguf.adapter_config import Unsupported
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
TRAINED_TOKENS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta")
# A tensor that modules_to_save or new rows left as it was, which peft saves beside the trained one.
ORIGINAL = re.compile(r"(.+)\.original_module\.(.+)")


@dataclass(frozen=True)
class FourBit:
    """A tensor before bitsandbytes stored it in 4 bits; `dtype` as torch names it."""

    shape: tuple[int, ...]
    dtype: str


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
                    found[adapter_config.text_name(packed[1])] = four_bit(file.get_tensor(name)).shape
                else:
                    found.setdefault(adapter_config.text_name(name), tuple(file.get_slice(name).get_shape()))
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


def plan(folder: Path) -> Plan:
    """What the adapter changes of its base. Raises BadInput for one that cannot be read, Unsupported."""
    config = adapter_config.check_adapter(folder)
    adapter_config.refuse_other_kinds(config, folder)
    tensors = adapter_tensors.of_adapter(folder)
    ranks = {name: size[0] if len(size) == 2 else 0 for name, size in tensors.shapes.items()}
    with adapter_config.in_time(folder):
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
            target = f"{adapter_config.text_name(found[1])}.weight"
            change = low_rank_change(name, found[1], bool(found[2]), config, ranks, folder)
        elif found := TRAINED_TOKENS.fullmatch(module):
            target = f"{adapter_config.text_name(found[1])}.weight"
            change = Rows(name, adapter_config.rows(config, found[1], folder))
        elif BESIDE_A.search(module) or ORIGINAL.fullmatch(module) or again(name, ranks):
            continue  # read with its matrix A; not trained; saved twice
        elif "lora_" in module:
            raise Unsupported(f"{name}")
        else:
            target = re.sub(r"\.(modules_to_save|token_adapter|base_layer)(?=\.)", "", adapter_config.text_name(module))
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
    rank, scale = adapter_config.scaling(config, module)
    if not ranks[a]:
        raise BadInput(f"{folder}: {a} is empty, as DeepSpeed ZeRO-3 leaves it until it is gathered; save it again")
    if rank != ranks[a]:
        raise BadInput(f"{folder}: {a} has rank {ranks[a]}, and {rank} in adapter_config.json")
    magnitude = next((each for each in magnitudes(a) if each in ranks), None)
    if bool(config.get("use_dora")) != bool(magnitude):
        raise BadInput(f"{folder}: {a}: DoRA in adapter_config.json or in the tensors, not in both")
    return LowRank(a, b, scale, magnitude, embedding)


def order(name: str) -> tuple[bool, bool, str]:
    """Saved tensors first, then as peft merges: the embedding before the head that shares its weights."""
    return "lora_" in name or "trainable_tokens" in name, "lm_head" in name, name


def magnitudes(a: str) -> tuple[str, str]:
    """The names that the lengths of DoRA may have beside a matrix A."""
    stem = re.sub(r"lora_(embedding_)?A(\.weight)?$", "lora_magnitude_vector", a)
    return stem, f"{stem}.weight"


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

    New rows and trained tokens are of both. A low-rank change, a module of modules_to_save and tokens that only the
    head has, or others than the embedding, are of one alone, where peft's merge changes both: then each has its own
    steps. Where the training kept the two tied (ensure_weight_tying), the file has the one change under both names.
    Raises BadInput for a mixture that peft does not train.
    """
    steps = {name: plan.pop(name, []) for name in (EMBEDDING, HEAD)}
    if read_config(folder).get("ensure_weight_tying"):
        same = steps[EMBEDDING] or steps[HEAD]
        return {EMBEDDING: same, **plan} if same else plan
    tokens = {name: [each.indices for each in mine if isinstance(each, Rows)] for name, mine in steps.items()}
    apart = bool(tokens[HEAD]) and tokens[HEAD] != tokens[EMBEDDING]

    def is_own(step: Change) -> bool:
        return isinstance(step, LowRank) or (apart if isinstance(step, Rows) else step.own)

    own = {name: [each for each in mine if is_own(each)] for name, mine in steps.items()}
    both = [each for mine in steps.values() for each in mine if not is_own(each)]
    if not any(own.values()):
        return {EMBEDDING: both, **plan} if both else plan
    if any(isinstance(each, Rows) for each in both):
        raise BadInput(f"{folder}: trained tokens beside a change of an embedding that its base ties to the head")
    # The matrix as it was before, with its new rows.
    before = [Saved(name, False) for name in tensors.shapes if ORIGINAL.fullmatch(name) and "embed_tokens" in name]
    embedding = [*both, *own[EMBEDDING]]
    return ({EMBEDDING: embedding} if embedding else {}) | {HEAD: [*(before or both), *own[HEAD]], **plan}


def read_config(folder: Path) -> Settings:
    """adapter_config.json, which was checked as the plan was made."""
    return files.read_object(folder / "adapter_config.json")


def refuse_missing(plan: Plan, base: Collection[str], folder: Path) -> None:
    """Raise BadInput where the file has only some of the layers that adapter_config.json says were trained.

    A layer is looked for where the same part of another layer has an adapter. A `target_modules` of text is a pattern.
    """
    config = read_config(folder)
    there = {target for target, steps in plan.items() if any(isinstance(each, LowRank) for each in steps)}
    kinds = {adapter_config.LAYER.sub(".N.", name, count=1) for name in there if adapter_config.LAYER.search(name)}
    alike = [name for name in base if name not in plan and adapter_config.LAYER.sub(".N.", name, count=1) in kinds]
    with adapter_config.in_time(folder):
        missing = sorted(name for name in alike if adapter_config.targeted(config, name.removesuffix(".weight")))
    if missing:
        raise BadInput(
            f"{folder}: {len(missing)} of the layers that adapter_config.json names are not in the adapter's file, "
            f"first {missing[0].removesuffix('.weight')}; it was not saved whole, copy or save it again"
        )
    # Of bias: lora_only, peft 0.20 trains the biases of the layers with an adapter and looks for them by another name
    # than they have as it saves.
    trained = {"all": base, "lora_only": {name.removesuffix("weight") + "bias" for name in there}}
    biases = trained.get(str(config.get("bias")), ())
    lost = sorted(name for name in base if name in biases and name.endswith(".bias") and name not in plan)
    if lost:
        raise BadInput(
            f"{folder}: {len(lost)} biases were trained (bias: {config['bias']}) and are not in the adapter's file, "
            f"first {lost[0]}; train again with bias: none, or save the adapter again"
        )


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
        resized = module in ("embed_tokens", "lm_head", "modules_to_save", "token_adapter")
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
        name = adapter_config.text_name(tensors_of(changes[0])[0]) if changes else ""
        module = target.rpartition(".")[0]
        if name and target not in (EMBEDDING, HEAD) and not name.startswith(f"{adapter_tensors.PREFIX}{module}."):
            yield f"tensors are taken by the names that the base has: {name} is of {module}"
            break
    steps = itertools.chain.from_iterable(plan.values())
    if not any(changes_something(step, tensors.read) for step in steps):
        yield "it changes nothing (its A, B or lora_alpha is zero): what answers is the base"


def changes_something(step: Change, read: "Callable[[str], torch.Tensor]") -> bool:
    """Whether a change is one: not where the scale or a matrix is zero."""
    if not isinstance(step, LowRank) or step.magnitude:
        return True
    return bool(step.scale) and bool(read(step.b).any()) and bool(read(step.a).any())
