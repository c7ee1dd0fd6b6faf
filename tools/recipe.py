"""A recipe by name or path: find, load, override, validate with Axolotl's own schema."""

import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tools import BadInput, catalog, run
from tools.catalog import Tier

RECIPES = run.ROOT / "recipes"


def find(name: str, tier: str = "", here: str = "cpu") -> Path:
    """The file of a recipe: a path as it is, a name on `tier`, else on `here`, the machine's own tier.

    A name may bring its tier (24gb/qwen7b-qlora). Raises BadInput with the nearest names, or the tiers that have it.
    """
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
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
    """The tier of a recipe: its folder's name; None for a recipe that lies elsewhere."""
    return catalog.tiers().get(path.resolve().parent.name)


def load(path: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A recipe's keys and values, with `changes` in place of its own.

    Raises BadInput with file:line for what is no YAML mapping, a key that stands twice, a value that contains itself.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=catalog.LOADER)
        check_nodes(path, node, ())
        value = yaml.load(text, Loader=catalog.LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        tab = text.splitlines()[line - 1 : line] and "\t" in text.splitlines()[line - 1]
        why = "a tab; YAML is indented with spaces" if tab else error.problem
        raise BadInput(f"{path}:{line}: not YAML: {why}") from error
    if not isinstance(value, dict) or "base_model" not in value:
        raise BadInput(f"{path}:1: not a recipe: it names no base_model")
    return value | dict(changes or {})


def check_nodes(path: Path, node: yaml.Node | None, above: tuple[int, ...]) -> None:
    """Raise BadInput, with its line, for a key that stands twice in one mapping and for a node that contains itself."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return
    if id(node) in above:
        raise BadInput(
            f"{path}:{node.start_mark.line + 1}: a value that contains itself (an alias to what is around it)"
        )
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in first and key.value != "<<":
                raise BadInput(
                    f"{path}:{line}: {key.value} stands here and on line {first[key.value]}; keep one of them"
                )
            first[str(key.value)] = line
        for pair in node.value:
            for each in pair:
                check_nodes(path, each, above)
    else:
        for each in node.value:
            check_nodes(path, each, above)


def overrides(pairs: list[str], data: str = "", path: Path | None = None) -> dict[str, Any]:
    """The changes that a command line asks for: `key=value` pairs, and other data in the recipe's first dataset.

    Values are YAML, numbers like 1e-4 included. Raises BadInput for what is not key=value, and for a key that is given
    two values.
    """
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(r"\w+", key):
            raise BadInput(f"{pair}: a change is written key=value, for example lora_r=32")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise BadInput(f"{pair}: its value is not YAML") from error
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


def dataset(path: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The recipe's first `datasets:` entry. Raises BadInput when it has none."""
    entries = load(path, changes).get("datasets")
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict) or "path" not in entries[0]:
        raise BadInput(f"{path}:1: a recipe needs `datasets:` with a path")
    return dict(entries[0])


def folder(path: Path) -> run.Run:
    """The run's folder of a recipe: outputs/<tier>/<recipe>/, the tier being the recipe's own folder."""
    return run.Run(run.outputs() / path.resolve().parent.name / path.stem)


@cache
def renamed() -> Mapping[str, str]:
    """Keys of older Axolotls: what each is called now (catalog/axolotl.yaml)."""
    text = (catalog.CATALOG / "axolotl.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=catalog.LOADER))


def validate(path: Path, changes: Mapping[str, Any] | None = None, tier: Tier | None = None) -> list[str]:
    """Let Axolotl itself check a recipe, as on a machine of `tier`, by default the recipe's own, else this machine.

    Returns what Axolotl says of keys that will go. Takes about 10 s to import, then some 20 ms. Raises BadInput with
    file:line: a key that nobody knows, one that has another name now, a value that Axolotl refuses.
    """
    settings = load(path, changes)
    tier = tier or tier_of(path)
    for key in settings:
        if key in renamed() and settings[key]:
            raise BadInput(f"{path}:{line_of(path, key)}: {key} is of an older Axolotl; now: {renamed()[key]}")
    known = known_keys(tuple(settings.get("plugins") or ()), path)
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "Axolotl has nothing like it"
            raise BadInput(f"{path}:{line_of(path, key)}: {key}: no such key; {hint}")
    with axolotl_says() as said:
        refused = refusal(settings, tier)
    if refused:
        key, why = refused
        top = key.split(".")[0]
        there = re.search(rf"^{re.escape(top)}:", path.read_text(encoding="utf-8"), re.MULTILINE)
        place = line_of(path, top if there else named(path, why))
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
    except (ValueError, DeprecationWarning, ImportError) as error:
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
def known_keys(plugins: tuple[str, ...], path: Path) -> frozenset[str]:
    """All keys that Axolotl knows with these plugins. Raises BadInput for a plugin that cannot be loaded."""
    try:
        model = merged(plugins)()[1]
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"{path}:{line_of(path, 'plugins')}: plugins: {' '.join(str(error).split())}") from error
    keys = set(model.model_fields)
    for field in model.model_fields.values():
        aliases = field.validation_alias
        keys |= {alias for alias in (field.alias, aliases) if isinstance(alias, str)}
        keys |= {alias for alias in getattr(aliases, "choices", ()) if isinstance(alias, str)}
    return frozenset(keys)


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


def line_of(path: Path, key: str) -> int:
    """The line (from 1) on which a top-level key stands, 1 where it does not."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((number for number, line in enumerate(lines, 1) if key and line.startswith(f"{key}:")), 1)
