"""What a recipe's keys may say: the values that our own code computes with, and those that would run code."""

import importlib.metadata
import importlib.util
import math
import reprlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tools.core import catalog, hf_folder, quote

# The longest text with changes, each part of which that could be one is read as YAML, and the longest text of WORDS.
LONGEST = 2000
# What our own code computes with, and the least it can be; Axolotl takes some of it (a micro batch of 0) in silence.
WHOLE = {"sequence_len": 1, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "eval_batch_size": 1}
WHOLE |= {"context_parallel_size": 1, "lora_r": 1, "lora_alpha": 1, "save_total_limit": 1}
REAL = {"lora_dropout": 0, "learning_rate": 0, "num_epochs": 0, "warmup_ratio": 0, "weight_decay": 0, "val_set_size": 0}
# The most it can be. Tokens: the longest context known, Llama 4 Scout's, is 10,485,760. Episodes: GPT-3's 3.2 million
# tokens an update are 1,600 of them. Rank: the largest hidden size known, of Llama 3.1 405B. Learning rate: float32's
# largest number, since a rate that breaks a training is told by its loss. The rest: no training has had so much.
MOST: Mapping[str, float] = {
    **{"sequence_len": 2**24, "micro_batch_size": 2**16, "gradient_accumulation_steps": 2**16},
    **{"eval_batch_size": 2**16, "lora_r": 2**14, "lora_alpha": 2**20, "save_total_limit": 2**20},
    **{"lora_dropout": 1, "learning_rate": 1e38, "num_epochs": 100_000, "warmup_ratio": 1, "weight_decay": 100},
    **{"val_set_size": 2**32, "context_parallel_size": 2**10},
}
SWITCHES = ("load_in_4bit", "load_in_8bit", *catalog.training().lora_kernels)
WORDS = ("base_model", "optimizer", "adapter", "deepspeed", "attn_implementation")
LISTS, MAPPINGS, TABLES = ("plugins", "lora_modules_to_save"), ("fsdp_config", "trl"), ("datasets", "test_datasets")


def wrong(key: str, value: object) -> str:
    """What is wrong with a key and its value, before Axolotl is asked; empty where nothing is.

    That is a key of an older Axolotl, a value that our own code cannot compute with, one that would run code.
    """
    return outdated(key, value) or mistyped(key, value) or runs_code(key, value)


def outdated(key: str, value: object) -> str:
    """What to say of a key of an older Axolotl, and what it is called now; empty for any other."""
    return f"{key} is of an older Axolotl; now: {renamed()[key]}" if value and key in renamed() else ""


def mistyped(key: str, value: object) -> str:
    """What to say of a value that our own code cannot compute with; empty for any other."""
    if value is None:
        return "base_model: it names none" if key == "base_model" else ""
    said = f"{key}: {quote.visible(reprlib.repr(value))}"
    if key in SWITCHES:
        return "" if isinstance(value, bool) else f"{said} is neither true nor false"
    if key in WORDS and isinstance(value, str):
        return f"{said} has more than {LONGEST} letters" if len(value) > LONGEST else ""
    if key in WORDS:
        return f"{said} is no text"
    if key in LISTS:
        texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
        return "" if texts else f"{said} is no list of texts"
    if key in MAPPINGS:
        if not isinstance(value, dict):
            return f"{said} is no mapping"
        group = value.get("num_generations") if key == "trl" else None
        of = "" if group is None or as_number(group, True) >= 1 else f"num_generations {reprlib.repr(group)}"
        return of and f"trl: {quote.visible(of)} is not a whole number of at least 1"
    if key in TABLES:
        rows = isinstance(value, list) and all(isinstance(each, dict) for each in value)
        return "" if rows else f"{said} is no list of mappings"
    least = WHOLE.get(key, REAL.get(key))
    if least is None:
        return ""
    number = as_number(value, key in WHOLE)
    if not number >= least:  # nan is not either
        return f"{said} is not {'a whole number' if key in WHOLE else 'a number'} of at least {least}"
    return f"{said} is more than {MOST[key]}" if number > MOST[key] else ""


def as_number(value: object, whole: bool) -> float:
    """A value of YAML as a number, nan for what is none, or not a `whole` one.

    Axolotl takes a number in quotes, and YAML 1.1 has 1e-4 for a text.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return math.nan
    try:
        if whole and isinstance(value, str):
            return int(value)
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return math.nan if whole and math.isfinite(number) and not number.is_integer() else number


def runs_code(key: str, value: object) -> str:
    """What to say of a value that would have Axolotl run code that comes with a model or a recipe; empty for any other.

    A plugin is code that a recipe names: of an installed package alone, never of a file that lies about.
    """
    if any(name == "trust_remote_code" and said for name, said in hf_folder.pairs({key: value})):
        return "trust_remote_code: code of a model's own is never run here; remove it"
    for name in value if key == "plugins" and isinstance(value, list) else ():
        top = name.split(".")[0]
        known = top in ("axolotl", "tools") or (top.isidentifier() and (integrations() / top).exists())
        if not known and top not in importlib.metadata.packages_distributions():
            return f"plugins: {quote.visible(name[:80])}: of no package that is installed; pip install its package"
    return ""


def integrations() -> Path:
    """The folder of Axolotl's own plugins, without importing it."""
    found = importlib.util.find_spec("axolotl")
    return Path(found.origin).parent / "integrations" if found and found.origin else Path()


@cache
def renamed() -> Mapping[str, str]:
    """Keys of older Axolotls: what each is called now (catalog/axolotl.yaml)."""
    return catalog.content("axolotl", dict[str, str])
