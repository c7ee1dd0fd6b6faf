"""Any format of episodes to any other: recognised, streamed, in order, and under its name only when it is complete."""

import contextlib
import marshal
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import orjson

from tools import BadInput, Failed
from tools.core import files, process, progress, quote, run_folder
from tools.data import formats, reader
from tools.data.formats import masks, tables, worker
from tools.data.formats.source import Source
from tools.data.formats.worker import Job, Made, Range, Task
from tools.data.inputs import PACKED, input_files, read_once

if TYPE_CHECKING:
    from zstandard import ZstdCompressionObj

PARQUET = ".parquet"
FILE_SET = "llamafactory"
ALIASES = {"openai": "messages", "chatml": "messages", "trl": "messages", "vicuna": "sharegpt"}
ON_ERROR = ("stop", "skip", "apart")
# From so many bytes on, several processes win more than their start costs.
LARGE = 8 * 2**20
MOST_CAUSES = 50  # that are told apart
STOPPED = "; `convert --on-error skip` (ON_ERROR=skip) leaves such rows out and lists all by cause"
WORKERS = 4  # more would wait for the disk, and each takes 20 MB of memory
# A process frees what a chunk took when it is written; glibc would give it back, and the kernel would have to clear it
# again for the next: a fifth of all the time. See mallopt(3).
MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**26), "MALLOC_MMAP_THRESHOLD_": str(2**26)}
# What a process of ours needs: this Python, these folders, and nothing else at its start.
START = "import sys; sys.path[:] = {!r}; from tools.data.formats import worker; worker.main()"


class Cause(TypedDict):
    """How many rows were bad for one cause, and where the first of them is."""

    count: int
    first: str


@dataclass
class Counts:
    """What was read and written, and what was wrong with the rest."""

    read: int = 0
    written: int = 0
    rows: int = 0
    bad: int = 0  # rows that could not be read or written
    causes: dict[str, Cause] = field(default_factory=dict)
    trimmed: int = 0
    formats: dict[str, int] = field(default_factory=dict)  # what was recognised: how many rows
    not_read: list[str] = field(default_factory=list)  # files that hold the same episodes as one that was read
    extra: dict[str, int] = field(default_factory=dict)  # keys beside the turns' roles and texts: in how many episodes
    seconds: float = 0.0

    def add(self, made: Made) -> None:
        """Count what a chunk became, but for its bad rows."""
        self.read += made.read
        self.written += made.written
        self.rows += made.rows
        self.trimmed += made.trimmed
        for counts, more in ((self.extra, made.extra), (self.formats, made.formats)):
            for key, count in more.items():
                counts[key] = counts.get(key, 0) + count

    def add_counts(self, other: "Counts") -> None:
        """Add what another conversion counted."""
        self.add(
            Made(
                read=other.read,
                written=other.written,
                rows=other.rows,
                trimmed=other.trimmed,
                extra=other.extra,
                formats=other.formats,
            )
        )
        for cause, found in other.causes.items():
            self.add_bad(cause, found["first"], found["count"])
        self.seconds += other.seconds

    def add_bad(self, why: str, where: str, count: int = 1) -> None:
        """Count a bad row."""
        self.bad += count
        key = cause_of(why)
        if key not in self.causes and len(self.causes) >= MOST_CAUSES:
            key = "other causes"
        self.causes.setdefault(key, {"count": 0, "first": where})["count"] += count


def cause_of(why: str) -> str:
    """What a bad row has in common with others, of a message that says all about this one."""
    head = re.split(r"; | \(|: ", re.sub(r"^\w+ cannot hold this: ", "", why), maxsplit=1)[0]
    return re.sub(r"^(turn|message|step) \d+", r"a \1", head)[:80]


class Output:
    """An open file that chunks are written to, packed as its name says: gzip member by member, zstd as one frame."""

    def __init__(self, handle: int, packed: str) -> None:
        self.handle, self.packed = handle, packed
        self.engine: ZstdCompressionObj | None = None
        if packed == "zst":
            import zstandard

            self.engine = zstandard.ZstdCompressor().compressobj()

    def put(self, data: bytes) -> None:
        """Write data of ours."""
        worker.put(self.handle, self.engine.compress(data) if self.engine else worker.packed(data, self.packed))

    def put_after(self, data: bytes, before: bytes) -> None:
        """Write data, if there are any, after the bytes `before`."""
        if data:
            self.put(before + data)

    def close(self) -> None:
        """Write what the compression still holds."""
        if self.engine:
            worker.put(self.handle, self.engine.flush())


