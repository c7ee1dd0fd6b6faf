"""OpenAI's chat messages, one episode an object: {"messages": [{"role", "content"}, ...]}.

Calls of tools (`tool_calls`, role `tool`) are read as Thought / Action / Observation, see calls.py.
"""

from typing import Any

from tools import BadInput
from tools.data.formats import Ordinary, calls, ordinary

ROLES = frozenset({"system", "developer", "user", "assistant"})
TOOL_ROLES = frozenset({"tool", "function"})


def read(row: dict[str, Any]) -> tuple[dict[str, Any], Ordinary]:
    """The episode of an object, and its roles and texts when there is no more in its messages.

    Raises BadInput when it holds no messages, or one of no known role.
    """
    messages = row.get("messages")
    if type(messages) is not list or not messages:
        raise BadInput('no "messages"; an episode is {"messages": [{"role": "user", "content": "..."}, ...]}')
    # Nearly every episode is such, and to look at each message takes five times as long.
    if (found := ordinary(messages)) and ROLES.issuperset(found[0]):
        return row, found
    called = False
    for number, turn in enumerate(messages, 1):
        if type(turn) is not dict:
            raise BadInput(f'message {number} is no object; a message is {{"role": "user", "content": "..."}}')
        role = turn.get("role")
        if type(role) is not str or role not in ROLES:
            if type(role) is not str or role not in TOOL_ROLES:
                raise BadInput(f"message {number} has no known role; it must be system, user, assistant or tool")
            called = True
        elif len(turn) > 2 and ("tool_calls" in turn or "function_call" in turn):
            called = True
    if not called:
        return row, None  # More in its messages than roles and texts.
    told = calls.to_text(messages)
    return row | {"messages": told}, ordinary(told)


def write(episode: dict[str, Any], with_calls: bool, plain: Ordinary) -> dict[str, Any]:
    """The object of an episode; `with_calls`: its actions as calls of tools."""
    return episode | {"messages": calls.from_text(episode["messages"])} if with_calls else episode
