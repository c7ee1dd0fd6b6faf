"""One run's folder: its names, its stages and what each was made from; where folders of ours lie."""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tools import BadInput, Failed
from tools.core import files, process

# The project, with catalog/, templates/, recipes/ and data/: a checkout, or what a wheel installed.
ROOT = Path(__file__).resolve().parents[2]
INSTALLED = not (ROOT / "pyproject.toml").exists()


def home() -> Path:
    """The folder that a recipe's paths start from, and where outputs/ lies: a checkout, else the current folder."""
    return Path.cwd() if INSTALLED else ROOT


def found(path: str | Path) -> Path:
    """A file that a recipe names, from `home`; what is not there is looked for among the package's own."""
    return home() / path if (home() / path).exists() else ROOT / path


def missing(error: ModuleNotFoundError) -> str:
    """What to say of a library that is not there: the extra `train` has it, or the set-up of a checkout."""
    if INSTALLED:
        return f"needs {error.name}, which comes with the extra `train`: pip install 'react-recipes[train]'"
    return f"needs {error.name}; `make setup` installs it"


def refuse_installed(what: str) -> None:
    """Raise BadInput where this is no checkout: `what` is the project's own, and other projects' packages lie there."""
    if INSTALLED:
        raise BadInput(f"{what} belongs to the project's own files; run this in a checkout of the repository")


def cache() -> Path:
    """The folder for what is downloaded or built once: REACT_RECIPES_CACHE, else ~/.cache/react-recipes."""
    return Path(os.environ.get("REACT_RECIPES_CACHE") or Path.home() / ".cache" / "react-recipes")


def outputs() -> Path:
    """The folder for what runs produce: REACT_RECIPES_OUTPUTS, else outputs/ in `home`."""
    return Path(os.environ.get("REACT_RECIPES_OUTPUTS") or home() / "outputs")


def placed(name: str) -> str:
    """A model as a recipe names it; what lies in outputs/ by its path there, wherever `outputs` is."""
    return str(outputs() / name.removeprefix("outputs/")) if name.startswith("outputs/") else name


def download(project: str, folder: Path) -> Path:
    """Download one package of downloads.lock from the package registry into `folder`, its hash checked; its path.

    Raises Failed when it cannot be had.
    """
    pins = [line for line in (ROOT / "downloads.lock").read_text().splitlines() if line.startswith(f"{project}==")]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requirements.txt").write_text(f"{pins[0]}\n")
    options = ["--quiet", "--no-deps", "--require-hashes", "--no-binary=llama-cpp-python", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(folder / "requirements.txt")]
    # Its temporary files are removed with the folder, whatever becomes of it.
    done = process.finished(command, env=os.environ | {"TMPDIR": str(folder)})
    if done.returncode:
        raise Failed(f"{pins[0].split()[0]} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    return next(item for item in folder.iterdir() if item.suffix in {".whl", ".gz"})


def pinned_version(project: str) -> str:
    """The version of a package in downloads.lock."""
    lines = (ROOT / "downloads.lock").read_text().splitlines()
    return next(line.split()[0].partition("==")[2] for line in lines if line.startswith(f"{project}=="))


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

    def usual_evaluations(self) -> list[Path]:
        """Those of the base and the tuned model as served, in the usual rooms: no more is in their files' names."""
        usual = re.compile(r"eval-(base|tuned)-(?!transformers)\w+\.json")
        return [path for path in sorted(self.folder.glob("eval-*.json")) if usual.fullmatch(path.name)]

    @property
    def report(self) -> Path:
        """The page of its games."""
        return self.folder / "report.html"

    def provenance(self) -> dict[str, Any]:
        """What run.json holds: by stage, seconds, peak memory and what the stage wrote down."""
        path = self.folder / "run.json"
        return orjson.loads(path.read_bytes()) if path.exists() else {}

    def held(self, stage: str, wait: bool = True) -> contextlib.AbstractContextManager[bool]:
        """The lock of a stage, which one process at a time works at; see files.locked."""
        return files.locked(self.folder / stage, wait)

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
        path = self.folder / "run.json"
        with files.locked(path):  # Another stage may end at the same time.
            files.write_json(path, self.provenance() | {name: notes})


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