Put = Callable[[bytes], None]  # what writes bytes
Result = tuple[Source, Made, Put]  # whose, what, and what writes it after the bytes it is given


def convert_files(inputs: list[str], out: str, task: Task, apart: str = "", force: bool = False) -> Counts:
    """Convert files, folders, globs or stdin ("-") to one file or stdout ("-"), completely or not at all.

    `apart`: the file for bad rows, where `task.on_error` is "apart": a line of JSON each, with its place, the cause and
    the row as it was. `force`: replace what is there. Raises BadInput, with file:line, for what cannot be read, held or
    written; Failed when the disk is full.
    """
    paths, copies = read_once(input_files(inputs))
    if apart and os.path.realpath(apart) == os.path.realpath(out):
        raise BadInput(f"{apart}: both OUT and --apart; name two files")
    with contextlib.ExitStack() as stack:
        aside = stack.enter_context(opened_apart(apart, force, paths))
        if out.endswith(PARQUET):
            counts = pour_as_parquet(paths, out, aside, task, force)
        else:
            handle = stack.enter_context(opened(out, force, paths))
            counts = pour(paths, out, handle, aside, task)
    counts.not_read = copies
    return counts


def pour(paths: Sequence[Path | None], out: str, handle: int, aside: Put | None, task: Task) -> Counts:
    """Convert files (None: stdin) into the open file `handle`; `aside` writes the line of a bad row.

    `task.array` and `task.packed` follow the name of `out`. Raises as `convert_files`.
    """
    sources = [Source(path, task.wanted) for path in paths]
    stem, suffix = os.path.splitext(out)
    task = replace(task, packed=suffix[1:] if suffix in PACKED else "")
    task = replace(task, array=(stem if task.packed else out).endswith(".json") and task.to in formats.JSON)
    counts, began = Counts(), time.monotonic()
    size = sum(os.path.getsize(each.path) for each in sources if each.path and os.path.isfile(each.path))
    several = size >= LARGE and task.to in formats.JSON
    output = Output(handle, task.packed)
    results = (by_processes if several else by_this_process)(sources, output, task)
    with progress.bar("convert: reading", size or None, "bytes") as shown, contextlib.closing(results):
        for source, made, write in results:
            for line, why, raw in made.bad:
                where = f"{source.name}:{source.line + line}"
                if task.on_error == "stop":
                    raise BadInput(f"{where}: {why}{STOPPED}")
                counts.add_bad(why, where)
                if aside:
                    aside(set_apart(where, why, raw))
            source.line += made.newlines
            write((b",\n" if counts.rows else b"[\n") if task.array and made.rows else b"")
            counts.add(made)
            shown.update(sum(each.done for each in sources))
    if not counts.written:
        raise BadInput(nothing_written(counts, sources[-1].name))
    if task.array:
        output.put(b"\n]\n")
    output.close()
    counts.seconds = time.monotonic() - began
    return counts


def pour_as_parquet(paths: Sequence[Path | None], out: str, aside: Put | None, task: Task, force: bool) -> Counts:
    """Convert files to a Parquet file: to lines first, which stand beside it meanwhile. Raises as `convert_files`."""
    if task.to not in formats.JSON:
        raise BadInput(f"{out}: Parquet holds {', '.join(formats.JSON)}, not {task.to}")
    with files.output(out, force, paths) as whole, files.scratch(Path(os.path.realpath(out))) as folder:
        lines = folder / "lines.jsonl"
        with lines.open("wb", buffering=0) as file:
            counts = pour(paths, str(lines), file.fileno(), aside, task)
        began = time.monotonic()
        with progress.step("convert: writing Parquet"):
            try:
                tables.write(lines, whole)
            except BadInput as error:
                raise BadInput(f"{out}: {error}") from error
        counts.seconds += time.monotonic() - began
    return counts


def set_apart(where: str, why: str, raw: bytes) -> bytes:
    """The line that keeps a bad row: its place, the cause, and the row, as a text where it is no JSON."""
    head = orjson.dumps({"where": where, "cause": why})[:-1]
    try:
        orjson.loads(raw)
        row = raw.replace(b"\n", b" ").replace(b"\r", b" ")  # between its values: in a text they cannot stand
    except orjson.JSONDecodeError:
        row = orjson.dumps(raw.decode(errors="backslashreplace"))
    return head + b',"row":' + row + b"}\n"


