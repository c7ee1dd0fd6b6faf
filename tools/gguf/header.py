"""The header of a GGUF of any origin: every count, length and offset in it held against what the file has.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Versions 2 and 3 have the same layout.
"""

import contextlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tools import BadInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# At most; the largest vocabulary known, Gemma 4's, takes 16 MB and 1.3 million elements in its arrays.
HEADER = 64 * 2**20
ELEMENTS = 2**22
# A model has some 50 keys; the most tensors known are 2,000, and an importance matrix has two for each.
KEYS, TENSORS = 2**12, 2**16
# llama.cpp's GGML_MAX_DIMS and GGML_MAX_NAME, and the format's own limit of a key, in bytes.
DIMENSIONS, NAME, KEY = 4, 64, 2**16
ALIGNMENT = 32
# The types of values, as struct has them; then text and array.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, TEXT, ARRAY = 4, 8, 9


# A value of the metadata: a number or a truth, a text, or of an array how many elements it has.
Value = int | float | str


class Wrong(Exception):
    """What is wrong with a header."""


class Cursor:
    """A place in the bytes of a header, which goes on as they are read. Raises Wrong at their end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def skip(self, size: int) -> int:
        """Go on by `size` bytes; where they begin. Raises Wrong where there are fewer."""
        begin = self.at
        if size > len(self.data) - begin:
            longer = len(self.data) == HEADER
            raise Wrong(f"its header has more than {HEADER >> 20} MiB" if longer else "it ends within its header")
        self.at += size
        return begin

    def number(self, kind: str) -> int | float:
        """The next number, by its letter in struct. Raises Wrong."""
        found: int | float = struct.unpack_from(f"<{kind}", self.data, self.skip(struct.calcsize(f"<{kind}")))[0]
        return found

    def count(self, kind: str = "Q") -> int:
        """The next whole number, by its letter in struct. Raises Wrong."""
        return int(self.number(kind))

    def text(self, longest: int = HEADER) -> str:
        """The next text of at most so many bytes. Raises Wrong for a longer one."""
        size = self.count()
        if size > longest:
            raise Wrong(f"a text of {size} bytes, where {longest} are the most")
        begin = self.skip(size)
        return bytes(self.data[begin : self.at]).decode(errors="replace")


def metadata(path: Path) -> dict[str, Value]:
    """The metadata of a GGUF: numbers and texts as they are, and of an array how many elements it has.

    Raises BadInput for what is none, is cut short, or says of its sizes what cannot be.
    """
    with opened(path) as (cursor, size):
        return checked(cursor, size, {})


def metadata_and_arrays(
    path: Path, beginning: str
) -> "tuple[dict[str, Value], dict[str, list[bytes] | npt.NDArray[np.generic]]]":
    """The metadata of a GGUF as `metadata` has it, and the arrays whose keys begin so.

    Texts are bytes, numbers are in numpy's type of them. Raises BadInput as `metadata`.
    """
    with opened(path) as (cursor, size):
        places: dict[str, int] = {}
        found = checked(cursor, size, places)
        return found, {key: elements(cursor.data, at) for key, at in places.items() if key.startswith(beginning)}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[Cursor, int]]:
    """The beginning of a GGUF and the file's size in bytes. Raises BadInput for what it is read to be wrong with."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file, mmap.mmap(file.fileno(), min(size, HEADER), access=mmap.ACCESS_READ) as data:
            yield Cursor(data), size
    except (Wrong, ValueError) as why:  # ValueError: an empty file
        raise BadInput(f"{path}: not a GGUF that can be used: {why}; download or make it again") from why
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error


