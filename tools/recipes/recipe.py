"""A recipe by name or path: find, load, override, validate with Axolotl's own schema."""

import contextlib
import difflib
import importlib.metadata
import importlib.util
import itertools
import logging
import math
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tools import BadInput
from tools.core import catalog, hf_folder, quote, run_folder, yaml_text
from tools.core.catalog import Tier

RECIPES = run_folder.ROOT / "recipes"
# The line of a recipe's head that says how to run it, and on which tier.
HEAD = re.compile(r"^# Run .*\bTIER=(\S+)", re.MULTILINE)
Keys = tuple[Any, ...]
# The largest recipe that is read, in bytes: ours have 5,000.
LARGEST = 2**18
# The longest text with changes, each part of which that could be one is read as YAML, and the longest text of WORDS.
LONGEST = 2000
# What our own code computes with, and the least it can be; Axolotl takes some of it (a micro batch of 0) in silence.
WHOLE = {"sequence_len": 1, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "eval_batch_size": 1}
WHOLE |= {"lora_r": 1, "lora_alpha": 1, "save_total_limit": 1}
REAL = {"lora_dropout": 0, "learning_rate": 0, "num_epochs": 0, "warmup_ratio": 0, "weight_decay": 0, "val_set_size": 0}
# The most it can be. Tokens: the longest context known, Llama 4 Scout's, is 10,485,760. Episodes: GPT-3's 3.2 million
# tokens an update are 1,600 of them. Rank: the largest hidden size known, of Llama 3.1 405B. Learning rate: float32's
# largest number, since a rate that breaks a training is told by its loss. The rest: no training has had so much.
MOST: Mapping[str, float] = {
    **{"sequence_len": 2**24, "micro_batch_size": 2**16, "gradient_accumulation_steps": 2**16},
    **{"eval_batch_size": 2**16, "lora_r": 2**14, "lora_alpha": 2**20, "save_total_limit": 2**20},
    **{"lora_dropout": 1, "learning_rate": 1e38, "num_epochs": 100_000, "warmup_ratio": 1, "weight_decay": 100},
    **{"val_set_size": 2**32},
}
SWITCHES = ("load_in_4bit", "load_in_8bit", *catalog.training().lora_kernels)
# How alike two keys must be for one to be the other misspelt: below it lie Axolotl's own pairs.
NEAR = 0.85
WORDS = ("base_model", "optimizer", "adapter", "deepspeed", "attn_implementation")
LISTS, MAPPINGS, TABLES = ("plugins", "lora_modules_to_save"), ("fsdp_config",), ("datasets", "test_datasets")


def find(name: str, tier: str = "", here: str = "cpu") -> Path:
    """The file of a recipe: a path as it is, a name on `tier`, else on `here`, the machine's own tier.

    A name may bring its tier (24gb/qwen7b-qlora). Raises BadInput with the nearest names, or the tiers that have it.
    """
    quote.plain_name(name, "a recipe")
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        # Its folder's name is a part of its run's, whatever link leads there.
        quote.plain_name(Path(name).resolve().parent.name, "the folder of a recipe")
        if not Path(name).is_file():
            raise BadInput(f"{name}: no such recipe file; `make list` shows the recipes by name")
        return Path(name)
    inside, _, title = name.rpartition("/")
    tier = tier or inside
    if tier:
        catalog.pick("tier", tier, catalog.tiers())
    there = tiers_of(title)
    if not there:
        known = names()
        near = difflib.get_close_matches(title, known, n=3, cutoff=0.3) or known[:3]
        raise BadInput(f"{name}: no such recipe; nearest: {', '.join(near)}")
    tier = tier or here
    if tier not in there:
        raise BadInput(f"{title}: does not fit on tier {tier}; there is TIER={', '.join(there)}")
    return RECIPES / tier / f"{title}.yaml"


def names(tier: str = "*") -> list[str]:
    """The names of all recipes, or of one tier's."""
    return sorted({path.stem for path in RECIPES.glob(f"{tier}/*.yaml") if path.parent.name in catalog.tiers()})


