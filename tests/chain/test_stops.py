"""A training says what it does; told to stop, it leaves a checkpoint; a loss that is not a number ends it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import psutil
import pytest

from tests.chain.conftest import tiny_recipe
from tools.core import run_folder
from tools.training import events
from tools.training.events import Event

pytestmark = pytest.mark.slow


def start(outputs: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """`python -m tools train` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools", "train", *arguments],
        cwd=run_folder.ROOT,
        env=os.environ | {"REACT_RECIPES_OUTPUTS": str(outputs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def ended(process: "subprocess.Popen[bytes]") -> str:
    """What a command printed until its end; a carriage return stays one."""
    return process.communicate()[0].decode()


def written(log: Path) -> list[Event]:
    """The events in a training's log so far."""
    return list(events.read(log.read_text(errors="replace").splitlines())) if log.exists() else []


def test_a_training_says_what_it_does_and_notes_its_last_step(tmp_path: Path, tiny: Path) -> None:
    path = tiny_recipe(tmp_path, tiny, val_set_size=0.2, eval_steps=5, eval_strategy="steps")
    # Without a terminal: lines, and not one of Axolotl's own bars among them.
    printed = ended(start(tmp_path / "outputs", str(path), "--force"))
    folder = tmp_path / "outputs" / tmp_path.name / "tiny"
    told = written(folder / "train.log")
    assert [event.stage for event in told if event.event == "stage"] == [
        "reading and tokenising the data",
        "loading the model",
        "preparing the first update",
        "writing what was learned",
    ], printed
    steps = [event for event in told if event.event == "step"]
    assert [event.step for event in steps] == list(range(11)) and {event.steps for event in steps} == {10}
    assert [event.step for event in told if event.event == "saved"] == [5, 10]
    assert [event.step for event in told if event.event == "evaluated"] == [0, 5, 10]
    noted = orjson.loads((folder / "run.json").read_bytes())["train"]
    assert noted["steps"] == 10 and (noted["loss"], noted["tokens"]) == (steps[-1].loss, steps[-1].tokens)
    assert noted["tokens_per_second"] == steps[-1].tokens_per_second and noted["eval_loss"] > 0
    assert "train: loading Axolotl" in printed
    assert "\r" not in printed and "\x1b" not in printed and events.MARK not in printed


def wait_for(process: "subprocess.Popen[bytes]", log: Path, step: int) -> list[psutil.Process]:
    """Wait until a training has made this update; it and all the processes below the command, the command too."""
    deadline = time.monotonic() + 300
    while not any(event.step == step for event in written(log)):
        assert process.poll() is None and time.monotonic() < deadline, ended(process)
        time.sleep(0.1)
    command = psutil.Process(process.pid)
    return [command, *command.children(recursive=True)]


def none_left(processes: list[psutil.Process]) -> bool:
    """Whether these processes end within the seconds that a keeper gives them."""
    return not psutil.wait_procs(processes, timeout=10)[1]


def test_a_stop_saves_a_checkpoint_leaves_130_and_the_same_command_goes_on(tmp_path: Path, tiny: Path) -> None:
    path = tiny_recipe(tmp_path, tiny, max_steps=400, save_steps=1000)
    log = tmp_path / "outputs" / tmp_path.name / "tiny" / "train.log"
    before = 0
    # SIGTERM as a scheduler sends it, to the one process; Ctrl-C as a terminal does, to the whole group.
    for number, send in ((signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)):
        process = start(tmp_path / "outputs", str(path))
        running = wait_for(process, log, before + 3)
        send(process.pid, number)
        printed = ended(process)
        assert process.returncode == 130 and none_left(running), printed
        checkpoint = max(log.parent.glob("checkpoints/checkpoint-*"), key=step_of)
        assert f"stopped at step {step_of(checkpoint)}; the same command goes on from {checkpoint.name}" in printed
        state = orjson.loads((checkpoint / "trainer_state.json").read_bytes())
        assert state["global_step"] == step_of(checkpoint) >= before + 3
        told = written(log)
        assert Event("stopped", step=step_of(checkpoint)) in told
        assert next(event.step for event in told if event.event == "step") == before
        assert not (log.parent / "adapter").exists()
        before = step_of(checkpoint)
    done = start(tmp_path / "outputs", str(path), "--resume", "--set", f"max_steps={before + 2}")
    printed = ended(done)
    # Another length is another training: nothing to resume, and it says so.
    assert done.returncode == 2 and "of another recipe, data or base" in printed


def step_of(checkpoint: Path) -> int:
    """The updates that a checkpoint was written after."""
    return int(checkpoint.name.split("-")[1])


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_good_checkpoint(tmp_path: Path, tiny: Path) -> None:
    path = tiny_recipe(tmp_path, tiny, learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0, save_steps=1)
    process = start(tmp_path / "outputs", str(path), "--force")
    printed = ended(process)
    assert process.returncode == 1, printed
    assert "FloatingPointError: the loss is nan at step" in printed and "checkpoint" in printed
    assert not (tmp_path / "outputs" / tmp_path.name / "tiny" / "adapter").exists()
