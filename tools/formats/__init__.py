"""Formats of ReAct episodes: every reader makes messages, every writer takes them; stream in, stream out.

An episode is {"messages": [{"role", "content"}, ...], ...}: system, developer, user and assistant turns whose text is
Thought / Action / Observation, and any other keys, which travel with it.
"""

from operator import itemgetter
from typing import Any

from tools import BadInput

JSON = ("messages", "sharegpt", "agentinstruct", "alpaca")  # one object an episode
TEXT = ("react", "alfworld")  # what was played, as text
KEYS = ("role", "content")  # all that an ordinary message has, in its usual order
ROLE, CONTENT = itemgetter("role"), itemgetter("content")


class CannotHold(BadInput):
    """The target has no place for something in this episode."""


def ordinary(messages: list[dict[str, Any]]) -> bool:
    """Whether all that these messages have is a role and a text, in this order."""
    return set(map(tuple, messages)) == {KEYS} and set(map(type, map(CONTENT, messages))) == {str}


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
