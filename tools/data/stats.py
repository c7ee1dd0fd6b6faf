"""What a set of episodes is made of: lengths in tokens, turns, tasks, actions; as tables and as a page with plots."""

import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import orjson

from tools.core import files, quote, run_folder, templates, trajectory
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
ANSWER = "(answer)"  # what a turn does that has no action


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
    mean_tokens: float | None
    mean_turns: float


class Measured(TypedDict):
    """What episodes are made of. `actions`: how often each is done, the most frequent first, as are `tasks`.

    Without a tokenizer, `tokens` and `mean_tokens` are None.
    """

    episodes: int
    tokens: Lengths | None
    turns: Lengths
    tasks: list[Task]
    actions: dict[str, int]


class Stats(Measured):
    """What episodes are made of, with the files that hold them and the tokenizer that counts, if any."""

    files: list[str]
    tokenizer: str | None


def measure(episodes: Iterable[Episode], count: Callable[[list[Message]], int] | None) -> Measured:
    """The lengths of episodes in tokens (by `count`) and in answers, how many each task has, and what their actions do.

    Without `count`, `tokens` and `mean_tokens` are None.
    An action\'s name is its first word: "go to fridge 1" is go, "Search[Ada]" is Search;
    ANSWER is that of a turn without one.
    """
    tokens: list[int] = []
    turns: list[int] = []
    tasks: dict[str, list[int]] = {}
    actions: Counter[str] = Counter()
    for episode in episodes:
        messages = messages_of(episode)
        said = lint.answers(messages)
        tokens.append(count(messages) if count else 0)
        turns.append(len(said))
        task = tasks.setdefault(str(episode.get("task", "")), [0, 0, 0])
        task[:] = task[0] + 1, task[1] + tokens[-1], task[2] + turns[-1]
        for _, answer in said:
            action = trajectory.action(answer)
            actions[first_word(action) if action else ANSWER] += 1
    longer = {size: sum(each > size for each in tokens) for size in SEQUENCES}
    return {
        "episodes": len(tokens),
        "tokens": {**spread(tokens), "longer_than": longer} if count else None,
        "turns": {**spread(turns), "longer_than": {}},
        "tasks": [
            {
                "task": task,
                "episodes": n,
                "mean_tokens": round(all_tokens / n, 1) if count else None,
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

    `base_name`: whose tokenizer counts, see base.tokenizer; where none is named and transformers is not installed, no
    tokens are counted, which is said. `force`: replace a page that is there. Raises BadInput, with file:line, for what
    is no episode.
    """
    if html:
        files.check_output(html, force, paths)

    count, name = None, None
    try:
        tokenizer = find_base.tokenizer(base_name)
        name = base_name or Path(tokenizer.name_or_path).name
        count = partial(base.tokens, tokenizer)
    except ModuleNotFoundError as error:
        if base_name:
            raise
        print(f"tokens are not counted: that {run_folder.missing(error)}", file=sys.stderr)
    measured = measure(split.episodes(list(map(Path, paths)), "stats"), count)
    found: Stats = {"files": list(paths), "tokenizer": name, **measured}
    if html:
        with files.output(html, force, paths) as beside:
            beside.write_text(page(found), encoding="utf-8")
    if as_json:
        print(orjson.dumps(found, option=orjson.OPT_NON_STR_KEYS).decode())
        return
    from rich.console import Console

    for drawn in tables(found):
        Console().print(drawn)
    counted = [f"tokens as {quote.visible(name)} counts them"] if name else []
    if said := "; ".join(counted + ([f"plots in {html}"] if html else [])):
        print(said)


def tables(found: Stats) -> list["Table"]:
    """Lengths, tasks and actions."""
    from rich.table import Table

    rows: dict[str, Mapping[str, object] | None] = {"tokens": found["tokens"], "answers": found["turns"]}
    columns = ["total", "mean", "min", *(f"p{each}" for each in PERCENTILES), "max"]
    lengths = Table(f"{found['episodes']:,} episodes", *columns)
    for title, values in rows.items():
        if values:
            lengths.add_row(title, *(f"{values[column]:,}" for column in columns))
    longer = Table("longer than", *(f"{size:,} tokens" for size in SEQUENCES))
    if found["tokens"]:
        over = found["tokens"]["longer_than"].values()
        longer.add_row("episodes", *(f"{each:,} ({each / found['episodes']:.1%})" for each in over))
    tasks = Table("task", "episodes", "mean tokens", "mean answers")
    for each in found["tasks"][:SHOWN]:
        shares = f"{each['episodes']:,} ({each['episodes'] / found['episodes']:.1%})"
        task = quote.cell(each["task"] or "(no task)")
        mean = "" if each["mean_tokens"] is None else f"{each['mean_tokens']:,.0f}"
        tasks.add_row(task, shares, mean, f"{each['mean_turns']:.1f}")
    actions = Table("action", "times", "share")
    for action, times in list(found["actions"].items())[:SHOWN]:
        actions.add_row(quote.cell(action), f"{times:,}", f"{times / found['turns']['total']:.1%}")
    for drawn in (lengths, longer, tasks, actions):
        for column in drawn.columns[1:]:
            column.justify = "right"
    return [drawn for drawn in (lengths, longer, tasks, actions) if drawn.row_count]


def page(found: Stats) -> str:
    """The page of what was measured: one file that needs no other."""
    tokens, tasks = found["tokens"], [(each["task"] or "(no task)", each["episodes"]) for each in found["tasks"]]
    return templates.template("report/stats.html.j2").render(
        found=found,
        percentiles=PERCENTILES,
        lengths=[
            *([("Tokens", "tokens", tokens, plot(tokens, SEQUENCES))] if tokens else []),
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
