"""The watch asks for a checkpoint and an end when told, and ends at a loss that is no number; tests/chain trains."""

from types import SimpleNamespace

import pytest
import torch

from tools.training import run_axolotl
from tools.training.progress_plugin import STOPPED, Watch, WatchPlugin


def test_an_adapter_begins_the_same_from_the_same_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        WatchPlugin().pre_lora_load(SimpleNamespace(seed=seed), None)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_signal_ends_the_step_with_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    watch, state = Watch(), SimpleNamespace(global_step=7, is_world_process_zero=True)
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    watch.on_step_end(None, state, control)
    assert not control.should_save and not control.should_training_stop
    watch.tell()
    watch.on_step_end(None, state, control)
    assert control.should_save and control.should_training_stop
    assert f"{STOPPED} 7" in capsys.readouterr().out


def test_train_reads_what_the_watch_writes() -> None:
    assert run_axolotl.STOPPED == STOPPED


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), "nan"])
def test_a_loss_that_is_no_number_is_an_error_with_its_step(loss: object) -> None:
    state = SimpleNamespace(global_step=3)
    Watch().on_log(None, state, None, {"loss": 0.5})
    Watch().on_log(None, state, None, {"eval_loss": 0.5})
    with pytest.raises(FloatingPointError, match="at step 3"):
        Watch().on_log(None, state, None, {"loss": loss})
