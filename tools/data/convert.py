"""Any format of episodes to any other: recognised, streamed, in order, and under its name only when it is whole."""

import contextlib
import glob
import marshal
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from tools import BadInput, Failed
from tools.core import files, progress, quote, run_folder
from tools.data import formats
from tools.data.formats import worker
from tools.data.formats.source import Source
from tools.data.formats.worker import Made, Task

SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt", ".log")
PACKED = (".gz", ".zst")
FILE_SET = "llamafactory"
# From so many bytes on, several processes win more than their start costs.
LARGE = 8 * 2**20
WORKERS = 4  # more would wait for the disk, and each takes 20 MB of memory
# A process frees what a chunk took when it is written; glibc would give it back, and the kernel would have to clear it
# again for the next: a fifth of all the time. See mallopt(3).
MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**26), "MALLOC_MMAP_THRESHOLD_": str(2**26)}
# What a process of ours needs: this Python, these folders, and nothing else at its start.
START = "import sys; sys.path[:] = {!r}; from tools.data.formats import worker; worker.main()"


@dataclass
class Counts:
    """What was read, written and kept apart."""

    read: int = 0
    written: int = 0
    rows: int = 0
    kept_apart: int = 0
    extra: dict[str, int] = field(default_factory=dict)  # keys beside the turns' roles and texts: in how many episodes
    seconds: float = 0.0

    def add(self, made: Made) -> None:
        """Count what a chunk became."""
        self.read += made.read
        self.written += made.written
        self.rows += made.rows
        self.kept_apart += made.set_apart
        for key, count in made.extra.items():
            self.extra[key] = self.extra.get(key, 0) + count


class Output:
    """An open file that chunks are written to, packed as its name says: gzip member by member, zstd as one frame."""

    def __init__(self, handle: int, packed: str) -> None:
        self.handle, self.packed = handle, packed
        self.engine: Any = None
        if packed == "zst":
            import zstandard

            self.engine = zstandard.ZstdCompressor().compressobj()

    def put(self, data: bytes) -> None:
        """Write data of ours."""
        worker.put(self.handle, self.engine.compress(data) if self.engine else worker.packed(data, self.packed))

    def close(self) -> None:
        """Write what the compression still holds."""
        if self.engine:
            worker.put(self.handle, self.engine.flush())


Result = tuple[Source, Made, Callable[[bytes], None]]  # whose, what, and what writes it after the bytes it is given


def convert_files(
    inputs: list[str], out: str, task: Task, wanted: str = "", apart: str = "", force: bool = False
) -> Counts:
    """Convert files, folders, globs or stdin ("-") to one file or stdout ("-"), whole or not at all.

    `wanted`: the inputs' format; empty: each is recognised. `apart`: the file for episodes that the target cannot hold,
    as messages. `force`: replace what is there. Raises BadInput, with file:line, for what cannot be read, held or
    written; Failed when the disk is full.
    """
    paths = found(inputs)
    if apart and os.path.realpath(apart) == os.path.realpath(out):
        raise BadInput(f"{apart}: both OUT and --apart; name two files")
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(opened(out, force, paths))
        aside = stack.enter_context(opened(apart, force, paths)) if apart else -1
        return pour(paths, out, handle, aside, task, wanted)


def pour(paths: Sequence[Path | None], out: str, handle: int, aside: int, task: Task, wanted: str = "") -> Counts:
    """Convert files (None: stdin) into the open file `handle`, and what the target cannot hold into `aside` (-1: none).

    `task.array` and `task.packed` follow the name of `out`. Raises as `convert`.
    """
    sources = [Source(path, wanted) for path in paths]
    stem, suffix = os.path.splitext(out)
    task = replace(task, packed=suffix[1:] if suffix in PACKED else "", apart=aside >= 0)
    task = replace(task, array=(stem if task.packed else out).endswith(".json") and task.to in formats.JSON)
    counts, began = Counts(), time.monotonic()
    size = sum(os.path.getsize(each.path) for each in sources if each.path and os.path.isfile(each.path))
    several = size >= LARGE and task.to in formats.JSON
    output = Output(handle, task.packed)
    results = (by_processes if several else by_this_process)(sources, output, task)
    with progress.bar("convert: reading", size or None, "bytes") as shown, contextlib.closing(results):
        for source, made, write in results:
            if made.fault:
                raise BadInput(f"{source.name}:{source.line + made.line}: {made.fault}")
            source.line += made.newlines
            write((b",\n" if counts.rows else b"[\n") if task.array and made.rows else b"")
            if made.apart:
                worker.put(aside, made.apart)
            counts.add(made)
            shown.update(sum(each.done for each in sources))
    if not counts.read:
        raise BadInput(f"{sources[-1].name}:1: no episode in it")
    if task.array:
        output.put(b"\n]\n" if counts.rows else b"[\n]\n")
    output.close()
    counts.seconds = time.monotonic() - began
    return counts


