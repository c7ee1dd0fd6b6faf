"""Calls of tools and Thought / Action / Observation: each written as the other, and back to the same bytes.

A call of `search` with {"q": "mug"} is `Action: search` and `Action Input: {"q": "mug"}` on the next line; an action in
plain words (`Action: go to desk 1`) is a call of `act` with the words as its `action`. What stands beside a call is its
Thought, but for <think> ... </think>, which stays as it is. What a tool answers is an Observation. Text that would not
come back the same is left as it is. A turn with several calls has no such text: it and its answers stay messages with
calls, for the one target that holds them.
"""

import re
from typing import cast

import orjson

from tools import BadInput
from tools.data.formats import CannotHold, Message

PLAIN = "act"  # the name of a call that is an action in plain words
# The reasoning of a model that has its own marks for it.
REASONING = r"(<think>.*?</think>\s*)?"
SAID = re.compile(rf"{REASONING}(.*)", re.DOTALL)
CALLED = re.compile(rf"{REASONING}(?:Thought: (.*)\n)?Action: ([^\n]*)(?:\nAction Input: (.*))?", re.DOTALL)
OBSERVED = "Observation: "
# How LLaMA-Factory finds a thought before the call in a `function_call` turn; with a space before the call it is the
# model's own reasoning, and its arguments are as they were.
THOUGHT = re.compile(r"<think>\n(.*)\n</think>\n\n(.*)", re.DOTALL)
OWN = re.compile(r"(<think>.*?</think>\s*\n) (\{.*)", re.DOTALL)
WRITTEN = re.compile(r'\{"name":"(?:[^"\\]|\\.)*","arguments":(\{.*\})\}', re.DOTALL)


def has_call(turn: Message) -> bool:
    """Whether a message calls a tool or is a tool's answer."""
    return turn["role"] in ("tool", "function") or "tool_calls" in turn or "function_call" in turn


def to_text(messages: list[Message]) -> list[Message]:
    """The messages with calls and their answers as text; turns with several calls, and their answers, as they are.

    Raises BadInput for a call that names no function.
    """
    made: list[Message] = []
    number, latest, several = 0, None, False
    for place, turn in enumerate(messages, 1):
        calls = turn.get("tool_calls") or ([{"function": turn["function_call"]}] if turn.get("function_call") else None)
        if calls is not None and not isinstance(calls, list):
            raise BadInput(f"message {place} has tool_calls that are no list of calls")
        several = len(calls) > 1 if calls else several and turn["role"] in ("tool", "function")
        if several:
            for call in calls or []:
                as_answer(turn, call, place)
            number += len(calls or [])
            made.append(turn)
        elif calls is not None:
            number += 1
            latest = identity(calls[0], number)
            made.append(as_answer(turn, calls[0], place) | ({} if latest is None else {"tool_call_id": latest}))
        elif turn["role"] in ("tool", "function"):
            text = turn.get("content")
            if type(text) is not str:
                raise CannotHold(f'message {place} (tool) has no text; give it as "content"')
            rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
            if rest.get("tool_call_id") in (latest or f"call_{number}", None):
                rest.pop("tool_call_id", None)
            made.append({"role": "user", "content": OBSERVED + text} | rest)
        else:
            made.append({key: value for key, value in turn.items() if key not in ("tool_calls", "function_call")})
    return made


def refuse_several(messages: list[Message]) -> None:
    """Raise CannotHold for a turn with several calls."""
    for turn in messages:
        calls = turn.get("tool_calls")
        if isinstance(calls, list) and len(calls) > 1:
            names = ", ".join(str(function_of(call).get("name", "?")) for call in calls)
            raise CannotHold(
                f"several calls of tools in one turn ({names}); a ReAct turn has one action, and messages with calls"
                " hold them (TO=messages CALLS=1)"
            )


def function_of(call: object) -> dict[str, object]:
    """The function that a call calls, with its arguments, which some write alone; empty where there is none."""
    function = call.get("function", call) if isinstance(call, dict) else None
    return function if isinstance(function, dict) else {}


def identity(call: object, number: int) -> str | None:
    """A call's id, where it is not the one that `from_text` gives to the call of this number."""
    found = call.get("id") if isinstance(call, dict) else None
    return found if isinstance(found, str) and found != f"call_{number}" else None


def as_answer(turn: Message, call: object, place: int) -> Message:
    """The assistant's turn with its one call as text. Raises BadInput for a call that names no function."""
    function = function_of(call)
    name = function.get("name")
    if type(name) is not str or not name or "\n" in name:
        raise BadInput(f'message {place} calls no named function; a call is {{"function": {{"name", "arguments"}}}}')
    given = function.get("arguments") or "{}"
    arguments = given if isinstance(given, str) else orjson.dumps(given).decode()
    said = turn.get("content") or ""
    if not isinstance(said, str):
        raise CannotHold(f"message {place} is made of parts, not of one text")
    words = plain_words(arguments) if name == PLAIN else None
    action = f"Action: {name}\nAction Input: {arguments}" if words is None else f"Action: {words}"
    reasoning, thought = parted(said)
    text = f"{reasoning}Thought: {thought}\n{action}" if thought.strip() else f"{reasoning}{action}"
    rest = {key: value for key, value in turn.items() if key not in ("role", "content", "tool_calls", "function_call")}
    return {"role": "assistant", "content": text} | rest


