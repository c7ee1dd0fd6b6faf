"""A Hugging Face folder of any origin, before a library reads it: nothing in it is run, its parts are what they say.

Transformers runs Python files of a folder where `auto_map` in one of its settings names them and someone trusts them.
We never do; but llama.cpp's converter trusts the folders of some architectures, so such a folder is refused.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tools import BadInput
from tools.core import catalog, files
from tools.core.quote import visible

# A JSON object of any origin: a key may hold anything, and who reads it checks what.
Settings = dict[str, Any]

INDEX = "model.safetensors.index.json"
# Read as programs by pickle: pytorch_model.bin ...
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# The state of a training that transformers' Trainer leaves beside the weights; nothing here reads it.
TRAINER = re.compile(r"training_args\.bin|optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth")
# What a tokenizer is read from; their sizes are looked at, since a library would take in all of them.
TEXTS = (".json", ".jinja", ".model", ".txt")
# Bytes of all settings and of the index together: the index of DeepSeek V3, of 91,991 tensors, has 9 MB.
SETTINGS = 32 * 2**20
# Bytes of a safetensors file's header: about 100 a tensor.
HEADER = 16 * 2**20
# Sizes in config.json, and the most that each may be: several times that of the largest models known (Llama 3.1 405B,
# Gemma 4, Kimi K2). llama.cpp's converter makes lists of so many layers and tokens before it sees a weight.
SIZES = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer"), 2**10),
    **dict.fromkeys(("vocab_size", "padded_vocab_size"), 2**21),
    **dict.fromkeys(("hidden_size", "n_embd", "intermediate_size", "moe_intermediate_size"), 2**20),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "head_dim"), 2**12),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 2**12),
}
# Settings that may name a kernel on the hub, which is compiled code: ORG/NAME.
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def check_folder(folder: Path) -> None:
    """Raise BadInput for a folder whose settings name code to run, or are no JSON objects, or which has huge files."""
    for path in sorted(folder.iterdir()):
        if path.suffix in TEXTS and path.is_file() and path.stat().st_size > files.LARGEST_JSON:
            most = files.LARGEST_JSON >> 20
            raise BadInput(f"{path}: {path.stat().st_size / 2**20:.0f} MiB; more than {most} is not read")
    # As transformers names them: config.json, tokenizer_config.json, processor_config.json, config.4.0.0.json ...
    named = [path for path in sorted(folder.glob("*config*.json")) if path.is_file()]
    if sum(path.stat().st_size for path in named) > SETTINGS:
        raise BadInput(f"{folder}: more than {SETTINGS >> 20} MiB of settings (*config*.json); it is no model's folder")
    for path in named:
        if why := code(files.read_object(path)):
            raise BadInput(f"{path}: {why}")


def check_sizes(path: Path) -> None:
    """Raise BadInput for a size in a config.json, its text model's too, that is none or larger than any model's."""
    config = files.read_object(path)
    for part in (config, text_settings(config)):
        for key, most in SIZES.items():
            value = part.get(key)
            each = value if isinstance(value, list) and len(value) <= 2**10 else [value]  # one for each layer
            if value is not None and not all(type(size) is int and 0 <= size <= most for size in each):
                raise wrong(path, key, value, f"a size of at most {most}")


def code(settings: object) -> str:
    """What of a model's settings, or a recipe's, would run code of its own, and how to fix it; empty for nothing."""
    for key, value in pairs(settings):
        if key == "auto_map" and value != {}:
            return (
                "auto_map names code of the model's own, which is never run here; remove auto_map from the file: "
                "transformers knows the common types by itself"
            )
        if key == "trust_remote_code" and value:
            return "trust_remote_code would run code of the model's own, which is never done here; remove it"
        if key in KERNELS and "/" in str(value)[:200]:
            return f"{key} names a kernel on the hub, which is code; remove it"
    return ""


def pairs(value: object) -> Iterator[tuple[object, object]]:
    """All keys and values of nested mappings and lists, at any depth."""
    left: list[object] = [value]
    while left:
        each = left.pop()
        if isinstance(each, Mapping):
            yield from each.items()
            left += each.values()
        elif isinstance(each, list):
            left += each


def pickles(folder: Path) -> list[Path]:
    """The files of a folder that are, or may be, pickle, but for a trainer's own state."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in PICKLES and path.is_file())
    return sorted(path for path in found if not TRAINER.fullmatch(path.name))


def shards(folder: Path) -> set[str] | None:
    """The names of the files that hold the weights, by their index; None where there is no index.

    Raises BadInput for an index that is none, and for a name that leads out of the folder.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    if path.stat().st_size > SETTINGS:
        raise BadInput(f"{path}: more than {SETTINGS >> 20} MiB; copy or make the file again")
    found = files.read_object(path).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise BadInput(f'{path}: no "weight_map" of tensor names to file names; copy or make the file again')
    for name in found.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BadInput(f"{path}: {name[:80]!r} is no safetensors file beside it; copy or make the file again")
    return set(found.values())


def check_safetensors(path: Path) -> None:
    """Raise BadInput unless the file is complete, by its header and its size; the weights themselves are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if HEADER < length < path.stat().st_size:
            raise BadInput(f"{path}: a safetensors file with a header of {length / 2**20:.0f} MiB; it is no model's")
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: not a whole safetensors file: {visible(error)[:300]}") from error


def settings(path: Path) -> Settings:
    """What a JSON file holds, {} where there is none. Raises BadInput as files.read_object."""
    return files.read_object(path) if path.is_file() else {}


def end_ids(path: Path) -> list[int]:
    """The ids of the tokens that end an answer by a file of settings. Raises BadInput for what are none."""
    ids = settings(path).get("eos_token_id")
    found = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if any(type(each) is not int for each in found):
        raise wrong(path, "eos_token_id", ids, "a token id or a list of them")
    return found


def sampling(path: Path) -> dict[str, float]:
    """How a generation_config.json samples, by Ollama's names; {} where it does not say.

    Its penalty on repetition is left out, see catalog/sampling.yaml. Where it asks to sample and names no temperature,
    that is 1.0 (transformers' GenerationConfig). Raises BadInput for a value that cannot be.
    """
    said = settings(path)
    names = ("temperature", "top_p", "top_k", "min_p")
    found = {name: said[name] for name in names if said.get(name) is not None}
    if found and said.get("do_sample") is True:
        found.setdefault("temperature", 1.0)
    try:
        return catalog.Sampling(**found).values
    except ValidationError as error:
        first = error.errors()[0]
        wanted = first["msg"].removeprefix("Input should be ")
        raise wrong(path, str(first["loc"][0]), first["input"], wanted) from error


def text_settings(config: Settings) -> Settings:
    """The part of a config.json on the text model: its own, in models that also see images."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def wrong(path: Path, key: str, value: object, wanted: str) -> BadInput:
    """The refusal of one setting in a file."""
    return BadInput(
        f"{path}: {key} is {visible(reprlib.repr(value))} and must be {wanted}; copy or make the file again"
    )
