"""One run's folder: its names, whole-or-nothing writes, provenance."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tools import Failed

ROOT = Path(__file__).resolve().parent.parent
# Ends with the process that started it, even when that one is killed outright; see prctl(2), PR_SET_PDEATHSIG.
TIED = """import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
os.getppid() == int(sys.argv[1]) or sys.exit("its parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])"""


def cache() -> Path:
    """The folder for what is downloaded or built once: REACT_RECIPES_CACHE, else ~/.cache/react-recipes."""
    return Path(os.environ.get("REACT_RECIPES_CACHE") or Path.home() / ".cache" / "react-recipes")


def outputs() -> Path:
    """The folder for what runs produce: REACT_RECIPES_OUTPUTS, else outputs/ in the project."""
    return Path(os.environ.get("REACT_RECIPES_OUTPUTS") or ROOT / "outputs")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write a file or folder under; on success it is fsynced and renamed to `path`.

    On any error, Ctrl-C included, what was written is removed and an older `path` stays as it was. What a killed
    process left behind is removed at the next call. Raises Failed when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    remove(partial)
    try:
        yield partial
        for item in [partial, *partial.rglob("*")] if partial.is_dir() else [partial]:
            handle = os.open(item, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        if path.is_dir():
            remove(path)
        partial.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Failed(f"{path}: no space left on the disk; free some and run the same command again") from error
        raise
    finally:
        remove(partial)


def download(project: str, folder: Path) -> Path:
    """Download one package of downloads.lock from the package registry into `folder`, its hash checked; its path.

    Raises Failed when it cannot be had.
    """
    pins = [line for line in (ROOT / "downloads.lock").read_text().splitlines() if line.startswith(f"{project}==")]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requirements.txt").write_text(f"{pins[0]}\n")
    options = ["--quiet", "--no-deps", "--require-hashes", "--no-binary=llama-cpp-python", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(folder / "requirements.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{pins[0].split()[0]} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    return next(item for item in folder.iterdir() if item.suffix in {".whl", ".gz"})


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` (a file beside it); wait for it, and say so, while another process makes `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process, which is making {path}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def tied(command: list[str]) -> list[str]:
    """The command, so started that it ends when we do, even by kill -9. Linux only: elsewhere it is left as it is."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *command]


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with whole(path) as partial:
        partial.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files in a folder, in hexadecimal."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = [f"{item.relative_to(path)} {sha256(item)}\n" for item in sorted(path.rglob("*")) if item.is_file()]
    return sha256_of("".join(lines).encode())


def sha256_of(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def need_space(folder: Path, gib: float) -> None:
    """Raise Failed unless `folder`, there or to be made, can be written to and its disk has `gib` GiB free."""
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise Failed(f"{folder}: cannot be written to; give its owner the right, or choose another folder")
    free = shutil.disk_usage(folder).free / 2**30
    if free < gib:
        raise Failed(
            f"{folder}: {free:.1f} GiB free and {gib:.1f} GiB needed; free some space and run the same command again"
        )


@dataclass(frozen=True)
class Run:
    """One run's folder and the names in it. A name exists only when what it names is whole."""

    folder: Path

    @property
    def recipe(self) -> Path:
        """The recipe as it was run."""
        return self.folder / "recipe.yaml"

    @property
    def adapter(self) -> Path:
        """The trained adapter with the tokenizer and chat template that training used."""
        return self.folder / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Axolotl's own output folder: checkpoints and logs."""
        return self.folder / "checkpoints"

    @property
    def modelfile(self) -> Path:
        """The Modelfile that Ollama was given."""
        return self.folder / "Modelfile"

    @property
    def parity(self) -> Path:
        """What the parity check found."""
        return self.folder / "parity.json"

    def gguf(self, quant: str, who: str = "tuned") -> Path:
        """The model in llama.cpp's format: gguf("Q8_0") is model-q8_0.gguf, gguf("Q8_0", "base") base-q8_0.gguf."""
        return self.folder / f"{'model' if who == 'tuned' else who}-{quant.lower()}.gguf"

    def imatrix(self, who: str = "tuned") -> Path:
        """What matters most in each weight of the tuned or the base model, measured on the training conversations."""
        return self.folder / f"{'' if who == 'tuned' else f'{who}-'}imatrix.gguf"

    @property
    def adapter_gguf(self) -> Path:
        """The adapter alone in llama.cpp's format."""
        return self.folder / "adapter.gguf"

    @property
    def merged(self) -> Path:
        """The whole model as a Hugging Face folder."""
        return self.folder / "merged"

    @property
    def quality(self) -> Path:
        """What each quantisation costs."""
        return self.folder / "quality.json"

    def evaluation(self, name: str) -> Path:
        """The games of one player, e.g. evaluation("base-q8_0") is eval-base-q8_0.json."""
        return self.folder / f"eval-{name}.json"

    def provenance(self) -> dict[str, Any]:
        """What run.json holds: by stage, seconds, peak memory and what the stage wrote down."""
        path = self.folder / "run.json"
        return orjson.loads(path.read_bytes()) if path.exists() else {}

    def done(self, stage: str, inputs: dict[str, Any]) -> bool:
        """Whether a stage ended well with the same inputs (hashes and settings) as these."""
        return stage in self.provenance() and self.provenance()[stage]["inputs"] == inputs

    @contextlib.contextmanager
    def stage(self, name: str, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Time a stage and follow its memory; the dict it yields is kept in run.json under `name` when it succeeds.

        `inputs`: what it depends on, for `done`.
        Adds `seconds` (wall) and `peak_gib` (resident memory of this process and all its children, GiB, looked at
        every second; pages that processes share count once for each).
        """
        notes: dict[str, Any] = {"inputs": inputs}
        start, peak, done = time.monotonic(), 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(1.0):
                peak = max(peak, resident_bytes())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield notes
        finally:
            done.set()
            watcher.join()
        notes |= {
            "seconds": round(time.monotonic() - start, 1),
            "peak_gib": round(max(peak, resident_bytes()) / 2**30, 2),
        }
        write_json(self.folder / "run.json", self.provenance() | {name: notes})


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process (by default this one) and all its children, in bytes; 0 when it has gone."""
    import psutil  # only here: most commands ask for no process, and are quicker without

    total = 0
    with contextlib.suppress(psutil.Error):
        watched = psutil.Process(pid)
        for process in [watched, *watched.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total
