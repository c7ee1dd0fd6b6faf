"""The same tokens in training and in serving, shown on real conversations before a model gets its name."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tools import Failed, llamacpp

if TYPE_CHECKING:
    from ollama import Client

Message = dict[str, str]
Trained = tuple[list[int], list[int]]

IGNORED = -100  # The label of a token without loss.
AROUND = 12  # Tokens shown on each side of the first difference.


@dataclass(frozen=True)
class Side:
    """A server's way from messages to tokens.

    `render`: messages to the prompt that asks for the assistant's next answer. `tokenise`: a prompt to token ids.
    `end`: the text of the token that ends an answer.
    """

    name: str
    render: Callable[[list[Message]], str]
    tokenise: Callable[[str], list[int]]
    end: str


def llama_server(url: str) -> Side:
    """llama-server at `url`: the template, the vocabulary and the end token in the model's file."""
    import httpx

    try:
        end = httpx.get(f"{url}/props", timeout=60, trust_env=False).raise_for_status().json()["eos_token"]
    except httpx.HTTPError as error:
        raise Failed(f"{url}: no answer ({error})") from error
    return Side("llama-server", partial(llamacpp.apply_template, url), partial(llamacpp.tokenize, url), end)


def ollama(client: "Client", name: str, url: str) -> Side:
    """The model `name` in Ollama; `url` is a llama-server with the same GGUF, as Ollama runs one to tokenise."""
    from tools import ollama as server

    same = llama_server(url)
    return Side("Ollama", partial(server.render, client, name), same.tokenise, same.end)


def check(
    conversations: Sequence[dict[str, Any]], trained: Sequence[Trained], sides: Sequence[Side], tokenizer: Any
) -> dict[str, Any]:
    """Compare what was trained with what each server sees, prompt by prompt; stops at the first difference.

    `trained`: ids and labels of each conversation, from trajectory.tokenise. `tokenizer`: training's, to show tokens.
    Returns what parity.json holds: {"equal", "conversations", "tokens" (found equal, all sides together), "sides",
    "first_difference" (None, or what `words` tells)}. Raises Failed when a server does not answer.
    """
    from rich.console import Console
    from rich.progress import Progress

    found: dict[str, Any] = {"equal": True, "conversations": len(conversations), "tokens": 0}
    found |= {"sides": [side.name for side in sides], "first_difference": None}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("parity: tokens of training and serving", total=len(sides) * len(conversations))
        for side in sides:
            for number, (episode, one) in enumerate(zip(conversations, trained, strict=True), 1):
                compared = compare(episode["messages"], one, side, tokenizer)
                progress.advance(task)
                if isinstance(compared, int):
                    found["tokens"] += compared
                    continue
                found |= {"equal": False, "first_difference": {"side": side.name, "conversation": number} | compared}
                return found
    return found


def compare(messages: list[Message], trained: Trained, side: Side, tokenizer: Any) -> int | dict[str, Any]:
    """Compare one conversation: how many tokens are equal, or the first difference.

    At each assistant turn, the prompt alone must be the tokens that stand before the turn's first trained token, so
    that a merge across its end shows; the last prompt, the answer and the end token in one text must be all tokens up
    to the last trained one. What follows that (a template's line feed) no server ever sees.
    """
    ids, labels = trained
    starts = [i for i, label in enumerate(labels) if label != IGNORED and (i == 0 or labels[i - 1] == IGNORED)]
    end = 1 + max((i for i, label in enumerate(labels) if label != IGNORED), default=-1)
    turns = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not turns or len(starts) != len(turns):
        cause = f"the loss mask: {len(starts)} trained parts for {len(turns)} assistant turns"
        return {"turn": None, "position": 0, "cause": cause, "trained": None, "served": None}
    prompt = ""
    for turn, start in zip(turns, starts, strict=True):
        prompt = side.render(messages[:turn])
        served = side.tokenise(prompt)
        if served != ids[:start]:
            at_end = prompt_cause(ids[:start], served, tokenizer)
            return difference(ids[:start], served, messages, turn, tokenizer, at_end)
    served = side.tokenise(f"{prompt}{messages[turns[-1]]['content']}{side.end}")
    return end if served == ids[:end] else difference(ids[:end], served, messages, turns[-1], tokenizer, None)


def difference(
    trained: list[int], served: list[int], messages: list[Message], turn: int, tokenizer: Any, cause: str | None
) -> dict[str, Any]:
    """The first place where two token lists part, both sides as text, and the likely cause. Turns count from 1."""
    place = parting(trained, served)
    return {
        "turn": turn + 1,
        "position": place,
        "cause": cause or likely_cause(trained, served, messages, tokenizer),
        "trained": shown(trained, place, tokenizer),
        "served": shown(served, place, tokenizer),
    }