def nothing_written(counts: Counts, name: str) -> str:
    """What to say where no episode could be written."""
    if not counts.causes:
        return f"{name}:1: no episode in it"
    first = next(iter(counts.causes.values()))["first"]
    return f"{first}: none of {counts.bad:,} rows could be converted: {causes_in_words(counts)}"


def causes_in_words(counts: Counts) -> str:
    """Each cause with its count, the most frequent first."""
    return ", ".join(f"{cause} {found['count']:,}" for cause, found in ranked(counts))


def ranked(counts: Counts) -> list[tuple[str, Cause]]:
    """The causes of bad rows, the most frequent first."""
    return sorted(counts.causes.items(), key=lambda each: -each[1]["count"])


def file_set(
    inputs: list[str], folder: str, task: Task, apart: str = "", force: bool = False, test: float = 0.0
) -> Counts:
    """Write the classic files of a training and a test set into `folder`: all of them or none.

    Alpaca and ShareGPT of both, the entries of dataset_info.json that tell LLaMA-Factory of them (what else stands in
    it stays), and axolotl.yaml, the `datasets:` of an Axolotl recipe. An input belongs to the test set when its name
    says test; with `test`, a share of the episodes, they are split so that no room is in both (see split.py). Raises
    BadInput as `convert_files` does, and when there are not inputs of both kinds.
    """
    paths, copies = read_once(input_files(inputs))
    named = {
        part: [each for each in paths if each and ("test" in each.name) == (part == "test")]
        for part in ("train", "test")
    }
    if not test and not all(named.values()):
        raise BadInput(
            f"{' '.join(inputs)}: needs files for training and, named test, for testing; or --test 0.1 (TEST=) splits"
        )
    info = Path(folder) / "dataset_info.json"
    known = files.read_object(info) if info.exists() else {}
    counts = Counts(not_read=copies)
    with contextlib.ExitStack() as stack:
        handles = {
            (part, to): stack.enter_context(opened(f"{folder}/react_{part}_{to}.json", force, paths))
            for part in named
            for to in ("alpaca", "sharegpt")
        }
        stanza = stack.enter_context(files.output(f"{folder}/axolotl.yaml", force, paths))
        aside = stack.enter_context(opened_apart(apart, force, paths))
        scratch = stack.enter_context(files.scratch(Path(folder).absolute() / "axolotl.yaml"))
        # First all as lines of messages, where bad rows are found; then each format of them.
        for part, chosen in {"all": paths}.items() if test else named.items():
            with (scratch / f"{part}.jsonl").open("wb", buffering=0) as file:
                counts.add_counts(pour(chosen, f"{part}.jsonl", file.fileno(), aside, task))
        if test:
            split_lines(scratch, test)
        with_tools = set()
        for part, to in handles:
            made = Task(to, task.calls, task.steps)
            found = pour([scratch / f"{part}.jsonl"], f"{to}.json", handles[part, to], None, made)
            counts.seconds += found.seconds
            if "tools" in found.extra:
                with_tools.add(part)
        stanza.write_bytes(render("axolotl.yaml.j2", folder, with_tools).encode())
        files.write_json(info, known | orjson.loads(render("dataset_info.json.j2", folder, with_tools)))
    return counts


def split_lines(folder: Path, test: float) -> None:
    """Split all.jsonl of a folder into train.jsonl and test.jsonl there, no room in both; `test`: a share.

    Raises BadInput for a share that is none, and where all episodes must stay together.
    """
    from tools.data import split  # whose imports would take longer than a small file does

    if not 0 < test < 1:
        raise BadInput(f"--test {test:g}: it must be a share between 0 and 1")
    every = folder / "all.jsonl"
    found = split.survey(each for _, each in reader.rows([every]) if not isinstance(each, str))
    if len(set(found.groups)) < 2:
        raise BadInput(f"{len(found.groups)} episodes of one room must stay together: give more rooms, or no --test")
    parts = split.assign(found, {"train": 1 - test, "test": test}, seed=0)
    with every.open("rb") as lines, contextlib.ExitStack() as stack:
        written = {part: stack.enter_context((folder / f"{part}.jsonl").open("wb")) for part in ("train", "test")}
        for part, line in zip(parts, lines, strict=True):
            written[part].write(line)


