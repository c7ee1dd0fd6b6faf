"""All runs under outputs/, in a table."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import orjson

from tools import BadInput
from tools.core import files, progress, quote
from tools.core.run_folder import Run

if TYPE_CHECKING:
    from rich.table import Table


class Row(TypedDict):
    """One run. `date`: when it was last worked at; `loss` and `eval_loss`: the last of its training; `won`: rooms by
    what played them, "35/48"; `parity`: whether its tokens are the same in training and serving, None where unproven.
    """

    recipe: str
    tier: str
    date: str
    loss: float | None
    eval_loss: float | None
    won: dict[str, str]
    parity: bool | None


def rows(outputs: Path) -> Iterator[Row]:
    """The runs in a folder, the newest first; a file that cannot be read is said on stderr and left out."""
    found = sorted(outputs.glob("*/*/run.json"), key=lambda path: (-path.stat().st_mtime, path))
    for path in found:
        this = Run(path.parent)
        train, parity = read(path).get("train"), read(this.parity).get("equal")
        losses = train if isinstance(train, dict) else {}
        yield {
            "recipe": this.folder.name,
            "tier": this.folder.parent.name,
            "date": time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime)),
            "loss": losses.get("loss"),
            "eval_loss": losses.get("eval_loss"),
            "won": won(this),
            "parity": parity if isinstance(parity, bool) else None,
        }


def won(this: Run) -> dict[str, str]:
    """Rooms won in a run, by what played them."""
    found: dict[str, str] = {}
    for path in sorted(this.folder.glob("eval-*.json")):
        summary = read(path).get("summary")
        if isinstance(summary, dict) and {"won", "rooms"} <= {*summary}:
            found[path.stem.removeprefix("eval-")] = f"{summary['won']}/{summary['rooms']}"
    return found


def read(path: Path) -> dict[str, object]:
    """The object in a JSON file of ours; empty where there is none, or it cannot be read, which is said."""
    try:
        return files.read_object(path) if path.exists() else {}
    except BadInput as error:
        progress.say(str(error))
        return {}


def table(found: list[Row]) -> "Table":
    """The runs as a table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for head in ("run", "date", "loss", "validation", "rooms won", "parity"):
        drawn.add_column(head, justify="right" if head in ("loss", "validation") else "left")
    for row in found:
        games = Text("\n".join(f"{quote.visible(name)} {quote.visible(words)}" for name, words in row["won"].items()))
        parity = "" if row["parity"] is None else "proven" if row["parity"] else "different"
        losses = ["" if row[key] is None else f"{row[key]:.3f}" for key in ("loss", "eval_loss")]  # type: ignore[literal-required]
        drawn.add_row(quote.cell(f"{row['tier']}/{row['recipe']}"), row["date"], *losses, games, parity)
    return drawn


def show(outputs: Path, as_json: bool) -> None:
    """Print all runs. Raises BadInput where there are none."""
    from rich.console import Console

    found = list(rows(outputs))
    if not found:
        raise BadInput(f"{outputs}: no runs; make train makes one")
    if as_json:
        print(orjson.dumps(found).decode())
    else:
        Console().print(table(found))
