"""Files that a person drops: kept in the board's own folder under a plain name, recognised, linted, measured."""

import os
import re
import shutil
from functools import partial
from pathlib import Path

from tools import BadInput
from tools.board.choice import shown
from tools.board.runs import ours
from tools.core import files, process, run_folder
from tools.data import inputs, split, stats
from tools.data.stats import Measured
from tools.gguf import base, find_base

# The largest file that is taken, in bytes.
MOST = 2**30
# The last lines of lint's that the page shows.
LINES = 60


def folder() -> Path:
    """The board's own folder: outputs/board."""
    return run_folder.outputs() / "board"


def incoming() -> Path:
    """Where the browser's files come in, before they have a name of their own."""
    return folder() / "incoming"


def there() -> list[str]:
    """The files to choose from: those of data/ and those that were dropped, as commands take them."""
    places = [run_folder.home() / "data", folder() / "data"]
    found = [path for place in places if place.is_dir() for path in sorted(place.iterdir())]
    return [shown(path) for path in found if path.is_file() and inputs.is_data(path.name)]


def keep(path: Path) -> Path:
    """Move a file that came in to outputs/board/data, in place of one of that name; its path there.

    Raises BadInput for what does not come from `incoming`, is no file of episodes by its name, or is too large.
    """
    if not path.resolve().is_relative_to(incoming().resolve()) or path.is_symlink():
        raise BadInput(f"{path.name}: not a file that was dropped here")
    name = plain(path.name)
    if not inputs.is_data(name):
        raise BadInput(f"{name}: no file of episodes ({', '.join(inputs.SUFFIXES)}, also .gz and .zst)")
    if (size := path.stat().st_size) > MOST:
        raise BadInput(f"{name}: {size / 2**30:.1f} GiB; name so large a file on the command line (DATA=)")
    kept = folder() / "data" / name
    with files.atomic(kept) as partial:
        os.replace(path, partial)
    shutil.rmtree(path.parent, ignore_errors=True)  # Gradio's folder for this one file
    return kept


def plain(name: str) -> str:
    """A file's name without what could lead elsewhere or hide it: letters, digits, dots and dashes."""
    return re.sub(r"[^\w.-]+", "-", name.replace("\\", "/").rpartition("/")[2]).lstrip("-.")[-120:]


def lint(path: str) -> str:
    """What `make lint` says of a file: its findings, the last line being the sum, or why it cannot be read."""
    command, options = ours(["lint", "--", path])
    done = process.finished(command, **options)
    written = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    return "\n".join(written[-LINES:])


def measure(path: str) -> Measured | None:
    """What `make stats` measures of a file; None where it cannot be read to its end, of which `lint` says more."""
    count = partial(base.tokens, find_base.tokenizer(""))
    try:
        return stats.measure(split.episodes([run_folder.home() / path], "stats", say=False), count)
    except BadInput:
        return None
