"""The callback that watches a training: it says how far it is, and stops it with a checkpoint when told to.

It ends a training whose loss is not a number. It imports little: other trainers have environments of their own.
"""

import math
import signal
import time
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from tools.training.events import Event, emit

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class Watch(TrainerCallback):
    """Says each update. On SIGTERM or SIGINT: end this update, save a checkpoint, stop. On a loss that is NaN: raise.

    A checkpoint of a broken update is never written: transformers logs the loss before it saves.
    """

    def __init__(self) -> None:
        self.told = self.stopping = False
        # When the first update was logged, and the tokens read by then. It took longer than the others will.
        self.first: tuple[float, int] | None = None
        self.most_gib = 0.0

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
    ) -> None:
        """Take the signals, after Axolotl, whose own handler saves no checkpoint; have each loss logged as it is."""
        # transformers replaces a NaN by the mean of the others in what it logs, unless told not to.
        args.logging_nan_inf_filter = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.tell)
        emit(Event("step", step=state.global_step, steps=state.max_steps))

    def tell(self, *_: object) -> None:
        """Remember that a signal came."""
        self.told = True

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
    ) -> None:
        """Stop after this update when any of the processes was told to: all of them must save together."""
        if anywhere(self.told):
            self.stopping = control.should_save = control.should_training_stop = True
        if not control.should_log:  # else on_log follows, and says it with its loss
            emit(Event("step", step=state.global_step, steps=state.max_steps, epoch=state.epoch))

    def on_log(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        """Say an update with its loss. Raises FloatingPointError with the step at a loss that is not a number."""
        if logs is None or "loss" not in logs:
            return  # of an evaluation, or of the whole training at its end
        if not math.isfinite(logs["loss"]):
            emit(Event("diverged", step=state.global_step))
            raise FloatingPointError(f"the loss is {logs['loss']} at step {state.global_step}")
        # Axolotl's name, of its trainer's log(), and TRL's, of pairs; other trainers have transformers count.
        tokens = logs.get("tokens/total") or logs.get("num_tokens") or state.num_input_tokens_seen or None
        gib = logs.get("memory/device_reserved (GiB)")
        self.most_gib = max(self.most_gib, reserved_gib() if gib is None else gib)
        emit(
            Event(
                "step",
                step=state.global_step,
                steps=state.max_steps,
                epoch=state.epoch,
                loss=logs["loss"],
                reward=logs.get("reward"),
                learning_rate=logs.get("learning_rate"),
                gradient_norm=logs.get("grad_norm"),
                tokens=None if tokens is None else int(tokens),
                tokens_per_second=None if tokens is None else self.speed(int(tokens)),
                device_gib=self.most_gib or None,
            )
        )

    def speed(self, tokens: int) -> float | None:
        """Tokens a second since the first update, None at the first."""
        now = time.monotonic()
        if self.first is None:
            self.first = now, tokens
            return None
        return round((tokens - self.first[1]) / (now - self.first[0]), 1)

    def on_evaluate(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        metrics: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        """Say the loss of an evaluation."""
        emit(Event("evaluated", step=state.global_step, loss=(metrics or {}).get("eval_loss")))

    def on_save(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object) -> None:
        """Say that a checkpoint is whole."""
        emit(Event("saved", step=state.global_step, checkpoint=f"checkpoint-{state.global_step}"))

    def on_train_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
    ) -> None:
        """Say whether it was stopped: Axolotl ends with status 0 after a stop as after the last update."""
        if self.stopping:
            emit(Event("stopped", step=state.global_step))
        emit(Event("stage", "writing what was learned"))


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


def reserved_gib() -> float:
    """The most memory that torch has reserved so far on this process's GPU, in GiB; 0 where there is none."""
    import torch

    return torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0
