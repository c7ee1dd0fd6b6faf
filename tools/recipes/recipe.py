"""A recipe: found by name or path, read once with the line of each key, and handed on whole."""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import yaml

from tools import BadInput
from tools.core import catalog, files, machine, quote, run_folder, yaml_text
from tools.core.catalog import Tier
from tools.core.run_folder import Run
from tools.core.yaml_text import Keys
from tools.recipes import values

RECIPES = run_folder.ROOT / "recipes"
# The line of a recipe's head that says how to run it, and on which tier.
HEAD = re.compile(r"^# Run .*\bTIER=(\S+)", re.MULTILINE)
# The largest recipe that is read, in bytes: ours have 5,000.
LARGEST = 2**18


@dataclass(frozen=True)
class Recipe:
    """A recipe as a person asked for it: its file as it was read, its tier, the base, the changes to its keys.

    `settings`: its keys and values, `changes` in place of its own. `lines`: the line (from 1) of each key and list
    entry, by the keys above it. `base`: the base model's folder or hub name, which BASE= may say in place of the file.
    """

    path: Path
    text: str
    settings: Mapping[str, Any]
    lines: Mapping[Keys, int]
    tier: Tier
    base: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, and that of its run's folder: that of its file."""
        return self.path.stem

    @property
    def run(self) -> Run:
        """Its run's folder: outputs/<tier>/<recipe>/, the tier being the recipe's own folder."""
        return Run(run_folder.outputs() / self.path.resolve().parent.name / self.name)

    @property
    def sha256(self) -> str:
        """The SHA-256 of its file, as it was read."""
        return files.sha256_of(self.text.encode())

    @property
    def dataset(self) -> Mapping[str, Any]:
        """Its first `datasets:` entry. Raises BadInput when it has none with a path."""
        entries = self.settings.get("datasets")
        first = entries[0] if isinstance(entries, list) and entries else None
        if not isinstance(first, dict) or not isinstance(first.get("path"), str):
            raise BadInput(f"{self.at('datasets', 0, 'path')}: a recipe needs `datasets:` with a path")
        return first

    @property
    def data(self) -> Path:
        """The file of its training data. Raises BadInput when it names none."""
        return run_folder.found(str(self.dataset["path"]))

    def deepspeed(self, section: str, key: str) -> object:
        """What its DeepSpeed file says, such as zero_optimization, stage; None where it says nothing or is not here."""
        try:
            said = orjson.loads(run_folder.found(str(self.settings.get("deepspeed") or "")).read_bytes())
            return said[section][key]
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def line(self, *keys: str | int) -> int:
        """The line (from 1) of a key, by the keys and list places above it; of the last that is there, else 1."""
        return yaml_text.line_in(self.lines, keys)

    def at(self, *keys: str | int) -> str:
        """Where a key stands: file:line."""
        return f"{self.path}:{self.line(*keys)}"


def open_recipe(name: str, tier: str = "", base: str = "", pairs: Sequence[str] = (), data: str = "") -> Recipe:
    """The recipe of a name or a path, as the command line asks for it.

    `tier`: for a path, what it is for; else where the name is looked up. `pairs`: see `overrides`. `data`: the file
    that its first dataset names instead. Raises BadInput for what is not there or cannot be read.
    """
    on = catalog.pick("tier", tier, catalog.tiers()) if tier else None
    recipe = read_recipe(find(name, tier), on, base, overrides(pairs))
    if not data:
        return recipe
    if not Path(data).exists():
        raise BadInput(f"{data}: no such data; DATA= takes a file of messages, one episode a line")
    other = {"datasets": [{**recipe.dataset, "path": str(Path(data).resolve())}]}
    return replace(recipe, settings={**recipe.settings, **other}, changes={**recipe.changes, **other})


def read_recipe(
    path: Path, tier: Tier | None = None, base: str = "", changes: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe's file; `tier` by default its own, else this machine's. Raises BadInput as `parse_recipe`."""
    try:
        check_size(path, path.stat().st_size)
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    return parse_recipe(path, text, tier, base, changes)


def check_size(path: Path, size: int) -> None:
    """Raise BadInput for a recipe of more bytes than any has."""
    if size > LARGEST:
        raise BadInput(f"{path}: more than {LARGEST >> 10} KiB; no recipe is so large")


def parse_recipe(
    path: Path, text: str, tier: Tier | None = None, base: str = "", changes: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe that a text is, under the name `path`; see `read_recipe`.

    Raises BadInput with file:line for what is no YAML mapping, a key that stands twice, a value that contains itself, a
    key of an older Axolotl, a value of the wrong type among those that our own code reads.
    """
    value, lines = yaml_text.parse_with_lines(text, path)
    if not isinstance(value, dict) or not value.get("base_model"):
        raise BadInput(f"{path}:1: not a recipe: it names no base_model")
    settings = value | dict(changes or {})
    for key, said in settings.items():
        where = f"{path}:{lines.get((key,), 1)}"
        if not isinstance(key, str):
            raise BadInput(f"{where}: {key}: a key that is no text")
        if wrong := values.wrong(key, said):
            raise BadInput(f"{where}: {wrong}")
    tier = tier or tier_of(path, text) or catalog.tiers()[machine.tier()]
    return Recipe(path, text, settings, lines, tier, base or str(settings["base_model"]), dict(changes or {}))


def tier_of(path: Path, text: str) -> Tier | None:
    """The tier of a recipe: its folder's name, or for a copy that lies elsewhere the one in its head; None without."""
    named = path.resolve().parent.name
    if named not in catalog.tiers():
        head = HEAD.search(text)
        named = head[1] if head else ""
    return catalog.tiers().get(named)


def find(name: str, tier: str = "", here: str = "") -> Path:
    """The file of a recipe: a path as it is, a name on `tier`, else on `here`, by default this machine's own tier.

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
    tier = tier or here or machine.tier()
    if tier not in there:
        raise BadInput(f"{title}: does not fit on tier {tier}; there is TIER={', '.join(there)}")
    return RECIPES / tier / f"{title}.yaml"


def names(tier: str = "*") -> list[str]:
    """The names of all recipes, or of one tier's."""
    return sorted({path.stem for path in RECIPES.glob(f"{tier}/*.yaml") if path.parent.name in catalog.tiers()})


def tiers_of(name: str) -> list[str]:
    """The tiers that have a recipe of this name, in the catalog's order."""
    return [tier for tier in catalog.tiers() if (RECIPES / tier / f"{name}.yaml").is_file()]


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """The changes that a command line asks for, as `key=value` pairs.

    One text may hold several pairs (SET="lora_r=32 num_epochs=2"), see `parted`. Values are YAML, numbers like 1e-4
    included. Raises BadInput for what is not key=value, and for a key that is given two values.
    """
    changes: dict[str, Any] = {}
    if long := next((pair for pair in pairs if len(pair) > values.LONGEST), ""):
        most = f"a change of more than {values.LONGEST} letters"
        raise BadInput(f"{long[:80]}: {most}; write it into a recipe of your own")
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
