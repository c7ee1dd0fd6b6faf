"""The one piece of work that goes on at a time: a command of ours as a process of its own, or an answer, or a game.

A page that is closed leaves it alone, and each page that is opened sees it. It ends with the board itself: a training
then ends its step and saves a checkpoint first.
"""

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools import BadInput
from tools.board.choice import Command
from tools.core import process, quote, run_folder
from tools.core.process import Program
from tools.evaluation.curves import Curve, curve
from tools.training import events, run_axolotl
from tools.training.events import Event

# The last lines of a command that the page shows, and so many bytes of a training's log, some ten thousand steps.
LINES, TAIL = 400, 2**22
# Seconds that a training has to end its step and save a checkpoint when the board ends.
PATIENCE = 120.0


class Work:
    """What goes on, or went on last: its command, what it wrote, and how it ended."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.command: Command | None = None
        self.folder: Path | None = None
        self.lines: deque[str] = deque(maxlen=LINES)
        self.written = 0
        self.status: int | None = None
        self.program: Program | None = None
        self.began = 0.0

    def take(self, command: Command, folder: Path | None = None) -> None:
        """Begin some work, `folder` being the run's that trains. Raises BadInput while other work goes on."""
        if not self.busy.acquire(blocking=False):
            raise BadInput(f"{self.command.make if self.command else 'other work'}: still going on; stop it, or wait")
        self.command, self.folder, self.status = command, folder, None
        self.lines.clear()
        self.written, self.began = 0, time.time()

    def start(self, command: Command, folder: Path | None = None) -> None:
        """Start a command, see `take`."""
        self.take(command, folder)
        threading.Thread(target=self.follow, args=[command], daemon=True).start()

    def follow(self, command: Command) -> None:
        """Run a command that was taken to its end, and keep what it writes."""
        told, options = ours(command.words)
        try:
            with process.following(told, **options) as (self.program, lines):
                for line in lines:
                    self.say(line)
            self.status = self.program.returncode
        finally:
            self.program = None
            self.busy.release()

    def say(self, line: str) -> None:
        """Keep a line."""
        self.lines.append(quote.visible(line))
        self.written += 1

    @contextlib.contextmanager
    def going(self, command: Command) -> Iterator[None]:
        """Work of this process itself, which does what a command does. Raises BadInput while other work goes on."""
        self.take(command)
        try:
            yield
            self.status = 0
        finally:
            self.busy.release()

    def stop(self) -> None:
        """Ask a command to end; a training ends its step and saves a checkpoint."""
        if program := self.program:
            program.terminate()

    def end(self) -> None:
        """Have a command ended before we end ourselves."""
        if program := self.program:
            print("ending what runs; a training saves a checkpoint first", file=sys.stderr)
            program.stop(PATIENCE)


def ours(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The program that runs a command of ours, and the options of Popen: from where recipes' paths start."""
    # Where this is installed, `tools` is known to one command alone.
    paths = os.pathsep.join(filter(None, [str(run_folder.ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths}
    return [sys.executable, "-m", "tools", *words], {"cwd": run_folder.home(), "env": environment}


def told(folder: Path, since: float) -> list[Event]:
    """The last events of a run's training; none where there is no log that was written `since` then (Unix time)."""
    try:
        with (folder / "train.log").open("rb") as log:
            about = os.fstat(log.fileno())
            if about.st_mtime < since:
                return []
            log.seek(max(0, about.st_size - TAIL))
            lines = log.read().split(b"\n")[:-1]  # the last one may not be written to its end
    except FileNotFoundError:
        return []
    return list(events.read(line.decode(errors="replace") for line in lines))


def progress(found: list[Event]) -> str:
    """How far a training is, in words."""
    steps = [each for each in found if each.event == "step"]
    if not steps:
        return str(next((each.stage for each in reversed(found) if each.stage), ""))
    notes = {key: value for each in steps for key in run_axolotl.NOTED if (value := getattr(each, key)) is not None}
    return f"{steps[-1].step} / {steps[-1].steps}, {run_axolotl.title(notes).removeprefix('train: ')}"


def curves(found: list[Event], titles: dict[str, str]) -> list[Curve]:
    """The plots of a training's loss, tokens a second and memory by step, as far as they are known.

    `titles`: by the name of an event's value.
    """
    steps = [each for each in found if each.event == "step"]
    lines = {
        key: [(float(each.step or 0), float(y)) for each in steps if (y := getattr(each, key)) is not None]
        for key in titles
    }
    drawn = (curve(titles[key], {key: points}) for key, points in lines.items())
    return [each for each in drawn if each]
