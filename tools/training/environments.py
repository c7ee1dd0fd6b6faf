"""Other trainers' Python environments: each made once, from its lock, in the cache."""

import re
import sys
from pathlib import Path

from tools import Failed
from tools.core import files, machine, process, progress, run_folder


def lock(trainer: str) -> Path:
    """The file that pins a trainer and all that it needs, with hashes."""
    return run_folder.ROOT / "locks" / f"{trainer}.lock"


def pinned(trainer: str, *packages: str) -> dict[str, str]:
    """The versions of packages in a trainer's lock."""
    return {package: version(package, lock(trainer)) for package in packages}


def version(package: str, pins: Path) -> str:
    """The version of a package in a lock."""
    found = dict(re.findall(r"^([\w.-]+)==(\S+)", pins.read_text(encoding="utf-8"), re.MULTILINE))
    return found[package]


def programs(trainer: str) -> Path:
    """The folder with a trainer's python and its other programs; see `installed`."""
    return installed(trainer, lock(trainer))


def installed(package: str, pins: Path) -> Path:
    """The folder of programs of an environment that holds what `pins` locks; the first call installs it, some GB.

    It is called by the version of `package`. Raises Failed where it cannot be had.
    """
    where = run_folder.cache() / f"{package}-{version(package, pins)}"
    ready = where / files.sha256(pins)
    with files.locked(where):
        if not ready.exists():
            if not (uv := machine.uv()):
                raise Failed("uv is not here, which installs it; make setup brings it")
            python = f"{sys.version_info.major}.{sys.version_info.minor}"
            make = [uv, "venv", "--quiet", "--allow-existing", "--python", python, str(where)]
            sync = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(where), str(pins)]
            with progress.step(f"installing {where.name}, once"):
                for command in (make, sync):
                    done = process.finished(command)
                    if done.returncode:
                        raise Failed(f"{where.name} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
            ready.touch()
    return where / "bin"
