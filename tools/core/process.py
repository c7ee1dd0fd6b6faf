"""Programs that we start: none outlives us, and none is told a secret that it does not need."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

KEEPER = Path(__file__).with_name("keeper.py")
# Seconds that a program has to end after it is asked to.
STOP_SECONDS = 10.0
# Names of environment variables whose values are secrets, or may hold one: a proxy's address may hold a password.
SECRET = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|_PROXY$|^AWS_", re.I
)
# A shorter value is no secret, and would be found in ordinary words.
SHORTEST_SECRET = 8


class Program(subprocess.Popen[Any]):
    """A program in a session of its own, under keeper.py: it and all that it starts end when we do, even by kill -9.

    Ctrl-C reaches us alone; when the `with` is left by an exception, the program is stopped. The rest is as in Popen.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        lifeline, self.lifeline = os.pipe()
        kept = [sys.executable, "-I", "-S", str(KEEPER), str(lifeline), str(os.getpid()), *command]
        passed = (lifeline, *options.pop("pass_fds", ()))
        options = {"stdin": subprocess.DEVNULL} | options
        try:
            super().__init__(kept, pass_fds=passed, start_new_session=True, **options)
        except BaseException:
            os.close(self.lifeline)
            raise
        finally:
            os.close(lifeline)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End it and all that it started: SIGTERM first, SIGKILL if it still runs after so many seconds."""
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(seconds)
        self.let_go()
        self.wait()

    def let_go(self) -> None:
        """Close our end of the pipe: the keeper ends all that still runs."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for its end; stop it after an exception."""
        try:
            if kind is not None:
                self.stop()
            super().__exit__(kind, value, trace)
        finally:
            self.let_go()


@contextlib.contextmanager
def following(
    command: Sequence[str], log: IO[bytes] | None = None, **options: Any
) -> Iterator[tuple[Program, Iterator[str]]]:
    """A program and the lines of what it writes, stdout and stderr alike, as they come; its end is waited for.

    A carriage return ends a line too, as progress bars write it. Each line also goes to `log`, with `***` in place of
    the environment's secrets: programs that need them use many libraries. `options`: Popen's.
    """
    with Program(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as program:
        yield program, written_by(program, log)


def written_by(program: Program, log: IO[bytes] | None) -> Iterator[str]:
    """The lines of `following`."""
    assert program.stdout
    hidden, pending = secrets(), b""
    while piece := os.read(program.stdout.fileno(), 2**16):
        pending += piece
        cut = 1 + max(pending.rfind(b"\r"), pending.rfind(b"\n"))
        whole, pending = pending[:cut], pending[cut:]
        if log:
            log.write(redacted(whole, hidden))
            log.flush()
        yield from (line.decode(errors="replace") for line in re.split(rb"[\r\n]", whole)[:-1])
    if pending:
        if log:
            log.write(redacted(pending, hidden))
        yield pending.decode(errors="replace")


def finished(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, its output kept as text."""
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with Program(command, **kept, **options) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(list(command), process.returncode, out, err)


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def without_secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment, by default ours, less the variables that hold secrets: for programs that need none."""
    given = os.environ if environment is None else environment
    return {name: value for name, value in given.items() if not SECRET.search(name)}


def secrets(environment: Mapping[str, str] | None = None) -> list[str]:
    """The values of an environment's secrets, the longest first."""
    given = os.environ if environment is None else environment
    found = {value for name, value in given.items() if SECRET.search(name) and len(value) >= SHORTEST_SECRET}
    return sorted(found, key=len, reverse=True)


def redacted(text: bytes, hidden: Iterable[str]) -> bytes:
    """A text with `***` in place of each of the `hidden` values."""
    for each in hidden:
        text = text.replace(each.encode(), b"***")
    return text
