"""Episodes of the household: the expert's games as conversations, and rooms that training never saw."""

import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from tools import BadInput, Failed
from tools.core import files, progress, run_folder
from tools.worlds.household import alfworld
from tools.worlds.household.expert import STYLES, SYSTEM, Expert, Lost, system
from tools.worlds.household.facts import facts
from tools.worlds.household.rooms import LARGE, held_out, make_room, make_room_for, places_of
from tools.worlds.household.world import Room, World

MOST_STEPS = 30
# Long games teach little that short ones do not, and cost most of all to train on.
TRAIN_STEPS = 12
# Each use draws its rooms from seeds of its own. "train" and "test" are the committed files; the others are played:
# unseen rooms, seen ones, and those where further training episodes are collected.
FIRST_SEED = {"train": 0, "test": 1_000_000, "play": 2_000_000, "seen": 3_000_000, "collect": 4_000_000}
TRAIN_EPISODES = 240
TEST_EPISODES = 48
SLIP = 0.2
# Rooms drawn for others than us; far from the seeds above, and so far apart that two seeds' rooms never meet.
FIRST_DRAWN = 1_000_000_000
SEEDS_APART = 1_000_000_000
MOST_MISSED = 2000


def episode(
    room: Room, slip: float, steps: int = MOST_STEPS, style: str = "full", prompt: str = SYSTEM
) -> dict[str, Any] | None:
    """The expert's game in a room as one conversation; None when it does not win within `steps` actions.

    Raises ValueError when the task is put in words that the expert does not know.
    """
    world = World(room)
    observation = room.introduction
    expert = Expert(observation, random.Random(room.seed), slip, style)
    messages = [{"role": "system", "content": prompt}, {"role": "user", "content": observation}]
    for _ in range(steps):
        try:
            thought, action = expert.act(observation)
        except Lost:
            return None
        messages.append({"role": "assistant", "content": f"Thought: {thought}\nAction: {action}"})
        observation = world.step(action)
        if world.won:
            return {"id": room.name or f"household-{room.seed}", "task": room.task, "messages": messages}
        messages.append({"role": "user", "content": f"Observation: {observation}"})
    return None


def anywhere(_: Room) -> bool:
    """Allows all rooms."""
    return True


def rooms(
    use: str,
    count: int,
    known: Iterable[str] = (),
    steps: int = MOST_STEPS,
    allowed: Callable[[Room], bool] = anywhere,
) -> Iterator[Room]:
    """`count` allowed rooms for a use that the expert wins in `steps`, none with a known introduction."""
    told = set(known)
    seed = FIRST_SEED[use]
    while count:
        room = make_room(seed)
        seed += 1
        if room.introduction not in told and allowed(room) and episode(room, slip=0, steps=steps):
            told.add(room.introduction)
            count -= 1
            yield room


def train_episodes() -> Iterator[dict[str, Any]]:
    """The committed training set."""
    for room in rooms("train", TRAIN_EPISODES, steps=TRAIN_STEPS):
        yield episode(room, SLIP) or episode(room, slip=0) or {}


def introductions(episodes: Iterable[dict[str, Any]]) -> set[str]:
    """The first observations of episodes: what tells two layouts apart."""
    return {each["messages"][1]["content"] for each in episodes}


@cache
def taught() -> frozenset[frozenset[str]]:
    """The sets of receptacles of the committed training episodes."""
    drawn = rooms("train", TRAIN_EPISODES, steps=TRAIN_STEPS)
    return frozenset(frozenset(room.receptacles) for room in drawn)


def is_unseen(room: Room) -> bool:
    """Whether no training episode, committed or made later, is in a room with the same set of receptacles."""
    return held_out(room.receptacles) and frozenset(room.receptacles) not in taught()


def may_teach(room: Room) -> bool:
    """Whether training episodes may be made in rooms with this set of receptacles."""
    return not held_out(room.receptacles)


def test_episodes() -> Iterator[dict[str, Any]]:
    """The committed test set: in rooms with other sets of receptacles than any training episode's."""
    for room in rooms("test", TEST_EPISODES, allowed=is_unseen):
        yield episode(room, slip=0) or {}


def write_committed(force: bool = False) -> None:
    """Write data/train.jsonl and data/test.jsonl, and say so; files that are the same are left alone.

    Raises BadInput for one that was changed, unless `force`.
    """
    for name, made in (("train", train_episodes()), ("test", test_episodes())):
        lines = [orjson.dumps(each) + b"\n" for each in made]
        path = run_folder.ROOT / "data" / f"{name}.jsonl"
        if not path.is_file() or files.sha256(path) != files.sha256_of(b"".join(lines)):
            with files.output(path, force) as beside:
                beside.write_bytes(b"".join(lines))
        print(f"data/{name}.jsonl: {len(lines)} episodes")


