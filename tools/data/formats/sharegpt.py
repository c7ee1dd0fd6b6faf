"""ShareGPT: {"conversations": [{"from", "value"}, ...]}, as LLaMA-Factory and Axolotl read it.

All other keys, an episode's and a message's, stay where they are: readers leave them alone. Tags: human, gpt, system;
read as well: observation and function_call, which are written when actions are asked for as calls of tools, beside the
column `tools` as JSON in a text. The columns `system` and `tools` are read as columns.py says.
"""

import orjson

from tools import BadInput
from tools.data.formats import (
    KEYS,
    CannotHold,
    Episode,
    Message,
    Read,
    Row,
    Turns,
    calls,
    columns,
    masks,
    messages_of,
    roles_and_texts,
    text_of,
)

TAGS = {"user": "human", "assistant": "gpt", "system": "system", "developer": "developer"}
ROLES = {tag: role for role, tag in TAGS.items()} | {"user": "user", "assistant": "assistant", "chatgpt": "assistant"}
TOOL_TAGS = {"observation", "tool", "function_call"}
# What a reader takes for its own: an episode or a message that has such a key would come back changed.
TAKEN = ("conversations", "system")
TAKEN_IN_TURNS = ("from", "value")


def read(row: Row) -> Read:
    """The episode of an object.

    Raises BadInput for what is none.
    """
    turns = row.get("conversations")
    if type(turns) is not list or not turns:
        raise BadInput('no "conversations"; an episode is {"conversations": [{"from": "human", "value": "..."}, ...]}')
    found = roles_and_texts(turns, ("from", "value"))
    if found and "system" not in row and "tools" not in row and ROLES.keys() >= set(found[0]):
        return put(row, "conversations", "messages", None), ([ROLES[tag] for tag in found[0]], found[1])
    messages: list[Message] = []
    called = False
    for number, turn in enumerate(turns, 1):
        tag = turn.get("from") if type(turn) is dict else None
        role = ROLES.get(tag) if type(tag) is str else None
        if role is None:
            if tag not in ("observation", "tool", "function_call"):
                raise BadInput(f"turn {number} has no known tag; `from` must be human, gpt, system or observation")
            called = True
            messages.append(called_turn(turn, number))
        else:
            messages.append(renamed(turn, role, number))
    if called:
        messages = calls.to_text(messages)
    episode = columns.as_turns(put(row, "conversations", "messages", messages))
    return episode, roles_and_texts(messages_of(episode))


def put(row: Row, old: str, new: str, turns: list[Message] | None) -> Row:
    """A row with its turns under another key, in the same place. Raises BadInput when it has that key too."""
    if row.get(new) is not None:
        raise BadInput(f'both "{old}" and "{new}" in one episode; keep one of them')
    return {(new if key == old else key): (turns if key == old else value) for key, value in row.items() if key != new}


def renamed(turn: Message, role: str, number: int) -> Message:
    """A turn with more than `from` and `value`, as a message, without the keys that hold null.

    Raises BadInput for one without a text.
    """
    if "value" not in turn:
        raise BadInput(f'turn {number} has no text; give it as "value"')
    if any(key in turn for key in KEYS):
        raise BadInput(f'turn {number} has keys of ShareGPT and of OpenAI; keep "from" and "value"')
    message: Message = {}
    for key, value in turn.items():
        if key == "from":
            message["role"] = role
        elif key == "value":
            message["content"] = value
        elif value is not None:
            message[key] = value
    return masks.with_train(message, number)


def called_turn(turn: Message, number: int) -> Message:
    """An observation or a call, as the OpenAI message that it is. Raises BadInput for one without a text."""
    value = turn.get("value")
    if type(value) is not str:
        raise BadInput(f'turn {number} has no text; give it as "value"')
    answers = turn["from"] == "function_call"
    told = renamed(turn, "assistant" if answers else "user", number)
    rest = {key: each for key, each in told.items() if key not in KEYS}
    if not answers:
        return {"role": "tool", "content": value} | rest
    return calls.from_value(value) | rest


def write(episode: Episode, with_calls: bool, turns: Turns | None) -> Row:
    """The object of an episode; `with_calls`: its actions as calls of tools.

    Raises CannotHold for parts in place of a text, and for keys that readers take.
    """
    for key in TAKEN:
        if key in episode:
            if episode[key] is not None:
                raise CannotHold(f'a key "{key}" of its own, which readers of ShareGPT take for theirs')
            episode = {name: value for name, value in episode.items() if name != key}
    if turns and not with_calls:
        shared: list[Message] = [{"from": TAGS[role], "value": text} for role, text in zip(*turns, strict=True)]
    else:
        messages = messages_of(episode)
        shared = [
            tagged(turn, number) for number, turn in enumerate(calls.from_text(messages) if with_calls else messages, 1)
        ]
    row = put(episode, "messages", "conversations", shared)
    # LLaMA-Factory wants a text; Axolotl takes both.
    tools = columns.listed(row.get("tools"))
    return row | {"tools": orjson.dumps(tools).decode()} if tools else row


def tagged(message: Message, number: int) -> Message:
    """A message with more than role and content, as a turn: its keys in place. Raises CannotHold as `write` does."""
    for key in TAKEN_IN_TURNS:
        if key in message:
            raise CannotHold(f'message {number} has a key "{key}", which readers of ShareGPT take for theirs')
    if message.get("tool_calls") is not None:
        calls.check_one(message["tool_calls"], number)
        rest = {key: value for key, value in message.items() if key not in (*KEYS, "tool_calls")}
        return {"from": "function_call", "value": calls.as_value(message, number)} | rest | calls.own_id(message)
    if message["role"] == "tool":
        return {"from": "observation", "value": message["content"]} | {
            key: value for key, value in message.items() if key not in (*KEYS, "tool_call_id")
        }
    text_of(message, number)
    names = {"role": "from", "content": "value"}
    return {names.get(key, key): TAGS[str(value)] if key == "role" else value for key, value in message.items()}