def tiers_of(name: str) -> list[str]:
    """The tiers that have a recipe of this name, in the catalog's order."""
    return [tier for tier in catalog.tiers() if (RECIPES / tier / f"{name}.yaml").is_file()]


def tier_of(path: Path) -> Tier | None:
    """The tier of a recipe: its folder's name, or for a copy that lies elsewhere the one in its head; None without."""
    named = path.resolve().parent.name
    if named not in catalog.tiers():
        with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
            head = HEAD.search(file.read(LARGEST))
            named = head[1] if head else ""
    return catalog.tiers().get(named)


def load(path: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A recipe's keys and values, with `changes` in place of its own.

    Raises BadInput with file:line for what is no YAML mapping, a key that stands twice, a value that contains itself, a
    key of an older Axolotl, a value of the wrong type among those that our own code reads.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise BadInput(f"{path}: more than {LARGEST >> 10} KiB; no recipe is so large")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    value = yaml_text.parse(text, path)
    if not isinstance(value, dict) or not value.get("base_model"):
        raise BadInput(f"{path}:1: not a recipe: it names no base_model")
    settings = value | dict(changes or {})
    for key, said in settings.items():
        if not isinstance(key, str):
            raise BadInput(f"{path}:{line_of(path, str(key))}: {key}: a key that is no text")
        if wrong := outdated(key, said) or mistyped(key, said) or runs_code(key, said):
            raise BadInput(f"{path}:{line_of(path, key)}: {wrong}")
    return settings


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
        return "" if isinstance(value, dict) else f"{said} is no mapping"
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


def as_number(value: Any, whole: bool) -> float:
    """A value of YAML as a number, nan for what is none, or not a `whole` one.

    Axolotl takes a number in quotes, and YAML 1.1 has 1e-4 for a text.
    """
    if isinstance(value, bool):
        return math.nan
    try:
        if whole and isinstance(value, str):
            return int(value)
        number = float(value)
    except (TypeError, ValueError, OverflowError):
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


def misspelt(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise BadInput for a key that is nearly one of those above: told at once, before Axolotl is imported."""
    read = [*WHOLE, *REAL, *SWITCHES, *WORDS]
    for key in settings:
        near = difflib.get_close_matches(key, read, n=1, cutoff=NEAR)
        if near and key not in read:
            raise BadInput(f"{path}:{line_of(path, key)}: {key}: no such key; did you mean {near[0]}?")


def overrides(pairs: list[str], data: str = "", path: Path | None = None) -> dict[str, Any]:
    """The changes that a command line asks for: `key=value` pairs, and other data in the recipe's first dataset.

    One text may hold several pairs (SET="lora_r=32 num_epochs=2"), see `parted`. Values are YAML, numbers like 1e-4
    included. Raises BadInput for what is not key=value, and for a key that is given two values.
    """
    changes: dict[str, Any] = {}
    if long := next((pair for pair in pairs if len(pair) > LONGEST), ""):
        raise BadInput(f"{long[:80]}: a change of more than {LONGEST} letters; write it into a recipe of your own")
    for pair in itertools.chain.from_iterable(map(parted, pairs)):
        key, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(r"\w+", key):
            raise BadInput(f"{pair}: a change is written key=value, for example lora_r=32")
        if not is_yaml(text):
            raise BadInput(f"{pair}: its value is not YAML; quote a text that has signs of YAML: {key}='\"...\"'")
        value = yaml_text.parse(text, quote.visible(pair[:80]))
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value, re.IGNORECASE):
            value = float(value)
        if key in changes and changes[key] != value:
            raise BadInput(f"{pair}: {key} is given two values; keep one of them")
        changes[key] = value
    if data:
        if not Path(data).exists():
            raise BadInput(f"{data}: no such data; DATA= takes a file of messages, one episode a line")
        assert path
        changes["datasets"] = [dataset(path) | {"path": str(Path(data).resolve())}]
    return changes


def parted(text: str) -> list[str]:
    """The `key=value` pairs of a text, split before each next `key=` where the value before it is whole YAML.

    So a list, a mapping or a text in quotes may have spaces, and " name=" too, in it.
    """
    pairs, start = [], 0
    for gap in re.finditer(r"\s+(?=\w+=)", text):
        pair = text[start : gap.start()]
        if is_yaml(pair.partition("=")[2]):
            pairs.append(pair)
            start = gap.end()
    return [each for each in (*pairs, text[start:]) if each.strip()]


def is_yaml(text: str) -> bool:
    """Whether a text is one YAML value, all of it: what follows a # would be dropped as a comment."""
    try:
        yaml_text.check_events(text, "")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except BadInput:  # too large; told when it is read
        return True
    except yaml.YAMLError:
        return False
    return not text[node.end_mark.index if node else 0 :].strip()


def dataset(path: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The recipe's first `datasets:` entry. Raises BadInput when it has none."""
    entries = load(path, changes).get("datasets")
    first = entries[0] if isinstance(entries, list) and entries else None
    if not isinstance(first, dict) or not isinstance(first.get("path"), str):
        raise BadInput(f"{path}:{line_of(path, 'datasets', 0, 'path')}: a recipe needs `datasets:` with a path")
    return dict(first)


def folder(path: Path) -> run_folder.Run:
    """The run's folder of a recipe: outputs/<tier>/<recipe>/, the tier being the recipe's own folder."""
    return run_folder.Run(run_folder.outputs() / path.resolve().parent.name / path.stem)


@cache
def renamed() -> Mapping[str, str]:
    """Keys of older Axolotls: what each is called now (catalog/axolotl.yaml)."""
    return catalog.whole("axolotl", dict[str, str])


def validate(path: Path, changes: Mapping[str, Any] | None = None, tier: Tier | None = None) -> list[str]:
    """Let Axolotl itself check a recipe, as on a machine of `tier`, by default the recipe's own, else this machine.

    Returns what Axolotl says of keys that will go. Takes about 10 s to import, then some 20 ms. Raises BadInput with
    file:line: a key that nobody knows, one that has another name now, a value that Axolotl refuses.
    """
    settings = load(path, changes)
    misspelt(path, settings)
    tier = tier or tier_of(path)
    for keys, near in strangers(settings, (schema(tuple(settings.get("plugins") or ()), path),)):
        hint = f"did you mean {near}?" if near else "Axolotl has nothing like it"
        raise BadInput(f"{path}:{line_of(path, *keys)}: {'.'.join(map(str, keys))}: no such key; {hint}")
    with axolotl_says() as said:
        refused = refusal(settings, tier)
    if refused:
        key, why = refused
        inside = [int(each) if each.isdigit() else each for each in key.split(".")]
        there = re.search(rf"^{re.escape(str(inside[0]))}:", path.read_text(encoding="utf-8"), re.MULTILINE)
        place = line_of(path, *inside) if there else line_of(path, named(path, why))
        raise BadInput(f"{path}:{place}: {f'{key}: ' if key else ''}{why}")
    return [text for text in said if re.search("deprecated|will be removed", text, re.IGNORECASE)]


def refusal(settings: Mapping[str, Any], tier: Tier | None) -> tuple[str, str] | None:
    """The key that Axolotl refuses, and why; None when it takes them all."""
    from axolotl.utils import config
    from axolotl.utils.dict import DictDefault
    from pydantic import ValidationError

    capabilities: dict[str, Any] = {}
    if tier and tier.gpu:
        capable = float(catalog.gpus()[tier.gpu].compute_capability) if tier.gpu else 0.0
        capabilities = {
            "capabilities": {
                "bf16": tier.precision == "bf16",
                "tf32": tier.precision == "bf16",
                "n_gpu": tier.world,
                "n_node": tier.nodes,
                "compute_capability": f"sm_{round(10 * capable)}",
            },
            "env_capabilities": {"torch_version": torch_version()},
        }
    config.merge_input_args = merged(tuple(settings.get("plugins") or ()))
    try:
        config.validate_config(DictDefault(dict(settings)), **capabilities)
    except ValidationError as error:
        first = error.errors()[0]
        why = re.sub(r"^(Value error|Assertion failed), ", "", first["msg"])
        return ".".join(str(part) for part in first["loc"]), " ".join(why.split())
    except Exception as error:  # Axolotl's own checks fail in many ways on a type that they do not expect
        return "", " ".join(str(error).split())
    return None


def torch_version() -> str:
    """The version of torch, without its build."""
    from importlib.metadata import version

    return version("torch").split("+")[0]


@cache
def merged(plugins: tuple[str, ...]) -> Any:
    """A stand-in for Axolotl's merge_input_args, which makes its classes anew at each call: made once."""
    from axolotl.integrations.base import PluginManager
    from axolotl.integrations.config import merge_input_args

    manager = PluginManager.get_instance()
    manager.plugins.clear()
    for plugin in plugins:
        manager.register(plugin)
    classes = merge_input_args()
    return lambda: classes


@cache
def schema(plugins: tuple[str, ...], path: Path) -> Any:
    """Axolotl's class of a recipe with these plugins. Raises BadInput for a plugin that cannot be loaded."""
    try:
        return merged(plugins)()[1]
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"{path}:{line_of(path, 'plugins')}: plugins: {' '.join(str(error).split())}") from error


@cache
def known_keys(model: Any) -> Mapping[str, tuple[Any, ...]]:
    """All keys that a Pydantic class knows, by each of their names, with the Pydantic classes of what stands below."""
    keys: dict[str, tuple[Any, ...]] = {}
    for name, field in model.model_fields.items():
        aliases = field.validation_alias
        names = (name, field.alias, aliases, *getattr(aliases, "choices", ()))
        keys |= {each: tuple(classes(field.annotation)) for each in names if isinstance(each, str)}
    return keys


def classes(annotation: Any) -> Iterator[Any]:
    """The Pydantic classes that a type names, at any depth."""
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        yield annotation
    for each in typing.get_args(annotation):
        yield from classes(each)


def strangers(
    value: Any, models: tuple[Any, ...], above: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], str]]:
    """The keys below `value` that none of its possible classes knows: where each stands, and the nearest known one."""
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from strangers(each, models, (*above, number))
    if (
        not isinstance(value, Mapping)
        or not models
        or any(each.model_config.get("extra") == "allow" for each in models)
    ):
        return
    known = [known_keys(each) for each in models]
    for key, below in value.items():
        inside = tuple(each for keys in known for each in keys.get(key, ()))
        if any(key in keys for keys in known):
            yield from strangers(below, inside, (*above, key))
        else:
            near = difflib.get_close_matches(str(key), {each for keys in known for each in keys}, n=1, cutoff=0.5)
            yield (*above, key), near[0] if near else ""


