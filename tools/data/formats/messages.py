"""OpenAI's chat messages, one episode an object: {"messages": [{"role", "content"}, ...]}.

Calls of tools (`tool_calls`, role `tool`) are read as Thought / Action / Observation, see calls.py; the columns
`system` and `tools` as the system turn, see columns.py; flags of training as `train`, see masks.py.
"""

from operator import is_

from tools import BadInput
from tools.data.formats import Episode, Message, Read, Row, Turns, calls, columns, masks, messages_of, roles_and_texts

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
    plain = (found := roles_and_texts(messages)) and ROLES.issuperset(found[0])
    if plain and "system" not in row and "tools" not in row:
        return row, found
    turns = [read_turn(turn, number) for number, turn in enumerate(messages, 1)]
    if any(map(calls.has_call, turns)):
        turns = calls.to_text(turns)
    elif columns.COLUMNS.isdisjoint(row) and all(map(is_, turns, messages)):
        return row, None
    episode = columns.as_turns(row | {"messages": turns})
    return episode, roles_and_texts(messages_of(episode))


def read_turn(turn: object, number: int) -> Message:
    """A message without the keys that hold null, and with `train` where it says so; itself where it is so already.

    Raises BadInput for one of no known role.
    """
    if not isinstance(turn, dict):
        raise BadInput(f'message {number} is no object; a message is {{"role": "user", "content": "..."}}')
    role = turn.get("role")
    if type(role) is not str or role not in KNOWN_ROLES:
        raise BadInput(f"message {number} has no known role; it must be system, user, assistant or tool")
    said = {key: each for key, each in turn.items() if each is not None or key == "content"}
    return masks.with_train(turn if len(said) == len(turn) else said, number)


def write(episode: Episode, with_calls: bool, turns: Turns | None) -> Row:
    """The object of an episode; `with_calls`: its actions as calls of tools."""
    return episode | {"messages": calls.from_text(messages_of(episode))} if with_calls else episode
