"""Games to the next training set: a teacher plays training tasks, its wins become episodes and pairs."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tools import BadInput, Failed
from tools.core import files, run_folder
from tools.core.run_folder import Run
from tools.pipeline.evaluation import PARALLEL, Asked, Drawn, entrant, plain, quiet, server_of
from tools.pipeline.trained import Tuned

if TYPE_CHECKING:
    from tools.evaluation.backends import Chat
    from tools.evaluation.collect import Meter
    from tools.evaluation.play import Game
    from tools.evaluation.scores import Setup
    from tools.worlds.world import World

# What of a setup may change from one call to the next: more tasks and more games of each are added to those there.
GROWS = ("tasks_sha256", "repeat")


@dataclass(frozen=True)
class Wanted:
    """Where what is collected goes, and what it may cost.

    `out`: a folder, "" for `collected` in the run's. `price`: dollars for a million tokens that are read, and for a
    million that are generated. `budget`: dollars, 0 for no limit. `parallel`: games side by side.
    """

    out: str = ""
    price: tuple[float, float] | None = None
    budget: float = 0.0
    parallel: int = PARALLEL
    force: bool = False


def collect_own(
    model: Tuned, quant: str, called: str, proof: str, asked: Asked, wanted: Wanted, as_json: bool = False
) -> None:
    """Let the tuned model play training tasks; see `collect`."""
    drawn = asked.drawn()
    with quiet(as_json):
        setup, _, chat = entrant(model, quant.upper(), "tuned", called, proof, asked, drawn)
        collect(model.run, setup, chat, asked, drawn, wanted, as_json)


def collect_served(url: str, name: str, asked: Asked, wanted: Wanted, as_json: bool = False) -> None:
    """Let the model `name` (the only one there, if empty) of an OpenAI-compatible server play; see `collect`.

    The key is that of OPENAI_API_KEY in the environment.
    """
    from tools.evaluation import backends

    key, model = server_of(url, name)
    drawn = asked.drawn()
    setup = asked.setup("served", model, "", "openai", drawn, "")
    chat = backends.openai_chat(url, model, key, asked.sampling("served"))
    this = Run(run_folder.outputs() / "served" / plain(model))
    with quiet(as_json):
        collect(this, setup, contextlib.nullcontext(chat), asked, drawn, wanted, as_json)


def collect_expert(slip: float, asked: Asked, wanted: Wanted, as_json: bool = False) -> None:
    """Let the household's expert play; see `collect`. `slip`: how often it errs and mends that.

    Raises BadInput for another world, which it does not know.
    """
    from tools.evaluation import expert

    if not asked.world.startswith("household"):
        raise BadInput(f"{asked.world}: the expert knows the household alone; URL= and RECIPE= name other teachers")
    asked = replace(asked, repeat=1)  # It plays a room in one way.
    drawn = asked.drawn()
    setup = asked.setup("expert", f"expert, slip {slip:g}", "", "expert", drawn, "")
    this = Run(run_folder.outputs() / "served" / "expert")
    with quiet(as_json):
        collect(this, setup, contextlib.nullcontext(expert.chat(slip)), asked, drawn, wanted, as_json)


def collect(
    this: Run,
    setup: "Setup",
    teacher: "contextlib.AbstractContextManager[Chat]",
    asked: Asked,
    drawn: Drawn,
    wanted: Wanted,
    as_json: bool,
) -> None:
    """Let a teacher play what was drawn, and write wins.jsonl and pairs.jsonl into the folder of `wanted`.

    Each game is saved in games.jsonl there as it ends: what was stopped, by Ctrl-C or the budget, goes on, and more
    tasks or attempts are added. Raises BadInput where that holds another teacher's games, Failed where none was won.
    """
    from tools.evaluation import collect as games
    from tools.evaluation import play

    if wanted.budget and wanted.price is None:
        raise BadInput("BUDGET= is in dollars; PRICE='in out', dollars for a million tokens, says what they cost")
    world = drawn.world
    folder = Path(wanted.out).expanduser() if wanted.out else this.folder / "collected"
    about = {key: value for key, value in setup.items() if key not in GROWS}
    log = folder / "games.jsonl"
    check_same(log, about, wanted.force)
    meter = games.Meter(wanted.price, wanted.budget)
    parallel = min(wanted.parallel, world.together or wanted.parallel)
    stopped = ""
    with this.held("collect"), teacher as chat, contextlib.closing(play.Log(log, about)) as kept:
        meter.read = sum(game.prompt_tokens for game in kept.games.values())
        meter.generated = sum(game.tokens for game in kept.games.values())
        rules = asked.rules(setup["player"] if setup["player"] == "tuned" else "served", world.steps)
        try:
            asking, title = meter.metered(chat), setup["model"]
            play.play_games(asking, world.make, drawn.tasks, rules, asked.repeat, parallel, title, kept)
        except Failed as error:
            if not isinstance(error.__cause__, games.OverBudget):
                raise
            stopped = str(error)
        played = sorted(kept.games.values(), key=lambda game: (game.id, game.attempt))
    write(folder, played, world.make(), setup, meter, stopped, as_json)


def check_same(log: Path, about: dict[str, object], force: bool) -> None:
    """Raise BadInput for a file of games of another teacher, or by other rules, which would be replaced."""
    if force or not log.is_file():
        return
    with log.open("rb") as file:
        first = file.readline()
    if first.strip() and first != orjson.dumps(about) + b"\n":
        raise BadInput(f"{log}: games of another teacher or by other rules; OUT= another folder, or FORCE=1 to replace")


def write(
    folder: Path,
    played: "Sequence[Game]",
    world: "World",
    setup: "Setup",
    meter: "Meter",
    stopped: str,
    as_json: bool,
) -> None:
    """Write what games came to, and say so; `stopped`: why they ended early."""
    from tools.evaluation import collect as games

    keys = ("model", "quant", "prompt", "temperature", "world", "split")
    told = {key: value for key, value in setup.items() if key in keys}
    provenance = told | {"date": time.strftime("%Y-%m-%d", time.gmtime())}
    wins, pairs = games.episodes(played, world, provenance), games.pairs(played, world, provenance)
    files.write(folder / "wins.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in wins))
    files.write(folder / "pairs.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in pairs))
    won = sum(game.won for game in played)
    found = {
        "folder": str(folder),
        "games": len(played),
        "won": won,
        "episodes": len(wins),
        "pairs": len(pairs),
        "prompt_tokens": meter.read,
        "tokens": meter.generated,
        "dollars": meter.cost,
        "stopped": stopped,
    }
    if as_json:
        print(orjson.dumps(found).decode())
    else:
        tell(folder, found, len(wins) < won)
    if not won:
        raise Failed(f"{folder}: none of {len(played)} games was won, so there is nothing to learn from")


def tell(folder: Path, found: "dict[str, object]", fewer: bool) -> None:
    """Say on the screen what was collected. `fewer`: not every won game became an episode."""
    why = " (won games that are alike count once; those with an answer in another form are left out)" if fewer else ""
    print(f"{folder / 'wins.jsonl'}: {found['episodes']} episodes of {found['won']} won games{why}")
    print(f"{folder / 'pairs.jsonl'}: {found['pairs']} preference pairs of {found['games']} games")
    cost = "" if found["dollars"] is None else f", {found['dollars']:.2f} dollars"
    print(f"tokens: {found['prompt_tokens']:,} read, {found['tokens']:,} generated{cost}")
    if found["stopped"]:
        print(f"stopped: {found['stopped']}")