def render(name: str, folder: str, with_tools: Collection[str] = ()) -> str:
    """A template of templates/export/ for the files in `folder`; `with_tools`: the splits that have such a column."""
    from tools.core.templates import template

    return template(f"export/{name}").render(folder=folder, with_tools=with_tools)


def report(counts: Counts, out: str, task: Task, apart: str) -> str:
    """What was done, in words: what was recognised, the counts, where went what the target has no place for, and a
    table of the bad rows by cause."""
    recognised = ", ".join(
        f"{name} {count:,}" if len(counts.formats) > 1 else name for name, count in counts.formats.items()
    )
    lines = [f"{out}: {counts.read} episodes read, {counts.written} written, {counts.seconds:.1f} s"]
    if counts.rows != counts.written:
        lines[0] += f", {counts.rows} rows"
    if not task.wanted and recognised:
        lines.append(f"recognised: {recognised}")
    if counts.not_read:
        lines.append(f"not read: {', '.join(counts.not_read)}; the ShareGPT files beside them hold the same episodes")
    if counts.trimmed:
        lines.append(f"{counts.trimmed:,} episodes trimmed: the turns after the assistant's last are cut")
    extra = dict(counts.extra)
    if told := extra.pop(worker.TOLD, 0):
        lines.append(f"{told} tell their `tools` in the system turn, and act in `Action:` text; --calls writes calls")
    if marked := extra.get(f"messages.{masks.TRAIN}"):
        lines.append(
            f"{marked} say by `train` which turns are trained: message_field_training: train, as our recipes have it"
        )
    if extra:
        where = "kept in `extra`" if task.to == "alpaca" else "kept in place"
        if task.to == FILE_SET:
            where = "kept: in `extra` in Alpaca, in place in ShareGPT"
        listed = ", ".join(f"{key} {count}" for key, count in extra.items())
        lines.append(f"{'left out' if task.drop else where}: {listed}")
    if counts.bad:
        lines.append(f"{counts.bad:,} bad rows {f'set apart in {apart}' if apart else 'left out'}, by cause:")
        width = max(map(len, counts.causes))
        lines += [f"  {cause:{width}}  {found['count']:>9,}  first {found['first']}" for cause, found in ranked(counts)]
    return "\n".join(lines)


def per_step(per: str) -> bool:
    """Whether a row of Alpaca is a step (`per`: step) or an episode. Raises BadInput for neither."""
    if per not in ("episode", "step"):
        raise BadInput(f"--per {per}: it must be episode or step")
    return per == "step"


def format_named(name: str, known: Sequence[str], option: str) -> str:
    """A format by its name or another tool's name of it. Raises BadInput for none."""
    found = ALIASES.get(name.casefold(), name.casefold())
    if found not in known:
        raise BadInput(f"{option} {name}: it must be one of {', '.join(known)}, or openai (messages)")
    return found


def as_messages(name: str) -> str:
    """A file of messages, an episode a line, that holds what a file of any format does: itself, if it is one.

    Else it is converted into the cache, once, which is said. "" and a name of nothing stay as they are. Raises BadInput
    as `convert_files`.
    """
    path = Path(os.path.expanduser(name))
    if not name or not (os.path.lexists(path) or tables.is_hub_id(path)) or reader.is_messages(path):
        return name
    key = files.sha256(path)[:16] if path.exists() else "hub"
    out = run_folder.cache() / "data" / f"{path.name}-{key}.jsonl"
    if not out.exists():
        counts = convert_files([str(path)], str(out), Task("messages"))
        progress.say(quote.visible(f"{name}: recognised {', '.join(counts.formats)}; read as messages from {out}"))
    return str(out)


def convert_and_report(
    inputs: list[str], out: str, task: Task, apart: str, as_json: bool, force: bool, test: float = 0.0
) -> None:
    """Convert, and print the counts: on stderr when the data go to stdout. Raises as `convert_files`."""
    known = (*formats.JSON, *formats.TEXT)
    task = replace(task, to=format_named(task.to, (*known, FILE_SET), "--to"))
    if task.wanted:
        task = replace(task, wanted=format_named(task.wanted, known, "--from"))
    if task.on_error not in ON_ERROR:
        raise BadInput(f"--on-error {task.on_error}: it must be one of {', '.join(ON_ERROR)}")
    if apart:
        task = replace(task, on_error="apart")
    elif task.on_error == "apart":
        raise BadInput("--on-error apart: name the file for the bad rows with --apart (APART=)")
    if task.to == FILE_SET:
        counts = file_set(inputs, out, task, apart, force, test)
    elif test:
        raise BadInput("--test splits for llamafactory; the command split does it for messages")
    else:
        counts = convert_files(inputs, out, task, apart, force)
    said = orjson.dumps(asdict(counts)).decode() if as_json else report(counts, out, task, apart)
    print(quote.visible(said, keep="\n"), file=sys.stderr if out == "-" else sys.stdout)