def checked(cursor: Cursor, size: int, places: dict[str, int]) -> dict[str, Value]:
    """The metadata, once all of the header is found to be right for a file of `size` bytes. Raises Wrong.

    `places` is told where each array begins, by its key.
    """
    if bytes(cursor.data[:4]) != b"GGUF":
        raise Wrong("it does not begin with GGUF")
    cursor.skip(4)
    version = cursor.count("I")
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0
        raise Wrong("its bytes are in big-endian order" if swapped else f"its version is {version}, and not 2 or 3")
    tensors, keys = cursor.count(), cursor.count()
    if tensors > TENSORS or keys > KEYS:
        raise Wrong(f"it counts {tensors} tensors and {keys} keys, where {TENSORS} and {KEYS} are the most")
    found: dict[str, Value] = {}
    left = ELEMENTS
    for _ in range(keys):
        key = cursor.text(KEY)
        if not key or key in found:
            raise Wrong(f"the key {key[:NAME]!r} stands twice" if key else "a key without a name")
        kind = cursor.count("I")
        if key == "general.alignment" and kind != UINT32:
            raise Wrong("general.alignment is no 32-bit number")
        if kind == ARRAY:
            places[key] = cursor.at
            found[key] = count = array(cursor, left)
            left -= count
        else:
            found[key] = value(cursor, kind)
    alignment = int(found.get("general.alignment", ALIGNMENT))
    if alignment.bit_count() != 1:
        raise Wrong(f"general.alignment is {alignment}, no power of two")
    ends = tensor_ends(cursor, tensors, alignment)
    begin = -(-cursor.at // alignment) * alignment
    if ends and begin + max(ends.values()) > size:
        name = max(ends, key=lambda name: ends[name])
        raise Wrong(f"{name!r} ends at byte {begin + ends[name]}, and the file has {size}")
    return found


def value(cursor: Cursor, kind: int) -> Value:
    """The next single value. Raises Wrong for a type that there is not."""
    if kind == TEXT:
        return cursor.text()
    if kind not in NUMBERS:
        raise Wrong(f"a value of type {kind}, which there is not")
    return cursor.number(NUMBERS[kind])


def array(cursor: Cursor, most: int) -> int:
    """How many elements the next array has; they are skipped. Raises Wrong for more than `most` and for nested ones."""
    kind, count = cursor.count("I"), cursor.count()
    if count > most:
        raise Wrong(f"an array of {count} elements; all arrays together may have {ELEMENTS}")
    if kind == TEXT:
        length = struct.Struct("<Q")
        for _ in range(count):
            cursor.skip(length.unpack_from(cursor.data, cursor.skip(8))[0])
    elif kind in NUMBERS:
        cursor.skip(count * struct.calcsize(NUMBERS[kind]))
    else:
        raise Wrong("an array of arrays" if kind == ARRAY else f"an array of type {kind}, which there is not")
    return count


def elements(data: mmap.mmap, begin: int) -> "list[bytes] | npt.NDArray[np.generic]":
    """The elements of an array that begins at a place and was found to be right by `checked`."""
    import numpy as np

    (kind, count), at = struct.unpack_from("<IQ", data, begin), begin + struct.calcsize("<IQ")
    if kind != TEXT:
        return np.frombuffer(data, np.dtype(f"<{NUMBERS[kind]}"), count, at).copy()  # the file is closed soon
    texts, length = [], struct.Struct("<Q")
    for _ in range(count):
        at += length.size + (size := length.unpack_from(data, at)[0])
        texts.append(data[at - size : at])
    return texts


def tensor_ends(cursor: Cursor, count: int, alignment: int) -> dict[str, int]:
    """Where each tensor ends, in bytes from the beginning of the data. Raises Wrong."""
    from gguf import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    ends: dict[str, int] = {}
    for _ in range(count):
        name = cursor.text(NAME)
        if name in ends:
            raise Wrong(f"the tensor {name!r} stands twice")
        if (rank := cursor.count("I")) > DIMENSIONS:
            raise Wrong(f"{name!r} has {rank} dimensions, where {DIMENSIONS} are the most")
        shape = [cursor.count() for _ in range(rank)] or [1]
        kind, offset = cursor.count("I"), cursor.count()
        if kind not in sizes:
            raise Wrong(f"{name!r} is of type {kind}, which llama.cpp does not have")
        block, width = sizes[kind]
        if shape[0] % block:
            raise Wrong(f"{name!r} has rows of {shape[0]} elements, no multiple of {block}")
        if offset % alignment:
            raise Wrong(f"{name!r} begins at byte {offset} of the data, no multiple of {alignment}")
        elements = shape[0]
        for each in shape[1:]:
            elements *= each
        ends[name] = offset + elements // block * width
    return ends
