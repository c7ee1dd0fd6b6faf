"""LLaMA-Factory in an environment of its own, made once from its lock."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.core import files, machine, run_folder

PARTS = run_folder.ROOT / "tests" / "parts"
LOCK = PARTS / "locks" / "llamafactory.lock"
VERSION = "0.9.5"


def programs() -> Path:
    """The folder with its python and its llamafactory-cli."""
    where = run_folder.cache() / f"llamafactory-{VERSION}"
    ready = where / files.sha256(LOCK)
    with files.locked(where):
        if not ready.exists():
            uv = machine.uv() or "uv"
            python = f"{sys.version_info.major}.{sys.version_info.minor}"
            subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", python, str(where)], check=True)
            sync = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(where), str(LOCK)]
            subprocess.run(sync, check=True)
            ready.touch()
    return where / "bin"


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
