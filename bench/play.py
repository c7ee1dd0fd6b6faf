"""What bounds games a minute: one model plays the same rooms through llama-server in several ways.

python bench/play.py MODEL.gguf                                      minutes a way; bench/results/play.json
python bench/play.py MODEL.gguf --rooms 4 --ways "prompt cache"      some ways alone, nothing is written
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

from tools.core import files, machine, run_folder  # noqa: E402
from tools.evaluation import backends, play  # noqa: E402
from tools.gguf import llamacpp  # noqa: E402
from tools.worlds.household.environment import Household  # noqa: E402
from tools.worlds.world import Task  # noqa: E402

CONTEXT = 4096


class Way(NamedTuple):
    """How to serve and play: games at a time, and llama-server's settings by its own variables."""

    parallel: int
    settings: dict[str, str]


NAIVE = {"LLAMA_ARG_CACHE_PROMPT": "false", "LLAMA_ARG_CACHE_RAM": "0"}
NGRAM = {"LLAMA_ARG_SPEC_TYPE": "ngram-simple"}
FLASH = {llamacpp.FLASH_ATTENTION: "on"}
WAYS = {
    "naive": Way(1, NAIVE | FLASH),
    "naive, no flash attention": Way(1, NAIVE),
    "prompt cache, flash attention": Way(1, FLASH),
    "prompt cache": Way(1, {}),
    "prompt cache, n-gram drafts": Way(1, NGRAM),
    "prompt cache, 2 slots": Way(2, {}),
    "prompt cache, 4 slots": Way(4, {}),
}
NOTES = """{rooms} unseen rooms at temperature 0 on {cores} cores, without a GPU, through one llama-server a row.
Naive: one game at a time, the whole conversation read for each answer, llama.cpp's flash attention. Times: games a
minute beside naive play. Same: games that are, word for word, those of naive play with the same attention, which rounds
in its own way. Harness: the share of the time that neither the model nor a wait for it took. We serve with a prompt
cache and, on a CPU, without flash attention."""


class Case(TypedDict):
    """What a way came to. `same`: games that are, word for word, those of naive play; `harness`: share of the time that
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


def row(each: Case, naive: Case) -> str:
    """A way in the table."""
    times = each["games_per_minute"] / naive["games_per_minute"]
    harness = "" if each["harness"] is None else f"{each['harness']:.1%}"
    return (
        f"| {each['way']} | {each['games_per_minute']} | {times:.2f} | {each['won']} | {each['same']} of "
        f"{each['games']} | {each['tokens_per_second']} | {harness} |"
    )


def main() -> None:
    """Play in all ways; write bench/results/play.json, or print the cases where only some ways are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--rooms", type=int, default=16)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="the first is held to be naive")
    parser.add_argument("--json", action="store_true", help="the cases on stdout")
    asked = parser.parse_args()
    tasks = list(islice(Household().tasks("unseen"), asked.rooms))
    cases: list[Case] = []
    first: dict[str | None, list[play.Game]] = {}  # of each kind of attention
    for name in asked.ways:
        way = WAYS[name]
        games, seconds = games_of(asked.gguf, way, tasks)
        alike = first.setdefault(way.settings.get(llamacpp.FLASH_ATTENTION), games)
        cases.append(case(name, games, alike, seconds, way.parallel))
        print(row(cases[-1], cases[0]), file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps(cases))
    if asked.ways == list(WAYS):
        head = "| way | games a minute | times | won | same | tokens/s | harness |"
        result = {
            "title": "Games a minute",
            "command": "python bench/play.py outputs/cpu/smollm2-135m-lora/model-q8_0.gguf",
            "versions": {"llama.cpp of llama-cpp-python": run_folder.pinned_version("llama-cpp-python")},
            "table": [head, "|---" * 7 + "|", *(row(each, cases[0]) for each in cases)],
            "notes": NOTES.format(rooms=asked.rooms, cores=machine.cores()),
            "cases": cases,
        }
        files.write_json(ROOT / "bench" / "results" / "play.json", result)


if __name__ == "__main__":
    main()
