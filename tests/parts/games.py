"""Evaluations of players that need no model."""

from collections.abc import Sequence

from tests.parts.players import TASKS
from tools.evaluation import expert, play, scores
from tools.evaluation.backends import Chat
from tools.worlds.household.environment import Household
from tools.worlds.world import Task


def evaluation(player: str, quant: str, chat: Chat, tasks: Sequence[Task] = TASKS) -> scores.Evaluation:
    """What eval-*.json holds of a player in the household."""
    games = play.play_games(chat, Household, tasks)
    return {
        "player": player,
        "model": "smollm2-135m-lora",
        "quant": quant,
        "backend": "ollama",
        "prompt": "trained",
        "shots": 0,
        "parse": "strict",
        "temperature": 0.0,
        "repeat": 1,
        "world": "household",
        "split": "unseen",
        "tasks_sha256": f"{len(tasks)} tasks",
        "weights_sha256": "0",
        "date": "2026-01-01T00:00:00Z",
        "summary": scores.summary(games, expert.first_action),
        "classic": {"prompt": "You are in a room.", "answer": "Action: look"},
        "games": [play.as_json(game) for game in games],
    }
