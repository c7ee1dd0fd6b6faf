"""ALFWorld's games as a world to play: by its own engine where it is installed, else by our rules.

The tests hold the two to the same words, move by move, on games that ALFWorld's own generator makes.
"""

import importlib.util
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from tools import BadInput
from tools.worlds.household import alfworld
from tools.worlds.household.expert import system
from tools.worlds.household.facts import facts
from tools.worlds.household.world import NOTHING
from tools.worlds.household.world import World as Rules
from tools.worlds.world import Task

SPLITS = {"train": "train", "seen": "valid_seen", "unseen": "valid_unseen"}
WELCOME = "-= Welcome to TextWorld, ALFRED! =-\n\n"
# Fast Downward's translator, which reads a game, keeps what it does in global variables.
ENGINE = threading.Lock()


def engine() -> str:
    """The engine that plays: ALFWorld's own with its version, or "" where it is not installed."""
    there = all(importlib.util.find_spec(name) for name in ("alfworld", "textworld", "fast_downward"))
    return f"ALFWorld {version('alfworld')}" if there else ""


def played_by() -> str:
    """What plays the games, for a table."""
    return f"{own}'s own engine" if (own := engine()) else "our rules, which the tests hold to ALFWorld 0.4.2's engine"


def why_no_row(split: str, games: int, steps: int) -> str | None:
    """Why a result is no row in the tables of the literature; None when it is one.

    Those play all games of valid_seen or valid_unseen, each for at most 50 steps.
    """
    known = facts().alfworld
    name = SPLITS.get(split, split)
    if name not in ("valid_seen", "valid_unseen"):
        return f"{name} is neither valid_seen nor valid_unseen"
    if games != known.games[name]:
        return f"{games} games were played, not all {known.games[name]} of {name}"
    if steps != known.steps:
        return f"a game had {steps} steps, not {known.steps}"
    return None


def folder(split: str) -> Path:
    """The folder of a split's games. Raises BadInput when it is not there."""
    return alfworld.folder(SPLITS.get(split, split))


class AlfWorld:
    """ALFWorld's games, one at a time.

    A split is train, seen or unseen, ALFWorld's own name of one (valid_unseen), found in the json_2.1.1 of
    ALFWORLD_DATA, or a folder of games. A task's id is the split's folder and the game's: the same on every machine.
    """

    nothing = NOTHING

    def __init__(self) -> None:
        self.system_prompt = system(facts().tasks)
        self.game: _OwnEngine | _OurRules = _OwnEngine() if engine() else _OurRules()

    def tasks(self, split: str) -> Iterator[Task]:
        """All games of a split that ALFWorld plays, by path. Raises BadInput for a missing folder, a broken game."""
        name = SPLITS.get(split, split)
        for room in alfworld.games(folder(name)):
            yield Task(f"{name}/{room.name}", room.task, room.goal)

    def reset(self, task: Task) -> str:
        """Start a game; the room and the task, without TextWorld's line of welcome."""
        name, *game = task.id.rsplit("/", 2)
        if len(game) != 2:
            raise BadInput(f"{task.id}: not a game of ALFWorld: SPLIT/TASK/TRIAL")
        return self.game.reset(folder(name).joinpath(*game)).removeprefix(WELCOME)

    def step(self, action: str) -> str:
        """Do an action; the observation, `nothing` for what cannot be done."""
        return self.game.step(action)

    @property
    def won(self) -> bool:
        """Whether the game's goal is reached."""
        return self.game.won

    @property
    def done(self) -> bool:
        """A game has no end but that its goal is reached."""
        return self.game.won


class _OurRules:
    """A game by tools/worlds/household/world.py."""

    def reset(self, folder: Path) -> str:
        room = alfworld.game(folder)
        if room is None:
            raise BadInput(f"{folder}: a game that ALFWorld does not play")
        self.rules = Rules(room)
        return room.introduction

    def step(self, action: str) -> str:
        return self.rules.step(action)

    @property
    def won(self) -> bool:
        return self.rules.won


class _OwnEngine:
    """A game by TextWorld, in the words that ALFWorld's wrapper gives its things."""

    def __init__(self) -> None:
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs import PddlEnv

        self.env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True)), shuffle=False)

    def reset(self, folder: Path) -> str:
        with ENGINE:
            self.env.load(str(folder / "game.tw-pddl"))
            state = self.env.reset()
        self.won = bool(state.won)
        return state.feedback

    def step(self, action: str) -> str:
        with ENGINE:
            state, _, _ = self.env.step(action)
        self.won = bool(state.won)
        return state.feedback
