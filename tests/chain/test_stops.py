"""A training that is told to stop leaves a checkpoint and goes on from it; one whose loss is no number ends there."""

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

pytestmark = pytest.mark.slow


def start(outputs: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`python -m tools train` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools", "train", *arguments],
        cwd=run_folder.ROOT,
        env=os.environ | {"REACT_RECIPES_OUTPUTS": str(outputs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_saves_a_checkpoint_leaves_130_and_is_resumed(tmp_path: Path, tiny: Path, number: int) -> None:
    path = tiny_recipe(tmp_path, tiny, max_steps=400, save_steps=1000)
    process = start(tmp_path / "outputs", str(path))
    log = tmp_path / "outputs" / tmp_path.name / "tiny" / "train.log"
    deadline = time.monotonic() + 300
    while not (log.exists() and "3/400" in log.read_text(errors="replace")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)
    # SIGTERM as a scheduler sends it, to the one process; Ctrl-C as a terminal does, to the whole group.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    printed, _ = process.communicate()
    assert process.returncode == 130, printed
    assert "stopped at step" in printed and "goes on from its checkpoint" in printed
    (checkpoint,) = log.parent.glob("checkpoints/checkpoint-*")
    assert orjson.loads((checkpoint / "trainer_state.json").read_bytes())["global_step"] >= 3
    assert not (log.parent / "adapter").exists()
    if number == signal.SIGTERM:
        return
    step = int(checkpoint.name.split("-")[1])
    done = start(tmp_path / "outputs", str(path), "--resume", "--set", f"max_steps={step + 2}")
    printed, _ = done.communicate()
    # Another length is another training: nothing to resume, and it says so.
    assert done.returncode == 2 and "of another recipe, data or base" in printed


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_good_checkpoint(tmp_path: Path, tiny: Path) -> None:
    path = tiny_recipe(tmp_path, tiny, learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0, save_steps=1)
    process = start(tmp_path / "outputs", str(path), "--force")
    printed, _ = process.communicate()
    assert process.returncode == 1, printed
    assert "FloatingPointError: the loss is nan at step" in printed and "checkpoint" in printed
    assert not (tmp_path / "outputs" / tmp_path.name / "tiny" / "adapter").exists()
