"""A training says what it does; told to stop, it leaves a checkpoint; a loss that is not a number ends it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_saves_a_checkpoint_leaves_130_and_is_resumed(tmp_path: Path, tiny: Path, number: int) -> None:
    path = tiny_recipe(tmp_path, tiny, max_steps=400, save_steps=1000)
    process = start(tmp_path / "outputs", str(path))
    log = tmp_path / "outputs" / tmp_path.name / "tiny" / "train.log"
    deadline = time.monotonic() + 300
    while not any(event.step == 3 for event in written(log)):
        assert process.poll() is None and time.monotonic() < deadline, ended(process)
        time.sleep(0.1)
    # SIGTERM as a scheduler sends it, to the one process; Ctrl-C as a terminal does, to the whole group.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    printed = ended(process)
    assert process.returncode == 130, printed
    assert "stopped at step" in printed and "goes on from its checkpoint" in printed
    (checkpoint,) = log.parent.glob("checkpoints/checkpoint-*")
    assert orjson.loads((checkpoint / "trainer_state.json").read_bytes())["global_step"] >= 3
    assert Event("stopped", step=int(checkpoint.name.split("-")[1])) in written(log)
    assert not (log.parent / "adapter").exists()
    if number == signal.SIGTERM:
        return
    step = int(checkpoint.name.split("-")[1])
    done = start(tmp_path / "outputs", str(path), "--resume", "--set", f"max_steps={step + 2}")
    printed = ended(done)
    # Another length is another training: nothing to resume, and it says so.
    assert done.returncode == 2 and "of another recipe, data or base" in printed


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_good_checkpoint(tmp_path: Path, tiny: Path) -> None:
    path = tiny_recipe(tmp_path, tiny, learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0, save_steps=1)
    process = start(tmp_path / "outputs", str(path), "--force")
    printed = ended(process)
    assert process.returncode == 1, printed
    assert "FloatingPointError: the loss is nan at step" in printed and "checkpoint" in printed
    assert not (tmp_path / "outputs" / tmp_path.name / "tiny" / "adapter").exists()
