"""The Axolotl plugin that watches a training: the recipe's seed from its begin, a checkpoint when told to stop, an end
when the loss is no number."""

import math
import signal
from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback, set_seed

from tools.core import chat_template
from tools.training.run_axolotl import STOPPED


class WatchPlugin(BasePlugin):
    """Adds the watch to every training, whatever the trainer; chat templates are rendered apart."""

    def register(self, cfg: dict[str, Any]) -> None:
        """Have chat templates rendered in a process of their own: Axolotl reads its data after this."""
        chat_template.install_in_axolotl()

    def pre_lora_load(self, cfg: Any, model: Any) -> None:
        """Draw the adapter's first values from the recipe's seed: Axolotl sets it only after they are drawn."""
        if cfg.seed is not None:
            set_seed(cfg.seed)

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        """The callback; Axolotl adds it to the trainer."""
        return [Watch()]


class Watch(TrainerCallback):
    """On SIGTERM or SIGINT: end this step, save a checkpoint, stop. On a loss that is no number: raise.

    The checkpoint of a broken step is never written: the loss is looked at before anything is saved.
    """

    told = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the signals (after Axolotl, whose own handler saves no checkpoint); have each loss shown as it is."""
        # transformers replaces a NaN by the mean of the others in what it logs, unless told not to.
        args.logging_nan_inf_filter = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.tell)

    def tell(self, *_: Any) -> None:
        """Remember that a signal came."""
        self.told = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop after this step when any of the processes was told to: all of them must save together."""
        if anywhere(self.told):
            control.should_save = control.should_training_stop = True
            if state.is_world_process_zero:
                print(f"\n{STOPPED} {state.global_step}", flush=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """End the training at a loss that is no number. Raises FloatingPointError with the step."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {state.global_step}")


def anywhere(told: bool) -> bool:
    """Whether any process was told; every process must ask, at the same step."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return told
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(float(told), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag.item())
