"""What a set of episodes is made of: lengths in tokens, turns, tasks, actions; as tables and as a page with plots."""

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tools.core import files, quote, run_folder, templates, trajectory
from tools.data import lint, split
from tools.gguf import base, find_base

if TYPE_CHECKING:
    from rich.table import Table

SEQUENCES = (1024, 2048, 4096, 8192)
PERCENTILES = (50, 90, 99)
BINS = 24
# Of many tasks or actions the page and the table show the most frequent.
SHOWN = 12


def measure(episodes: Iterable[dict[str, Any]], count: Callable[[list[dict[str, Any]]], int] | None) -> dict[str, Any]:
    """The lengths of episodes in tokens (by `count`) and in answers, how many each task has, and what their actions do.

    Without `count`, there are no `tokens` and no `mean_tokens`.
    An action's name is its first word: "go to fridge 1" is go, "Search[Ada]" is Search.
    """
    tokens, turns = [], []
    tasks: dict[str, list[int]] = {}
    actions: Counter[str] = Counter()
    for episode in episodes:
        messages = episode["messages"]
        said = lint.answers(messages)
        tokens.append(count(messages) if count else 0)
        turns.append(len(said))
        task = tasks.setdefault(str(episode.get("task", "")), [0, 0, 0])
        task[:] = task[0] + 1, task[1] + tokens[-1], task[2] + turns[-1]
        for _, answer in said:
            actions[name(trajectory.action(answer) or "")] += 1
    longer = {size: sum(each > size for each in tokens) for size in SEQUENCES}
    return {
        "episodes": len(tokens),
        **({"tokens": spread(tokens) | {"longer_than": longer}} if count else {}),
        "turns": spread(turns) | {"longer_than": {}},
        "tasks": [
            {
                "task": task,
                "episodes": n,
                **({"mean_tokens": round(all_tokens / n, 1)} if count else {}),
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

    `base_name`: whose tokenizer counts, see base.tokenizer; where none is named and transformers is not installed, no
    tokens are counted, which is said. `force`: replace a page that is there. Raises BadInput, with file:line, for what
    is no episode.
    """
    if html:
        files.check_output(html, force, paths)

    found: dict[str, Any] = {"files": list(paths)}
    count = None
    try:
        tokenizer = find_base.tokenizer(base_name)
        found["tokenizer"] = base_name or Path(tokenizer.name_or_path).name
        count = partial(base.tokens, tokenizer)
    except ModuleNotFoundError as error:
        if base_name:
            raise
        print(f"tokens are not counted: that {run_folder.missing(error)}", file=sys.stderr)
    found |= measure(split.episodes(list(map(Path, paths)), "stats"), count)
    if html:
        with files.output(html, force, paths) as beside:
            beside.write_text(page(found), encoding="utf-8")
    if as_json:
        print(orjson.dumps(found, option=orjson.OPT_NON_STR_KEYS).decode())
        return
    from rich.console import Console

    for drawn in tables(found):
        Console().print(drawn)
    counted = [f"tokens as {quote.visible(found['tokenizer'])} counts them"] if count else []
    if said := "; ".join(counted + ([f"plots in {html}"] if html else [])):
        print(said)


def tables(found: dict[str, Any]) -> list["Table"]:
    """Lengths, tasks and actions."""
    from rich.table import Table

    rows = {"tokens": found.get("tokens"), "answers": found["turns"]}
    columns = ["total", "mean", "min", *(f"p{each}" for each in PERCENTILES), "max"]
    lengths = Table(f"{found['episodes']:,} episodes", *columns)
    for title, values in rows.items():
        if values:
            lengths.add_row(title, *(f"{values[column]:,}" for column in columns))
    longer = Table("longer than", *(f"{size:,} tokens" for size in SEQUENCES))
    if "tokens" in found:
        over = found["tokens"]["longer_than"].values()
        longer.add_row("episodes", *(f"{each:,} ({each / found['episodes']:.1%})" for each in over))
    tasks = Table("task", "episodes", "mean tokens", "mean answers")
    for each in found["tasks"][:SHOWN]:
        shares = f"{each['episodes']:,} ({each['episodes'] / found['episodes']:.1%})"
        task = quote.cell(each["task"] or "(no task)")
        tasks.add_row(
            task, shares, f"{each['mean_tokens']:,.0f}" if "mean_tokens" in each else "", f"{each['mean_turns']:.1f}"
        )
    actions = Table("action", "times", "share")
    for action, times in list(found["actions"].items())[:SHOWN]:
        actions.add_row(quote.cell(action), f"{times:,}", f"{times / found['turns']['total']:.1%}")
    for drawn in (lengths, longer, tasks, actions):
        for column in drawn.columns[1:]:
            column.justify = "right"
    return [drawn for drawn in (lengths, longer, tasks, actions) if drawn.row_count]


def page(found: dict[str, Any]) -> str:
    """The page of what was measured: one file that needs no other."""
    tasks = [(each["task"] or "(no task)", each["episodes"]) for each in found["tasks"]]
    return templates.template("report/stats.html.j2").render(
        found=found,
        percentiles=PERCENTILES,
        lengths=[
            *([("Tokens", "tokens", found["tokens"])] if "tokens" in found else []),
            ("Answers", "answers", found["turns"]),
        ],
        shares=[("Tasks", "episodes", most(tasks)), ("Actions", "times", most(list(found["actions"].items())))],
    )


def most(counted: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The most frequent, and the sum of all others."""
    rest = counted[SHOWN:]
    return counted[:SHOWN] + ([(f"{len(rest)} others", sum(n for _, n in rest))] if rest else [])
