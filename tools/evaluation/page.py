"""A run's games as one page that needs no network: what was won and how it was lost, and every game to read."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tools.core import files, templates
from tools.core.run_folder import Run
from tools.evaluation import curves, report, scores
from tools.evaluation.play import Played
from tools.evaluation.scores import Comparison, Evaluation

Rows = list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Bar:
    """A rate with its interval, all in percent; `words`: "35/48"."""

    label: str
    words: str
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Column:
    """One evaluation on the page: its games, the lost ones first; `causes`: games by task and by how they ended."""

    label: str
    anchor: str
    about: str
    ends: list[str]
    causes: Rows
    games: list[Played]


@dataclass(frozen=True)
class Part:
    """The evaluations of the same tasks. `pairs`: each two of them, compared."""

    title: str
    bars: list[Bar]
    by_task: Rows
    figures: Rows
    columns: list[Column]
    pairs: list[Comparison]


def render(title: str, evaluations: Sequence[Evaluation], this: Run | None = None) -> str:
    """The page of a run's evaluations, in HTML; those of other tasks are in a part of their own.

    `this`: the run, for its training's figures and curves.
    """
    by_tasks: dict[str, list[Evaluation]] = {}
    for each in evaluations:
        by_tasks.setdefault(each["tasks_sha256"], []).append(each)
    parts = [part(each, number) for number, each in enumerate(by_tasks.values())]
    drawn = curves.curves(curves.history(this)) if this else []
    facts = training(this) if this else []
    return templates.template("report/eval.html.j2").render(title=title, parts=parts, curves=drawn, facts=facts)


def training(this: Run) -> list[tuple[str, str]]:
    """What run.json says of a run's training, and whether its tokens were proven to be the server's."""
    noted = this.provenance().get("train", {})
    forms = {
        "loss": ("loss", "{:.3f}"),
        "eval_loss": ("validation loss", "{:.3f}"),
        "steps": ("updates", "{:,.0f}"),
        "tokens": ("tokens read", "{:,.0f}"),
        "tokens_per_second": ("tokens/s", "{:,.0f}"),
        "seconds": ("seconds", "{:,.0f}"),
        "peak_gib": ("memory at most, GiB", "{:.2f}"),
        "device_gib": ("GPU memory at most, GiB", "{:.2f}"),
    }
    found = [(title, form.format(noted[key])) for key, (title, form) in forms.items() if noted.get(key) is not None]
    found += [(f"{key}, SHA-256", str(value)) for key, value in noted.get("inputs", {}).items()]
    if this.parity.exists():
        equal = files.read_object(this.parity).get("equal")
        found.append(("parity of training and serving", "proven" if equal else "different"))
    return found


def part(evaluations: Sequence[Evaluation], number: int) -> Part:
    """What the page shows of the evaluations of the same tasks."""
    first, summaries = evaluations[0], [each["summary"] for each in evaluations]
    tasks = sorted({task for each in summaries for task in each["by_task"]})
    count = len({game["id"] for game in first["games"]})
    figures: Rows = [
        ("actions read", [report.read(each) for each in summaries]),
        ("actions that did nothing", [str(each["invalid"]) for each in summaries]),
        ("first step as the expert's", [report.first_step(each) for each in summaries]),
        ("steps a game", [report.decimal(each["mean_steps"]) for each in summaries]),
        ("steps a win", [report.decimal(each["mean_steps_won"]) for each in summaries]),
        ("tokens/s", [f"{each['tokens_per_second']:.0f}" for each in summaries]),
        ("seconds", [f"{each['seconds']:.0f}" for each in summaries]),
    ]
    for name, key in (("pass@", "pass_at"), ("pass^", "pass_all")):
        for k in sorted({k for each in summaries for k in each[key]}, key=int):  # type: ignore[literal-required]
            figures.append((f"{name}{k}", [report.percent(each[key].get(k)) for each in summaries]))  # type: ignore[literal-required]
    return Part(
        title=f"{count} tasks of {first['world']}, {first['split']}",
        bars=[bar(each) for each in evaluations],
        by_task=[(task, [report.success(each["by_task"].get(task)) for each in summaries]) for task in tasks],
        figures=[(name, values) for name, values in figures if any(values)],
        columns=[column(each, f"games-{number}-{place}") for place, each in enumerate(evaluations)],
        pairs=[scores.compare(a, b) for a, b in itertools.combinations(evaluations, 2)],
    )


def bar(each: Evaluation) -> Bar:
    """An evaluation's rate, to draw."""
    summary = each["summary"]
    low, high = summary["wilson95"]
    words = f"{summary['won']}/{summary['rooms']}"
    return Bar(scores.label(each), words, 100 * summary["rate"], 100 * low, 100 * high)


def column(each: Evaluation, anchor: str) -> Column:
    """An evaluation's games, and how they ended by task."""
    counted: Counter[tuple[str, str]] = Counter((game["task"], game["end"]) for game in each["games"])
    ends = list(each["summary"]["ends"])
    causes = [(task, [str(counted[task, end] or "") for end in ends]) for task in sorted(each["summary"]["by_task"])]
    causes.append(("all", [str(each["summary"]["ends"][end]) for end in ends]))
    about = [each["model"], each["backend"], each["prompt"], f"{each['parse']} parsing", f"played {each['date']}"]
    return Column(
        scores.label(each),
        anchor,
        ", ".join(about),
        ends,
        causes,
        sorted(each["games"], key=lambda game: game["won"]),
    )
