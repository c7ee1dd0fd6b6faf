"""A world by its name: ours, ALFWorld's games, a person's own file, or an OpenEnv server."""

import importlib.util
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tools import BadInput
from tools.worlds import alfworld, guard
from tools.worlds.household.environment import Household
from tools.worlds.household.facts import facts
from tools.worlds.openenv import SECONDS, OpenEnv
from tools.worlds.world import World

NAMES = "household, household:all, household:large, alfworld:valid_unseen, my_env.py:MyWorld or http://HOST:PORT"
# Actions of a game where a world says nothing of it: as many as ALFWorld's games have.
STEPS = 50


class Loaded(NamedTuple):
    """A world that can be played.

    `name`: as the user wrote it; `make`: makes a world for one game at a time; `split`: which split to play unless the
    user says another; `steps`: the most actions of a game; `together`: how many games may run at once, 0 for any;
    `played_by`: what plays, in words for a table.
    """

    name: str
    make: Callable[[], World]
    split: str = "unseen"
    steps: int = STEPS
    together: int = 0
    played_by: str = ""


def load(name: str, seconds: float = guard.SECONDS) -> Loaded:
    """The world that a name means; `seconds`: the time limit of a step of a world that is not ours.

    A name is `household` (the committed episodes' families), `household:all`, `household:look,two`, `household:large`,
    `alfworld:SPLIT` or `alfworld:FOLDER`, `FILE.py:CLASS`, or the address of an OpenEnv server. One world is made to
    see that it can be. Raises BadInput when it does not follow the protocol, is not there or has another name, and
    WorldFailed when its own code fails.
    """
    kind, _, rest = name.partition(":")
    if kind == "household":
        made = partial(Household, rest)
        return Loaded(name, made, steps=made().steps, played_by="the household")
    if kind == "alfworld":
        return _alfworld(name, rest, seconds)
    if kind in ("http", "https"):
        served = partial(guard.Guarded, partial(OpenEnv, name), name, None, max(seconds, SECONDS + 15))
        return Loaded(name, _tried(served), together=1, played_by=f"the OpenEnv server at {name}")
    file, _, class_name = name.rpartition(":")
    if not file.endswith(".py"):
        file, class_name = name, ""
    if not file.endswith(".py"):
        raise BadInput(f"{name}: no such world; a world is {NAMES}")
    path = Path(file).resolve()
    own = partial(guard.Guarded, _class(name, path, class_name), name, path, seconds)
    return Loaded(name, _tried(own), played_by=f"{class_name} of {file}")


def _alfworld(name: str, split: str, seconds: float) -> Loaded:
    split = split or "unseen"
    alfworld.folder(split)
    steps = facts().alfworld.steps
    if not alfworld.engine():
        return Loaded(name, alfworld.AlfWorld, split, steps, played_by=alfworld.played_by())
    made = partial(guard.Guarded, alfworld.AlfWorld, name, None, seconds)
    return Loaded(name, _tried(made), split, steps, played_by=alfworld.played_by())


def _tried(make: Callable[[], World]) -> Callable[[], World]:
    """The same maker, after it has made one world."""
    make()
    return make


def _class(name: str, path: Path, class_name: str) -> Callable[[], World]:
    """A class of a person's file. Raises BadInput when there is none, or when the file cannot be run."""
    if not path.is_file():
        raise BadInput(f"{name}: no such file: {path}")
    module = _run(name, path)
    classes = [
        key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    found = getattr(module, class_name, None) if class_name else None
    if not callable(found):
        what = f"it has no class {class_name}" if class_name else "the class is not named"
        raise BadInput(f"{name}: {what}; FILE.py:CLASS, and the file has {', '.join(classes) or 'no class'}")
    return found


def _run(name: str, path: Path) -> ModuleType:
    """The file as a module, with its own folder in the search path as when Python runs it."""
    spec = importlib.util.spec_from_file_location(f"world_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise BadInput(f"{error.filename}:{error.lineno}: {name}: {guard.described(error)}") from error
    except (Exception, SystemExit) as error:
        where = guard.place(traceback.extract_tb(error.__traceback__), path)
        raise BadInput(f"{where}: {name} cannot be imported: {guard.described(error)}") from error
    return module
