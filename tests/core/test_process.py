"""Programs that we start: none outlives us, and none is told a secret."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import psutil
import pytest

from tools.core import process, run_folder
from tools.core.process import Program

# A program whose child is in a session of its own and has a child too: each writes its id, the program reads on.
TREE = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
below = f"p = subprocess.Popen({sleep!r}); print(os.getpid(), p.pid, flush=True); time.sleep(100)"
grandchild = f"import os, subprocess, time; {below}"
child = subprocess.Popen([sys.executable, "-c", grandchild], start_new_session=True)
print(os.getpid(), flush=True)
IGNORE
time.sleep(100)
"""
IGNORE = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def gone(processes: list[int], within: float) -> bool:
    """Whether all of these processes have ended (zombies have) within so many seconds."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        running = [each for each in processes if psutil.pid_exists(each)]
        if all(psutil.Process(each).status() == psutil.STATUS_ZOMBIE for each in running):
            return True
        time.sleep(0.05)
    return False


def process_ids(stream: IO[str] | None) -> list[int]:
    """The ids of the program, its child and its grandchild, as they write them."""
    assert stream
    found: list[int] = []
    while len(found) < 3:
        found += map(int, stream.readline().split())
    return found


@pytest.mark.parametrize("ignoring", ["pass", IGNORE])
@pytest.mark.parametrize("without_prctl", [False, True])
def test_what_a_program_started_ends_with_us_even_by_kill_9(ignoring: str, without_prctl: bool) -> None:
    text = TREE.replace("IGNORE", ignoring)
    keeper = f"""
text = open({str(process.KEEPER)!r}).read().replace('sys.platform == "linux"', "False")
import tempfile
file = tempfile.NamedTemporaryFile("w", suffix=".py", delete=False); file.write(text); file.close()
process.KEEPER = file.name
"""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys, time\nfrom tools.core import process\n{keeper if without_prctl else ''}\n"
            f"with process.Program([sys.executable, '-c', {text!r}]): time.sleep(100)",
        ],
        cwd=run_folder.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    members = process_ids(parent.stdout)
    members += [each.pid for each in psutil.Process(parent.pid).children(recursive=True)]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(members, 5), [psutil.Process(each).cmdline() for each in members if psutil.pid_exists(each)]


# A program and its child, which says its id and outlives its parent by itself.
PAIR = """import subprocess, time
print(subprocess.Popen(["sleep", "100"]).pid, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("with_us", [False, True])
def test_what_a_program_started_ends_even_when_its_keeper_is_killed(with_us: bool) -> None:
    """As by a kill -9 of all Python programs: nobody is left who knows of the program's child."""
    script = f"import time\nfrom tools.core import process\nwith process.Program({[sys.executable, '-c', PAIR]!r}): "
    parent = subprocess.Popen(
        [sys.executable, "-c", f"{script}time.sleep(100)"], cwd=run_folder.ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    below = psutil.Process(parent.pid).children(recursive=True)
    assert child in [each.pid for each in below]
    (keeper,) = psutil.Process(parent.pid).children()
    keeper.kill()
    if with_us:
        parent.kill()
    assert gone([each.pid for each in below], 5), [each for each in below if each.is_running()]
    parent.kill()
    parent.wait()


def test_a_program_and_what_it_started_end_when_the_with_is_left_by_an_error() -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Program([sys.executable, "-c", TREE.replace("IGNORE", "pass")], stdout=subprocess.PIPE, text=True) as program,
    ):
        members = process_ids(program.stdout)
        raise KeyboardInterrupt
    assert gone(members, 1)


def test_what_a_program_leaves_behind_ends_with_it() -> None:
    text = TREE.replace("IGNORE", "").replace("time.sleep(100)\n", "time.sleep(1)\n")
    with Program([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as program:
        members = process_ids(program.stdout)
    assert program.returncode == 0 and gone(members, 5)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], -signal.SIGTERM),
        (["sh", "-c", "kill -XFSZ $$"], -signal.SIGXFSZ),
        (["sh", "-c", "kill -KILL $$"], -signal.SIGKILL),
        (["no such program"], 127),
    ],
)
def test_a_program_ends_as_it_would_without_us(command: list[str], status: int) -> None:
    assert process.finished(command).returncode == status


def test_a_signal_reaches_the_program() -> None:
    text = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(3))\nprint(flush=True)\ntime.sleep(100)"
    with Program([sys.executable, "-c", text], stdout=subprocess.PIPE) as program:
        assert program.stdout and program.stdout.readline()
        program.terminate()
        assert program.wait(5) == 3


def test_output_and_open_files_are_the_programs(tmp_path: Path) -> None:
    done = process.finished(["sh", "-c", "echo out; echo err >&2; cat"])
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    ends = os.pipe()
    with Program([sys.executable, "-c", f"import os; os.write({ends[1]}, b'said')"], pass_fds=(ends[1],)):
        os.close(ends[1])
    assert os.read(ends[0], 100) == b"said"
    os.close(ends[0])


def test_secrets_are_known_by_their_names() -> None:
    given = {"HF_TOKEN": "hf_abcdefgh", "HTTPS_PROXY": "http://me:password@proxy:1", "https_proxy": "http://x:longer@y"}
    given |= {"AWS_ACCESS_KEY_ID": "AKIA12345678", "WANDB_API_KEY": "0123456789", "OPENAI_API_KEY": "sk-12345678"}
    kept = {"PATH": "/bin", "HOME": "/root", "TOKENIZERS_PARALLELISM": "false", "AXOLOTL_DO_NOT_TRACK": "1"}
    assert process.without_secrets(given | kept) == kept
    text = " ".join(given.values()).encode()
    assert process.redacted(text, process.secrets(given | {"X_TOKEN": "no"})) == b"*** *** *** *** *** ***"
