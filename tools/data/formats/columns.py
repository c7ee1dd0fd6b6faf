"""Columns beside the turns that say what stands before them: `system` becomes the system turn, `tools` part of it.

Axolotl and LLaMA-Factory put `tools` into the prompt in the model's own protocol of calls. The turns of an episode are
Thought / Action / Observation, so its tools are told in those words; with calls, `tools` is a column again.
"""

import re

import orjson

from tools import BadInput
from tools.data.formats import Episode, Message, messages_of

COLUMNS = frozenset({"system", "tools"})
TOLD = "Tools, each used by `Action: name` and, on the next line, `Action Input: {arguments}`:"
# What `with_tools_told` puts at the end of a system turn: a tool a line, each as JSON.
TELLS = re.compile(rf"(?:(.*)\n\n)?{re.escape(TOLD)}((?:\n\{{[^\n]*\}})+)", re.DOTALL)


def as_turns(episode: Episode) -> Episode:
    """The episode with its columns in the system turn. Raises BadInput for a system that differs from the turn's."""
    if COLUMNS.isdisjoint(episode):
        return episode
    return with_tools_told(with_system_turn(episode))


def with_system_turn(episode: Episode) -> Episode:
    """The episode with its column `system` as its first turn; null and nothing are no column."""
    if "system" not in episode:
        return episode
    system, messages = episode["system"], messages_of(episode)
    rest = {key: value for key, value in episode.items() if key != "system"}
    if not system:
        return rest
    if not isinstance(system, str):
        raise BadInput('"system" holds no text; give it as text, or as the first turn')
    first = messages[0]
    if first["role"] not in ("system", "developer"):
        return rest | {"messages": [{"role": "system", "content": system}, *messages]}
    if first.get("content") != system:
        raise BadInput('"system" says something else than the system turn; keep one of them')
    return rest


def with_tools_told(episode: Episode) -> Episode:
    """The episode with its column `tools` at the end of its system turn; as it is where that lists no tools."""
    if "tools" not in episode:
        return episode
    rest = {key: value for key, value in episode.items() if key != "tools"}
    if episode["tools"] is None:
        return rest
    tools, messages = listed(episode["tools"]), messages_of(episode)
    if not tools:
        return episode
    told = "\n".join([TOLD, *(orjson.dumps(each).decode() for each in tools)])
    first = messages[0]
    if first["role"] != "system":
        return rest | {"messages": [{"role": "system", "content": told}, *messages]}
    if not isinstance(first.get("content"), str):
        return episode
    return rest | {"messages": [first | {"content": f"{first['content']}\n\n{told}"}, *messages[1:]]}


def listed(tools: object) -> list[dict[str, object]]:
    """The tools of a column: a list of objects, or such a list as JSON; empty for anything else."""
    if isinstance(tools, str):
        try:
            tools = orjson.loads(tools)
        except orjson.JSONDecodeError:
            return []
    return tools if isinstance(tools, list) and all(isinstance(each, dict) for each in tools) else []


def tells_tools(text: str) -> bool:
    """Whether a system turn's text ends with tools that `with_tools_told` put there."""
    return TOLD in text and bool(TELLS.fullmatch(text))


def with_tools_column(episode: Episode) -> Episode:
    """The episode with the tools of its system turn as the column `tools` again."""
    first, *others = messages_of(episode)
    text = first.get("content")
    if first["role"] != "system" or not isinstance(text, str) or TOLD not in text or "tools" in episode:
        return episode
    if not (found := TELLS.fullmatch(text)):
        return episode
    try:
        tools = [orjson.loads(line) for line in found[2].split("\n")[1:]]
    except orjson.JSONDecodeError:  # a text of somebody else's
        return episode
    system: list[Message] = [] if found[1] is None else [first | {"content": found[1]}]
    return episode | {"messages": [*system, *others], "tools": tools}
