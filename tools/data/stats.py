"""What a set of episodes is made of: lengths in tokens, turns, tasks, actions; as tables and as a page with plots."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import orjson

from tools.core import files, quote, templates, trajectory
from tools.data import lint, split
from tools.data.formats import Episode, Message, messages_of
from tools.gguf import base, find_base

if TYPE_CHECKING:
    from rich.table import Table

SEQUENCES = (1024, 2048, 4096, 8192)
PERCENTILES = (50, 95, 99)
BINS = 24
# Of many tasks or actions the page and the table show the most frequent.
SHOWN = 12


class Histogram(TypedDict):
    """`counts`: of bins of this width, the first beginning at `start`; a bin holds its start and not its end."""

    start: int
    width: int
    counts: list[int]


class Spread(TypedDict):
    """How whole numbers are spread; percentiles by nearest rank."""

    total: int
    mean: float
    min: int
    p50: int
    p95: int
    p99: int
    max: int
    histogram: Histogram


class Lengths(Spread):
    """`longer_than`: how many episodes are longer than each of SEQUENCES."""

    longer_than: dict[int, int]


class Task(TypedDict):
    """What the episodes of one task are."""

    task: str
    episodes: int
    mean_tokens: float
    mean_turns: float


class Measured(TypedDict):
    """What episodes are made of. `actions`: how often each is done, the most frequent first, as are `tasks`."""

    episodes: int
    tokens: Lengths
    turns: Lengths
    tasks: list[Task]
    actions: dict[str, int]


class Stats(Measured):
    """What episodes are made of, with the files that hold them and the tokenizer that counts."""

    files: list[str]
    tokenizer: str


def measure(episodes: Iterable[Episode], count: Callable[[list[Message]], int]) -> Measured:
    """The lengths of episodes in tokens (by `count`) and in answers, how many each task has, and what their actions do.

    An action's name is its first word: "go to fridge 1" is go, "Search[Ada]" is Search.
    """
    tokens: list[int] = []
    turns: list[int] = []
    tasks: dict[str, list[int]] = {}
    actions: Counter[str] = Counter()
    for episode in episodes:
        messages = messages_of(episode)
        said = lint.answers(messages)
        tokens.append(count(messages))
        turns.append(len(said))
        task = tasks.setdefault(str(episode.get("task", "")), [0, 0, 0])
        task[:] = task[0] + 1, task[1] + tokens[-1], task[2] + turns[-1]
        for _, answer in said:
            actions[first_word(trajectory.action(answer) or "")] += 1
    return {
        "episodes": len(tokens),
        "tokens": {**spread(tokens), "longer_than": {size: sum(each > size for each in tokens) for size in SEQUENCES}},
        "turns": {**spread(turns), "longer_than": {}},
        "tasks": [
            {
                "task": task,
                "episodes": n,
                "mean_tokens": round(all_tokens / n, 1),
                "mean_turns": round(all_turns / n, 2),
            }
            for task, (n, all_tokens, all_turns) in sorted(tasks.items(), key=lambda item: (-item[1][0], item[0]))
        ],
        "actions": dict(sorted(actions.items(), key=lambda item: (-item[1], item[0]))),
    }


def first_word(action: str) -> str:
    """What an action does, in one word."""
    found = re.search(r"\w+", action)
    return found[0] if found else action


def spread(values: Sequence[int]) -> Spread:
    """Sum, mean, least, most and percentiles (nearest rank) of whole numbers, one at least, and a histogram of them."""
    ranked = sorted(values)
    width = max(1, math.ceil((ranked[-1] - ranked[0] + 1) / BINS))
    start = ranked[0] // width * width
    counts = Counter((each - start) // width for each in ranked)
    return {
        "total": sum(ranked),
        "mean": round(sum(ranked) / len(ranked), 2),
        "min": ranked[0],
        "p50": nearest_rank(ranked, 50),
        "p95": nearest_rank(ranked, 95),
        "p99": nearest_rank(ranked, 99),
        "max": ranked[-1],
        "histogram": {"start": start, "width": width, "counts": [counts[each] for each in range(max(counts) + 1)]},
    }


def nearest_rank(ranked: Sequence[int], percentile: int) -> int:
    """The least of these ascending values that so many percent of them are not above."""
    return ranked[math.ceil(len(ranked) * percentile / 100) - 1]


def print_stats(paths: Sequence[str], base_name: str, html: str, as_json: bool, force: bool = False) -> None:
    """Print what these files are made of, and write it as a page to `html` where one is named.

    `base_name`: whose tokenizer counts, see base.tokenizer. `force`: replace a page that is there. Raises BadInput,
    with file:line, for what is no episode.
    """
    if html:
        files.check_output(html, force, paths)

    tokenizer = find_base.tokenizer(base_name)
    measured = measure(split.episodes(list(map(Path, paths)), "stats"), partial(base.tokens, tokenizer))
    found: Stats = {"files": list(paths), "tokenizer": base_name or Path(tokenizer.name_or_path).name, **measured}
    if html:
        with files.output(html, force, paths) as beside:
            beside.write_text(page(found), encoding="utf-8")
    if as_json:
        print(orjson.dumps(found, option=orjson.OPT_NON_STR_KEYS).decode())
        return
    from rich.console import Console

    for drawn in tables(found):
        Console().print(drawn)
    print(f"tokens as {quote.visible(found['tokenizer'])} counts them{f'; plots in {html}' if html else ''}")


def tables(found: Stats) -> list["Table"]:
    """Lengths, tasks and actions."""
    from rich.table import Table

    rows: dict[str, Mapping[str, object]] = {"tokens": found["tokens"], "answers": found["turns"]}
    columns = ["total", "mean", "min", *(f"p{each}" for each in PERCENTILES), "max"]
    lengths = Table(f"{found['episodes']:,} episodes", *columns)
    for title, values in rows.items():
        lengths.add_row(title, *(f"{values[column]:,}" for column in columns))
    longer = Table("longer than", *(f"{size:,} tokens" for size in SEQUENCES))
    over = found["tokens"]["longer_than"].values()
    longer.add_row("episodes", *(f"{each:,} ({each / found['episodes']:.1%})" for each in over))
    tasks = Table("task", "episodes", "mean tokens", "mean answers")
    for each in found["tasks"][:SHOWN]:
        shares = f"{each['episodes']:,} ({each['episodes'] / found['episodes']:.1%})"
        task = quote.cell(each["task"] or "(no task)")
        tasks.add_row(task, shares, f"{each['mean_tokens']:,.0f}", f"{each['mean_turns']:.1f}")
    actions = Table("action", "times", "share")
    for action, times in list(found["actions"].items())[:SHOWN]:
        actions.add_row(quote.cell(action), f"{times:,}", f"{times / found['turns']['total']:.1%}")
    for drawn in (lengths, longer, tasks, actions):
        for column in drawn.columns[1:]:
            column.justify = "right"
    return [lengths, longer, tasks, actions]


def page(found: Stats) -> str:
    """The page of what was measured: one file that needs no other."""
    tasks = [(each["task"] or "(no task)", each["episodes"]) for each in found["tasks"]]
    return templates.template("report/stats.html.j2").render(
        found=found,
        percentiles=PERCENTILES,
        lengths=[
            ("Tokens", "tokens", found["tokens"], plot(found["tokens"], SEQUENCES)),
            ("Answers", "answers", found["turns"], plot(found["turns"], ())),
        ],
        shares=[("Tasks", "episodes", most(tasks)), ("Actions", "times", most(list(found["actions"].items())))],
    )


def plot(values: Spread, sequences: Sequence[int]) -> dict[str, object]:
    """How the page draws a histogram (of `spread`); places and sizes are percent of the plot, from its left and foot.

    `bars`: (left, height, first value, last value, episodes), each `width` wide; `x` and `y`: the ticks, (place,
    figure); `marks`: (place, words) of percentiles and `sequences`. The axis ends at the first sequence length that
    holds every episode, or at the longest episode where none does or `sequences` is empty.
    """
    drawn = values["histogram"]
    start, width, counts = drawn["start"], drawn["width"], drawn["counts"]
    holding = [each + 1 for each in sequences if each >= values["max"]]
    end = max([start + width * len(counts), *holding[:1]])
    wide, tall = round_step(end - start), round_step(max(counts))
    top = tall * math.ceil(max(counts) / tall)

    def across(value: float) -> float:
        return round(100 * (value - start) / (end - start), 3)

    named = [(values["p50"], "median"), (values["p95"], "p95"), (values["p99"], "p99")]
    named += [(each, "sequence") for each in sequences if start <= each < end]
    firsts = [start + width * place for place in range(len(counts))]
    return {
        "width": round(100 * width / (end - start), 3),
        "bars": [
            (across(first), round(100 * n / top, 3), first, first + width - 1, n)
            for first, n in zip(firsts, counts, strict=True)
        ],
        # A whole number is marked in the middle of its own place: 7 answers are drawn from 7 to 8.
        "x": [(across(each + 0.5), each) for each in range(math.ceil(start / wide) * wide, end, wide)],
        "y": [(round(100 * each / top, 3), each) for each in range(0, top + 1, tall)],
        "marks": [(across(value + 0.5), f"{words} {value:,}") for value, words in sorted(named)],
    }


def round_step(span: float) -> int:
    """The least of 1, 2, 5, 10, 20, 50 ... of which at most six make up `span`."""
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    return int(next(step for step in steps if span / step <= 6))


def most(counted: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The most frequent, and the sum of all others."""
    rest = counted[SHOWN:]
    return counted[:SHOWN] + ([(f"{len(rest)} others", sum(n for _, n in rest))] if rest else [])
