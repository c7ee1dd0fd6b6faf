"""What the board starts: one command at a time, followed, stopped, and told of."""

import time
from pathlib import Path

import pytest

from tools import BadInput
from tools.board import runs
from tools.board.choice import Command
from tools.board.runs import Work
from tools.training.events import MARK


def ended(work: Work) -> None:
    """Wait until the work has ended."""
    with work.busy:
        pass


def test_a_command_is_followed_to_its_end() -> None:
    work = Work()
    work.start(Command("list", {"tier": "cpu"}))
    with pytest.raises(BadInput, match="make list TIER=cpu: still going on; stop it, or wait"):
        work.start(Command("list"))
    ended(work)
    assert work.status == 0 and any("smollm2-135m-lora" in line for line in work.lines)
    work.start(Command("plan", {"recipe": "qwen77b-lora"}))
    ended(work)
    assert work.status == 2 and "nearest: " in work.lines[-1]


def test_a_command_that_is_stopped_ends() -> None:
    work = Work()
    work.start(Command("episodes", {"count": "1000000", "recipe": "/dev/null"}))
    while not work.program:
        time.sleep(0.01)
    time.sleep(1)
    work.stop()
    ended(work)
    assert work.status not in (0, None)


def test_work_of_the_boards_own_is_the_only_one_too() -> None:
    work = Work()
    with work.going(Command("ask")), pytest.raises(BadInput, match="make ask: still going on"):
        work.start(Command("list"))
    assert work.status == 0
    with pytest.raises(ZeroDivisionError), work.going(Command("eval")):
        1 / 0  # noqa: B018
    assert work.status is None and not work.busy.locked()


def test_a_training_is_told_of_by_its_events(tmp_path: Path) -> None:
    assert runs.told(tmp_path, 0) == [] and runs.progress([]) == ""
    log = tmp_path / "train.log"
    log.write_text(f'words\n{MARK}{{"event": "stage", "stage": "loading the model"}}\n')
    assert runs.progress(runs.told(tmp_path, 0)) == "loading the model"
    for step in (1, 2):
        told = f'"event": "step", "step": {step}, "steps": 4, "loss": {3 - step}, "tokens_per_second": 400.0'
        with log.open("a") as file:
            file.write(f"{MARK}{{{told}}}\n")
    with log.open("a") as file:
        file.write(f'{MARK}{{"event": "st')  # being written
    found = runs.told(tmp_path, 0)
    assert runs.progress(found) == "2 / 4, loss 1.000, 400 tokens/s"
    drawn = runs.curves(found, {"loss": "Loss", "device_gib": "GPU"})
    assert [(each.title, each.steps, each.high, each.low) for each in drawn] == [("Loss", 2, 2.0, 1.0)]
    assert runs.told(tmp_path, time.time() + 60) == []  # of an earlier training
