"""Split episodes into train, validation and test; no room appears in two of them.

Kept together are episodes of the same room, near-duplicates (near_duplicates.py, of all that is said but the system
turn), and all that these two join. A room is an episode's own field "room" where it has one; else, in ALFWorld's text,
the receptacles of its first turn, in whatever order; else its first user turn: near-duplicates of it are one room.
"""

import contextlib
import random
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import orjson

from tools import BadInput
from tools.core import files, progress, quote, trajectory
from tools.data import lint, near_duplicates, reader
from tools.data.formats import Episode, messages_of

if TYPE_CHECKING:
    from rich.table import Table


class Part(TypedDict):
    """What one part of a split holds. `wanted`, `share`: of all episodes; `tasks`: how many episodes each has."""

    episodes: int
    wanted: float
    share: float
    groups: int
    tasks: dict[str, int]
    mean_turns: float
    mean_characters: int


class Balance(TypedDict):
    """What a split made. `groups`: how many there are; `largest`: the episodes of the largest one."""

    seed: int
    out: str
    groups: int
    largest: int
    parts: dict[str, Part]


@dataclass(frozen=True)
class Survey:
    """What is kept of the episodes, in their order: each one's group (its first member), task, turns and characters."""

    groups: list[int]
    tasks: list[str]
    turns: list[int]
    characters: list[int]

    def kinds(self) -> list[tuple[str, int]]:
        """What is balanced: each episode's task, and which third of the lengths it is in."""
        ranked = sorted(self.turns)
        thirds = [ranked[len(ranked) * third // 3] for third in (1, 2)]
        return [
            (task, sum(turns >= each for each in thirds)) for task, turns in zip(self.tasks, self.turns, strict=True)
        ]


def episodes(paths: Sequence[Path], what: str, say: bool = True) -> Iterator[Episode]:
    """The episodes of files, in order; `say`: what was recognised, see reader.rows.

    Raises BadInput, with file:line, at the first that is none.
    """
    for where, episode in trajectory.followed(reader.rows(paths, say), what):
        if isinstance(episode, str) or (why := trajectory.fault(episode)):
            raise BadInput(f"{where}: {episode if isinstance(episode, str) else why}; `lint` names all such lines")
        yield episode


def room(episode: Episode) -> tuple[str, bool]:
    """What names an episode's room, and whether it is sure: else it is a text to be compared with others."""
    if episode.get("room") is not None:
        return orjson.dumps(episode["room"], option=orjson.OPT_SORT_KEYS).decode(), True
    first = next(lint.content_of(turn) for turn in messages_of(episode) if turn["role"] == "user")
    if lint.HOUSEHOLD in first:
        told = first.partition(lint.HOUSEHOLD)[2].partition("Your task is to:")[0]
        return " ".join(sorted(re.findall(r"[a-z]+ \d+", told))), True
    return first, False


def survey(rows: Iterable[Episode]) -> Survey:
    """Read all episodes once, and group them."""
    named: dict[str, int] = {}
    joined: list[tuple[int, int]] = []
    firsts, told = array("I"), list[int]()
    talks = array("I")
    tasks: list[str] = []
    turns: list[int] = []
    characters: list[int] = []
    for place, episode in enumerate(rows):
        name, sure = room(episode)
        key = files.sha256_of(name.encode("utf-8", "surrogatepass"))
        if key not in named and not sure:
            firsts.frombytes(near_duplicates.signature(name))
            told.append(place)
        joined.append((named.setdefault(key, place), place))
        said = lint.conversation(episode)
        talks.frombytes(near_duplicates.signature(said))
        tasks.append(str(episode.get("task", "")))
        turns.append(len(lint.answers(messages_of(episode))))
        characters.append(len(said))
    with progress.step("split: looking for near-duplicates"):
        joined += [(told[one], told[other]) for one, other, _ in near_duplicates.pairs(firsts)]
        joined += [(one, other) for one, other, _ in near_duplicates.pairs(talks)]
    return Survey(near_duplicates.groups(len(tasks), joined), tasks, turns, characters)


def assign(found: Survey, ratios: Mapping[str, float], seed: int) -> list[str]:
    """The part of each episode: whole groups, the largest first and else in the seed's order, each to where it lacks.

    A group goes to the part that lacks most of its kinds (see Survey.kinds), then to the one that lacks most in all.
    """
    kinds = found.kinds()
    members: dict[int, list[int]] = {}
    for place, group in enumerate(found.groups):
        members.setdefault(group, []).append(place)
    order = list(members.values())
    random.Random(seed).shuffle(order)
    order.sort(key=len, reverse=True)
    lacking = {(part, kind): share * n for part, share in ratios.items() for kind, n in Counter(kinds).items()}
    room_for = {part: share * len(kinds) for part, share in ratios.items()}
    parts = [""] * len(kinds)
    empty = set(ratios)
    for left, together in zip(range(len(order), 0, -1), order, strict=True):
        has = Counter(kinds[place] for place in together)
        # The last groups go to the parts that would else have none.
        scores = {
            part: (sum(n * lacking[part, kind] for kind, n in has.items()), room_for[part])
            for part in ratios
            if left > len(empty) or part in empty
        }
        best = max(scores, key=scores.__getitem__)
        empty.discard(best)
        for kind, n in has.items():
            lacking[best, kind] -= n
        room_for[best] -= len(together)
        for place in together:
            parts[place] = best
    return parts


def split_files(
    paths: Sequence[str], out: str, ratios: Mapping[str, float], seed: int, as_json: bool, force: bool = False
) -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl into the folder `out`, and print what was balanced.

    `ratios`: the share of each part, by name; a part of 0 is not written. The same files, ratios and seed give the same
    bytes. `force`: replace parts that are there. Raises BadInput for what is no episode, for a file that would be
    written over, and for too few groups.
    """
    ratios = {part: round(ratio, 9) for part, ratio in ratios.items()}
    if min(ratios.values()) < 0:
        raise BadInput("the shares of validation and test must be at least 0 and together at most 1")
    wanted = {part: ratio for part, ratio in ratios.items() if ratio > 0}
    named = {part: Path(out) / f"{part}.jsonl" for part in ratios}
    sources = [Path(each) for each in paths]
    if stale := [file for part, file in named.items() if part not in wanted and file.exists()]:
        raise BadInput(f"{stale[0]}: stands there from another split, and may share rooms with this one; remove it")
    for part in wanted:  # told at once, not after the reading
        files.check_output(named[part], force, sources)
    found = survey(episodes(sources, "split, reading"))
    count = len(set(found.groups))
    if count < len(wanted):
        raise BadInput(
            f"{paths[0]}: {len(found.groups)} episodes are {count} groups that must stay together: too few for "
            f"{len(wanted)} parts; give more rooms, or fewer parts"
        )
    parts = assign(found, wanted, seed)
    with contextlib.ExitStack() as stack:
        written = {}
        for part in wanted:
            beside = stack.enter_context(files.output(named[part], force, sources))
            written[part] = stack.enter_context(beside.open("wb"))
        for part, episode in zip(parts, episodes(sources, "split, writing", say=False), strict=True):
            written[part].write(orjson.dumps(episode, option=orjson.OPT_APPEND_NEWLINE))
    balance = balance_of(found, parts, wanted, seed, out)
    if as_json:
        print(orjson.dumps(balance).decode())
        return
    from rich.console import Console

    Console().print(table(balance))
    print(f"{out}: {', '.join(f'{part}.jsonl' for part in wanted)}; {count} groups, the largest {balance['largest']}")


def balance_of(found: Survey, parts: list[str], ratios: Mapping[str, float], seed: int, out: str) -> Balance:
    """What a split made: groups, the largest's size, and of each part its share, groups, tasks and mean lengths."""
    made: dict[str, Part] = {}
    for part, wanted in ratios.items():
        places = [place for place, each in enumerate(parts) if each == part]
        made[part] = {
            "episodes": len(places),
            "wanted": round(wanted, 6),
            "share": round(len(places) / len(parts), 4),
            "groups": len({found.groups[place] for place in places}),
            "tasks": dict(sorted(Counter(found.tasks[place] for place in places).items())),
            "mean_turns": round(sum(found.turns[place] for place in places) / len(places), 2),
            "mean_characters": round(sum(found.characters[place] for place in places) / len(places)),
        }
    sizes = Counter(found.groups)
    return {"seed": seed, "out": out, "groups": len(sizes), "largest": max(sizes.values()), "parts": made}


def table(balance: Balance) -> "Table":
    """What was balanced: a column for each part."""
    from rich.table import Table

    parts = balance["parts"]
    drawn = Table("", title=f"Split, seed {balance['seed']}", title_justify="left")
    for part in parts:
        drawn.add_column(part, justify="right", no_wrap=True)
    drawn.add_row("episodes", *(f"{each['episodes']}" for each in parts.values()), style="bold")
    drawn.add_row("share (wanted)", *(f"{each['share']:.1%} ({each['wanted']:.1%})" for each in parts.values()))
    drawn.add_row("groups", *(f"{each['groups']}" for each in parts.values()), end_section=True)
    for task in sorted({task for each in parts.values() for task in each["tasks"]}):
        cells = ((each["tasks"].get(task, 0), each["episodes"]) for each in parts.values())
        drawn.add_row(quote.cell(task or "(no task)"), *(f"{n} {n / total:6.1%}" for n, total in cells))
    drawn.add_section()
    drawn.add_row("mean answers", *(f"{each['mean_turns']:.1f}" for each in parts.values()))
    drawn.add_row("mean characters", *(f"{each['mean_characters']:.0f}" for each in parts.values()))
    return drawn
