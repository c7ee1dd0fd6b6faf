"""ALFWorld's own engine: its environment in the cache, made once, and a player in it."""

import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from tools import Failed
from tools.core import files, run_folder

LOCK = Path(__file__).with_name("engine.lock")
DRIVER = Path(__file__).with_name("driver.py")


def environment() -> Path:
    """The Python that has TextWorld and ALFWorld; made once, in some minutes, since Fast Downward is compiled."""
    version = next(line.split()[0] for line in LOCK.read_text().splitlines() if line.startswith("textworld=="))
    home = run_folder.cache() / f"{version.replace('==', '-')}-{files.sha256(LOCK)[:8]}"
    with files.locked(home):
        if not home.exists():
            with files.atomic(home) as partial:
                uv = shutil.which("uv") or next(map(str, run_folder.cache().glob("uv-*/bin/uv")), "uv")
                make = [uv, "venv", "--quiet", "--relocatable", "--python", "3.11", str(partial)]
                fill = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", str(partial)]
                for command in (make, [*fill, "--requirements", str(LOCK)]):
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        raise Failed(f"ALFWorld's engine cannot be installed: {done.stderr.strip()}")
    return home / "bin" / "python"


class Engine:
    """A process of the engine; every answer is a dict, as driver.py says."""

    def __enter__(self) -> Self:
        command = [str(environment()), str(DRIVER)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask one thing and wait for the answer."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(orjson.dumps(request) + b"\n")
        self.process.stdin.flush()
        return orjson.loads(self.process.stdout.readline())
