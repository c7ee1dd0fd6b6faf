"""The plugin says how a training goes, stops it with a checkpoint when told, ends it at a loss that is not a number.

What it writes is read here by what `train` reads it with; tests/chain/test_stops.py trains for real.
"""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from tools.training import events
from tools.training.events import Event
from tools.training.progress_plugin import WatchPlugin
from tools.training.watch import Watch

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True)


def state(step: int) -> TrainerState:
    return TrainerState(global_step=step, max_steps=10, epoch=step / 10)


def said(capfd: Captured) -> list[Event]:
    """The events written to stdout since the last look."""
    return list(events.read(capfd.readouterr().out.splitlines()))


def test_an_adapter_begins_the_same_from_the_same_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        model: Any = None
        WatchPlugin().pre_lora_load(SimpleNamespace(seed=seed), model)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_event_is_read_as_it_was_written_whatever_stands_before_it(capfd: Captured) -> None:
    written = Event("step", step=3, steps=280, loss=1.25, tokens=4000)
    print("  1%|          | 3/280 [00:03<15:17,  3.35s/it]", end="", flush=True)
    events.emit(written)
    print("{'loss': '9.9'}")
    assert said(capfd) == [written]


def test_one_process_of_a_machine_speaks(capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        events.emit(Event("step", step=int(rank)))
    assert said(capfd) == [Event("step", step=0)]


def test_a_step_is_said_once_with_its_loss_where_it_is_logged(args: TrainingArguments, capfd: Captured) -> None:
    watch, control = Watch(), TrainerControl()
    watch.on_step_end(args, state(1), control)
    assert said(capfd) == [Event("step", step=1, steps=10, epoch=0.1)]
    control.should_log = True
    for step in (2, 3):
        watch.on_step_end(args, state(step), control)
        logs = {"loss": 1.5, "learning_rate": 1e-4, "grad_norm": 0.5, "tokens/total": 1000 * step}
        watch.on_log(args, state(step), control, logs | {"memory/device_reserved (GiB)": 9.0 - step})
    watch.on_log(args, state(3), control, {"train_loss": 1.5, "train_runtime": 3.0})
    one, two = said(capfd)
    logged: Any = {"learning_rate": 1e-4, "gradient_norm": 0.5, "tokens": 2000, "device_gib": 7.0}
    assert one == Event("step", step=2, steps=10, epoch=0.2, loss=1.5, **logged)
    assert (two.step, two.tokens, two.device_gib) == (3, 3000, 7.0)  # the most that was reserved
    assert two.tokens_per_second is not None and two.tokens_per_second > 0


def test_a_signal_ends_the_step_with_a_checkpoint(args: TrainingArguments, capfd: Captured) -> None:
    watch, control = Watch(), TrainerControl()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        watch.on_train_begin(args, state(5), control)
        watch.on_step_end(args, state(6), control)
        assert not control.should_save and not control.should_training_stop
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    watch.on_step_end(args, state(7), control)
    assert control.should_save and control.should_training_stop
    assert "stopped" not in [each.event for each in said(capfd)]  # its checkpoint is not written yet
    watch.on_save(args, state(7), control)
    watch.on_train_end(args, state(7), control)
    assert said(capfd)[:2] == [Event("saved", step=7, checkpoint="checkpoint-7"), Event("stopped", step=7)]


def test_a_training_that_reaches_its_end_was_not_stopped(args: TrainingArguments, capfd: Captured) -> None:
    Watch().on_train_end(args, state(10), TrainerControl())
    assert [each.event for each in said(capfd)] == ["stage"]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_is_an_error_with_its_step(
    args: TrainingArguments, capfd: Captured, loss: float
) -> None:
    watch, control = Watch(), TrainerControl()
    watch.on_log(args, state(2), control, {"loss": 0.5})
    watch.on_log(args, state(3), control, {"eval_loss": loss})
    with pytest.raises(FloatingPointError, match="at step 3"):
        watch.on_log(args, state(3), control, {"loss": loss})
    assert said(capfd)[-1] == Event("diverged", step=3)
