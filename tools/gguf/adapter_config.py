"""What adapter_config.json says of an adapter: checked, and as peft understands it."""

import contextlib
import math
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tools import BadInput
from tools.core import files, hf_folder
from tools.core.hf_folder import Settings

# The number of a layer in a module's name.
LAYER = re.compile(r"\.(\d+)\.")
# Keys of adapter_config.json that are understood here, or say nothing of the arithmetic.
UNDERSTOOD = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying"),
    *("eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
    *("loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core"),
    *("modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"),
    *("runtime_config", "target_modules", "task_type", "trainable_token_indices", "use_dora", "use_rslora"),
}
# Keys of peft 0.20 whose kind of LoRA the sums below are not right for, and peft's merge is.
BY_PEFT = {"fan_in_fan_out", "lora_bias", "target_parameters"}
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
PLAIN_STARTS = ("true", "false", "none", "gaussian", "eva", "mica", "orthogonal")
REPEATED_STARTS = ("pissa", "olora")
Value = TypeVar("Value")
# The largest sizes of a model are some 10^5; a rank above them is no low rank.
Rank = Annotated[int, Field(ge=1, le=2**20, strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Names = list[str] | None
Rows_ = list[Annotated[int, Field(ge=0, le=2**31, strict=True)]]


# Keys of adapter_config.json that mean the same in every kind of adapter.
ANY_KIND = ("peft_type", "base_model_name_or_path", "target_modules", "exclude_modules", "modules_to_save")


class Unsupported(Exception):
    """A good adapter that the arithmetic here does not cover; the text says what of it."""


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
    if several := sorted(folder.glob("adapter_model-*-of-*.safetensors")):
        raise BadInput(f"{folder}: {several[0].name}: peft reads one adapter_model.safetensors; put the parts into one")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise BadInput(f"{folder}: not an adapter: it has no {name}; `make train` makes one")
    hf_folder.check_safetensors(folder / "adapter_model.safetensors")
    hf_folder.check_folder(folder)
    path = folder / "adapter_config.json"
    config = files.read_object(path)
    # Other kinds have other values under some of LoRA's keys: OFT an r of 0, AdaLoRA lists in rank_pattern.
    ours = config if config.get("peft_type") == "LORA" else {key: config.get(key) for key in ANY_KIND}
    try:
        Config.model_validate(ours)
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


def text_name(name: str) -> str:
    """A tensor's or module's name in the text model alone, as llama.cpp's converter sees it.

    Models that also see images keep theirs in a part of their own: on disk language_model.model.layers..., in
    memory model.language_model.layers...
    """
    return name.replace("language_model.", "")


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
            if isinstance(config.get(key), dict):
                any(pattern(each).match(name) for each in config[key] for name in modules)


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


def rows(config: Settings, module: str, folder: Path) -> tuple[int, ...]:
    """The token ids whose rows of an embedding were trained. Raises BadInput when adapter_config.json names none."""
    indices = config.get("trainable_token_indices")
    if isinstance(indices, dict):
        fits = (value for key, value in indices.items() if module == key or module.endswith(f".{key}"))
        indices = next(fits, None)
    if indices is None:
        raise BadInput(f"{folder}: {module} has trained tokens, and adapter_config.json names none for it")
    return tuple(indices)


def targeted(config: Settings, module: str) -> bool:
    """Whether adapter_config.json has an adapter on a module; peft 0.20, tuners_utils.check_target_module_exists.

    `module`: its name in the text model, which in a model that also sees images has more before it.
    """
    within = module.replace("model.", "model.language_model.", 1)
    names = (module, within, f"language_model.{module}", f"model.{module}")

    def named(keys: list[str] | str | None) -> bool:
        if isinstance(keys, str):
            return keys == "all-linear" or any(re.fullmatch(keys, name) for name in names)
        return any(f".{module}".endswith(f".{text_name(key)}") for key in keys or [])

    layers = config.get("layers_to_transform")
    if layers is not None:
        number = LAYER.search(module)
        if not number or int(number[1]) not in ([layers] if isinstance(layers, int) else layers):
            return False
    return named(config.get("target_modules")) and not named(config.get("exclude_modules"))
