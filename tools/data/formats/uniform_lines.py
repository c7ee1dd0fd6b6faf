"""Lines that all have the same keys, a chunk at once by msgspec: turns of a role and a text, flat values beside them.

Nearly all files are such. A chunk with any other line is left to the reader of its format: the conversion then takes a
quarter longer.
"""

from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
import orjson

from tools.data.formats import KEYS, Episode, Turns, messages, sharegpt

# By format: the key of the turns, those of a turn's role and text, and the roles by their names there.
SHAPES: dict[str, tuple[str, tuple[str, str], dict[str, str]]] = {
    "messages": ("messages", KEYS, {role: role for role in messages.ROLES}),
    "sharegpt": ("conversations", ("from", "value"), sharegpt.ROLES),
}
ROLE, TEXT = attrgetter("role"), attrgetter("text")
# What may stand beside the turns. orjson, which the readers use, makes floats of larger integers; msgspec does not.
Scalar = None | bool | Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | float | str
Value = Scalar | list[Scalar] | dict[str, Scalar]
# Keys that mean something of their own to the reader of a format.
TAKEN = {"messages": ("system", "tools"), "sharegpt": ("system", "tools", "messages")}
# A decoder is two classes, which Python hardly lets go of again: a file whose every chunk begins with other keys would
# fill the memory with them.
MOST_KEY_SETS = 64
Decoder = msgspec.json.Decoder[msgspec.Struct]
DECODERS: dict[tuple[str, tuple[str, ...]], Decoder] = {}


def read_chunk(source: str, data: bytes) -> list[tuple[Episode, Turns]] | None:
    """The episodes of a chunk of lines in the format `source`, `messages` None in them, each with its roles and texts.

    None where a line is anything but an object of the first one's keys, in their order, without a needless space, whose
    turns have a known role and a text, and all beside them is flat: then nothing is missed that the format's own reader
    would refuse or keep.
    """
    if source not in SHAPES or (decoded := decode(source, data)) is None:
        return None
    place, _, roles = SHAPES[source]
    keys, lines = decoded
    names, where = ["messages" if key == place else key for key in keys], keys.index(place)
    found: list[tuple[Episode, Turns]] = []
    for line in lines:
        values = msgspec.structs.astuple(line)
        turns = values[where]
        if not turns:
            return None
        episode: Episode = dict(zip(names, values, strict=True))
        episode["messages"] = None
        found.append((episode, ([*map(roles.__getitem__, map(ROLE, turns))], [*map(TEXT, turns)])))
    return found


def decode(source: str, data: bytes) -> tuple[tuple[str, ...], list[msgspec.Struct]] | None:
    """The keys of the first line and every line's values; None unless writing them again gives the same bytes."""
    place = SHAPES[source][0]
    try:
        first = data[: data.find(b"\n")]
        keys = tuple(orjson.loads(first))
        if place not in keys or any(key in keys for key in TAKEN[source]):
            return None
        if (line := decoder(source, keys)) is None:
            return None
        if msgspec.json.encode(line.decode(first)) != first:
            return None  # The other lines are hardly better.
        lines = line.decode_lines(data)
        if msgspec.json.Encoder().encode_lines(lines) != data:
            return None
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, TypeError):
        return None
    return keys, lines


def decoder(source: str, keys: tuple[str, ...]) -> Decoder | None:
    """Of a line with these keys, in their order; None where a file has too many sets of keys."""
    if (source, keys) not in DECODERS:
        if len(DECODERS) >= MOST_KEY_SETS:
            return None
        DECODERS[source, keys] = new_decoder(source, keys)
    return DECODERS[source, keys]


def new_decoder(source: str, keys: tuple[str, ...]) -> Decoder:
    """Of a line with these keys, in their order. Raises TypeError for keys that are no text."""
    place, (role, text), roles = SHAPES[source]
    names: list[tuple[str, Any, Any]] = [
        ("role", Literal[tuple(roles)], msgspec.field(name=role)),
        ("text", str, msgspec.field(name=text)),
    ]
    turn = msgspec.defstruct("Turn", names, forbid_unknown_fields=True, gc=False)
    fields: list[tuple[str, Any, Any]] = [
        (f"key{number}", list[turn] if key == place else Value, msgspec.field(name=key))  # type: ignore[valid-type]
        for number, key in enumerate(keys)
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Line", fields, forbid_unknown_fields=True))
