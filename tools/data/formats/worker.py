"""Chunks in, chunks out: rows parsed, read, written and counted; also as a process that imports almost nothing.

Such a process gets its task and then chunks on stdin and answers on stdout, both by marshal. What it made it writes to
an open file when told that it is its turn, so that the order is kept and the data pass through no other process.
"""

import contextlib
import gc
import json
import marshal
import os
import re
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, field
from typing import Any

import orjson

from tools import BadInput
from tools.core import chunks
from tools.data import formats
from tools.data.formats import CannotHold, agentinstruct, alpaca, messages, sharegpt, transcript, usual

READERS = {"messages": messages.read, "sharegpt": sharegpt.read, "agentinstruct": sharegpt.read, "alpaca": alpaca.read}
WRITERS = {"messages": messages.write, "sharegpt": sharegpt.write, "agentinstruct": agentinstruct.write}
CONSTANT = re.compile(rb"[:\[,]\s*(-?(?:NaN|Infinity))\b")
TOO_DEEP = "nested too deep (more than 250 levels); flatten what the episode carries beside its messages"


@dataclass(frozen=True)
class Task:
    """What episodes become: `to` a format, and how."""

    to: str
    calls: bool = False  # actions as calls of tools
    steps: bool = False  # Alpaca: a row a step
    drop: bool = False  # what the target cannot hold is left out
    apart: bool = False  # episodes that the target cannot hold are set aside
    array: bool = False  # rows of an array, not lines
    packed: str = ""  # gz, zst


@dataclass
class Made:
    """What a chunk became, and what was found in it."""

    data: bytes = b""
    apart: bytes = b""
    newlines: int = 0  # in the chunk, so that the next one knows its place
    read: int = 0
    rows: int = 0
    written: int = 0
    set_apart: int = 0
    extra: dict[str, int] = field(default_factory=dict)  # keys beside role and content: in how many episodes
    line: int = 0  # of the fault, counted from 0 at the chunk's begin
    fault: str = ""


def convert(source: str, kind: str, data: Any, task: Task, number: int = 0) -> Made:
    """What a chunk in the format `source` becomes, up to its first fault; `number`: of its first episode, from 0.

    `kind`: of the chunk, see chunks.py; or "episodes": [(line, episode), ...], read already.
    """
    if kind == "fault":
        return Made(line=data[0], fault=data[1]) if isinstance(data, tuple) else Made(fault=data)
    made = Made()
    rows: list[bytes] = []
    aside: list[bytes] = []
    counts: dict[str, int] = {}
    at = 0
    # Only these targets need messages as they are; the others are made of roles and texts.
    needed = task.calls or task.drop or task.to not in ("sharegpt", "agentinstruct", "alpaca")
    given, read = rows_of(source, kind, data)
    try:
        for at, row in given:  # noqa: B007
            episode, plain = read(row)
            if needed:
                episode = formats.whole(episode, plain)
            made.read += 1
            count_extra(episode, counts, task, plain)
            try:
                rows += written(episode, task, plain, number + made.read - 1)
                made.written += 1
            except CannotHold as error:
                if not task.apart:
                    raise BadInput(f"{task.to} cannot hold this: {error}; --apart FILE sets such aside") from error
                aside.append(orjson.dumps(formats.whole(episode, plain)) + b"\n")
    except BadInput as error:
        made.fault = str(error)
    except orjson.JSONEncodeError:
        made.fault = TOO_DEEP
    made.line = line_of(kind, data, at) if made.fault else 0
    made.newlines = 0 if kind == "episodes" else (data if kind == "lines" else data[0]).count(b"\n")
    made.rows, made.set_apart, made.extra = len(rows), len(aside), dict(counts)
    made.apart = b"".join(aside)
    if task.array:
        made.data = b",\n".join(rows)
    else:
        made.data = b"".join(rows) if task.to in formats.TEXT else b"\n".join([*rows, b""])
    return made


def rows_of(source: str, kind: str, data: Any) -> tuple[Iterable[tuple[int, Any]], Callable[[Any], Any]]:
    """The rows of a chunk, numbered by line or by element from 0, and what makes (episode, roles and texts) of one."""
    if kind == "episodes":
        return data, lambda episode: (episode, formats.ordinary(episode["messages"]))
    if kind == "lines" and (found := usual.read(source, data)):
        return enumerate(found), lambda row: row
    reader = READERS[source]
    return texts(kind, data), lambda text: reader(loaded(text))


def texts(kind: str, data: Any) -> Iterator[tuple[int, bytes]]:
    """The texts of a chunk's rows, numbered by line or by element from 0."""
    if kind == "lines":
        return ((number, line) for number, line in enumerate(data.split(b"\n")) if line and not line.isspace())
    text, spans = data
    return ((number, text[begin:end]) for number, (begin, end) in enumerate(spans))


