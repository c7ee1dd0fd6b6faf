"""Episodes of the household: the expert's games as conversations, and rooms that training never saw."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from tools.household.expert import SYSTEM, Expert
from tools.household.world import Room, World, make_room

MOST_STEPS = 30
# Long games teach little that short ones do not, and cost most of all to train on.
TRAIN_STEPS = 12
# Each use draws its rooms from seeds of its own.
FIRST_SEED = {"train": 0, "test": 1_000_000, "play": 2_000_000}
TRAIN_EPISODES = 240
TEST_EPISODES = 48
SLIP = 0.2


def episode(room: Room, slip: float, steps: int = MOST_STEPS) -> dict[str, Any] | None:
    """The expert's game in a room as one conversation; None when it does not win within `steps` actions."""
    world = World(room)
    expert = Expert(room.introduction, random.Random(room.seed), slip)
    observation = room.introduction
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": observation}]
    for _ in range(steps):
        thought, action = expert.act(observation)
        messages.append({"role": "assistant", "content": f"Thought: {thought}\nAction: {action}"})
        observation = world.step(action)
        if world.won:
            return {"id": f"household-{room.seed}", "task": room.task, "messages": messages}
        messages.append({"role": "user", "content": f"Observation: {observation}"})
    return None


def rooms(use: str, count: int, known: Iterable[str] = (), steps: int = MOST_STEPS) -> Iterator[Room]:
    """`count` rooms for "train", "test" or "play" that the expert wins in `steps`, none with a known introduction."""
    told = set(known)
    seed = FIRST_SEED[use]
    while count:
        room = make_room(seed)
        seed += 1
        if room.introduction not in told and episode(room, slip=0, steps=steps):
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


def test_episodes() -> Iterator[dict[str, Any]]:
    """The committed test set: other seeds and other layouts than the training set's."""
    for room in rooms("test", TEST_EPISODES, introductions(train_episodes())):
        yield episode(room, slip=0) or {}


def unseen_rooms(count: int) -> Iterator[Room]:
    """Rooms to play whose layouts are in neither committed set."""
    known = introductions(train_episodes()) | introductions(test_episodes())
    yield from rooms("play", count, known)
