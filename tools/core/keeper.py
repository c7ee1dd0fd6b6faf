"""Runs one program and, when whoever asked for it is gone, ends it with all that it started.

    python -I -S keeper.py LIFELINE PARENT COMMAND...

LIFELINE is the reading end of a pipe whose other end PARENT alone holds: it closes when PARENT ends, even by kill -9.
A program's own children may live in groups and sessions of their own (torchrun's do), so they are looked for in the
table of processes; on Linux those whose parent has ended become ours (prctl(2), PR_SET_CHILD_SUBREAPER). Signals that
reach us are passed on to the program; we end as it ends. Should we be killed by -9 ourselves, a shell that waits for
our end kills the program's group: Ollama's llama-servers are in it. It imports little, since one starts with each
program.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

# Seconds between SIGTERM and SIGKILL, once the parent is gone or the program has ended and left others behind.
GRACE = 3.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    """Run the command to its end or to its parent's. Our exit status is the program's."""
    lifeline, parent, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    awake, wake = os.pipe()
    for end in (awake, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    program = start(command, (lifeline, awake, wake))
    guard = watch_us(program)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda sent, _: send(program, sent))
    ended, started = None, {program}
    while ended is None:
        ready, _, _ = select.select([lifeline, awake], [], [], 1.0)
        if awake in ready:
            os.read(awake, 4096)
        elif sys.platform != "linux":
            started = descendants(started, guard)  # Orphans do not become ours there: they must be known before.
        ended = reap(program)
        # A copy of the pipe's other end may live on in a process that was forked: the parent itself is asked too.
        if lifeline in ready or os.getppid() != parent:
            break
    end_all(program if ended is None else 0, started, guard)
    if ended is None:
        ended = reap(program)
    send(guard, signal.SIGKILL)  # before us, so that it is reaped even where no init does that
    with contextlib.suppress(ChildProcessError):
        os.waitpid(guard, 0)
    finish(ended)


def start(command: list[str], ours: tuple[int, ...]) -> int:
    """Start the program in a group of its own, without the open files that are `ours`; its process id."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # should we be killed ourselves
    # The last two are ignored by Python itself.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    for each in ours:
        os.close(each)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"error: {command[0]}: {error.strerror}\n".encode())
        os._exit(127)


def watch_us(program: int) -> int:
    """Start a shell that kills the program's group when we have ended, in whatever way; its process id.

    It waits at a pipe whose other end we alone hold, in a session of its own; it is no Python, so that a kill -9 of all
    Python programs, us included, leaves it.
    """
    waiting, _ = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setsid()
            os.dup2(waiting, 0)
            script = 'exec >/dev/null 2>&1; read -r _; kill -s KILL -- "-$1"'
            os.execv("/bin/sh", ["sh", "-c", script, "guard", str(program)])
        finally:
            os._exit(127)
    os.close(waiting)
    return child


def prctl(option: int, value: int) -> None:
    """prctl(2), where there is one."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value)


def send(process: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def reap(program: int) -> int | None:
    """Reap the children that ended; the program's wait status once it is among them."""
    status = None
    while True:
        try:
            gone, how = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if not gone:
            return status
        if gone == program:
            status = how


def end_all(program: int, started: set[int], guard: int) -> None:
    """End all that descends from us but the guard: SIGTERM first, SIGKILL after GRACE seconds.

    `program`: gets its SIGTERM before the others; 0 where it has ended. `started`: the descendants known by now.
    """
    deadline = time.monotonic() + GRACE
    asked: set[int] = set()
    while started := descendants(started, guard):
        late = time.monotonic() > deadline
        if program not in started:
            program = 0
        for each in [program] if program and not late else started:
            if late:
                send(each, signal.SIGKILL)
            elif each not in asked:
                send(each, signal.SIGTERM)
                asked.add(each)
        time.sleep(0.02)


def descendants(known: set[int], guard: int) -> set[int]:
    """All running processes but the guard that descend from us or are `known` (their parents may have ended)."""
    children: dict[int, list[int]] = {}
    running = set()
    for process, parent, ended in table():
        if not ended:
            children.setdefault(parent, []).append(process)
            running.add(process)
    found: set[int] = set()
    todo = [os.getpid(), *(known & running)]
    while todo:
        each = todo.pop()
        if each not in found:
            found.add(each)
            todo += children.get(each, [])
    return found - {os.getpid(), guard}


def table() -> list[tuple[int, int, bool]]:
    """(process, its parent, whether it is a zombie) of all processes."""
    rows = []
    if os.path.isdir("/proc/self"):
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", "rb") as file:
                        state, parent = file.read().rpartition(b")")[2].split()[:2]
                except OSError:
                    continue
                rows.append((int(name), int(parent), state == b"Z"))
        return rows
    shown = subprocess.Popen(["ps", "-axo", "pid=,ppid=,state="], stdout=subprocess.PIPE)
    for line in shown.communicate()[0].splitlines():
        process, parent, state = line.split()[:3]
        if int(process) != shown.pid:
            rows.append((int(process), int(parent), state.startswith(b"Z")))
    return rows


def finish(status: int | None) -> None:
    """End as the program did: with its exit status, or by the signal that ended it."""
    code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its own core, if any, is enough
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
