"""Episodes of files in any format, for the commands that look at each: with their place in the file as it is."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools import BadInput
from tools.core import chunks, preference, quote, trajectory
from tools.data import formats
from tools.data.formats import Episode, calls, messages, messages_of, tables, worker
from tools.data.formats import rows as json_rows
from tools.data.formats.pairs import Pair
from tools.data.formats.source import Source, cutter, first_row
from tools.data.formats.worker import Episodes, Range, Task
from tools.data.inputs import input_files, read_once

TASK = Task("messages")
Row = tuple[str, Episode | str]  # file:line, and the episode there or why there is none


def rows(paths: Iterable[str | Path], say: bool = True) -> Iterator[Row]:
    """(file:line, episode) of every row of files in any format, or (file:line, why it is none) and on to the next.

    A row with messages that its format's reader refuses is given as it is, for who says more of it. `say`: tell, on
    stderr, what was recognised where it is not messages. Raises BadInput for a file that cannot be read, and for one
    that holds nothing.
    """
    files, _ = read_once(input_files([str(each) for each in paths]))
    for path in files:
        source, counts, found = Source(path), dict[str, int](), False
        for job in source.jobs(ranges=False):
            assert not isinstance(job, Range)
            if isinstance(job, chunks.Fault):
                if not found:
                    raise BadInput(f"{source.name}:{source.line + job.line}: {job.why}")
                yield f"{source.name}:{source.line + job.line}", job.why
                continue
            for line, episode in read_job(job, counts):
                found = True
                yield f"{source.name}:{source.line + line}", episode
            source.line += 0 if isinstance(job, Episodes) else job.data.count(b"\n")
        if say and (told := [name for name in counts or [source.format] if name != "messages"]):
            print(quote.visible(f"{source.name}: recognised {', '.join(told)}"), file=sys.stderr)


def read_job(
    job: chunks.Lines | chunks.Elements | Episodes, counts: dict[str, int]
) -> Iterator[tuple[int, Episode | str]]:
    """The line, from 0, of every row of a chunk and its episode, or why it is none; `counts` gets their formats."""
    if isinstance(job, Episodes):
        yield from ((line, held if isinstance(held, dict) else held[0]) for line, held in job.rows)
        return
    line = at = 0
    for begin, end in worker.spans_of(job):
        line, at = line + job.data.count(b"\n", at, begin), begin
        text = job.data[begin:end]
        found = worker.read_row(text, TASK, counts)
        if isinstance(found, BadInput):
            raw = trajectory.row(text)
            yield line, str(found) if isinstance(raw, str) else raw
        elif isinstance(found, Pair):
            yield line, {"messages": [*found.prompt, *found.chosen], "rejected": found.rejected} | found.rest
        else:
            episode = formats.with_messages(*found)
            try:
                calls.refuse_several(messages_of(episode))
            except BadInput as error:
                yield line, str(error)
            else:
                yield line, episode


def is_messages(path: Path) -> bool:
    """Whether a file is lines of messages or of preference pairs, by its first ones: what trains reads it as it is."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(chunks.SIZE)
    if head.startswith((chunks.GZIP, chunks.ZSTD)) or tables.is_table(head):
        return False
    head = head.removeprefix(chunks.BOM)
    first = first_row(head)
    if not head.strip() or cutter(head) is not chunks.lines:
        return not head.strip()  # who reads an empty file says so
    if first is None:
        return head.lstrip()[:1] == b"{"  # broken, or longer than this: who reads it says more
    if preference.fault(first) is None:
        return True
    if json_rows.format_of(first) != "messages":
        return False
    try:
        return messages.read(first)[0] is first
    except BadInput:
        return False
