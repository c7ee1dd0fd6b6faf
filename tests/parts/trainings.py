"""Starts trainings on the CPU one after another, each in new processes, after one import of Axolotl.

Importing Axolotl takes longer than a training of a tiny model. This program imports it once; each training is then a
fork of it for each process, with the environment that torchrun gives. Read from standard input, a JSON object a line:
{"recipe": a composed recipe, "processes": 2, "log": a file}. Answered: the exit statuses, a JSON list a line.
"""

import importlib
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import orjson
import pytest

from tools.core import run_folder
from tools.core.run_folder import Run
from tools.recipes.recipe import Recipe
from tools.training import run_axolotl
from tools.training.run_axolotl import ENVIRONMENT, Launch

# What takes long to import; the rest is imported by each training.
IMPORTED = [
    "axolotl.cli.train",
    "axolotl.common.datasets",
    "axolotl.core.builders",
    "axolotl.train",
    "bitsandbytes",
    "deepspeed",
    "peft",
    "transformers.models.qwen2.modeling_qwen2",
    "tools.training.cpu_plugin",
    "tools.training.progress_plugin",
]


class Trainings:
    """This program, running; used as a context."""

    def __enter__(self) -> "Trainings":
        self.program = subprocess.Popen(
            [sys.executable, "-m", "tests.parts.trainings"],
            cwd=run_folder.ROOT,
            env=os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.program.communicate()

    def run(self, recipe: Recipe, base: Path, processes: int, resume: bool = False) -> Path:
        """Train a recipe as `run_axolotl.train` does, but for how its processes start; its run's folder."""

        def follow(this: Run, file: Path, *_: object) -> dict[str, float]:
            self.train(file, processes, this.folder / "train.log")
            return {}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_axolotl, "follow", follow)
            return run_axolotl.train(recipe, base, Launch(processes), resume).folder

    def train(self, recipe: Path, processes: int, log: Path) -> str:
        """Train a composed recipe; what its first process wrote. Raises AssertionError where a process failed."""
        assert self.program.stdin and self.program.stdout
        self.program.stdin.write(orjson.dumps({"recipe": str(recipe), "processes": processes, "log": str(log)}) + b"\n")
        self.program.stdin.flush()
        statuses = orjson.loads(self.program.stdout.readline())
        written = log.read_text(errors="replace")
        assert statuses == [0] * processes, written[-4000:]
        return written


def serve() -> None:
    """Import what a training needs, then train what standard input asks for."""
    # Libraries print while they are imported.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin.buffer:
        asked = orjson.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        recipe, processes, log = asked["recipe"], asked["processes"], asked["log"]
        children = [fork(recipe, rank, processes, port, log) for rank in range(processes)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        answers.write(orjson.dumps(statuses) + b"\n")


def fork(recipe: str, rank: int, processes: int, port: int, log: str) -> int:
    """Start one process of a training, which never returns from here; its id."""
    if child := os.fork():
        return child
    status = 1
    try:
        written = os.open(log if rank == 0 else os.devnull, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(written, 1)
        os.dup2(written, 2)
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        from axolotl.cli.train import do_cli

        do_cli(recipe)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
