"""LLaMA-Factory's own programs and scripts run by its Python, in the environment that its lock makes."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tools.training import environments

PARTS = Path(__file__).parent
VERSION = environments.pinned("llamafactory", "llamafactory")["llamafactory"]


def programs() -> Path:
    """The folder with its python and its llamafactory-cli."""
    return environments.programs("llamafactory")


def run(command: Sequence[str], folder: Path, given: str = "") -> str:
    """What one of its programs prints, run in `folder` without a hub, with `given` on its stdin."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "DISABLE_VERSION_CHECK": "0"}
    program, *arguments = command
    done = subprocess.run(
        [str(programs() / program), *arguments],
        cwd=folder, env=environment, input=given, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def script(name: str, folder: Path, arguments: Sequence[str] = (), given: str = "") -> str:
    """The last line of what a script of this folder prints, run by LLaMA-Factory's Python."""
    return run(["python", str(PARTS / name), *arguments], folder, given).splitlines()[-1]
