"""What a chunk of one format becomes in another, counted; also as a process that imports almost nothing.

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
from itertools import islice
from typing import BinaryIO, NamedTuple

import orjson

from tools import BadInput
from tools.core import chunks
from tools.core.chunks import Chunk, Elements, Fault, Lines
from tools.data import formats
from tools.data.formats import (
    CannotHold,
    Episode,
    Read,
    Row,
    Turns,
    agentinstruct,
    alpaca,
    columns,
    masks,
    messages,
    messages_of,
    sharegpt,
    transcript,
    uniform_lines,
)

READERS = {"messages": messages.read, "sharegpt": sharegpt.read, "agentinstruct": sharegpt.read, "alpaca": alpaca.read}
WRITERS = {"messages": messages.write, "sharegpt": sharegpt.write, "agentinstruct": agentinstruct.write}
KEPT = (*formats.KEYS, masks.TRAIN)  # of a message, where what is extra is left out: it is no extra what is trained
TOLD = "tools in the system turn"  # a count beside those of keys
CONSTANT = re.compile(rb"[:\[,]\s*(-?(?:NaN|Infinity))\b")
TOO_DEEP = "nested too deep (more than 250 levels); flatten what the episode carries beside its messages"


class Episodes(NamedTuple):
    """Episodes that are read already, each with its line, from 0."""

    rows: list[tuple[int, Episode]]


class Range(NamedTuple):
    """The lines of a file that begin in these of its bytes, still to be read."""

    path: str
    start: int
    end: int


Job = Chunk | Episodes | Range
# Between processes a job goes as its name and its fields: marshal knows plain tuples alone, and is faster than pickle.
JOBS: dict[str, Callable[..., Job]] = {each.__name__: each for each in (Lines, Elements, Fault, Episodes, Range)}


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
    untrained: bool = True  # who reads the file leaves out of training what a turn says so of


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


def convert_chunk(source: str, chunk: Chunk | Episodes, task: Task, number: int = 0) -> Made:
    """What a chunk in the format `source` becomes, up to its first fault; `number`: of its first episode, from 0.

    Never raises BadInput: what is wrong with an episode is `fault` of what is returned.
    """
    if isinstance(chunk, Fault):
        return Made(line=chunk.line, fault=chunk.why)
    made = Made()
    rows: list[bytes] = []
    aside: list[bytes] = []
    # Only these targets need messages as they are; the others are made of roles and texts.
    needed = task.calls or task.drop or task.to not in ("sharegpt", "agentinstruct", "alpaca")
    try:
        for episode, turns in episodes_of(source, chunk):
            if needed:
                episode = formats.with_messages(episode, turns)
            if task.calls and task.to in WRITERS:
                episode = columns.with_tools_column(episode)
            count_extra(episode, made.extra, task, turns)
            try:
                rows += written(episode, task, turns, number + made.read)
                made.written += 1
            except CannotHold as error:
                if not task.apart:
                    raise BadInput(f"{task.to} cannot hold this: {error}; --apart FILE sets such aside") from error
                aside.append(orjson.dumps(formats.with_messages(episode, turns)) + b"\n")
            made.read += 1
    except BadInput as error:
        made.fault = str(error)
    except orjson.JSONEncodeError as error:  # any TypeError is one
        made.fault = TOO_DEEP if "ecursion" in str(error) else f"cannot be written as {task.to} ({error})"
    made.line = line_of(chunk, made.read) if made.fault else 0
    made.newlines = 0 if isinstance(chunk, Episodes) else chunk.data.count(b"\n")
    made.rows, made.set_apart = len(rows), len(aside)
    made.apart = b"".join(aside)
    if task.array:
        made.data = b",\n".join(rows)
    else:
        made.data = b"".join(rows) if task.to in formats.TEXT else b"\n".join([*rows, b""])
    return made


def episodes_of(source: str, chunk: Lines | Elements | Episodes) -> Iterator[Read]:
    """What the reader of the format `source` makes of a chunk's rows. Raises BadInput, when it comes to it, for a bad
    one."""
    if isinstance(chunk, Episodes):
        return ((episode, formats.roles_and_texts(messages_of(episode))) for _, episode in chunk.rows)
    if isinstance(chunk, Lines) and (found := uniform_lines.read_chunk(source, chunk.data)):
        return iter(found)
    reader = READERS[source]
    return (reader(loaded(chunk.data[begin:end])) for begin, end in spans_of(chunk))


def spans_of(chunk: Lines | Elements) -> Iterable[tuple[int, int]]:
    """Where each row of a chunk begins and ends."""
    return chunk.spans if isinstance(chunk, Elements) else chunks.line_spans(chunk.data)


def line_of(chunk: Lines | Elements | Episodes, place: int) -> int:
    """The line, from 0, in which the row at this place (from 0) of a chunk begins."""
    if isinstance(chunk, Episodes):
        return chunk.rows[place][0]
    begin, _ = next(islice(spans_of(chunk), place, None))
    return chunk.data.count(b"\n", 0, begin)


def loaded(text: bytes) -> Row:
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
            why = f"not JSON ({error}); a file must be one object a line, each complete, or one array of them"
        raise BadInput(why) from error
    if not isinstance(row, dict):
        raise BadInput("no object; an episode is {...}, with its turns in it")
    again = orjson.dumps(row)
    # Most files are written as we would write them: then nothing can be missing.
    if again != text and strings(again) != strings(text):
        raise BadInput(f"{doubled_key(text)} stands twice in one object; keep one of them")
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


def doubled_key(text: bytes) -> str:
    """The key that stands twice in one object of a row, in words."""
    doubled: list[str] = []

    def keys(pairs: list[tuple[str, object]]) -> None:
        doubled.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)

    with contextlib.suppress(RecursionError):
        json.loads(text, object_pairs_hook=keys)
    return f'the key "{doubled[0][:40]}"' if doubled else "a key"


def count_extra(episode: Episode, counts: dict[str, int], task: Task, turns: Turns | None) -> None:
    """Count what an episode carries that the target may have no place for, and whose tools its system turn tells."""
    role, text = (turns[0][0], turns[1][0]) if turns else (messages_of(episode)[0].get(key) for key in formats.KEYS)
    if role == "system" and type(text) is str and columns.tells_tools(text):
        counts[TOLD] = counts.get(TOLD, 0) + 1
    if task.to in formats.TEXT and messages_of(episode)[0]["role"] == "system":
        counts["the system turn"] = counts.get("the system turn", 0) + 1
    for key in episode:
        if key != "messages":
            counts[key] = counts.get(key, 0) + 1
    if not turns:
        kept = KEPT if task.drop else formats.KEYS
        for key in {key for turn in messages_of(episode) for key in turn}.difference(kept):
            counts[f"messages.{key}"] = counts.get(f"messages.{key}", 0) + 1


def written(episode: Episode, task: Task, turns: Turns | None, number: int) -> list[bytes]:
    """The rows of an episode in the target's format. Raises CannotHold."""
    if not turns and (task.to not in WRITERS or not task.untrained):
        masks.refuse_flags(messages_of(episode), f"what reads {task.to}" if task.untrained else "LLaMA-Factory")
    if task.to in formats.TEXT:
        log = task.to == "alfworld"
        held = transcript.without_extra(episode, log) if task.drop else episode
        return [transcript.write(held, log, number).encode()]
    if task.drop:
        episode = {"messages": [{key: turn[key] for key in KEPT if key in turn} for turn in messages_of(episode)]}
    if task.to == "alpaca":
        if task.steps:
            return [orjson.dumps(row) for row in alpaca.write_steps(episode, not task.drop, turns)]
        return [orjson.dumps(alpaca.write(episode, not task.drop, turns))]
    return [orjson.dumps(WRITERS[task.to](episode, task.calls, turns))]


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


def serve(asks: BinaryIO, answers: BinaryIO) -> None:
    """Take a task and then jobs from `asks`, and answer each. Raises EOFError or BrokenPipeError at the end."""
    handle, settings = marshal.load(asks)
    task = Task(*settings)
    opened: dict[str, BinaryIO] = {}
    while True:
        source, name, fields = marshal.load(asks)
        job = JOBS[name](*fields)
        try:
            if isinstance(job, Range):
                if job.path not in opened:
                    opened = {job.path: open(job.path, "rb")}  # noqa: SIM115
                job = chunks.lines_between(opened[job.path], job.start, job.end)
            made = convert_chunk(source, job, task)
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