def parted(said: str) -> tuple[str, str]:
    """What stands beside a call: its reasoning in <think>, up to an empty line, and its other words."""
    found = SAID.fullmatch(said)
    assert found
    reasoning, words = found[1] or "", found[2]
    return reasoning if not reasoning or reasoning.endswith("\n") else f"{reasoning}\n\n", words


def plain_words(arguments: str) -> str | None:
    """The action in plain words that the arguments of a call of `act` are; None when they are something else."""
    try:
        read = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return None
    words = read.get("action") if isinstance(read, dict) else None
    same = isinstance(words, str) and "\n" not in words and orjson.dumps({"action": words}).decode() == arguments
    return words if same else None


def from_text(messages: list[Message]) -> list[Message]:
    """The messages with each action as a call, and the observation after it as the tool's answer."""
    made: list[Message] = []
    number, waiting = 0, ""
    for place, turn in enumerate(messages):
        if waiting:
            text = str(turn["content"]).removeprefix(OBSERVED)
            answer: Message = {"role": "tool", "tool_call_id": waiting, "content": text}
            made.append(answer | {key: value for key, value in turn.items() if key not in ("role", "content")})
            waiting = ""
            continue
        after = messages[place + 1] if place + 1 < len(messages) else None
        name, found = as_call(turn, number + 1) if after is None or observes(after) else ("", turn)
        made.append(found)
        number += len(cast("list[object]", found.get("tool_calls", ())))
        waiting = name if after else ""
    return made


def observes(turn: Message) -> bool:
    """Whether a turn can be the answer of a tool."""
    text = turn.get("content")
    return (
        turn["role"] == "user"
        and type(text) is str
        and text.startswith(OBSERVED)
        and "tool_call_id" not in turn
        and tuple(turn)[:2] == ("role", "content")
    )


def as_call(turn: Message, number: int) -> tuple[str, Message]:
    """The id of a call and the assistant's turn as a thought and that call; "" and the turn when it has another form.

    It has where it would not come back from `as_answer` as it was.
    """
    text = turn.get("content")
    if turn["role"] != "assistant" or type(text) is not str or tuple(turn)[:2] != ("role", "content"):
        return "", turn
    if "tool_calls" in turn:
        return "", turn
    found = CALLED.fullmatch(text)
    if not found:
        return "", turn
    reasoning, thought, action, arguments = found.groups()
    name = action if arguments is not None else PLAIN
    if arguments is None:
        arguments = orjson.dumps({"action": action}).decode()
    own = turn.get("tool_call_id", f"call_{number}")
    call = {"id": own, "type": "function", "function": {"name": name, "arguments": arguments}}
    rest = {key: value for key, value in turn.items() if key not in ("role", "content", "tool_call_id")}
    said = thought if reasoning is None else f"{reasoning}{thought or ''}"
    made: Message = {"role": "assistant", "content": said, "tool_calls": [call]} | rest
    if not isinstance(own, str) or not own or not name or "</think>" in (thought or ""):
        return "", turn
    back = as_answer(made, call, number) | ({"tool_call_id": own} if identity(call, number) else {})
    return (own, made) if list(back.items()) == list(turn.items()) else ("", turn)


def check_one(made: object, number: int) -> None:
    """Raise CannotHold unless these calls of a message are one, as `from_text` makes it."""
    call = made[0] if isinstance(made, list) and len(made) == 1 else None
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not all(isinstance(function.get(key), str) for key in ("name", "arguments")):
        raise CannotHold(f"message {number} has calls of tools that are not one named function with its arguments")


def as_value(message: Message, number: int) -> str:
    """A turn that `from_text` made, as the text of ShareGPT's `function_call`: <think>, then the call as JSON.

    LLaMA-Factory reads <think> before the call, in whatever space, and wants arguments that are an object. Ours stand
    in the text as they were; a space tells a model's own <think> from a Thought. Raises CannotHold where it has both.
    """
    (call,) = cast("list[dict[str, dict[str, str]]]", message["tool_calls"])
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if not is_object(arguments):
        arguments = orjson.dumps(arguments).decode()
    text = f'{{"name":{orjson.dumps(name).decode()},"arguments":{arguments}}}'
    if message["content"] is None:
        return text
    reasoning, thought = parted(str(message["content"]))
    if reasoning and thought:
        raise CannotHold(f"message {number} has reasoning in <think> and words beside it; a function_call holds one")
    return f"{reasoning} {text}" if reasoning else f"<think>\n{thought}\n</think>\n\n{text}"


def own_id(message: Message) -> Message:
    """The key that keeps the id of a turn's call, where it is not one of ours."""
    (call,) = cast("list[dict[str, str]]", message["tool_calls"])
    return {} if re.fullmatch(r"call_\d+", call["id"]) else {"tool_call_id": call["id"]}


def is_object(arguments: str) -> bool:
    """Whether the arguments of a call are a JSON object."""
    try:
        return isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return False


def from_value(value: str) -> Message:
    """The turn with a call that the text of a `function_call` says; a plain answer when it says none."""
    reasoning, thought = None, None
    if found := OWN.fullmatch(value):
        reasoning, call = found.groups()
    else:
        found = THOUGHT.fullmatch(value)
        thought, call = found.groups() if found else (None, value)
    try:
        function = orjson.loads(call)
    except orjson.JSONDecodeError:
        return {"role": "assistant", "content": value}
    if (written := WRITTEN.fullmatch(call)) and is_object(written[1]):
        function = function | {"arguments": written[1]}
    calls = function if isinstance(function, list) else [function]
    said = thought if reasoning is None else reasoning
    return {"role": "assistant", "content": said, "tool_calls": [{"function": each} for each in calls]}