def file_set(
    inputs: list[str], folder: str, task: Task, wanted: str = "", apart: str = "", force: bool = False
) -> Counts:
    """Write the classic files of a training and a test set into `folder`: all of them or none.

    Alpaca and ShareGPT of both, the entries of dataset_info.json that tell LLaMA-Factory of them (what else stands in
    it stays), and axolotl.yaml, the `datasets:` of an Axolotl recipe. An input belongs to the test set when its name
    says test. Raises BadInput as `convert` does, and when there are not inputs of both kinds.
    """
    paths = [path for path in found(inputs) if path]
    parts = {
        split: [each for each in paths if ("test" in each.name) == (split == "test")] for split in ("train", "test")
    }
    if not all(parts.values()):
        raise BadInput(f"{' '.join(inputs)}: needs files for training and, named test, for testing")
    info = Path(folder) / "dataset_info.json"
    known = files.read_object(info) if info.exists() else {}
    counts = Counts()
    with contextlib.ExitStack() as stack:
        handles = {
            (split, to): stack.enter_context(opened(f"{folder}/react_{split}_{to}.json", force, paths))
            for split in parts
            for to in ("alpaca", "sharegpt")
        }
        stanza = stack.enter_context(files.output(f"{folder}/axolotl.yaml", force, paths))
        aside = stack.enter_context(opened(apart, force, paths)) if apart else -1
        for split, chosen in parts.items():
            for to in ("alpaca", "sharegpt"):
                each = pour(chosen, f"{to}.json", handles[split, to], aside, replace(task, to=to), wanted)
                counts.seconds += each.seconds
                counts.kept_apart += each.kept_apart  # what neither holds stands there twice
            # Both formats were made of the same episodes: they count once.
            counts.add(Made(read=each.read, written=each.written, rows=each.rows, extra=each.extra))
        stanza.write_bytes(render("axolotl.yaml.j2", folder).encode())
        files.write_json(info, known | orjson.loads(render("dataset_info.json.j2", folder)))
    return counts


def render(name: str, folder: str) -> str:
    """A template of templates/export/ for the files in `folder`."""
    from tools.core.templates import template

    return template(f"export/{name}").render(folder=folder)


def report(counts: Counts, out: str, task: Task, apart: str) -> str:
    """What was done, in words: the counts, and where went what the target has no place for."""
    lines = [f"{out}: {counts.read} episodes read, {counts.written} written, {counts.seconds:.1f} s"]
    if counts.rows != counts.written:
        lines[0] += f", {counts.rows} rows"
    if apart:
        lines.append(f"{counts.kept_apart} kept apart in {apart}, as messages")
    if counts.extra:
        where = "kept in `extra`" if task.to == "alpaca" else "kept in place"
        if task.to == FILE_SET:
            where = "kept: in `extra` in Alpaca, in place in ShareGPT"
        listed = ", ".join(f"{key} {count}" for key, count in counts.extra.items())
        lines.append(f"{'left out' if task.drop else where}: {listed}")
    return "\n".join(lines)


def per_step(per: str) -> bool:
    """Whether a row of Alpaca is a step (`per`: step) or an episode. Raises BadInput for neither."""
    if per not in ("episode", "step"):
        raise BadInput(f"--per {per}: it must be episode or step")
    return per == "step"


def command(inputs: list[str], out: str, task: Task, wanted: str, apart: str, as_json: bool, force: bool) -> None:
    """Convert, and print the counts: on stderr when the data go to stdout."""
    if task.to not in (*formats.JSON, *formats.TEXT, FILE_SET):
        raise BadInput(f"--to {task.to}: it must be one of {', '.join((*formats.JSON, *formats.TEXT, FILE_SET))}")
    if wanted not in ("", *formats.JSON, *formats.TEXT):
        raise BadInput(f"--from {wanted}: it must be one of {', '.join((*formats.JSON, *formats.TEXT))}")
    counts = (file_set if task.to == FILE_SET else convert_files)(inputs, out, task, wanted, apart, force)
    said = orjson.dumps(asdict(counts)).decode() if as_json else report(counts, out, task, apart)
    print(quote.visible(said, keep="\n"), file=sys.stderr if out == "-" else sys.stdout)


