"""Rows as many tools write them, brought to one of the formats that are read.

Other names of roles, keys and columns, a bare list of turns, turns that are a JSON string, a text in parts, a wrapped
conversation. Only rows that a format's own reader refuses come here, so it may take its time.
"""

from collections.abc import Mapping
from typing import cast

import orjson

from tools import BadInput
from tools.data.formats import Message, Row, calls, recognise

# What a turn's role is called, in small letters, and whose turn it then is.
ALIASES = {
    "user": ("user", "human", "usr", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "agent", "llm", "gpt4", "gpt_4"),
    "system": ("system", "system_prompt"),
    "developer": ("developer",),
    "tool": ("tool", "function", "observation", "tool_response", "tool_result", "function_response", "ipython"),
    "call": ("function_call", "tool_call"),
}
ROLES = {alias: role for role, aliases in ALIASES.items() for alias in aliases}
TAGS = {"user": "human", "assistant": "gpt", "system": "system", "developer": "developer"}
TAGS |= {"tool": "observation", "call": "function_call"}
ROLE_KEYS, TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text", "parts")
# Keys under which the turns of an episode stand, the usual ones first.
TURN_KEYS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "contents", "chat", "data")
COLUMNS = {"query": "instruction", "prompt": "instruction", "question": "instruction"}
COLUMNS |= {"response": "output", "completion": "output", "answer": "output"}


def known(value: object, roles: Mapping[str, str]) -> tuple[str, Row]:
    """The format and the row that a value of a file is in other words; `roles`: more names of roles.

    Raises BadInput that names what was found where it is none.
    """
    row = {"messages": value} if isinstance(value, list) else value
    if not isinstance(row, dict):
        raise BadInput("no object; an episode is {...}, with its turns in it")
    for key in TURN_KEYS:
        turns = unpacked(row[key]) if key in row else None
        if isinstance(turns, list):
            name, made = turns_of(turns, roles)
            place = "messages" if name == "messages" else "conversations"
            if place != key and place in row:
                raise BadInput(f'both "{key}" and "{place}" in one row; keep one of them')
            return name, {(place if each == key else each): (made if each == key else row[each]) for each in row}
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        rest = {key: each for key, each in row.items() if key not in ("prompt", "completion")}
        name, made = turns_of([*row["prompt"], *row["completion"]], roles)
        return name, {("messages" if name == "messages" else "conversations"): made} | rest
    renamed = {(new if (new := COLUMNS.get(key)) and new not in row else key): each for key, each in row.items()}
    if len(renamed) == len(row) and "output" in renamed:
        return "alpaca", renamed
    return recognise(row), row


def unpacked(value: object) -> object:
    """A list that a file holds as a string of JSON; anything else as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] != "[":
        return value
    try:
        return cast(object, orjson.loads(value))
    except orjson.JSONDecodeError:
        return value


def turns_of(turns: list[object], roles: Mapping[str, str]) -> tuple[str, list[Message]]:
    """The format, ShareGPT where a turn has its `from` and else messages, and the turns in its words.

    Raises BadInput where there are none, or for one of no known role or without a text.
    """
    if not turns:
        raise BadInput("no turns; drop the row")
    if any(isinstance(turn, dict) and {"input", "output"} <= turn.keys() for turn in turns):
        turns = exchanged(turns)
    shared = any(isinstance(turn, dict) and "from" in turn and "role" not in turn for turn in turns)
    made = [turn_of(turn, number, roles, shared) for number, turn in enumerate(turns, 1)]
    return ("sharegpt" if shared else "messages"), made


def exchanged(turns: list[object]) -> list[object]:
    """Turns of an exchange each, {"system", "input", "output"}, as turns of one speaker each."""
    found: list[object] = []
    for turn in turns:
        if isinstance(turn, dict) and {"input", "output"} <= turn.keys():
            named = (("system", turn.get("system")), ("user", turn["input"]), ("assistant", turn["output"]))
            found += [{"role": role, "content": text} for role, text in named if text or role != "system"]
        else:
            found.append(turn)
    return found


def turn_of(turn: object, number: int, roles: Mapping[str, str], shared: bool) -> Message:
    """One turn, in the words of messages or (`shared`) of ShareGPT. Raises BadInput as `turns_of`."""
    if not isinstance(turn, dict):
        raise BadInput(f'turn {number} is no object; a turn is {{"role": "user", "content": "..."}}')
    role_key = next((key for key in ROLE_KEYS if key in turn), None)
    text_key = next((key for key in TEXT_KEYS if key in turn), "content")
    if role_key is None:
        raise BadInput(f"turn {number} has no role; name whose it is: user, assistant, system or tool")
    role = role_of(turn[role_key], number, roles)
    text = text_of(turn, text_key, number)
    if role == "call" and not shared:
        rest = {key: value for key, value in turn.items() if key not in (role_key, text_key)}
        return calls.from_value(text or "") | rest
    names = ("from", "value") if shared else ("role", "content")
    new: dict[str, tuple[str, object]] = {text_key: (names[1], text)}
    new[role_key] = (names[0], TAGS[role] if shared else role)
    if isinstance(bare := turn.get("tool_calls"), list):  # some write a call without the "function" around it
        within = [{"function": each} if isinstance(each, dict) and "name" in each else each for each in bare]
        new["tool_calls"] = ("tool_calls", within)
    return dict(new.get(key, (key, value)) for key, value in turn.items())


def role_of(name: object, number: int, roles: Mapping[str, str]) -> str:
    """Whose turn one of this role is: user, assistant, system, developer, tool or call. Raises BadInput if unknown."""
    if not isinstance(name, str):
        raise BadInput(f"turn {number} has no role; name whose it is: user, assistant, system or tool")
    if name in roles:
        return ROLES[roles[name]]
    found = ROLES.get(name.strip().casefold().replace("-", "_").replace(" ", "_"))
    if not found:
        raise BadInput(f"turn {number} has role {name[:40]!r}; --role NAME=user (ROLE=) says whose it is")
    return found


def text_of(turn: Message, key: str, number: int) -> str | None:
    """A turn's text, its parts joined; None where it calls a tool instead. Raises BadInput for no text, or an image."""
    content = turn.get(key)
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        return "".join(part_of(part, number) for part in content)
    if content is None and (turn.get("tool_calls") or turn.get("function_call")):
        return None
    what = "" if content is None else f" but {orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS)[:40].decode()}"
    raise BadInput(f'turn {number} has no text{what}; give it as "{key}"')


def part_of(part: object, number: int) -> str:
    """The text of one part of a turn. Raises BadInput for a part that is none."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else "unknown"
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str) or kind not in ("text", "input_text", "output_text"):
        raise BadInput(f"turn {number} has a part of type {kind!r:.40}; only text can be read")
    return text


def parse_roles(pairs: list[str]) -> dict[str, str]:
    """More names of roles, each "bot=assistant". Raises BadInput for one that maps to no role."""
    found = {}
    for pair in (each for words in pairs for each in words.split()):
        name, _, role = pair.partition("=")
        if not name or role not in ROLES:
            raise BadInput(f"--role {pair}: it must be NAME=ROLE, and the role user, assistant, system or tool")
        found[name] = role
    return found
