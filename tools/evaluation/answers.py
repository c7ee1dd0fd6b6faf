"""How near a model's answers are to those of held-out episodes, each asked for after the true turns before it."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from tools import BadInput
from tools.core import progress, trajectory
from tools.core.trajectory import Episode, Message
from tools.evaluation.backends import Chat

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Turn(NamedTuple):
    """An answer of an episode, and all messages before it."""

    before: list[Message]
    wanted: str


class Score(TypedDict):
    """Figures of so many `turns`, in percent: turns whose action is the episode's, BLEU-4 and ROUGE (F1)."""

    turns: int
    action: float
    bleu4: float
    rouge1: float
    rouge2: float
    rougeL: float


class Perplexity(TypedDict):
    """exp of the mean loss of the answers' tokens, so many of them, by the weights in transformers in float32."""

    perplexity: float
    tokens: int


def turns(episodes: Iterable[Episode]) -> list[Turn]:
    """All answers of episodes that are trained. Raises BadInput where there are none."""
    found = []
    for episode in episodes:
        messages = [{"role": each["role"], "content": each["content"]} for each in episode["messages"]]
        for place, each in enumerate(episode["messages"]):
            if trajectory.trained(each):
                found.append(Turn(messages[:place], messages[place]["content"]))
    if not found:
        raise BadInput("the held-out episodes have no answer that is trained")
    return found


def generated(chat: Chat, asked: Sequence[Turn], parallel: int, title: str) -> list[str]:
    """The model's answers, `parallel` at a time, with a progress bar. Raises Failed when its server does not answer."""
    with progress.bar(title, len(asked), "answers") as shown, ThreadPoolExecutor(parallel) as pool:
        replies = [pool.submit(chat, turn.before, 0) for turn in asked]
        try:
            texts = []
            for reply in replies:
                texts.append(reply.result().text)
                shown.advance()
            return texts
        finally:
            for reply in replies:
                reply.cancel()


def score(asked: Sequence[Turn], said: Sequence[str]) -> Score:
    """How near answers are to those wanted.

    BLEU-4 is sacrebleu's, of the whole corpus (M. Post, 2018, A call for clarity in reporting BLEU scores); ROUGE is
    rouge-score's, the mean of the turns' F1 (C.-Y. Lin, 2004, ROUGE).
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(kinds))
    each = [scorer.score(turn.wanted, text) for turn, text in zip(asked, said, strict=True)]
    rouge1, rouge2, rouge_l = (100 * sum(one[kind].fmeasure for one in each) / len(asked) for kind in kinds)
    same = [trajectory.action(turn.wanted) == trajectory.action(text) for turn, text in zip(asked, said, strict=True)]
    bleu = BLEU(max_ngram_order=4).corpus_score(list(said), [[turn.wanted for turn in asked]]).score
    return {
        "turns": len(asked),
        "action": 100 * sum(same) / len(asked),
        "bleu4": bleu,
        "rouge1": rouge1,
        "rouge2": rouge2,
        "rougeL": rouge_l,
    }


def perplexity(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", episodes: Iterable[Episode], title: str
) -> Perplexity:
    """The perplexity of the answers of episodes that are trained, from their first token to the one that ends them.

    A conversation is read once, unless the chat template writes earlier turns in another way than later ones.
    """
    loss, count = 0.0, 0
    with progress.bar(f"{title}: perplexity", unit="episodes") as shown:
        for episode in episodes:
            messages = episode["messages"]
            ids, spans = rendered(tokenizer, messages), []
            for place, each in enumerate(messages):
                if trajectory.trained(each):
                    until = rendered(tokenizer, messages[: place + 1])
                    span = (len(rendered(tokenizer, messages[:place], True)), len(until))
                    if ids[: len(until)] == until:
                        spans.append(span)
                    else:
                        loss, count = loss + loss_of(model, until, [span]), count + span[1] - span[0]
            loss, count = loss + loss_of(model, ids, spans), count + sum(end - start for start, end in spans)
            shown.advance()
    return {"perplexity": math.exp(loss / count), "tokens": count}


def rendered(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], prompt: bool = False) -> list[int]:
    """The tokens of a conversation, with what begins an answer if it is a `prompt`."""
    return list(tokenizer.apply_chat_template(list(messages), add_generation_prompt=prompt, return_dict=False))


def loss_of(model: "PreTrainedModel", ids: list[int], spans: Sequence[tuple[int, int]]) -> float:
    """The sum of the losses of the tokens in `spans` (start, end), in nats."""
    import torch

    if not spans:
        return 0.0
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(ids[1:]), reduction="none")
    return sum(float(losses[start - 1 : end - 1].sum()) for start, end in spans)


def table(found: dict[str, Score | dict[str, float]]) -> "Table":
    """Figures by model."""
    from rich import box
    from rich.table import Table

    from tools.core import quote

    drawn = Table(title="Answers on held-out episodes", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    heads = {"turns": "turns", "action": "same action", "bleu4": "BLEU-4", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2"}
    heads |= {"rougeL": "ROUGE-L", "perplexity": "perplexity"}
    drawn.add_column("")
    for head in heads.values():
        drawn.add_column(head, justify="right", no_wrap=True)
    for name, each in found.items():
        cells = [each.get(key) for key in heads]
        drawn.add_row(quote.cell(name), *("" if value is None else f"{value:.4g}" for value in cells))
    return drawn
