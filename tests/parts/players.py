"""Players that need no model: the household's expert, and one that says the same over and over."""

import threading
from itertools import islice

from tools.evaluation import expert as its_expert
from tools.evaluation.backends import Chat, Reply
from tools.evaluation.play import Game, Log, Rules, play_game, play_games
from tools.worlds.household.environment import Household
from tools.worlds.world import Task

TASKS = list(islice(Household().tasks("unseen"), 8))


def expert(wins: bool = True) -> Chat:
    """The household's expert as a backend. It says nothing of use after its first answer unless it `wins`."""
    right = its_expert.chat()

    def chat(messages: list[dict[str, str]], seed: int) -> Reply:
        if len(messages) > 2 and not wins:
            return Reply("I do not know.", 4, 0.5)
        return right(messages, seed)._replace(tokens=20, seconds=0.5)

    return chat


def script(*answers: str, ended: str = "stop") -> Chat:
    """A backend that gives these answers over and over."""
    return lambda messages, seed: Reply(answers[(len(messages) // 2 - 1) % len(answers)], 1, 0.0, ended)


def played(chat: Chat, task: Task = TASKS[0], rules: Rules = Rules()) -> Game:  # noqa: B008
    """One game in the household."""
    return play_game(chat, Household(), task, rules)


def all_played(chat: Chat, log: Log | None = None, repeat: int = 1) -> list[Game]:
    """All games of TASKS in the household."""
    return play_games(chat, Household, TASKS, repeat=repeat, log=log)


def counted(chat: Chat) -> tuple[Chat, list[int]]:
    """A chat, and a list that gets an entry with each answer."""
    lock, asked = threading.Lock(), list[int]()

    def counting(messages: list[dict[str, str]], seed: int) -> Reply:
        with lock:
            asked.append(len(messages))
        return chat(messages, seed)

    return counting, asked
