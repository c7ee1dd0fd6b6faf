"""One input: its format recognised, its bytes or rows cut into chunks of complete episodes."""

import codecs
import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson

from tools import BadInput
from tools.core import chunks
from tools.data import formats
from tools.data.formats import Episode, Row, alpaca, rows, tables, transcript
from tools.data.formats.worker import Broken, Episodes, Job, Range, loaded

# An object that holds all rows in one of its keys, and at most plain values before it.
WRAPPER = re.compile(
    rb'\s*+\{(?:\s*+"[^"\\]*+"\s*+:\s*+(?:"[^"\\]*+"|[\w.+-]++)\s*+,)*+'
    rb'\s*+"(?:data|train|rows|examples|dataset|episodes|instances)"\s*+:\s*+\[(?=\s*+[\[{])'
    rb'(?!\s*+\{[^{}\[\]]*?"(?:role|from)"\s*+:)'
)
TURN = re.compile(rb'\s*+\{[^{}\[\]]*?"(?:role|from)"\s*+:')  # a list begins with a turn, not with a row
BATCH = 64  # episodes of a text in one chunk


@dataclass
class Source:
    """A file, or stdin (`path` None), and how far it has been read."""

    path: Path | None
    format: str = ""  # empty: to be recognised
    size: int = 0  # bytes; 0 when unknown
    done: int = 0  # bytes
    line: int = 1  # in which the next chunk begins

    @property
    def name(self) -> str:
        """How it is called in messages."""
        return str(self.path) if self.path else "stdin"

    def is_table(self) -> bool:
        """Whether it is a file of Parquet or Arrow."""
        if not self.path or not self.path.is_file():
            return False
        with self.path.open("rb") as file:
            return tables.is_table(file.read(8))

    def jobs(self, ranges: bool) -> Iterator[Job]:
        """Its chunks; `ranges`: of a plain file of lines, only from where to where each reaches.

        Raises BadInput when it cannot be read.
        """
        try:
            if self.path and tables.is_hub_id(self.path):
                yield from self.cut(tables.hub_rows(str(self.path)), False)
                return
            with contextlib.ExitStack() as stack:
                # Unbuffered: a pipe is read as it comes, and Ctrl-C is met between two reads.
                opened = self.path.open("rb", 0) if self.path else os.fdopen(os.dup(0), "rb", 0)
                file: BinaryIO = stack.enter_context(opened)
                facts = os.fstat(file.fileno())
                self.size = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
                head = os.pread(file.fileno(), 8, 0) if self.path and self.size else b""
                table, packed = tables.is_table(head), head.startswith((chunks.GZIP, chunks.ZSTD))
                try:
                    pieces = self.rows_of_table() if table else self.read(file)
                    yield from self.cut(pieces, ranges and bool(head) and not table and not packed)
                except BadInput as error:
                    yield chunks.Fault(str(error))
        except OSError as error:
            raise BadInput(f"{self.name}: cannot be read ({error.strerror}); name a file of episodes") from error

    def read(self, file: BinaryIO) -> Iterator[bytes]:
        """The bytes of its open file, decompressed, a piece at a time; `done` follows."""
        for piece in chunks.plain(file):
            if self.size:
                self.done = file.tell()
            yield piece

    def rows_of_table(self) -> Iterator[bytes]:
        """The rows of a Parquet or Arrow file as lines of JSON; `done` follows."""
        assert self.path
        for share, piece in tables.pieces(self.path):
            self.done = int(share * self.size)
            yield piece

    def cut(self, pieces: Iterator[bytes], ranges: bool) -> Iterator[Job]:
        """The chunks of its bytes. Raises BadInput where they hold nothing known."""
        head = first_bytes(pieces)
        every = chain([head], pieces)
        if not self.format and head.lstrip()[:1] not in (b"[", b"{"):
            self.format = text_format(head)
        if self.format in formats.TEXT:
            yield from batches((line - 1, episode) for line, episode in transcript.episodes(lines(every)))
            return
        first = first_row(head)
        self.format = self.format or (rows.format_of(first) if first else "") or "messages"
        cut = cutter(head)
        if first is not None and alpaca.is_step(first):
            yield from steps(cut(every))
        elif ranges and cut is chunks.lines:
            for begin in range(0, self.size, chunks.SIZE):
                self.done = min(begin + chunks.SIZE, self.size)
                yield Range(str(self.path), begin, self.done)
        else:
            yield from cut(every)


def cutter(head: bytes) -> Callable[[Iterator[bytes]], Iterator[chunks.Chunk]]:
    """What cuts a file of JSON into its rows, by its first bytes: lines, an array, or objects over several lines."""
    begin = len(head) - len(head.lstrip())
    if wrapper := WRAPPER.match(head):
        return partial(wrapped_array, wrapper.end() - 1)
    if head[begin : begin + 1] not in (b"{", b"["):
        return chunks.lines
    line = head[begin:].partition(b"\n")[0]
    if head[begin : begin + 1] == b"[":
        if not TURN.match(head, begin + 1):
            return chunks.array
        return chunks.lines if is_json(line) else chunks.values
    if line.strip() == b"{":
        return chunks.values
    end = 0 if is_json(line.rstrip().removesuffix(b",")) else chunks.end_of(head, begin)
    return chunks.values if b"\n" in head[begin:end] and is_json(head[begin:end]) else chunks.lines


