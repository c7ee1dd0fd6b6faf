"""A file's bytes in chunks of complete episodes; only a few chunks are in memory at once.

What is wrong with a file is a chunk too (`Fault`): so it is met after all that stands before it.
"""

import re
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import BinaryIO, NamedTuple

from tools import BadInput

SIZE = 2**20  # bytes of a chunk
LIMIT = 16 * 2**20  # bytes of one episode: ten times the longest that a model of a million tokens could read
ZSTD, GZIP, BOM = b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"\xef\xbb\xbf"
TOO_LONG = f"an episode of more than {LIMIT >> 20} MiB; it must be one JSON object a line, or an array of them"
GAP = re.compile(rb"[ \t\r\n]*+(,?)[ \t\r\n]*+")
STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
TOKEN = re.compile(STRING + rb'|[{}\[\]"]', re.DOTALL)


class Lines(NamedTuple):
    """Complete lines, an object each."""

    data: bytes


class Elements(NamedTuple):
    """A part of an array, and where each element in it begins and ends."""

    data: bytes
    spans: list[tuple[int, int]]


class Fault(NamedTuple):
    """Why the file cannot be read on, and how many lines after the chunk's begin that is."""

    why: str
    line: int = 0


Chunk = Lines | Elements | Fault


def nested(depth: int) -> bytes:
    """The pattern of an object or array with at most so many levels within it."""
    within = rb'(?:[^"{}\[\]]++|' + STRING + (b"|" + nested(depth - 1) if depth else b"") + rb")*+"
    return rb"(?:\{" + within + rb"\}|\[" + within + rb"\])"


@cache
def element() -> re.Pattern[bytes]:
    """An element of an array, as nearly all are; compiled when it is needed, for it takes as long as all else at the
    start of a process."""
    return re.compile(nested(4), re.DOTALL)


def end_of(data: bytes, start: int) -> int:
    """Where the object that begins at `start` ends; 0 when the data end before it does."""
    if found := element().match(data, start):
        return found.end()
    depth = 0
    for token in TOKEN.finditer(data, start):
        sign = token[0]
        if sign in (b"{", b"["):
            depth += 1
        elif sign in (b"}", b"]"):
            depth -= 1
            if not depth:
                return token.end()
        elif sign == b'"':
            return 0
    return 0


