"""What a recipe makes of games that the model is to play itself: who plays them, their rooms, lengths, updates."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools import BadInput
from tools.core import progress
from tools.core.finding import Finding
from tools.core.trajectory import Episode
from tools.gguf import base
from tools.recipes import plan
from tools.recipes.recipe import Recipe
from tools.training.recipe_checks import few_updates
from tools.worlds import episode_task
from tools.worlds.guard import WorldFailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What plays our worlds, what rewards a game, and what gives Axolotl their tasks (evaluation/rollout.py).
PLAYER, REWARD = "tools.evaluation.rollout.play", "tools.evaluation.rollout.won"
READER = "tools.evaluation.rollout.RoomsPlugin"


def ours(recipe: Recipe) -> bool:
    """Whether the games of a recipe with `rl: grpo` are played in our worlds, which alone reward them."""
    trl = recipe.settings.get("trl") or {}
    plays = trl.get("rollout_func") == PLAYER and trl.get("reward_funcs") == [REWARD]
    return plays and READER in (recipe.settings.get("plugins") or ())


def check_rooms(path: Path, episodes: Sequence[Episode]) -> None:
    """Raise BadInput, with file:line, for an episode whose task cannot be played again, or whose world fails."""
    with progress.step("check: starting each game"):
        for number, episode in enumerate(episodes, 1):
            try:
                why = episode_task.fault(episode)
            except (BadInput, WorldFailed) as error:
                raise BadInput(f"{path}:{number}: {error}") from error
            if why:
                raise BadInput(
                    f"{path}:{number}: {why}; rl: grpo plays the rooms of data/ and of what make collect wrote"
                )


def lengths(tokenizer: "PreTrainedTokenizerBase", episodes: Sequence[Episode]) -> list[int]:
    """Tokens of each episode, in the tokenizer's chat template."""
    return [base.tokens(tokenizer, episode["messages"]) for episode in episodes]


def too_long(recipe: Recipe, lengths: Sequence[int], length: int) -> Iterator[Finding]:
    """Rooms whose game, as the data have it, is longer than a game may be. `lengths`: tokens of each episode."""
    long = [number for number, each in enumerate(lengths, 1) if each > length]
    if long:
        what = f"{len(long) / len(lengths):.0%} of the episodes are longer than sequence_len, {length}: "
        what += "a game as long as those is lost"
        fix = f"sequence_len: {max(lengths)}"
        yield Finding("warning", what, f"{recipe.dataset['path']}:{long[0]}", fix)


def updates(recipe: Recipe, rooms: int) -> Iterator[Finding]:
    """A run with too few updates, for so many rooms."""
    s = plan.from_recipe(recipe.settings, recipe.tier)
    each = rooms * s.group // (s.micro_batch * s.accumulation)
    total = each * float(recipe.settings.get("num_epochs") or 1)
    yield from few_updates(recipe, total, f"{rooms} rooms", "more rooms: make collect TEACHER=expert")
