"""Lines as nearly all files have them, a chunk at once, by msgspec: turns of a role and a text, any keys beside them.

What is the least unusual in a chunk is left to the readers of its format: the conversion then takes a quarter longer.
"""

from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
import orjson

from tools.data.formats import KEYS, Ordinary, messages, sharegpt

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
TAKEN = {"messages": (), "sharegpt": ("system", "messages")}
# A decoder is two classes, which Python hardly lets go of again: a file whose every chunk begins with other keys would
# fill the memory with them.
MOST_KEY_SETS = 64
DECODERS: dict[tuple[str, tuple[str, ...]], msgspec.json.Decoder[Any]] = {}


def read(source: str, data: bytes) -> list[tuple[dict[str, Any], Ordinary]] | None:
    """The episodes of a chunk of lines, `messages` None in them, each with its roles and texts.

    None where a line is anything but an object of the first one's keys, in their order, without a needless space, whose
    turns have a known role and a text, and all beside them is flat: then nothing is missed that the format's own reader
    would refuse or keep.
    """
    if source not in SHAPES:
        return None
    place, _, roles = SHAPES[source]
    try:
        first = data[: data.find(b"\n")]
        keys = tuple(orjson.loads(first))
        if place not in keys or any(key in keys for key in TAKEN[source]):
            return None
        if (lines := decoder(source, keys)) is None:
            return None
        if msgspec.json.encode(lines.decode(first)) != first:
            return None  # The whole chunk is hardly better.
        made = lines.decode_lines(data)
        if msgspec.json.Encoder().encode_lines(made) != data:
            return None
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, TypeError):
        return None
    names, where = ["messages" if key == place else key for key in keys], keys.index(place)
    found: list[tuple[dict[str, Any], Ordinary]] = []
    for line in made:
        values = msgspec.structs.astuple(line)
        turns = values[where]
        if not turns:
            return None
        episode = dict(zip(names, values, strict=True))
        episode["messages"] = None
        found.append((episode, ([*map(roles.__getitem__, map(ROLE, turns))], [*map(TEXT, turns)])))
    return found


def decoder(source: str, keys: tuple[str, ...]) -> msgspec.json.Decoder[Any] | None:
    """Of a line with these keys, in their order; None where a file has too many sets of keys."""
    if (source, keys) not in DECODERS:
        if len(DECODERS) >= MOST_KEY_SETS:
            return None
        DECODERS[source, keys] = new_decoder(source, keys)
    return DECODERS[source, keys]


def new_decoder(source: str, keys: tuple[str, ...]) -> msgspec.json.Decoder[Any]:
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