@contextlib.contextmanager
def opened(out: str, force: bool = False, inputs: Sequence[Path | None] = ()) -> Iterator[int]:
    """An open file to write to, see files.output; stdout ("-"), pipes and devices are written to at once."""
    if out == "-":
        sys.stdout.flush()
        yield sys.stdout.fileno()
        return
    with files.output(out, force, inputs) as beside, beside.open("wb", buffering=0) as file:
        yield file.fileno()


@contextlib.contextmanager
def opened_apart(apart: str, force: bool, inputs: Sequence[Path | None]) -> Iterator[Put | None]:
    """What writes to the file for bad rows; None without one. Its errors name it, not the output that is open too."""
    if not apart:
        yield None
        return
    with opened(apart, force, inputs) as handle:

        def put(line: bytes) -> None:
            with files.one_line(Path(apart)):
                worker.put(handle, line)

        yield put


def by_this_process(sources: list[Source], output: Output, task: Task) -> Generator[Result]:
    """What each chunk became, made here."""
    read = 0
    for source in sources:
        for job in source.jobs(ranges=False):
            assert not isinstance(job, Range)
            made = worker.convert_chunk(source.format, job, task, read)
            read += made.read
            yield source, made, partial(output.put_after, made.data)


class Worker:
    """A process that makes something of one job at a time, and writes it when told (worker.serve)."""

    def __init__(self, output: Output, task: Task) -> None:
        path = [str(run_folder.ROOT), *(each for each in sys.path if each)]
        self.output = output
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", START.format(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[output.handle],
            env=os.environ | MEMORY,
            process_group=0,  # Ctrl-C is for us; we end it.
        )
        self.tell((output.handle, astuple(task)))

    def start(self, source: Source, job: Job) -> None:
        """Give it a job. Raises Failed, as all that follows, when the process has gone."""
        self.tell((source.format, type(job).__name__, tuple(job)))

    def made(self) -> Made:
        """What it made of its job."""
        return Made(*self.told())

    def write(self, made: Made, before: bytes) -> None:
        """Have it write what it made, after the bytes `before`. Raises OSError where it could not."""
        if self.output.packed == "zst":  # one frame, which we write
            self.tell(None)
            self.output.put(before + made.data)
            return
        self.tell(worker.packed(before, self.output.packed))
        if number := self.told():
            raise OSError(number, os.strerror(number))

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def tell(self, value: Any) -> None:
        """Send it anything that marshal writes."""
        assert self.process.stdin
        try:
            marshal.dump(value, self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self.gone() from error

    def told(self) -> Any:
        """The next value that it sends."""
        assert self.process.stdout
        try:
            return marshal.load(self.process.stdout)
        except EOFError as error:
            raise self.gone() from error

    def gone(self) -> Failed:
        """What to say when the process has gone."""
        status = self.process.wait()
        return Failed(f"a process of the conversion ended (status {status}); run the same command again")


def by_processes(sources: list[Source], output: Output, task: Task) -> Generator[Result]:
    """What each chunk became, in order, made by processes; each writes its own when `write` is called."""
    workers: list[Worker] = []
    try:
        # One keeps up with rows of tables, which this process reads.
        for _ in range(1 if all(each.is_table() for each in sources) else min(WORKERS, process.cores())):
            workers.append(Worker(output, task))
        busy: deque[tuple[Source, Worker]] = deque()
        idle = deque(workers)
        for source, job in ((each, job) for each in sources for job in each.jobs(ranges=True)):
            if not idle:
                idle.append(busy[0][1])
                yield result(*busy.popleft())
            busy.append((source, idle.popleft()))
            busy[-1][1].start(source, job)
        while busy:
            yield result(*busy.popleft())
    finally:
        for each in workers:
            each.end()


def result(source: Source, worker: Worker) -> Result:
    """What a process made of its job; it writes that before it is given the next."""
    made = worker.made()
    return source, made, partial(worker.write, made)
