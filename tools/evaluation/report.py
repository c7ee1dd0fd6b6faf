"""What came out of a run: the table of games, one game in full, demo.json, and what to do next; reading eval-*.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import orjson

from tools import BadInput
from tools.core import files, quote
from tools.core.run_folder import Run
from tools.evaluation import scores
from tools.evaluation.play import Played
from tools.evaluation.scores import Evaluation, Tally

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

STYLES = {"system": "dim", "user": "", "assistant": "green"}


class Player(Tally):
    """A player's games in one quantisation, and how many it won in each."""

    wilson95: list[float]
    by_task: dict[str, Tally]
    by_quantisation: dict[str, Tally]


class Demo(TypedDict):
    """demo.json: seconds by stage and in all, GiB at most, tokens a second of training, whether parity holds, games."""

    seconds: dict[str, float]
    seconds_total: float
    peak_gib: float
    tokens_per_second: float | None
    parity: bool
    base: Player | None
    tuned: Player | None


def read_evaluation(path: Path) -> Evaluation:
    """What an eval-*.json holds. Raises BadInput for what is none, or was written by an older version."""
    found = files.read_object(path)
    wanted = [*scores.Evaluation.__required_keys__]
    if missing := [key for key in sorted(wanted) if key not in found]:
        raise BadInput(f"{path}: no evaluation of this version: it has no {missing[0]}; make eval plays it anew")
    return cast(Evaluation, found)


def table(evaluations: Sequence[Evaluation]) -> "Table":
    """Success by task with its 95 % Wilson interval, how games were lost, and what it took: a column for each player.

    More than two columns are narrow: the interval then stands for all tasks together only.
    """
    from rich.table import Table

    drawn = Table(title="Rooms won, with 95 % Wilson intervals", title_justify="left")
    drawn.add_column("")
    for each in evaluations:
        drawn.add_column(quote.cell(scores.label(each)), justify="right", no_wrap=True)
    summaries = [each["summary"] for each in evaluations]
    by_task = success if len(evaluations) <= 2 else share
    for task in sorted({task for each in summaries for task in each["by_task"]}):
        drawn.add_row(quote.cell(task), *(by_task(each["by_task"].get(task)) for each in summaries))
    drawn.add_section()
    drawn.add_row("all", *(by_task(each) for each in summaries), style="bold")
    if by_task is share:
        drawn.add_row("95 %", *(interval(each["wilson95"]) for each in summaries))
    for title, key in (("pass@", "pass_at"), ("pass^", "pass_all")):
        for k in sorted({k for each in summaries for k in each[key]}, key=int):  # type: ignore[literal-required]
            drawn.add_row(f"{title}{k}", *(percent(each[key].get(k)) for each in summaries))  # type: ignore[literal-required]
    drawn.add_section()
    for end in sorted({end for each in summaries for end in each["ends"]} - {"won"}):
        drawn.add_row(f"lost: {end}", *(f"{each['ends'].get(end, 0)}" for each in summaries))
    drawn.add_section()
    drawn.add_row("invalid actions", *(f"{each['invalid']}" for each in summaries))
    drawn.add_row("actions read", *(read(each) for each in summaries))
    drawn.add_row("expert's first step", *(first_step(each) for each in summaries))
    drawn.add_row("mean steps", *(f"{each['mean_steps']:.1f}" for each in summaries))
    drawn.add_row("steps a win", *(decimal(each["mean_steps_won"]) for each in summaries))
    drawn.add_row("tokens/s", *(f"{each['tokens_per_second']:.0f}" for each in summaries))
    drawn.add_row("seconds", *(f"{each['seconds']:.0f}" for each in summaries))
    return drawn


def read(each: scores.Summary) -> str:
    """ "98 %" of the answers had an action; "98 % (99 % leniently)" where the parsers read different shares."""
    answers = max(1, each["answers"])
    strict, lenient = percent(each["strict"] / answers), percent(each["lenient"] / answers)
    return strict if strict == lenient else f"{strict} ({lenient} leniently)"


def first_step(each: scores.Summary) -> str:
    """ "40/48": games whose first action was the expert's; nothing where it can read no task."""
    same = each["first_step"]
    return f"{same['same']}/{same['games']}" if same else ""


def percent(value: float | None) -> str:
    """A share in percent; nothing for None."""
    return "" if value is None else f"{100 * value:.0f} %"


def decimal(value: float | None) -> str:
    """A figure with one decimal; nothing for None."""
    return "" if value is None else f"{value:.1f}"


def interval(ends: Sequence[float]) -> str:
    """ "(47-91)", an interval in percent."""
    return f"({ends[0] * 100:.0f}-{ends[1] * 100:.0f})"


