"""A training's curves: loss, validation loss and learning rate by step, as its checkpoints have them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools import BadInput
from tools.core import files, progress
from tools.core.run_folder import Run

# (step, value)
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A plot of lines by name; `drawn`: each as an SVG polyline's points, in percent of the plot from its left and top.

    `steps`: the last step; `low` and `high`: the values at the plot's foot and top.
    """

    title: str
    drawn: list[tuple[str, str]]
    steps: int
    low: float
    high: float


def history(this: Run) -> list[Mapping[str, object]]:
    """What a run's trainer logged, by its newest checkpoint; empty where there is none, or it cannot be read."""
    found = {
        int(match[1]): path
        for path in this.checkpoints.glob("checkpoint-*/trainer_state.json")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.parent.name))
    }
    if not found:
        return []
    try:
        logged = files.read_object(found[max(found)]).get("log_history")
    except BadInput as error:
        progress.say(str(error))
        return []
    return [each for each in logged if isinstance(each, dict)] if isinstance(logged, list) else []


def curves(logged: Sequence[Mapping[str, object]]) -> list[Curve]:
    """The plots of what a trainer logged: those that have two points or more in a line."""
    wanted = {
        "Loss": {"training": "loss", "validation": "eval_loss"},
        "Learning rate": {"learning rate": "learning_rate"},
    }
    made = (curve(title, {name: points(logged, key) for name, key in keys.items()}) for title, keys in wanted.items())
    return [each for each in made if each]


def points(logged: Sequence[Mapping[str, object]], key: str) -> Points:
    """The values of a key by step."""
    pairs = ((each.get("step"), each.get(key)) for each in logged)
    return [(float(x), float(y)) for x, y in pairs if isinstance(x, (int, float)) and isinstance(y, (int, float))]


def curve(title: str, lines: Mapping[str, Points]) -> Curve | None:
    """A plot of lines; None where none has two points."""
    kept = {name: each for name, each in lines.items() if each}
    if not any(len(each) > 1 for each in kept.values()):
        return None
    steps = max(x for each in kept.values() for x, _ in each)
    values = [y for each in kept.values() for _, y in each]
    low, high = min(values), max(values)
    tall = high - low or 1.0
    drawn = [
        (name, " ".join(f"{100 * x / steps:.2f},{100 * (high - y) / tall:.2f}" for x, y in each))
        for name, each in kept.items()
    ]
    return Curve(title, drawn, int(steps), low, high)