def parting(trained: list[int], served: list[int]) -> int:
    """The first position at which two token lists differ: the shorter one's length where one begins with the other."""
    pairs = enumerate(zip(trained, served, strict=False))
    return next((i for i, (mine, theirs) in pairs if mine != theirs), min(len(trained), len(served)))


def shown(ids: list[int], place: int, tokenizer: Any) -> dict[str, Any]:
    """A token (id None after the last one), its text, and the text around it."""
    token = ids[place : place + 1]
    around = text(tokenizer, ids[max(0, place - AROUND) : place + AROUND])
    return {"id": token[0] if token else None, "text": text(tokenizer, token), "around": around}


def text(tokenizer: Any, ids: list[int]) -> str:
    """Tokens as text, control tokens spelled out, no space tidied away."""
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def prompt_cause(trained: list[int], served: list[int], tokenizer: Any) -> str | None:
    """Why two prompts part at their very end, in words; None when they part before it."""
    place = parting(trained, served)
    if place == len(served):
        return "the end of the prompt: the server's opens the assistant's turn with less than training's"
    if place == len(trained):
        return "the end of the prompt: the server's goes on where the trained answer begins"
    mine, theirs = text(tokenizer, trained[place:]), text(tokenizer, served[place:])
    if place == len(served) - 1 and mine != theirs and mine.startswith(theirs):
        return "a merge across the end of the prompt: training has one token where the server's prompt ends within it"
    return None


def likely_cause(trained: list[int], served: list[int], messages: list[Message], tokenizer: Any) -> str:
    """Why two token lists part, in words: the causes that make a good model fail in its server.

    Users report them, e.g. in unslothai/unsloth 468 and 5386 (end token), ggml-org/llama.cpp 7107 (beginning twice).
    """
    as_text = partial(text, tokenizer)
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    bos, place = tokenizer.bos_token_id, parting(trained, served)
    here = (trained[place : place + 1], served[place : place + 1])
    for who, (one, other) in (("the server", (trained, served)), ("training", (served, trained))):
        token = as_text(one[place : place + 1])
        if control.intersection(one[place : place + 1]) and as_text(other[place:]).startswith(token):
            return f"a control token spelled out: {who} reads {token} as ordinary text"
    if bos is not None and [bos, bos] in (trained[:2], served[:2]):
        return "the beginning-of-sequence token twice: once from the template, once from the tokenizer"
    if place == 0 and [bos] in here:
        return "the beginning-of-sequence token on one side only"
    lost, added = first_edit(trained, served)
    if as_text(lost).split() == as_text(added).split() and as_text(lost) != as_text(added):
        return "white space stripped or added by one side's template"
    if messages[0]["content"].strip()[:20] not in as_text(trained[:place]):
        opening = as_text(trained[place : place + 2]), as_text(served[place : place + 2])
        if ("system" in opening[0]) != ("system" in opening[1]):
            return "the default system message: one side begins with it and the other does not"
        if as_text(trained) != as_text(served):
            return "the two sides begin with different messages"
    for who, one_token in zip(("the server", "training"), here, strict=True):
        if control.intersection(one_token):
            return f"the end token lost: {who} has no {as_text(one_token)} here"
    if as_text(trained) == as_text(served):
        return "the same text in other tokens: another vocabulary, other merges or another pre-tokenizer"
    return "unknown: the two templates say different things here"


def first_edit(trained: list[int], served: list[int]) -> tuple[list[int], list[int]]:
    """The first run of tokens of training that the server has not, and what it has in their place."""
    for kind, a, b, c, d in difflib.SequenceMatcher(None, trained, served, autojunk=False).get_opcodes():
        if kind != "equal":
            return trained[a:b], served[c:d]
    return [], []


def words(found: dict[str, Any]) -> str:
    """One line that tells a first difference to a person."""
    where = f"{found['side']}, conversation {found['conversation']}, token {found['position']}"
    mine, theirs = found["trained"], found["served"]
    if mine is None:
        return f"{where}: {found['cause']}"
    named = [repr(each["text"]) if each["id"] is not None else "nothing" for each in (mine, theirs)]
    return (
        f"{where}: training has {named[0]} and the server {named[1]}; likely cause: {found['cause']}; "
        f"in training {mine['around']!r}, in the server {theirs['around']!r}"
    )
