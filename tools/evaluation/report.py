"""What came out of a run: the table of games, one game in full, demo.json, and what to do next."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import orjson

from tools.core import quote
from tools.core.run_folder import Run
from tools.evaluation import play
from tools.evaluation.play import Evaluation, Played, Tally

if TYPE_CHECKING:
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


def table(evaluations: Sequence[Evaluation]) -> "Table":
    """Success by task with its 95 % Wilson interval, and what it took: a column for each player and quantisation.

    More than two columns are narrow: the interval then stands for all tasks together only.
    """
    from rich.table import Table

    drawn = Table(title="Rooms won, with 95 % Wilson intervals", title_justify="left")
    drawn.add_column("")
    for each in evaluations:
        drawn.add_column(quote.cell(f"{each['player']} {each['quant']}"), justify="right", no_wrap=True)
    summaries = [each["summary"] for each in evaluations]
    by_task = success if len(evaluations) <= 2 else share
    for task in sorted({task for each in summaries for task in each["by_task"]}):
        drawn.add_row(quote.cell(task), *(by_task(each["by_task"].get(task)) for each in summaries))
    drawn.add_section()
    drawn.add_row("all", *(by_task(each) for each in summaries), style="bold")
    if by_task is share:
        drawn.add_row("95 %", *(success(each).rpartition(" ")[2] for each in summaries))
    drawn.add_section()
    drawn.add_row("invalid actions", *(f"{each['invalid']}" for each in summaries))
    drawn.add_row("mean steps", *(f"{each['mean_steps']:.1f}" for each in summaries))
    drawn.add_row("tokens/s", *(f"{each['tokens_per_second']:.0f}" for each in summaries))
    drawn.add_row("seconds", *(f"{each['seconds']:.0f}" for each in summaries))
    return drawn


def success(played: Tally | None) -> str:
    """ "9/12  75 % (47-91)" of {"won", "rooms"}; nothing where there were no rooms."""
    if not played:
        return ""
    low, high = play.wilson(played["won"], played["rooms"])
    rate = 100 * played["won"] / played["rooms"]
    return f"{played['won']}/{played['rooms']}  {rate:3.0f} % ({low * 100:.0f}-{high * 100:.0f})"


def share(played: Tally | None) -> str:
    """ "9/12 75 %" of {"won", "rooms"}: `success` without its interval."""
    return " ".join(success(played).rpartition(" (")[0].split())


def transcript(game: Played) -> "Text":
    """A game of eval-*.json, every message in full."""
    from rich.text import Text

    end = "won" if game["won"] else "lost"
    goal = quote.visible(game["goal"])
    text = Text(f"A game that was {end}: {goal} (room {game['seed']}, {game['steps']} steps)\n", style="bold")
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