def plain(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file, decompressed where it is gzip or zstd by its first bytes, a piece at a time.

    Raises BadInput where compressed data are cut short or damaged.
    """
    head = file.read(SIZE)
    if head.startswith(GZIP):
        yield from gunzipped(head, file)
    elif head.startswith(ZSTD):
        yield from unpacked(head, file)
    else:
        while head:
            yield head
            head = file.read(SIZE)


def gunzipped(head: bytes, file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a gzip file of one or more members."""
    engine = zlib.decompressobj(zlib.MAX_WBITS | 16)
    data = head
    while data:
        try:
            piece = engine.decompress(data, SIZE)
        except zlib.error as error:
            raise BadInput(f"the gzip data are damaged ({error}); make the file again") from error
        if piece:
            yield piece
        data = engine.unconsumed_tail
        if engine.eof:
            data = engine.unused_data.lstrip(b"\0") or file.read(SIZE).lstrip(b"\0")
            if data:
                engine = zlib.decompressobj(zlib.MAX_WBITS | 16)
        elif not data:
            data = file.read(SIZE)
    if not engine.eof:
        raise BadInput("the gzip data are cut short; copy or make the file again")


def unpacked(head: bytes, file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a zstd file of one or more frames."""
    import zstandard

    engine, data = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj(), head
    while data:
        try:
            # A little at a time: it may become ten thousand times as much.
            piece, data = engine.decompress(data[:1024]), data[1024:]
        except zstandard.ZstdError as error:
            raise BadInput(f"the zstd data are damaged ({error}); make the file again") from error
        for start in range(0, len(piece), SIZE):
            yield piece[start : start + SIZE]
        if engine.eof:
            data = engine.unused_data + data or file.read(SIZE)
            if data:
                engine = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
        elif not data:
            data = file.read(SIZE)
    if not engine.eof:
        raise BadInput("the zstd data are cut short; copy or make the file again")


def lines(pieces: Iterator[bytes]) -> Iterator[Chunk]:
    """Chunks of complete lines; of a line that is too long only its beginning, a byte longer than may be.

    Never raises: what is wrong is the last chunk.
    """
    rest, passing = b"", False  # passing over what is left of a line that is too long
    try:
        for piece in pieces:
            if passing:
                _, newline, piece = piece.partition(b"\n")
                passing = not newline
            cut = piece.rfind(b"\n") + 1
            if cut:
                yield Lines(rest + piece[:cut])
                rest = piece[cut:]
            else:
                rest += piece
            if len(rest) > LIMIT:
                yield Lines(rest[: LIMIT + 1] + b"\n")
                rest, passing = b"", True
    except BadInput as error:
        yield Fault(str(error))
        return
    if rest:
        yield Lines(rest)


def values(pieces: Iterator[bytes]) -> Iterator[Chunk]:
    """Chunks of complete objects and lists, one after the other, over any lines, with a comma between them or none.

    Never raises: what is wrong is the last chunk.
    """
    data, scanned = b"", 0
    try:
        for piece in chain(pieces, [b""]):
            data += piece
            if piece and len(data) < min(2 * scanned, LIMIT):
                continue
            spans: list[tuple[int, int]] = []
            at = begin = 0
            while gap := GAP.match(data, at):
                begin = gap.end()
                at = end_of(data, begin) if data[begin : begin + 1] in (b"{", b"[") else 0
                if not at:
                    break
                spans.append((begin, at))
            scanned = 0 if spans else len(data)
            cut = spans[-1][1] if spans else 0
            if spans:
                yield Elements(data[:cut], spans)
            data, begin = data[cut:], begin - cut
            line = data.count(b"\n", 0, begin)
            if len(data) > LIMIT:
                yield Fault(TOO_LONG, line)
                return
            if data[begin : begin + 1] not in (b"", b"{", b"["):
                yield Fault("neither an object nor a list; a file must hold episodes, {...}", line)
                return
    except BadInput as error:
        yield Fault(str(error))
        return
    if data.strip():
        yield Fault("an object does not end: the file is cut short; copy or make it again", line)


def array(pieces: Iterator[bytes], wrapped: bool = False) -> Iterator[Chunk]:
    """Chunks of complete elements of the one array that the pieces are, each with the comma before it.

    What stands before the array comes first, as lines. `wrapped`: the bracket that ends an object follows the array.
    Never raises: what is wrong is the last chunk.
    """
    data, first, at, scanned = b"", True, 0, 0
    try:
        for piece in chain(pieces, [b""]):
            data += piece
            # An element that is not complete is looked at again once there is twice as much of it, or all.
            if piece and len(data) < min(2 * scanned, LIMIT):
                continue
            if first and not data.startswith(b"["):
                before = data.index(b"[")
                yield Lines(data[:before])
                data = data[before:]
            spans, at, fault = elements(data, first)
            scanned = 0 if spans else len(data)
            if spans:
                cut = spans[-1][1]
                yield Elements(data[:cut], spans)
                data, first, at = data[cut:], False, at - cut
            if fault:
                yield Fault(fault, data.count(b"\n", 0, at))
                return
            if data[at : at + 1] == b"]":
                yield from nothing_after(data, at + 1, pieces, b"}" if wrapped else b"")
                return
            if len(data) > LIMIT:
                yield Fault(TOO_LONG, data.count(b"\n", 0, at))
                return
    except BadInput as error:
        yield Fault(str(error))
        return
    yield Fault("the array does not end: the file is cut short; copy or make it again", data.count(b"\n", 0, at))


def elements(data: bytes, first: bool) -> tuple[list[tuple[int, int]], int, str]:
    """Where complete elements stand in an array's data, where the next thing begins, and what is wrong with it.

    `first`: the data begin with the opening bracket; else, at most, with the comma before the next element.
    """
    found: list[tuple[int, int]] = []
    at = 1 if first else 0
    while gap := GAP.match(data, at):
        begin, comma = gap.end(), bool(gap[1])
        sign = data[begin : begin + 1]
        if sign == b"]":
            return found, begin, "a comma before the array's end; remove it" if comma else ""
        if not sign:
            return found, begin, ""
        if sign == b"," or (comma and first):
            return found, begin, "a comma too many; remove it"
        if not comma and not first:
            return found, begin, "no comma between two elements of the array"
        if sign not in (b"{", b"["):
            return found, begin, "an element is no object; an array must hold episodes, {...}"
        at = end_of(data, begin)
        if not at:
            return found, begin, ""
        found.append((begin, at))
        first = False
    return found, at, ""


def nothing_after(data: bytes, end: int, pieces: Iterator[bytes], closing: bytes) -> Iterator[Chunk]:
    """A fault where something stands after an array's end but for `closing`."""
    lines, rest = data.count(b"\n", 0, end), data[end:]
    while not rest.strip() or (closing and rest.strip() == closing):
        lines += rest.count(b"\n")
        rest = next(pieces, b"")
        if not rest:
            return
    lines += rest.count(b"\n", 0, len(rest) - len(rest.lstrip()))
    yield Fault("something stands after the array's end; a file is one array, or one object a line", lines)


def lines_between(file: BinaryIO, start: int, end: int) -> Lines:
    """The lines of a file that begin in its bytes from `start` to before `end`; of one that is too long only its
    beginning, a byte longer than may be."""
    file.seek(max(start - 1, 0))
    while start and file.tell() < end:  # to the end of the line that began before
        if not (line := file.readline(SIZE)) or line.endswith(b"\n"):
            break
    data = file.read(max(end - file.tell(), 0))
    if data and not data.endswith(b"\n"):
        data += file.readline(LIMIT + 1)
        begin = data.rfind(b"\n", 0, -1) + 1
        if len(data) - begin > LIMIT:
            data = data[: begin + LIMIT + 1] + b"\n"
    return Lines(data if start else data.removeprefix(BOM))


def line_spans(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each line that is not empty begins and ends."""
    at = 0
    for line in data.split(b"\n"):
        if line and not line.isspace():
            yield at, at + len(line)
        at += len(line) + 1
