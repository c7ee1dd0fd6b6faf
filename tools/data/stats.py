"""What a set of episodes is made of: lengths in tokens, turns, tasks, actions; as tables and as a page with plots."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tools.core import files, quote, templates, trajectory
from tools.data import lint, split
from tools.gguf import base, find_base

if TYPE_CHECKING:
    from rich.table import Table

SEQUENCES = (1024, 2048, 4096, 8192)
PERCENTILES = (50, 95, 99)
BINS = 24
# Of many tasks or actions the page and the table show the most frequent.
SHOWN = 12


def measure(episodes: Iterable[dict[str, Any]], count: Callable[[list[dict[str, Any]]], int]) -> dict[str, Any]:
    """The lengths of episodes in tokens (by `count`) and in answers, how many each task has, and what their actions do.

    An action's name is its first word: "go to fridge 1" is go, "Search[Ada]" is Search.
    """
    tokens, turns = [], []
    tasks: dict[str, list[int]] = {}
    actions: Counter[str] = Counter()
    for episode in episodes:
        messages = episode["messages"]
        said = lint.answers(messages)
        tokens.append(count(messages))
        turns.append(len(said))
        task = tasks.setdefault(str(episode.get("task", "")), [0, 0, 0])
        task[:] = task[0] + 1, task[1] + tokens[-1], task[2] + turns[-1]
        for _, answer in said:
            actions[name(trajectory.action(answer) or "")] += 1
    return {
        "episodes": len(tokens),
        "tokens": spread(tokens) | {"longer_than": {size: sum(each > size for each in tokens) for size in SEQUENCES}},
        "turns": spread(turns) | {"longer_than": {}},
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


def name(action: str) -> str:
    """What an action does, in one word."""
    found = re.search(r"\w+", action)
    return found[0] if found else action


def spread(values: Sequence[int]) -> dict[str, Any]:
    """Sum, mean, least, most and percentiles (nearest rank) of whole numbers, and a histogram of them.

    The histogram: {"start", "width", "counts"}; a bin holds its start and not its end.
    """
    ranked = sorted(values)
    width = max(1, math.ceil((ranked[-1] - ranked[0] + 1) / BINS))
    start = ranked[0] // width * width
    counts = Counter((each - start) // width for each in ranked)
    return {
        "total": sum(ranked),
        "mean": round(sum(ranked) / len(ranked), 2),
        "min": ranked[0],
        **{f"p{each}": ranked[math.ceil(len(ranked) * each / 100) - 1] for each in PERCENTILES},
        "max": ranked[-1],
        "histogram": {"start": start, "width": width, "counts": [counts[each] for each in range(max(counts) + 1)]},
    }


def show(paths: Sequence[str], base_name: str, html: str, as_json: bool, force: bool = False) -> None:
    """Print what these files are made of, and write it as a page to `html` where one is named.

    `base_name`: whose tokenizer counts, see base.tokenizer. `force`: replace a page that is there. Raises BadInput,
    with file:line, for what is no episode.
    """
    if html:
        files.check_output(html, force, paths)

    tokenizer = find_base.tokenizer(base_name)
    found = {"files": list(paths), "tokenizer": base_name or Path(tokenizer.name_or_path).name}
    found |= measure(split.episodes(list(map(Path, paths)), "stats"), partial(base.tokens, tokenizer))
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


def tables(found: dict[str, Any]) -> list["Table"]:
    """Lengths, tasks and actions."""
    from rich.table import Table

    rows = {"tokens": found["tokens"], "answers": found["turns"]}
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


def page(found: dict[str, Any]) -> str:
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


def plot(values: Mapping[str, Any], sequences: Sequence[int]) -> dict[str, object]:
    """How the page draws a histogram (of `spread`); places and sizes are percent of the plot, from its left and foot.

    `bars`: (left, height, first value, last value, episodes), each `width` wide; `x` and `y`: the ticks, (place,
    figure); `marks`: (place, words) of percentiles and `sequences`. The axis ends at the first sequence length that
    holds every episode, or at the longest episode where none does or `sequences` is empty.
    """
    start, width, counts = (values["histogram"][key] for key in ("start", "width", "counts"))
    holding = [each + 1 for each in sequences if each >= values["max"]]
    end = max([start + width * len(counts), *holding[:1]])
    wide, tall = round_step(end - start), round_step(max(counts))
    top = tall * math.ceil(max(counts) / tall)

    def across(value: float) -> float:
        return round(100 * (value - start) / (end - start), 3)

    named = [(values[f"p{each}"], "median" if each == 50 else f"p{each}") for each in PERCENTILES]
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
    return next(step for step in steps if span / step <= 6)


def most(counted: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The most frequent, and the sum of all others."""
    rest = counted[SHOWN:]
    return counted[:SHOWN] + ([(f"{len(rest)} others", sum(n for _, n in rest))] if rest else [])
