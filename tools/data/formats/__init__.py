"""Formats of ReAct episodes: every reader makes messages, every writer takes them; stream in, stream out.

An episode is {"messages": [{"role", "content"}, ...], ...}: system, developer, user and assistant turns whose text is
Thought / Action / Observation, and any other keys, which travel with it.

Most messages are a role and a text and nothing else. A reader then gives these as two lists beside the episode and
leaves None in the place of its messages, and a writer takes the lists: no message is made that no one needs.
`with_messages` fills the place.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import cast

from tools import BadInput

JSON = ("messages", "sharegpt", "agentinstruct", "alpaca")  # one object an episode
TEXT = ("react", "alfworld")  # what was played, as text
KEYS = ("role", "content")  # of a message that is a role and a text
Row = dict[str, object]  # an object of a file, as it was parsed
Message = dict[str, object]  # role, content, and any keys of its own
Episode = dict[str, object]  # messages, and any keys of its own
Turns = tuple[list[str], list[str]]  # the roles and the texts of an episode's messages
Read = tuple[Episode, Turns | None]  # what a reader makes of a row; None where messages hold more than role and text


class CannotHold(BadInput):
    """The target has no place for something in this episode."""


def roles_and_texts(turns: Sequence[Mapping[str, object]], keys: tuple[str, str] = KEYS) -> Turns | None:
    """The values of these two keys in all turns, where each has just these, in this order, and both text; else None.

    `turns` are as they were parsed, and may be anything at all.

    Every row of a large file goes through here, so it asks all turns at once: a loop over them takes twice as long.
    """
    try:
        # All keys of all turns, one after the other, are these two again and again; chain fails for what has no keys.
        if [*chain.from_iterable(turns)] != [*keys] * len(turns):
            return None
        roles, texts = [*map(itemgetter(keys[0]), turns)], [*map(itemgetter(keys[1]), turns)]
        "".join(roles), "".join(texts)  # fails unless all are text
    except TypeError:
        return None
    return roles, texts


def messages_of(episode: Episode) -> list[Message]:
    """An episode's messages, which its reader has found to be a list of objects."""
    return cast("list[Message]", episode["messages"])


def with_messages(episode: Episode, turns: Turns | None) -> Episode:
    """The episode with its messages, which a reader leaves as None where `turns` says all that they are."""
    if turns and episode["messages"] is None:
        pairs = zip(*turns, strict=True)
        return episode | {"messages": [{"role": role, "content": text} for role, text in pairs]}
    return episode


def text_of(message: Mapping[str, object], number: int) -> str:
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


def recognise(row: object) -> str:
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
