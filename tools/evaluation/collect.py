"""The next training set, out of games: those that were won become episodes, and lost ones preference pairs."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from tools import Failed
from tools.core import trajectory
from tools.core.trajectory import Message
from tools.evaluation.backends import Chat, Reply
from tools.evaluation.play import FAILED, Game
from tools.worlds.world import World


class Trained(TypedDict, total=False):
    """A message of an episode; `train` false: nothing is learnt from it."""

    role: str
    content: str
    train: bool


class Won(TypedDict):
    """An episode of training; `provenance`: who played it, and where."""

    id: str
    task: str
    messages: list[Trained]
    provenance: dict[str, object]


class Pair(TypedDict):
    """What was said before two games of one task part, how the won one goes on, and how the lost one does."""

    id: str
    task: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    provenance: dict[str, object]


class OverBudget(Failed):
    """The tokens that were used cost as much as they may."""


@dataclass
class Meter:
    """Tokens that a teacher has read and generated, and their price: dollars for a million of each; None: unknown.

    `budget`: dollars after which no more is asked for; 0 for no limit.
    """

    price: tuple[float, float] | None = None
    budget: float = 0.0
    read: int = 0
    generated: int = 0

    @property
    def cost(self) -> float | None:
        """Dollars so far; None where there is no price."""
        return self.price and (self.price[0] * self.read + self.price[1] * self.generated) / 1e6

    def metered(self, chat: Chat) -> Chat:
        """The same chat, counted; it raises OverBudget instead of asking for what the budget does not allow."""
        lock = threading.Lock()

        def counting(messages: list[Message], seed: int) -> Reply:
            if self.budget and self.cost is not None and self.cost >= self.budget:
                raise OverBudget(f"the budget of {self.budget:g} dollars is used up")
            reply = chat(messages, seed)
            with lock:
                self.read += reply.prompt_tokens
                self.generated += reply.tokens
            return reply

        return counting


def episodes(games: Iterable[Game], world: World, provenance: Mapping[str, object]) -> list[Won]:
    """The won games as episodes, two that are alike as one.

    They have the world's own system prompt, whatever the teacher was told beside it. An answer that did nothing stays,
    so that what follows makes sense, and is not trained. A game with an answer in which no action is read in the form
    of training is left out. The provenance also names the task, by which it can be played again.
    """
    found: dict[tuple[str, ...], Won] = {}
    for game in games:
        if not game.won or game.strict < game.steps:
            continue
        messages: list[Trained] = [{"role": "system", "content": world.system_prompt}]
        for place, turn in enumerate(game.transcript[1:], 1):
            after = game.transcript[place + 1 : place + 2]
            useless = bool(world.nothing) and after and after[0]["content"] == trajectory.observation(world.nothing)
            said: Trained = {"role": turn["role"], "content": turn["content"]}
            messages.append(said | {"train": False} if useless and turn["role"] == "assistant" else said)
        key = (game.id, *(turn["content"] for turn in messages))
        made = {**provenance, "task": game.id, "goal": game.goal}
        won: Won = {"id": name(game), "task": game.task, "messages": messages, "provenance": made}
        found.setdefault(key, won)
    return list(found.values())


def pairs(games: Iterable[Game], world: World, provenance: Mapping[str, object]) -> list[Pair]:
    """A pair of each lost game that has a won twin on the same task, at the first answer with another action.

    Of several won twins it is the one that it goes with the longest. Two pairs that are alike are one.
    """
    by_task: dict[str, list[Game]] = defaultdict(list)
    for game in games:
        if game.end not in FAILED:
            by_task[game.id].append(game)
    found: dict[tuple[str, ...], Pair] = {}
    for played in by_task.values():
        wins = [game for game in played if game.won and game.strict == game.steps]
        for lost in (game for game in played if not game.won):
            places = {place: won for won in reversed(wins) if (place := parting(won.transcript, lost.transcript))}
            if not places:
                continue
            place, won = max(places), places[max(places)]
            system: Message = {"role": "system", "content": world.system_prompt}
            prompt = [system, *won.transcript[1:place]]
            chosen, rejected = ([{**game.transcript[place]}] for game in (won, lost))
            key = (*(turn["content"] for turn in [*prompt, *chosen, *rejected]),)
            found.setdefault(
                key,
                {
                    "id": f"{name(won)}-{lost.attempt}",
                    "task": won.task,
                    "prompt": prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                    "provenance": dict(provenance),
                },
            )
    return list(found.values())


def name(game: Game) -> str:
    """What a game is called among all attempts at all tasks."""
    return f"{game.id}-{game.attempt}"


def parting(won: Sequence[Message], lost: Sequence[Message]) -> int:
    """The place of the first answers that differ in their action; 0 where there are none, or the world differs before.

    Until then the two may have thought other thoughts: they have seen the same.
    """
    for place, (mine, theirs) in enumerate(zip(won[1:], lost[1:], strict=False), 1):
        if mine["role"] == "user":
            if mine["content"] != theirs["content"]:
                return 0
        elif trajectory.action(mine["content"]) != trajectory.action(theirs["content"]):
            return place
    return 0
