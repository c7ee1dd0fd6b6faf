"""What bounds games a minute: one model plays the same rooms through llama-server in several ways.

python bench/play.py MODEL.gguf [--rooms 48] [--ways naive,cache] [--json]     a table, or JSON; minutes a way

Each way must give the same games at temperature 0; where it does not, the table says how many are the same.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypedDict

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.evaluation import backends, play  # noqa: E402
from tools.gguf import llamacpp  # noqa: E402
from tools.worlds.household.environment import Household  # noqa: E402
from tools.worlds.world import Task  # noqa: E402

CONTEXT = 4096


class Way(NamedTuple):
    """How to serve and play: games at a time, and llama-server's settings by its own variables."""

    parallel: int
    settings: dict[str, str]


# The first is what the others are held against.
WAYS = {
    "naive": Way(1, {"LLAMA_ARG_CACHE_PROMPT": "false", "LLAMA_ARG_CACHE_RAM": "0"}),
    "cache": Way(1, {}),
    "2 slots": Way(2, {}),
    "4 slots": Way(4, {}),
    "n-gram": Way(1, {"LLAMA_ARG_SPEC_TYPE": "ngram-simple"}),
    "4 slots n-gram": Way(4, {"LLAMA_ARG_SPEC_TYPE": "ngram-simple"}),
}


class Case(TypedDict):
    """What a way came to. `same`: games that are, word for word, the first way's; `harness`: share of the time that
    neither the model nor a wait for it took, where one game is played at a time.
    """

    way: str
    games: int
    won: int
    same: int
    seconds: float
    games_per_minute: float
    tokens_per_second: float
    harness: float | None


@contextmanager
def setting(values: dict[str, str]) -> Iterator[None]:
    """Have variables in the environment of what is started."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})


def games_of(gguf: Path, way: Way, tasks: list[Task]) -> tuple[list[play.Game], float]:
    """The games of one way, and the seconds that they took together; the server has started and answered before."""
    with tempfile.TemporaryDirectory() as folder, setting(way.settings):
        log = Path(folder) / "server.log"
        with llamacpp.server(gguf, CONTEXT, way.parallel, log=log) as url:
            chat = backends.openai_chat(url)
            chat([{"role": "user", "content": "Hi"}], 0)
            start = time.monotonic()
            games = play.play_games(chat, Household, tasks, parallel=way.parallel)
            return games, time.monotonic() - start


def case(name: str, games: list[play.Game], first: list[play.Game], seconds: float, parallel: int) -> Case:
    """What a way came to."""
    answering = sum(game.seconds for game in games)
    return {
        "way": name,
        "games": len(games),
        "won": sum(game.won for game in games),
        "same": sum(a.transcript == b.transcript for a, b in zip(games, first, strict=True)),
        "seconds": round(seconds, 1),
        "games_per_minute": round(60 * len(games) / seconds, 2),
        "tokens_per_second": round(sum(game.tokens for game in games) / seconds, 1),
        "harness": round(1 - answering / seconds, 4) if parallel == 1 else None,
    }


def main() -> None:
    """Play in all ways and print what they came to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--rooms", type=int, default=48)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    tasks = list(islice(Household().tasks("unseen"), asked.rooms))
    cases: list[Case] = []
    first: list[play.Game] = []
    for name in asked.ways.split(","):
        games, seconds = games_of(asked.gguf, WAYS[name], tasks)
        first = first or games
        cases.append(case(name, games, first, seconds, WAYS[name].parallel))
    if asked.json:
        print(json.dumps(cases))
        return
    print("| way | games a minute | times | won | same games | tokens/s | harness |\n|---|---|---|---|---|---|---|")
    for each in cases:
        times = each["games_per_minute"] / cases[0]["games_per_minute"]
        harness = "" if each["harness"] is None else f"{each['harness']:.1%}"
        same = f"{each['same']} of {each['games']}"
        print(
            f"| {each['way']} | {each['games_per_minute']} | {times:.2f} | {each['won']} | {same} | "
            f"{each['tokens_per_second']} | {harness} |"
        )


if __name__ == "__main__":
    main()