def loaded(text: bytes) -> dict[str, Any]:
    """The object of one row. Raises BadInput when it is none, in words that say why."""
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if found := CONSTANT.search(text):
            why = f"{found[1].decode()} is not JSON; write null, or leave it out"
        elif "depth limit" in str(error):
            why = TOO_DEEP
        elif not is_utf8(text):
            why = "not UTF-8 text; save the file as UTF-8 (iconv -f latin1 -t utf-8, if it is Latin-1)"
        else:
            why = f"not JSON ({error}); a file must be one object a line, each whole, or one array of them"
        raise BadInput(why) from error
    if type(row) is not dict:
        raise BadInput("no object; an episode is {...}, with its turns in it")
    again = orjson.dumps(row)
    # Most files are written as we would write them: then nothing can be missing.
    if again != text and strings(again) != strings(text):
        raise BadInput(f"{twice(text)} stands twice in one object; keep one of them")
    return row


def is_utf8(text: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def strings(data: bytes) -> int:
    """How many quotes begin or end a string in valid JSON: as many in the text as in what was read of it, unless a
    key stands twice in an object, of which readers keep one."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"")
        return data.count(b'"') - data.count(b'\\"')
    return data.count(b'"')


def twice(text: bytes) -> str:
    """The key that stands twice in one object of a row, in words."""
    doubled: list[str] = []

    def keys(pairs: list[tuple[str, Any]]) -> None:
        doubled.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)

    with contextlib.suppress(RecursionError):
        json.loads(text, object_pairs_hook=keys)
    return f'the key "{doubled[0][:40]}"' if doubled else "a key"


def line_of(kind: str, data: Any, at: int) -> int:
    """The line, from 0, in which row number `at` of a chunk begins."""
    return int(data[0].count(b"\n", 0, data[1][at][0])) if kind == "array" else at


def count_extra(episode: dict[str, Any], counts: dict[str, int], task: Task, plain: formats.Ordinary) -> None:
    """Count what an episode carries that the target may have no place for."""
    if task.to in formats.TEXT and episode["messages"][0]["role"] == "system":
        counts["the system turn"] = counts.get("the system turn", 0) + 1
    for key in episode:
        if key != "messages":
            counts[key] = counts.get(key, 0) + 1
    if not plain:
        for key in {key for turn in episode["messages"] for key in turn} - set(formats.KEYS):
            counts[f"messages.{key}"] = counts.get(f"messages.{key}", 0) + 1


def written(episode: dict[str, Any], task: Task, plain: formats.Ordinary, number: int) -> list[bytes]:
    """The rows of an episode in the target's format. Raises CannotHold."""
    if task.to in formats.TEXT:
        log = task.to == "alfworld"
        held = transcript.without_extra(episode, log) if task.drop else episode
        return [transcript.write(held, log, number).encode()]
    if task.drop:
        turns = [{key: turn[key] for key in formats.KEYS if key in turn} for turn in episode["messages"]]
        episode = {"messages": turns}
    if task.to == "alpaca":
        rows = (
            alpaca.write_steps(episode, not task.drop, plain)
            if task.steps
            else [alpaca.write(episode, not task.drop, plain)]
        )
        return [orjson.dumps(row) for row in rows]
    return [orjson.dumps(WRITERS[task.to](episode, task.calls, plain))]


def put(handle: int, data: bytes) -> None:
    """Write all of it to an open file."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def packed(data: bytes, how: str) -> bytes:
    """The data as a gzip member of their own, where that is asked for; members one after the other are one file."""
    return zlib.compress(data, 6, wbits=31) if how == "gz" and data else data


def main() -> None:
    """Serve one converter until it closes our pipes, or is gone. Its Ctrl-C is not for us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # Rows hold no cycles, and to look for some takes a tenth of the time.
    with contextlib.suppress(EOFError, BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
    os._exit(0)  # Python would try to write once more what nobody reads


def serve(asks: Any, answers: Any) -> None:
    """Take a task and then chunks from `asks`, and answer each. Raises EOFError or BrokenPipeError at the end."""
    handle, settings = marshal.load(asks)
    task = Task(*settings)
    opened: dict[str, Any] = {}
    while True:
        source, kind, data = marshal.load(asks)
        try:
            if kind == "range":
                path, start, end = data
                if path not in opened:
                    opened = {path: open(path, "rb")}  # noqa: SIM115
                kind, data = chunks.stretch(opened[path], start, end)
            made = convert(source, kind, data, task)
        except OSError as error:
            made = Made(fault=f"cannot be read ({error.strerror})")
        ready = packed(made.data, task.packed)
        if task.packed != "zst":
            made.data = b""  # It does not go through the pipe.
        marshal.dump(astuple(made), answers)
        answers.flush()
        before = marshal.load(asks)
        if before is None:
            continue
        try:
            put(handle, before + ready)
            marshal.dump(0, answers)
        except OSError as error:
            marshal.dump(error.errno, answers)
        answers.flush()
