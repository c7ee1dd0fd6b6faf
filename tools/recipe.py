"""A recipe by name or path: find, load, validate with Axolotl's own schema."""

import difflib
from pathlib import Path
from typing import Any

import yaml

from tools import BadInput, run


def find(name: str) -> Path:
    """The file of a recipe given by name (smollm2-135m-lora) or by path. Raises BadInput with the nearest names."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise BadInput(f"{name}: no such recipe file; `make list` shows the recipes by name")
        return Path(name)
    found = sorted((run.ROOT / "recipes").glob(f"*/{name}.yaml"))
    if not found:
        known = names()
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known
        raise BadInput(f"{name}: no such recipe; nearest: {', '.join(near)}")
    return found[0]


def names() -> list[str]:
    """The names of all recipes."""
    return sorted({path.stem for path in (run.ROOT / "recipes").glob("*/*.yaml")})


def load(path: Path) -> dict[str, Any]:
    """A recipe's keys and values. Raises BadInput with file:line for what is not a YAML mapping."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}:{line}: not YAML: {error.problem}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict) or "base_model" not in value:
        raise BadInput(f"{path}:1: not a recipe: it names no base_model")
    return value


def dataset(path: Path) -> dict[str, Any]:
    """The recipe's first `datasets:` entry. Raises BadInput when it has none."""
    entries = load(path).get("datasets")
    if not entries or "path" not in entries[0]:
        raise BadInput(f"{path}:1: a recipe needs `datasets:` with a path")
    return dict(entries[0])


def folder(path: Path) -> run.Run:
    """The run's folder of a recipe: outputs/<tier>/<recipe>/, the tier being the recipe's own folder."""
    return run.Run(run.outputs() / path.resolve().parent.name / path.stem)


def validate(path: Path) -> None:
    """Let Axolotl itself check a recipe, as on this machine. Takes about 20 s to import. Raises BadInput."""
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from pydantic import ValidationError

    try:
        validate_config(DictDefault(load(path)))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{path}:{line_of(path, key.split('.')[0])}: {key}: {first['msg']}") from error
    except ValueError as error:
        raise BadInput(f"{path}: {str(error).splitlines()[0]}") from error


def line_of(path: Path, key: str) -> int:
    """The line (from 1) on which a top-level key stands, 1 where it does not."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((number for number, line in enumerate(lines, 1) if line.startswith(f"{key}:")), 1)
