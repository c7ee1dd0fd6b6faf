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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from typing import BinaryIO, NamedTuple

import orjson

from tools import BadInput
from tools.core import chunks
from tools.core.chunks import Chunk, Elements, Fault, Lines
from tools.data import formats
from tools.data.formats import (
    CannotHold,
    Episode,
    Message,
    Read,
    Turns,
    alpaca,
    calls,
    columns,
    masks,
    messages_of,
    pairs,
    rows,
    sharegpt,
    transcript,
    uniform_lines,
)
from tools.data.formats.pairs import Pair

KEPT = (*formats.KEYS, masks.TRAIN)  # of a message, where what is extra is left out: it is no extra what is trained
TOLD = "tools in the system turn"  # a count beside those of keys
CONSTANT = re.compile(rb"[:\[,]\s*(-?(?:NaN|Infinity))\b")
TOO_DEEP = "nested too deep (more than 250 levels); flatten what the episode carries beside its messages"


class Broken(NamedTuple):
    """Rows that were to be one episode and are none: why, and their bytes."""

    why: str
    raw: bytes


class Episodes(NamedTuple):
    """Episodes that are read already, each with its line, from 0."""

    rows: list[tuple[int, Episode | Broken]]


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
    on_error: str = "stop"  # at a bad row; "skip" it; set it "apart"
    trim: bool = False  # turns after the assistant's last are cut
    wanted: str = ""  # the rows' format; each is recognised where it is empty
    roles: Mapping[str, str] = field(default_factory=dict)  # more names of roles
    array: bool = False  # rows of an array, not lines
    packed: str = ""  # gz, zst
    untrained: bool = True  # who reads the file leaves out of training what a turn says so of


class Bad(NamedTuple):
    """A row that could not be read or written: its line, counted from 0 at the chunk's begin, why, and its bytes."""

    line: int
    why: str
    raw: bytes


@dataclass
class Made:
    """What a chunk became, and what was found in it."""

    data: bytes = b""
    newlines: int = 0  # in the chunk, so that the next one knows its place
    read: int = 0  # rows, bad ones too
    rows: int = 0
    written: int = 0
    trimmed: int = 0  # episodes of which turns were cut
    extra: dict[str, int] = field(default_factory=dict)  # keys beside role and content: in how many episodes
    formats: dict[str, int] = field(default_factory=dict)  # what was recognised: how many rows
    bad: list[tuple[int, str, bytes]] = field(default_factory=list)  # as Bad, which marshal does not know


def convert_chunk(source: str, chunk: Chunk | Episodes, task: Task, number: int = 0) -> Made:
    """What a chunk becomes, `source` its format as the file begins; `number`: of its first episode, from 0.

    Never raises BadInput: what is wrong with a row is in `bad` of what is returned, and with `task.on_error` "stop" the
    first such row ends the chunk.
    """
    if isinstance(chunk, Fault):
        return Made(bad=[(chunk.line, chunk.why, b"")])
    made = Made(newlines=0 if isinstance(chunk, Episodes) else chunk.data.count(b"\n"))
    out: list[bytes] = []
    bad: list[tuple[int, str]] = []
    for found in read_chunk(source, chunk, task, made.formats):
        try:
            out += convert(found, task, made, number + made.read)
            made.written += 1
        except CannotHold as error:
            bad.append((made.read, f"{task.to} cannot hold this: {error}"))
        except BadInput as error:
            bad.append((made.read, str(error)))
        made.read += 1
        if bad and task.on_error == "stop":
            break
    made.bad = [(*each,) for each in located(chunk, bad, task.on_error == "apart")]
    made.rows = len(out)
    if task.array:
        made.data = b",\n".join(out)
    else:
        made.data = b"".join(out) if task.to in formats.TEXT else b"\n".join([*out, b""])
    return made


def convert(found: Read | Pair | BadInput, task: Task, made: Made, number: int) -> list[bytes]:
    """The rows of one that was read, or a pair, in the target's format; what it carries is counted in `made`.

    Raises BadInput where it could not be read, CannotHold where it cannot be written.
    """
    if isinstance(found, BadInput):
        raise found
    if isinstance(found, Pair):
        row = encoded(pairs.write(found, task.to, task.drop))
        for key in found.rest:
            made.extra[key] = made.extra.get(key, 0) + 1
        return [row]
    episode, turns = found
    # Only these targets need messages as they are; the others are made of roles and texts.
    if task.calls or task.drop or task.trim or task.to not in ("sharegpt", "agentinstruct", "alpaca"):
        episode = formats.with_messages(episode, turns)
    if task.calls and task.to in rows.WRITERS:
        episode = columns.with_tools_column(episode)
    if task.trim:
        episode, turns, cut = trimmed(episode, turns)
        made.trimmed += cut
    row_or_rows = written(episode, task, turns, number)
    count_extra(episode, made.extra, task, turns)
    return row_or_rows


def trimmed(episode: Episode, turns: Turns | None) -> tuple[Episode, Turns | None, bool]:
    """The episode without what follows the assistant's last turn, and whether anything did. Raises BadInput where
    nothing is left."""
    messages = messages_of(episode)
    end = len(messages)
    while end and messages[end - 1]["role"] != "assistant":
        end -= 1
    if not end:
        raise BadInput("no turn of the assistant's; drop the row")
    if end == len(messages):
        return episode, turns, False
    return episode | {"messages": messages[:end]}, turns and (turns[0][:end], turns[1][:end]), True


