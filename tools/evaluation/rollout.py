"""Whole games that a model in training plays itself: what a recipe with `rl: grpo` names to Axolotl 0.19.

`play` is its rollout_func, `won` the reward, RoomsPlugin reads the tasks. TRL's `environment_factory` does not fit: it
offers the methods of an environment as tools, which a model calls in JSON; ours acts by a line of text.

Each answer is asked for as in serving: by the chat template of the conversation so far, read anew. The tokens of a game
are those of the template over all of it. Only tokens that the model drew carry gradient. Where the text of an answer is
split into other tokens when it is read again, only those before that carry any: the model never drew the others.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

from axolotl.common.datasets import TrainDatasetMeta
from axolotl.integrations.base import BasePlugin
from datasets import Dataset

from tools import Failed
from tools.core import trajectory
from tools.core.trajectory import Message
from tools.evaluation.backends import ANSWER_TOKENS, Chat, Reply, Sampling
from tools.evaluation.in_process import model_chat
from tools.evaluation.play import FAILED, End, Game, Rules, play_game, tell_failures
from tools.worlds.episode_task import Named, task_of, world_of

if TYPE_CHECKING:
    from axolotl.utils.dict import DictDefault
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOConfig, GRPOTrainer


class RoomsPlugin(BasePlugin):
    """Gives Axolotl the tasks of the episodes that a recipe names; their answers are not used."""

    def load_datasets(self, cfg: "DictDefault", preprocess: bool = False) -> TrainDatasetMeta:
        """The tasks, each a `prompt` for `play`; and a game may have as many tokens as the recipe's sequence."""
        cfg.trl.max_completion_length = cfg.sequence_len
        episodes = chain.from_iterable(trajectory.read(Path(each["path"])) for each in cfg.datasets)
        return TrainDatasetMeta(Dataset.from_list([{"prompt": task_of(each)._asdict()} for each in episodes]))


class Tokens(NamedTuple):
    """A game as token ids: the first prompt, all that follows, and 1 for each of these that the model drew, else 0."""

    prompt: list[int]
    completion: list[int]
    own: list[int]


class Rollouts(TypedDict):
    """What TRL takes of games, a list of one entry each; `ends`: how each ended, which `won` reads.

    `logprobs`: None; TRL reckons with the log-probabilities of its own forward pass.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    logprobs: None
    env_mask: list[list[int]]
    ends: list[End]


def play(prompts: Sequence[Mapping[str, str]], trainer: "GRPOTrainer") -> Rollouts:
    """Play each of the tasks once, side by side, with the trainer's model at its temperature.

    The seed of an answer depends on the task, the step of training, the game's place and its turn. Raises Failed where
    the world failed in every game, or no token of any game can be trained.
    """
    model = cast("PreTrainedModel", trainer.accelerator.unwrap_model(trainer.model))
    tokenizer = cast("PreTrainedTokenizerBase", trainer.processing_class)
    ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    stop = sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
    args = cast("GRPOConfig", trainer.args)
    sampling, longest = Sampling(args.temperature, ANSWER_TOKENS), args.max_completion_length or 0
    tasks = [Named(**prompt) for prompt in prompts]
    first = trainer.state.global_step * len(tasks)
    model.eval()  # layers are not recomputed, so keys and values are kept
    try:
        with (
            model_chat(model, tokenizer, stop, sampling, len(tasks), longest) as chat,
            ThreadPoolExecutor(len(tasks)) as pool,
        ):
            played = list(pool.map(partial(play_one, chat), tasks, count(first)))
    finally:
        model.train()
    tell_failures([game for game, _ in played])
    told = [tokens(tokenizer, game.transcript, replies) for game, replies in played]
    if not any(map(any, (each.own for each in told))):
        raise Failed(
            "no token of these games can be trained: the chat template tells a conversation otherwise later on"
        )
    return {
        "prompt_ids": [each.prompt for each in told],
        "completion_ids": [each.completion for each in told],
        "logprobs": None,
        "env_mask": [each.own for each in told],
        "ends": [game.end for game, _ in played],
    }


def play_one(chat: Chat, named: Named, attempt: int) -> tuple[Game, list[Reply]]:
    """A game, by the rules of an evaluation, and the model's answers in it."""
    loaded, replies = world_of(named.world), list[Reply]()

    def ask(messages: list[Message], seed: int) -> Reply:
        reply = chat(messages, seed)
        if reply.ended != "context":
            replies.append(reply)
        return reply

    return play_game(ask, loaded.make(), named.task, Rules(steps=loaded.steps), attempt), replies


def tokens(tokenizer: "PreTrainedTokenizerBase", transcript: Sequence[Message], replies: Sequence[Reply]) -> Tokens:
    """The tokens of a game up to the last that the model drew: those after it change nothing.

    Where there is no such token, one that is not trained stands for the game, since TRL takes no empty one.
    """
    whole = list(tokenizer.apply_chat_template(list(transcript), return_dict=False)) if replies else []
    drawn = set[int]()
    for reply in replies:
        start = len(reply.read)
        if whole[:start] == list(reply.read):
            same = zip(whole[start:], reply.written, strict=False)
            drawn |= {start + place for place in range(leading(same))}
    begin = len(replies[0].read) if replies else 0
    if not drawn:
        end = int(tokenizer.eos_token_id or 0)
        return Tokens(whole[:begin] or [end], [end], [0])
    last = max(drawn) + 1
    return Tokens(whole[:begin], whole[begin:last], [int(place in drawn) for place in range(begin, last)])


def leading(pairs: "zip[tuple[int, int]]") -> int:
    """How many pairs of equal tokens there are before the first of two different ones."""
    number = 0
    for one, other in pairs:
        if one != other:
            break
        number += 1
    return number


def won(
    prompts: Sequence[object], completions: Sequence[object], ends: Sequence[End], **_: object
) -> list[float | None]:
    """The reward: 1 for a game that was won, 0 for one that was lost, None for one that the world failed."""
    return [None if end in FAILED else float(end == "won") for end in ends]