def demo_episodes(like_shipped: int, of_all_tasks: int) -> Iterator[dict[str, Any]]:
    """Episodes for a long training: in rooms like the committed set's, then of all tasks in all kinds of room.

    None is in a room with a set of receptacles that is kept for evaluation.
    """
    for room in rooms("train", like_shipped, allowed=may_teach):
        yield episode(room, SLIP) or episode(room, slip=0) or {}
    asked = list(facts().tasks)
    drawn = drawn_rooms(0, asked, list(facts().rooms))
    games = played(drawn, SLIP, "full", MOST_STEPS, system(asked))
    yield from itertools.islice(filter(None, games), of_all_tasks)


def unseen_rooms(count: int) -> Iterator[Room]:
    """Rooms to play, with sets of receptacles that no training episode has."""
    yield from rooms("play", count, introductions(test_episodes()), allowed=is_unseen)


def turns(tasks: Sequence[str], rooms: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Tasks and the rooms where they are set, by turns, without end.

    Raises BadInput when ALFRED sets none of the tasks in any of the rooms.
    """
    places = {task: [each for each in places_of(task) if each in rooms] for task in tasks}
    asked = [task for task in tasks if places[task]]
    if not asked:
        raise BadInput(f"{', '.join(tasks)}: set in none of {', '.join(rooms)}; see catalog/household.yaml")
    return ((task, places[task][turn % len(places[task])]) for turn in itertools.count() for task in asked)


def drawn_rooms(seed: int, tasks: Sequence[str], rooms: Sequence[str]) -> Iterator[Room]:
    """Rooms to train in, without end, tasks and rooms by turns; another seed has none of the same rooms.

    Raises BadInput when ALFRED sets none of the tasks in any of the rooms.
    """
    first = FIRST_DRAWN + seed * SEEDS_APART
    drawn = enumerate(turns(tasks, rooms), first)
    return (make_room_for(number, task, place) for number, (task, place) in drawn)


def played(rooms: Iterable[Room], slip: float, style: str, steps: int, prompt: str) -> Iterator[dict[str, Any] | None]:
    """For each room the expert's game, or None where there is none: lost, put in other words, or a room met before."""
    met: set[int] = set()
    for room in rooms:
        told = hash((room.introduction, *room.receptacles.items()))
        try:
            game = None if told in met else episode(room, slip, steps, style, prompt)
        except ValueError:
            game = None
        met.add(told)
        yield game


def make(
    out: str,
    count: int,
    seed: int = 0,
    tasks: str = "all",
    rooms: str = "all",
    style: str = "full",
    slip: float = 0.0,
    steps: int = MOST_STEPS,
    games: str = "",
    force: bool = False,
) -> dict[str, int]:
    """Write at most `count` of the expert's episodes to a JSONL file; how many were written and left out.

    `tasks` and `rooms`: names with commas between, or "all"; `rooms` may also be "large" kitchens. `games`: a folder
    of ALFWorld's own, in place of drawn rooms. `force`: replace a file that is there. Left out are games that the
    expert loses, cannot read the task of, or has met before. Raises BadInput.
    """
    if style not in STYLES:
        raise BadInput(f"{style}: the expert's styles are {', '.join(STYLES)}")
    files.check_output(out, force)
    asked = chosen("tasks", tasks, facts().tasks)
    if games:
        own: Iterable[Room] = (room for room in alfworld.games(alfworld.folder(games)) if room.task in asked)
    else:
        places = list(facts().rooms) if rooms == "all" else chosen("rooms", rooms, [*facts().rooms, LARGE])
        own = drawn_rooms(seed, asked, places)
    with files.output(out, force) as beside:
        return write(beside, own, asked, count, slip, style, steps)


def chosen(what: str, names: str, known: Collection[str]) -> list[str]:
    """The names that a comma separates, or all known; raises BadInput for one that is not known."""
    asked = list(known) if names == "all" else names.split(",")
    for each in asked:
        if each not in known:
            raise BadInput(f"{each}: not among the household's {what}: {', '.join(known)}")
    return asked


def write(
    out: Path, rooms: Iterable[Room], tasks: Sequence[str], count: int, slip: float, style: str, steps: int
) -> dict[str, int]:
    """Write at most `count` episodes; how many were written and left out.

    `tasks`: what the rooms may ask for; the system prompt names the actions that they need. Raises Failed when the
    expert wins none of many rooms in a row.
    """
    counts, missed = {"episodes": 0, "left out": 0}, 0
    with out.open("wb") as file, progress.bar("the expert plays", count, "episodes") as shown:
        for game in played(rooms, slip, style, steps, system(tasks)):
            counts["episodes" if game else "left out"] += 1
            missed = 0 if game else missed + 1
            if game:
                file.write(orjson.dumps(game) + b"\n")
                shown.advance()
            if counts["episodes"] == count:
                break
            if missed == MOST_MISSED:
                raise Failed(f"{missed} rooms in a row without an episode: more steps than {steps} are needed")
    return counts
