"""A recipe held against Axolotl's own schema, each refusal with its line."""

import difflib
import logging
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from tools import BadInput
from tools.core import catalog
from tools.core.yaml_text import Keys
from tools.recipes.recipe import Recipe

if TYPE_CHECKING:
    from axolotl.utils.dict import DictDefault
    from pydantic import BaseModel

# The plugins whose keys catalog/axolotl_keys.yaml has, or that have none.
KNOWN_PLUGINS = (
    "axolotl.integrations.liger.",
    "axolotl.integrations.cut_cross_entropy.",
    "tools.training.",
    "tools.evaluation.",
)
# Words of Axolotl's log that tell of a key that will go, or that the training does not do as the recipe says.
WARNINGS = re.compile(
    r"deprecated|will be removed|decontamination|ignored|no effect|likely to raise|CheckpointError|no adamw optimizer",
    re.IGNORECASE,
)
# How alike two keys must be for one to be the other misspelt, where a plugin of its own may know the key.
NEAR = 0.85


@cache
def axolotl_keys() -> frozenset[str]:
    """The keys at the top of a recipe that Axolotl knows (catalog/axolotl_keys.yaml)."""
    return catalog.content("axolotl_keys", frozenset[str])


def check_keys(recipe: Recipe) -> None:
    """Raise BadInput with file:line for a key that Axolotl does not know, without importing it, which takes 10 s."""
    known = axolotl_keys()
    others = [each for each in recipe.settings.get("plugins") or () if not each.startswith(KNOWN_PLUGINS)]
    for key in recipe.settings:
        near = difflib.get_close_matches(key, known, n=1, cutoff=NEAR if others else 0.5) if key not in known else []
        if near or not (key in known or others):
            raise no_such_key(recipe, (key,), near)


def no_such_key(recipe: Recipe, keys: Keys, near: Sequence[str]) -> BadInput:
    """What to say of a key that nobody knows, and of the `near`est one that somebody does."""
    hint = f"did you mean {near[0]}?" if near else "Axolotl has nothing like it"
    return BadInput(f"{recipe.at(*keys)}: {'.'.join(map(str, keys))}: no such key; {hint}")


def validate(recipe: Recipe) -> list[str]:
    """Let Axolotl itself check a recipe, as on a machine of its tier.

    Returns what Axolotl says of keys that will go, and of those that do not do what they say. Takes about 10 s to
    import, then some 20 ms. Raises BadInput with file:line: a key that nobody knows, one that has another name now, a
    value that Axolotl refuses.
    """
    check_keys(recipe)
    for keys, near in unknown_keys(recipe.settings, (schema(recipe),)):
        raise no_such_key(recipe, keys, near)
    with AxolotlLog() as log:
        refused = refusal(recipe)
    if refused:
        key, why = refused
        inside = [int(each) if each.isdigit() else each for each in key.split(".")]
        where = inside if (inside[0],) in recipe.lines else [key_named_in(recipe, why)]
        raise BadInput(f"{recipe.at(*where)}: {f'{key}: ' if key else ''}{why}")
    return [" ".join(text.split()) for text in log.texts if WARNINGS.search(text)]


def refusal(recipe: Recipe) -> tuple[str, str] | None:
    """The key that Axolotl refuses, and why; None when it takes them all."""
    from pydantic import ValidationError

    try:
        read_by_axolotl(recipe)
    except ValidationError as error:
        first = error.errors()[0]
        why = re.sub(r"^(Value error|Assertion failed), ", "", first["msg"])
        return ".".join(str(part) for part in first["loc"]), " ".join(why.split())
    except Exception as error:  # Axolotl's own checks fail in many ways on a type that they do not expect
        return "", " ".join(str(error).split())
    return None


def read_by_axolotl(recipe: Recipe) -> "DictDefault":
    """A recipe as Axolotl reads it on a machine of its tier, with its defaults. Raises what its schema raises."""
    from axolotl.utils import config
    from axolotl.utils.dict import DictDefault

    tier, capabilities = recipe.tier, dict[str, Any]()
    if tier.gpu:
        capable = float(catalog.gpus()[tier.gpu].compute_capability)
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
    config.merge_input_args = merged(plugins_of(recipe))
    return config.validate_config(DictDefault(dict(recipe.settings)), **capabilities)


def torch_version() -> str:
    """The version of torch, without its build."""
    from importlib.metadata import version

    return version("torch").split("+")[0]


@cache
def merged(plugins: tuple[str, ...]) -> Callable[[], tuple[type["BaseModel"], type["BaseModel"]]]:
    """A stand-in for Axolotl's merge_input_args, which makes its classes anew at each call: made once."""
    from axolotl.integrations.base import PluginManager
    from axolotl.integrations.config import merge_input_args

    manager = PluginManager.get_instance()
    manager.plugins.clear()
    for plugin in plugins:
        manager.register(plugin)
    classes = merge_input_args()
    return lambda: classes


def plugins_of(recipe: Recipe) -> tuple[str, ...]:
    """The plugins of Axolotl that a recipe names."""
    return tuple(recipe.settings.get("plugins") or ())


def schema(recipe: Recipe) -> type["BaseModel"]:
    """Axolotl's class of a recipe with its plugins. Raises BadInput for a plugin that cannot be loaded."""
    try:
        return merged(plugins_of(recipe))()[1]
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"{recipe.at('plugins')}: plugins: {' '.join(str(error).split())}") from error


@cache
def known_keys(model: type["BaseModel"]) -> Mapping[str, tuple[type["BaseModel"], ...]]:
    """All keys that a Pydantic class knows, by each of their names, with the Pydantic classes of what stands below."""
    keys = dict[str, tuple[type["BaseModel"], ...]]()
    for name, field in model.model_fields.items():
        aliases = field.validation_alias
        names = (name, field.alias, aliases, *getattr(aliases, "choices", ()))
        keys |= {each: tuple(classes(field.annotation)) for each in names if isinstance(each, str)}
    return keys


def classes(annotation: object) -> Iterator[type["BaseModel"]]:
    """The Pydantic classes that a type names, at any depth."""
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        yield annotation
    for each in typing.get_args(annotation):
        yield from classes(each)


def unknown_keys(
    value: object, models: tuple[type["BaseModel"], ...], above: Keys = ()
) -> Iterator[tuple[Keys, list[str]]]:
    """The keys below `value` that none of its possible classes knows: where each stands, and the nearest known one."""
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from unknown_keys(each, models, (*above, number))
    if not isinstance(value, Mapping) or not models:
        return
    if any(each.model_config.get("extra") == "allow" for each in models):
        return
    known = [known_keys(each) for each in models]
    for key, below in value.items():
        inside = tuple(each for keys in known for each in keys.get(key, ()))
        if any(key in keys for keys in known):
            yield from unknown_keys(below, inside, (*above, key))
        else:
            names = {each for keys in known for each in keys}
            yield (*above, key), difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)


class AxolotlLog(logging.Handler):
    """A context in which what Axolotl logs is kept in `texts` and not printed, whatever else is silenced."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.texts.append(record.getMessage())

    def __enter__(self) -> "AxolotlLog":
        """Listen to Axolotl alone."""
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


def key_named_in(recipe: Recipe, sentence: str) -> str:
    """The longest key of the recipe that a sentence names, else the first whose text it names; empty for none."""
    names = [(key, key) for key in sorted(recipe.settings, key=len, reverse=True)]
    names += [(value, key) for key, value in recipe.settings.items() if isinstance(value, str) and value]
    return next((key for name, key in names if re.search(rf"\b{re.escape(name)}\b", sentence)), "")