def success(played: Tally | None) -> str:
    """ "9/12  75 % (47-91)" of {"won", "rooms"}; nothing where there were no rooms."""
    if not played:
        return ""
    ends = scores.interval(played)
    rate = 100 * played["won"] / played["rooms"]
    return f"{played['won']}/{played['rooms']}  {rate:3.0f} % {interval(ends)}"


def share(played: Tally | None) -> str:
    """ "9/12 75 %" of {"won", "rooms"}: `success` without its interval."""
    return " ".join(success(played).rpartition(" (")[0].split())


def comparison(found: scores.Comparison) -> "list[RenderableType]":
    """Two models on the same tasks: success by task, McNemar's test, and the tasks that one alone won."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    by_task, parted = Table(title="Rooms won, with 95 % Wilson intervals", title_justify="left"), Table(box=box.SIMPLE)
    for head in ("", f"A: {found['a']}", f"B: {found['b']}"):
        by_task.add_column(quote.cell(head), justify="right" if head else "left", no_wrap=True)
    for task, each in found["by_task"].items():
        by_task.add_row(quote.cell(task), *map(success, each))
    by_task.add_section()
    tasks = found["tasks"]
    both: list[Tally] = [{"won": found["both"] + found[side], "rooms": tasks} for side in ("a_alone", "b_alone")]  # type: ignore[literal-required]
    by_task.add_row("all", *map(success, both), style="bold")
    words = (
        f"both {found['both']}, A alone {found['a_alone']}, B alone {found['b_alone']}, neither {found['neither']}; "
        f"McNemar's exact test: p = {found['p']:.2g}"
    )
    for head in ("task", "goal", "A", "B"):
        parted.add_column(head)
    for pair in found["parted"]:
        parted.add_row(*map(quote.cell, (pair["id"], pair["goal"], pair["a_end"], pair["b_end"])))
    return [by_task, Text(words), *([parted] if found["parted"] else [])]


def transcript(game: Played) -> "Text":
    """A game of eval-*.json, every message in full."""
    from rich.text import Text

    end = "won" if game["won"] else "lost"
    goal = quote.visible(game["goal"])
    name = quote.visible(game["id"])
    text = Text(f"A game that was {end}: {goal} ({name}, {game['steps']} steps)\n", style="bold")
    for turn in game["transcript"]:
        text.append(f"\n{turn['role']}\n", style="not bold dim italic")
        said = quote.visible(turn["content"], keep="\n")
        text.append(f"{said}\n", style=f"not bold {STYLES[turn['role']]}")
    return text


def demo(run: Run, evaluations: Sequence[Evaluation], quant: str = "Q8_0") -> Demo:
    """What demo.json holds of a run.

    Each player's figures are those of `quant`, or of its last quantisation where that was not played.
    """
    stages = run.provenance()
    seconds = {name: stage["seconds"] for name, stage in stages.items()}
    return {
        "seconds": seconds,
        "seconds_total": round(sum(seconds.values()), 1),
        "peak_gib": max((stage["peak_gib"] for stage in stages.values()), default=0.0),
        "tokens_per_second": stages.get("train", {}).get("tokens_per_second"),
        "parity": run.parity.exists() and orjson.loads(run.parity.read_bytes())["equal"],
        "base": player(evaluations, "base", quant),
        "tuned": player(evaluations, "tuned", quant),
    }


def player(evaluations: Sequence[Evaluation], who: str, quant: str) -> Player | None:
    """One player's figures; None when it did not play."""
    played = {each["quant"]: each["summary"] for each in evaluations if each["player"] == who}
    if not played:
        return None
    chosen = played.get(quant, list(played.values())[-1])
    return {
        "won": chosen["won"],
        "rooms": chosen["rooms"],
        "wilson95": chosen["wilson95"],
        "by_task": chosen["by_task"],
        "by_quantisation": {name: {"won": each["won"], "rooms": each["rooms"]} for name, each in played.items()},
    }


def closing(this: Run, model: str, own: bool) -> str:
    """The last lines on the screen: where everything lies, how to talk to the model, what to try on a GPU.

    `own`: the model lies in the Ollama that this project starts, not in one of the user's.
    """
    start = "   (make ollama-run starts our own Ollama for it)" if own else ""
    return (
        f"Where it lies:     {this.folder}: adapter/ model-*.gguf Modelfile parity.json eval-*.json demo.json\n"
        f"Talk to it:        ollama run {model}{start}\n"
        "Next, on a GPU:    make recommend (what fits there), make ollama RECIPE=one of these (README.md)"
    )
