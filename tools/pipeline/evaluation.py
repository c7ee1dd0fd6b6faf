"""Model to games: the base and the tuned model play the same unseen rooms."""

import time
from typing import TYPE_CHECKING

import orjson

from tools import BadInput
from tools.core import files, progress, quote
from tools.core.run_folder import Run
from tools.core.trajectory import system_prompt
from tools.pipeline.serving import CLASSIC, player, proof_inputs, spec
from tools.pipeline.trained import Tuned, run_and_name

if TYPE_CHECKING:
    from tools.evaluation.play import Evaluation


def play_games(model: Tuned, quant: str, rooms: int, called: str, proof: str) -> None:
    """Let the tuned model and its base, where it is known, play the same unseen rooms; print the table.

    `proof`: see serving.publish.
    """
    from rich.console import Console

    from tools.evaluation import play, report
    from tools.worlds.household import episodes

    quant = quant.upper()
    this, drawn, words = model.run, list(episodes.unseen_rooms(rooms)), str(system_prompt())
    with this.held("eval"):
        for who in ("base", "tuned") if model.before else ("tuned",):
            stage, file = f"eval-{who}-{quant.lower()}", this.evaluation(f"{who}-{quant.lower()}")
            wanted = spec(model, quant, who, called)
            inputs = proof_inputs(wanted) | {
                "rooms": files.sha256_of("".join(each.introduction for each in drawn).encode())
            }
            if this.done(stage, inputs) and file.exists():
                print(f"{file}: already played")
                continue
            with this.stage(stage, inputs), player(model, quant, who, called, proof=proof) as chat:
                start = time.monotonic()
                games = play.play_rooms(chat, drawn, words, title=f"{who} {quant}")
                summary = play.summary(games, time.monotonic() - start)
                turns = [{"role": "system", "content": words}, {"role": "user", "content": CLASSIC}]
                with progress.step(f"{who} {quant}: one more answer, to the first prompt that people try"):
                    classic = {"prompt": CLASSIC, "answer": chat(turns).text}
                written = {"player": who, "quant": quant, "summary": summary, "classic": classic}
                files.write_json(file, written | {"games": [play.as_json(game) for game in games]})
    Console().print(report.table(evaluations(this)))


def evaluations(this: Run) -> "list[Evaluation]":
    """All games of a run: the base first, then by quantisation."""
    return [orjson.loads(item.read_bytes()) for item in sorted(this.folder.glob("eval-*.json"))]


def sum_up(name: str, quant: str, called: str, adapter: str = "", tier: str = "") -> None:
    """Write demo.json; print the table, a won game, the classic prompt's answer and what comes next."""
    from rich.console import Console

    from tools.evaluation import report
    from tools.serving import ollama as server

    this, served = run_and_name(name, adapter, tier)
    played = evaluations(this)
    tuned = next((each for each in played if (each["player"], each["quant"]) == ("tuned", quant.upper())), None)
    if tuned is None:
        asked = f"ADAPTER={adapter}" if adapter else f"RECIPE={name}"
        raise BadInput(f"{this.folder}: no games of {quant}; make eval {asked} QUANT={quant} plays them")
    files.write_json(this.folder / "demo.json", report.demo(this, played, quant.upper()))
    console = Console()
    won = next((game for game in tuned["games"] if game["won"]), None)
    if won:
        console.print(report.transcript(won))
    answer = quote.visible(tuned["classic"]["answer"], keep="\n")
    print(f"\nThe classic first prompt:\n{CLASSIC}\n\n{answer}\n")
    console.print(report.table(played))
    print(report.closing(this, called or served, own=server.users_own() is None))