def wrapped_array(begin: int, pieces: Iterator[bytes]) -> Iterator[chunks.Chunk]:
    """The elements of an array that stands in an object, from this byte on."""
    head = next(pieces)
    before = b"\n" * head.count(b"\n", 0, begin) or b" "
    return chunks.array(chain([before + head[begin:]], pieces), wrapped=True)


def is_json(text: bytes) -> bool:
    """Whether a text is one complete value of JSON."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def first_bytes(pieces: Iterator[bytes]) -> bytes:
    """The beginning of a file, its first line complete if that is short. Raises BadInput for UTF-16 and for nothing."""
    head = b""
    # A pipe gives a little at a time, and the format is told by the first line.
    for piece in pieces:
        head = head.lstrip() + piece if head.isspace() else head + piece
        if len(head) >= chunks.SIZE or (b"\n" in head and not head.isspace()):
            break
    if tables.is_table(head):
        raise BadInput("Parquet and Arrow cannot be read from a pipe; name the file")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadInput("UTF-16 text; save the file as UTF-8 (iconv -f utf-16 -t utf-8)")
    head = head.removeprefix(chunks.BOM)
    if not head.strip():
        raise BadInput("the file is empty; it must hold episodes")
    return head


class StepRow(NamedTuple):
    """A row of a file of steps: its line, from 0, its bytes, and its object or why it is none."""

    line: int
    raw: bytes
    row: object


def steps(cut: Iterator[chunks.Chunk]) -> Iterator[Job]:
    """The episodes of Alpaca's rows of steps; an episode of which a step is broken or missing is one bad row."""
    ended: list[chunks.Fault] = []

    def step_rows() -> Iterator[StepRow]:
        base = 0
        for chunk in cut:
            if isinstance(chunk, chunks.Fault):
                ended.append(chunk._replace(line=base + chunk.line))
                return
            spans = chunk.spans if isinstance(chunk, chunks.Elements) else chunks.line_spans(chunk.data)
            line, at = base, 0
            for begin, end in spans:
                line, at = line + chunk.data.count(b"\n", at, begin), begin
                raw = chunk.data[begin:end]
                try:
                    yield StepRow(line, raw, loaded(raw))
                except BadInput as error:
                    yield StepRow(line, raw, error)
            base += chunk.data.count(b"\n")

    yield from batches(map(episode_of, together(step_rows())))
    yield from ended


def together(rows: Iterable[StepRow]) -> Iterator[list[StepRow]]:
    """Rows of steps, those of one episode together; a row that is no step is alone.

    What cannot be read, and a step whose forerunner is missing, stay with the unfinished episode before them.
    """
    group: list[StepRow] = []
    latest, last = 0, 0  # the step that was read last, and of how many; both 0 where an episode may begin
    for each in rows:
        step = alpaca.as_step(each.row)
        number, of = step.extra.step_of if step else (0, 0)
        ends = latest == last or (number and number <= latest) or not (number or isinstance(each.row, BadInput))
        if group and ends:
            yield group
            group, latest, last = [], 0, 0
        group.append(each)
        if number:
            latest, last = number, of
    if group:
        yield group


def episode_of(group: list[StepRow]) -> tuple[int, Episode | Broken]:
    """The line, from 0, and the episode of its rows of steps, or why they make none."""
    at = group[0].line
    try:
        for each in group:
            if isinstance(each.row, BadInput):
                at = each.line
                raise each.row
        row = group[0].row
        if alpaca.is_step(row) or len(group) > 1:
            row = alpaca.joined([each.row for each in group])
        if not isinstance(row, dict):
            raise BadInput("no object; a step is {...}")
        return at, formats.with_messages(*alpaca.read(row))
    except alpaca.BadStep as error:
        at, why = group[error.place].line, str(error)
    except BadInput as error:
        why = str(error)
    return at, Broken(why, b"\n".join(each.raw for each in group))


def first_row(head: bytes) -> Row | None:
    """The first object of a file, from its first bytes; None when they hold no complete one."""
    begin = head.find(b"{")
    end = (chunks.end_of(head, begin) if head.lstrip()[:1] == b"[" else head.find(b"\n", begin)) if begin >= 0 else 0
    try:
        row = orjson.loads(head[begin : end if end > 0 else len(head)]) if begin >= 0 else None
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def text_format(head: bytes) -> str:
    """The format of a text by its first bytes, "" for lines of JSON. Raises BadInput for what is none."""
    if re.search(rb"^(Environment #\d+:|STATUS: |#####$|Act \d+: )", head, re.MULTILINE):
        return "alfworld"
    if re.search(rb"^> ?\S", head, re.MULTILINE):
        return "react"
    if re.search(rb"^[{\[]", head, re.MULTILINE):
        return ""  # JSON, of which the first line is none
    raise BadInput("not a known format: neither JSON nor a transcript with lines like `> go to desk 1`")


def lines(pieces: Iterator[bytes]) -> Iterator[str]:
    """The lines of a UTF-8 text, without their newline. Raises BadInput for another encoding, or an endless line."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")(), ""
    for piece in chain(pieces, [b""]):
        try:
            text = rest + decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise BadInput("not UTF-8 text; save the file as UTF-8") from error
        *complete, rest = text.split("\n")
        yield from complete
        if len(rest) > chunks.LIMIT:
            raise BadInput(chunks.TOO_LONG)
    if rest:
        yield rest


def batches(episodes: Iterator[tuple[int, Episode | Broken]]) -> Iterator[Job]:
    """Chunks of so many episodes, each with its line from 0."""
    while batch := list(islice(episodes, BATCH)):
        yield Episodes(batch)
