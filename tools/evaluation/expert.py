"""The household's expert: what it would do first, to hold a model's first action against, and as a player."""

import random

from tools.core import trajectory
from tools.core.trajectory import Message
from tools.evaluation.backends import Chat, Reply
from tools.worlds.household.expert import Expert, Lost


def first_action(introduction: str) -> str | None:
    """The expert's first action in a room, by its first observation; None where it cannot read the task."""
    try:
        return Expert(introduction, random.Random(0)).act(introduction)[1]
    except (ValueError, KeyError, Lost):
        return None


def chat(slip: float = 0.0) -> Chat:
    """The expert as a backend, which remembers nothing; `slip`: how often, from 0 to 1, it errs and mends that."""

    def answer(messages: list[Message], seed: int) -> Reply:
        first, *later = [turn["content"] for turn in messages if turn["role"] == "user"]
        expert = Expert(first, random.Random(first), slip)
        thought, action = expert.act(first)
        for text in later:
            thought, action = expert.act(text.removeprefix(trajectory.observation("")))
        return Reply(f"Thought: {thought}\nAction: {action}", 0, 0.0)

    return answer