class Said(logging.Handler):
    """What a logger is told, as texts."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.texts.append(record.getMessage())

    def __iter__(self) -> Iterator[str]:
        """All messages, in order."""
        return iter(self.texts)

    def __enter__(self) -> "Said":
        """Listen to Axolotl alone, whatever else is silenced."""
        logger, self.level_before = logging.getLogger("axolotl"), logging.root.manager.disable
        logging.disable(logging.NOTSET)
        self.handlers_before, self.propagate_before = logger.handlers[:], logger.propagate
        logger.handlers[:], logger.propagate = [self], False
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the loggers as they were."""
        logger = logging.getLogger("axolotl")
        logger.handlers[:], logger.propagate = self.handlers_before, self.propagate_before
        logging.disable(self.level_before)


def axolotl_says() -> Said:
    """A context in which what Axolotl logs is kept, and not printed."""
    return Said()


def named(path: Path, why: str) -> str:
    """The first key of the recipe that a sentence names, longest first; empty where it names none."""
    keys = sorted(load(path), key=len, reverse=True)
    return next((key for key in keys if re.search(rf"\b{re.escape(key)}\b", why)), "")


def line_of(path: Path, *keys: str | int) -> int:
    """The line (from 1) of a key, by the keys and list places above it; of the last that is there, else 1."""
    return yaml_text.line_of(path.read_text(encoding="utf-8"), *keys)
