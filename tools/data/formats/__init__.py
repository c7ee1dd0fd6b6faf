"""Formats of ReAct episodes: every reader makes messages, every writer takes them; stream in, stream out.

An episode is {"messages": [{"role", "content"}, ...], ...}: system, developer, user and assistant turns whose text is
Thought / Action / Observation, and any other keys, which travel with it.
"""

from itertools import chain
from operator import itemgetter
from typing import Any

from tools import BadInput

JSON = ("messages", "sharegpt", "agentinstruct", "alpaca")  # one object an episode
TEXT = ("react", "alfworld")  # what was played, as text
KEYS = ("role", "content")  # all that an ordinary message has, in its usual order
Ordinary = tuple[list[str], list[str]] | None


class CannotHold(BadInput):
    """The target has no place for something in this episode."""


def ordinary(turns: list[dict[str, Any]], keys: tuple[str, str] = KEYS) -> Ordinary:
    """The roles and texts of turns that have these two keys, in this order, both text, and no more; else None.

    Nearly every row of a large file is looked at so: it takes half of the time that sets of keys and of types take.
    """
    try:
        if [*chain.from_iterable(turns)] != [*keys] * len(turns):
            return None
        roles, texts = [*map(itemgetter(keys[0]), turns)], [*map(itemgetter(keys[1]), turns)]
        "".join(roles), "".join(texts)  # for their TypeError
    except TypeError:
        return None
    return roles, texts


def whole(episode: dict[str, Any], plain: Ordinary) -> dict[str, Any]:
    """An episode with its messages, which a reader leaves as None where all that they are is in `plain`."""
    if plain and episode["messages"] is None:
        pairs = zip(*plain, strict=True)
        return episode | {"messages": [{"role": role, "content": text} for role, text in pairs]}
    return episode


def text_of(message: dict[str, Any], number: int) -> str:
    """A message's text. Raises CannotHold for one without, or with parts (images) in its place."""
    content = message.get("content")
    if type(content) is str:
        return content
    if isinstance(content, list):
        kinds = {str(part.get("type")) for part in content if isinstance(part, dict)}
        raise CannotHold(
            f"message {number} is made of parts ({', '.join(sorted(kinds)) or 'unknown'}), not of one text"
        )
    raise CannotHold(f'message {number} has no text; give it as "content"')


def recognise(row: Any) -> str:
    """The format that a file's first object is in. Raises BadInput for one that is none."""
    if isinstance(row, dict):
        if "messages" in row:
            return "messages"
        if "conversations" in row:
            return "sharegpt"
        if "instruction" in row or "output" in row:
            return "alpaca"
    raise BadInput(
        'not a known format: an episode has "messages" (OpenAI), "conversations" (ShareGPT) or "instruction" (Alpaca)'
    )