def read_chunk(
    source: str, chunk: Lines | Elements | Episodes, task: Task, counts: dict[str, int]
) -> Iterator[Read | Pair | BadInput]:
    """What each row of a chunk holds, or why it cannot be read; `counts` gets the rows of each format."""
    if isinstance(chunk, Episodes):
        counts[source] = counts.get(source, 0) + len(chunk.rows)
        return (
            (held, formats.roles_and_texts(messages_of(held))) if isinstance(held, dict) else BadInput(held[0])
            for _, held in chunk.rows
        )
    if isinstance(chunk, Lines) and not task.roles and (found := uniform_lines.read_chunk(source, chunk.data)):
        counts[source] = counts.get(source, 0) + len(found)
        return iter(found)
    return (read_row(chunk.data[begin:end], task, counts) for begin, end in spans_of(chunk))


def read_row(text: bytes, task: Task, counts: dict[str, int]) -> Read | Pair | BadInput:
    """What one row holds, or why it cannot be read; its format is counted in `counts`."""
    try:
        name, found = rows.read(loaded(text), task.wanted, task.roles)
    except BadInput as error:
        return error
    counts[name] = counts.get(name, 0) + 1
    return found


def located(chunk: Lines | Elements | Episodes, bad: list[tuple[int, str]], raw: bool) -> Iterator[Bad]:
    """Bad rows, given by their place (from 0) in a chunk, with their line, and with their bytes where `raw`."""
    if not bad:
        return
    spans = [] if isinstance(chunk, Episodes) else [*spans_of(chunk)]
    line = at = 0
    for place, why in bad:
        if isinstance(chunk, Episodes):
            line, held = chunk.rows[place]
            yield Bad(line, why, b"" if not raw else orjson.dumps(held) if isinstance(held, dict) else held[1])
            continue
        begin, end = spans[place]
        line, at = line + chunk.data.count(b"\n", at, begin), begin
        yield Bad(line, why, chunk.data[begin:end] if raw else b"")


def spans_of(chunk: Lines | Elements) -> Iterable[tuple[int, int]]:
    """Where each row of a chunk begins and ends."""
    return chunk.spans if isinstance(chunk, Elements) else chunks.line_spans(chunk.data)


def loaded(text: bytes) -> object:
    """The object or list of one row. Raises BadInput when it is none, in words that say why."""
    if len(text) > chunks.LIMIT:
        raise BadInput(chunks.TOO_LONG)
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # Files put together carry a mark in their midst; an array's lines without its brackets end with commas.
        bare = text.removeprefix(chunks.BOM).rstrip().removesuffix(b",")
        if len(bare) < len(text.rstrip()):
            return loaded(bare)
        raise BadInput(why_not_json(text, error)) from error
    if not isinstance(row, (dict, list)):
        raise BadInput("no object; an episode is {...}, with its turns in it")
    again = encoded(row)
    # Most files are written as we would write them: then nothing can be missing.
    if again != text and strings(again) != strings(text):
        raise BadInput(f"{doubled_key(text)} stands twice in one object; keep one of them")
    return row


def why_not_json(text: bytes, error: orjson.JSONDecodeError) -> str:
    """What is wrong with a row that is no JSON, and how to mend it."""
    if found := CONSTANT.search(text):
        return f"{found[1].decode()} is not JSON; write null, or leave it out"
    if "depth limit" in str(error):
        return TOO_DEEP
    if not is_utf8(text):
        return "not UTF-8 text; save the file as UTF-8 (iconv -f latin1 -t utf-8, if it is Latin-1)"
    return f"not JSON ({error}); a file must be one object a line, each complete, or one array of them"


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
    if not turns and (task.to not in rows.WRITERS or not task.untrained):
        plain = task.untrained and task.to != "llamafactory"
        masks.refuse_flags(messages_of(episode), f"what reads {task.to}" if plain else "LLaMA-Factory")
    if not turns and not (task.calls and task.to == "messages"):
        calls.refuse_several(messages_of(episode))
    if task.to in formats.TEXT:
        log = task.to == "alfworld"
        held = transcript.without_extra(episode, log) if task.drop else episode
        return [transcript.write(held, log, number).encode()]
    if task.drop:
        episode = {"messages": [without_extra(turn) for turn in messages_of(episode)]}
    if task.to == "llamafactory":  # whose files are made of these messages
        alpaca.write(episode, not task.drop, turns)
        sharegpt.write(episode, task.calls, turns)
        return [encoded(episode)]
    if task.to == "alpaca":
        if task.steps:
            return [encoded(row) for row in alpaca.write_steps(episode, not task.drop, turns)]
        return [encoded(alpaca.write(episode, not task.drop, turns))]
    return [encoded(rows.WRITERS[task.to](episode, task.calls, turns))]


def without_extra(turn: Message) -> Message:
    """A message without keys of its own. Calls, of which only turns with several still have any, are no extra."""
    kept = (*KEPT, "tool_call_id") if turn["role"] in ("tool", "function") else (*KEPT, "tool_calls")
    return {key: turn[key] for key in kept if key in turn}


def encoded(row: object) -> bytes:
    """A row as JSON. Raises BadInput where it is nested too deep for it, or holds what JSON has not."""
    try:
        return orjson.dumps(row)
    except TypeError as error:
        raise BadInput(TOO_DEEP if "ecursion" in str(error) else f"cannot be written as JSON ({error})") from error


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
            made = Made(bad=[(0, f"cannot be read ({error.strerror})", b"")])
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
