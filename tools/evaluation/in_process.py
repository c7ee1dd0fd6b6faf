"""transformers as a backend, in this process: a base, a base with its adapter, or a whole model; games that wait for an
answer at the same time get theirs from one batch."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tools import Failed
from tools.core.trajectory import Message
from tools.evaluation.backends import Chat, Reply, Sampling

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Seconds that the first of a batch waits for others.
GATHER = 0.02


class Asked(NamedTuple):
    """A conversation that waits for its answer. `seed`: of what is drawn; `told`: takes the answer, or the error."""

    ids: list[int]
    seed: int
    told: "queue.SimpleQueue[Reply | Exception]"


@contextlib.contextmanager
def transformers_chat(
    folder: Path,
    adapter: Path | None,
    tokenizer: "PreTrainedTokenizerBase",
    ends: Sequence[str],
    sampling: Sampling = Sampling(),  # noqa: B008
    most: int = 8,
) -> Iterator[Chat]:
    """A chat with the weights of a folder, and of an adapter beside them, on a GPU if there is one.

    `ends`: texts of the tokens that end an answer. `most`: conversations in a batch. On a CPU it computes in float32.
    Raises Failed where transformers cannot read the model.
    """
    import torch

    from tools.parity import training_model

    model = training_model.load(folder, adapter)
    gpu = torch.cuda.is_available()
    model = model.to("cuda") if gpu else model.float()  # type: ignore[arg-type]
    known = tokenizer.get_vocab()
    stop = sorted({known[text] for text in ends if text in known} | {int(tokenizer.eos_token_id or 0)})
    longest = getattr(model.config, "max_position_embeddings", 0) or 0
    with model_chat(model, tokenizer, stop, sampling, most, longest) as chat:
        yield chat


@contextlib.contextmanager
def model_chat(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    stop: list[int],
    sampling: Sampling,
    most: int,
    longest: int,
) -> Iterator[Chat]:
    """A chat with a model that is loaded. `stop`: the tokens that end an answer. `most`: conversations in a batch.

    `longest`: tokens that a conversation and its answer may have together, 0 for any number.
    """
    asked: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()

    def serve() -> None:
        while batch := gathered(asked, most):
            try:
                replies = answers(model, batch, stop, tokenizer, sampling)
                for each, reply in zip(batch, replies, strict=True):
                    each.told.put(reply)
            except Exception as error:  # out of memory, say: each game is told
                for each in batch:
                    each.told.put(error)

    def chat(messages: list[Message], seed: int) -> Reply:
        ids = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        if longest and len(ids) + sampling.tokens > longest:
            return Reply("", 0, 0.0, "context")
        told: queue.SimpleQueue[Reply | Exception] = queue.SimpleQueue()
        asked.put(Asked(ids, seed, told))
        got = told.get()
        if isinstance(got, Exception):
            raise Failed(f"{model.name_or_path}: transformers: {' '.join(str(got).split())[:300]}") from got
        return got

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield chat
    finally:
        asked.put(None)


def gathered(asked: "queue.SimpleQueue[Asked | None]", most: int) -> list[Asked]:
    """The next batch: the first that waits and who joins it within GATHER, `most` in all; empty at the end."""
    first = asked.get()
    if first is None:
        return []
    batch, until = [first], time.monotonic() + GATHER
    while len(batch) < most:
        try:
            another = asked.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        if another is None:
            asked.put(None)
            break
        batch.append(another)
    return batch


def answers(
    model: "PreTrainedModel",
    batch: Sequence[Asked],
    stop: list[int],
    tokenizer: "PreTrainedTokenizerBase",
    sampling: Sampling,
) -> list[Reply]:
    """The answers to a batch of conversations, which are filled up on the left to one length.

    At a temperature each is drawn by its own seed, whoever is beside it: the largest of logits / temperature plus
    Gumbel noise is a draw from their softmax (E. J. Gumbel, 1954, Statistical theory of extreme values).
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    start = time.monotonic()
    longest = max(len(each.ids) for each in batch)
    rows = [[stop[0]] * (longest - len(each.ids)) + each.ids for each in batch]
    masks = [[0] * (longest - len(each.ids)) + [1] * len(each.ids) for each in batch]
    draws = [torch.Generator().manual_seed(each.seed) for each in batch]

    def noisy(_: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=each) for each in draws]).clamp(1e-20, 1 - 1e-7)
        return scores.float() / sampling.temperature - (-uniform.log()).log().to(scores.device)

    config = GenerationConfig(
        max_new_tokens=sampling.tokens,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=stop,
        pad_token_id=stop[0],
    )
    with torch.inference_mode():
        made = model.generate(  # type: ignore[operator]
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(masks, device=model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([noisy] if sampling.temperature else []),
        )
    seconds, replies = time.monotonic() - start, []
    for each, row in zip(batch, made[:, longest:].tolist(), strict=True):
        length = next((place for place, token in enumerate(row) if token in stop), None)
        text = tokenizer.decode(row[:length], skip_special_tokens=True)
        tokens = len(row) if length is None else length + 1
        ended = "length" if length is None else "stop"
        replies.append(Reply(str(text), tokens, seconds, ended, 0, each.ids, row[:tokens]))
    return replies