def found(inputs: list[str]) -> list[Path | None]:
    """The files that inputs name, in order; None for stdin. Raises BadInput for one that names none."""
    paths: list[Path | None] = []
    for each in inputs:
        path = Path(each)
        if each == "-":
            paths.append(None)
        elif os.path.isdir(path):  # False, too, for what may not be looked at: to read it will say so
            inside = [item for item in sorted(path.rglob("*")) if item.is_file() and is_data(item.name)]
            if not inside:
                raise BadInput(
                    f"{each}: a folder without a file of episodes ({', '.join(SUFFIXES)}, also .gz and .zst)"
                )
            paths += inside
        elif not os.path.lexists(path) and glob.has_magic(each):
            matching = [Path(name) for name in sorted(glob.glob(each, recursive=True)) if not os.path.isdir(name)]
            if not matching:
                raise BadInput(f"{each}: no file has such a name")
            paths += matching
        else:
            paths.append(path)
    return paths


def is_data(name: str) -> bool:
    """Whether a file in a folder is taken for episodes, by its name."""
    stem, suffix = os.path.splitext(name)
    return (stem if suffix in PACKED else name).endswith(SUFFIXES) and name != "dataset_info.json"


@contextlib.contextmanager
def opened(out: str, force: bool = False, inputs: Sequence[Path | None] = ()) -> Iterator[int]:
    """An open file to write to, see files.output; stdout ("-"), pipes and devices are written to at once."""
    if out == "-":
        sys.stdout.flush()
        yield sys.stdout.fileno()
        return
    with files.output(out, force, inputs) as beside, beside.open("wb", buffering=0) as file:
        yield file.fileno()


def by_this_process(sources: list[Source], output: Output, task: Task) -> Generator[Result]:
    """What each chunk became, made here."""
    read = 0
    for source in sources:
        for kind, data in source.jobs(ranges=False):
            made = worker.convert(source.format, kind, data, task, read)
            read += made.read
            yield source, made, partial(written_here, output, made.data)


def written_here(output: Output, data: bytes, before: bytes) -> None:
    """Write what was made here."""
    if data:
        output.put(before + data)


def by_processes(sources: list[Source], output: Output, task: Task) -> Generator[Result]:
    """What each chunk became, in order, made by processes; each writes its own when `write` is called."""
    command = [sys.executable, "-S", "-c", START.format([str(run_folder.ROOT), *(each for each in sys.path if each)])]
    count = min(WORKERS, len(os.sched_getaffinity(0)))
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            handle = output.handle
            each = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[handle],
                env=os.environ | MEMORY,
            )
            workers.append(each)
            tell(each, (handle, astuple(task)))
        asked: deque[tuple[Source, subprocess.Popen[bytes]]] = deque()
        jobs = ((source, kind, data) for source in sources for kind, data in source.jobs(ranges=True))
        for number, (source, kind, data) in enumerate(jobs):
            if len(asked) == count:
                yield answer(*asked.popleft(), output)
            tell(workers[number % count], (source.format, kind, data))
            asked.append((source, workers[number % count]))
        while asked:
            yield answer(*asked.popleft(), output)
    finally:
        for each in workers:
            each.kill()
            each.communicate()


def tell(process: subprocess.Popen[bytes], value: Any) -> None:
    """Send a value to a process. Raises Failed when it has gone."""
    assert process.stdin
    try:
        marshal.dump(value, process.stdin)
        process.stdin.flush()
    except BrokenPipeError as error:
        raise Failed(
            f"a process of the conversion ended (status {process.wait()}); run the same command again"
        ) from error


def told_by(process: subprocess.Popen[bytes]) -> Any:
    """The next value from a process. Raises Failed when it has gone."""
    assert process.stdout
    try:
        return marshal.load(process.stdout)
    except EOFError as error:
        raise Failed(
            f"a process of the conversion ended (status {process.wait()}); run the same command again"
        ) from error


def answer(source: Source, process: subprocess.Popen[bytes], output: Output) -> Result:
    """What a process made of its chunk."""
    made = Made(*told_by(process))

    def write(before: bytes) -> None:
        if output.packed == "zst":
            tell(process, None)
            output.put(before + made.data)
            return
        tell(process, worker.packed(before, output.packed))
        if number := told_by(process):
            raise OSError(number, os.strerror(number))

    return source, made, write
