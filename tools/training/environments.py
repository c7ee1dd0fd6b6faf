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
    found = dict(re.findall(r"^([\w.-]+)==(\S+)", lock(trainer).read_text(encoding="utf-8"), re.MULTILINE))
    return {package: found[package] for package in packages}


def programs(trainer: str) -> Path:
    """The folder with a trainer's python and its other programs; the first call installs them, some GB.

    Raises Failed where they cannot be had.
    """
    where = run_folder.cache() / f"{trainer}-{pinned(trainer, trainer)[trainer]}"
    ready = where / files.sha256(lock(trainer))
    with files.locked(where):
        if not ready.exists():
            if not (uv := machine.uv()):
                raise Failed("uv is not here, which installs other trainers; make setup brings it")
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            make = [uv, "venv", "--quiet", "--allow-existing", "--python", version, str(where)]
            sync = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(where), str(lock(trainer))]
            with progress.step(f"installing {where.name}, once"):
                for command in (make, sync):
                    done = process.finished(command)
                    if done.returncode:
                        raise Failed(f"{where.name} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
            ready.touch()
    return where / "bin"
