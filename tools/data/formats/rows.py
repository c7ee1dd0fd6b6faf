"""One row of a file of JSON: its format recognised, and read."""

import contextlib
from collections.abc import Mapping

from tools import BadInput
from tools.data.formats import Read, Row, agentinstruct, alpaca, messages, messages_of, pairs, sharegpt, variants
from tools.data.formats.pairs import Pair

READERS = {"messages": messages.read, "sharegpt": sharegpt.read, "agentinstruct": sharegpt.read, "alpaca": alpaca.read}
WRITERS = {"messages": messages.write, "sharegpt": sharegpt.write, "agentinstruct": agentinstruct.write}
PAIRS = "pairs"  # what rows of preference pairs are called


def format_of(row: Row) -> str:
    """The format of a row by its keys; "" where they tell none."""
    if "messages" in row:
        return "messages"
    if pairs.is_pair(row):
        return PAIRS
    if "conversations" in row:
        return "sharegpt"
    return "alpaca" if "instruction" in row and "output" in row else ""


def read(value: object, wanted: str, roles: Mapping[str, str]) -> tuple[str, Read | Pair]:
    """The format of a row, and its episode or pair. `wanted`: its format, "" to recognise it; `roles`: names of roles.

    Raises BadInput, naming what was found, for what is none.
    """
    name = wanted or (format_of(value) if isinstance(value, dict) else "")
    if name == PAIRS and isinstance(value, dict):
        return name, pairs.read(value, roles)
    if name and not roles and isinstance(value, dict):
        with contextlib.suppress(BadInput):  # perhaps in another tool's words
            found = READERS[name](value)
            if found[1] or all(type(turn.get("content")) is str for turn in messages_of(found[0])):
                return name, found
    other, row = variants.known(value, roles)
    if wanted and other != wanted.replace("agentinstruct", "sharegpt"):
        raise BadInput(f"a row of {other}, not of {wanted}; without --from each row is recognised")
    return name or other, READERS[other](row)
