"""Environments of their own for other people's programs, each made once from its lock."""

import subprocess
import sys
from pathlib import Path

from tools.core import files, machine, run_folder

LOCKS = run_folder.ROOT / "tests" / "parts" / "locks"


def version(package: str, name: str) -> str:
    """The version of a package in locks/NAME.lock."""
    lines = (LOCKS / f"{name}.lock").read_text().splitlines()
    return next(line.split()[0].removeprefix(f"{package}==") for line in lines if line.startswith(f"{package}=="))


def programs(package: str, name: str) -> Path:
    """The folder with the programs of locks/NAME.lock, made in the cache where it is missing or of another lock."""
    where, lock = run_folder.cache() / f"{package}-{version(package, name)}", LOCKS / f"{name}.lock"
    ready = where / files.sha256(lock)
    with files.locked(where):
        if not ready.exists():
            uv = machine.uv() or "uv"
            python = f"{sys.version_info.major}.{sys.version_info.minor}"
            subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", python, str(where)], check=True)
            sync = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(where), str(lock)]
            subprocess.run(sync, check=True)
            ready.touch()
    return where / "bin"
