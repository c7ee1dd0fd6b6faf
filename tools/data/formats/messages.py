"""OpenAI's chat messages, one episode an object: {"messages": [{"role", "content"}, ...]}.

Calls of tools (`tool_calls`, role `tool`) are read as Thought / Action / Observation, see calls.py.
"""

from tools import BadInput
from tools.data.formats import Episode, Read, Row, Turns, calls, messages_of, roles_and_texts

ROLES = frozenset({"system", "developer", "user", "assistant"})
TOOL_ROLES = frozenset({"tool", "function"})
KNOWN_ROLES = ROLES | TOOL_ROLES


def read(row: Row) -> Read:
    """The episode of an object.

    Raises BadInput when it holds no messages, or one of no known role.
    """
    messages = row.get("messages")
    if type(messages) is not list or not messages:
        raise BadInput('no "messages"; an episode is {"messages": [{"role": "user", "content": "..."}, ...]}')
    # Nearly every episode is such, and to look at each message takes five times as long.
    if (found := roles_and_texts(messages)) and ROLES.issuperset(found[0]):
        return row, found
    called = any([has_call(turn, number) for number, turn in enumerate(messages, 1)])  # a list: every turn is checked
    if not called:
        return row, None
    told = calls.to_text(messages_of(row))
    return row | {"messages": told}, roles_and_texts(told)


def has_call(turn: object, number: int) -> bool:
    """Whether a message calls a tool or is a tool's answer. Raises BadInput for one of no known role."""
    if not isinstance(turn, dict):
        raise BadInput(f'message {number} is no object; a message is {{"role": "user", "content": "..."}}')
    role = turn.get("role")
    if type(role) is not str or role not in KNOWN_ROLES:
        raise BadInput(f"message {number} has no known role; it must be system, user, assistant or tool")
    return role in TOOL_ROLES or "tool_calls" in turn or "function_call" in turn


def write(episode: Episode, with_calls: bool, turns: Turns | None) -> Row:
    """The object of an episode; `with_calls`: its actions as calls of tools."""
    return episode | {"messages": calls.from_text(messages_of(episode))} if with_calls else episode
