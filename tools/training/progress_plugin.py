"""The Axolotl plugin that watches a training: it says how far it is, stops it with a checkpoint when told to, and ends
it at a loss that is not a number. The recipe's seed also holds for the first values of an adapter."""

import math
import signal
import time
from typing import TYPE_CHECKING

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback, set_seed

from tools.core import chat_template
from tools.training.events import Event, emit
from tools.training.pair_tokens import train_as_served
from tools.training.sample_order import repeat_order

if TYPE_CHECKING:
    from axolotl.utils.dict import DictDefault
    from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments


class WatchPlugin(BasePlugin):
    """Adds `Watch` to every training, whatever the trainer, and says what Axolotl does before the first update."""

    def register(self, cfg: "DictDefault") -> None:
        """Have chat templates rendered in a process of their own, packed rows come in an order that repeats, and the
        texts of preference pairs be those that are served.
        """
        chat_template.install_in_axolotl()
        repeat_order(cfg.seed or 0)
        if cfg.rl == "dpo":
            train_as_served()

    def load_datasets(self, cfg: "DictDefault", preprocess: bool = False) -> None:
        """Load nothing: Axolotl does so next."""
        emit(Event("stage", "reading and tokenising the data"))

    def pre_model_load(self, cfg: "DictDefault") -> None:
        """Axolotl loads the model next."""
        emit(Event("stage", "loading the model"))

    def pre_lora_load(self, cfg: "DictDefault", model: "PreTrainedModel") -> None:
        """Draw the adapter's first values from the recipe's seed: Axolotl sets it only after they are drawn."""
        if cfg.seed is not None:
            set_seed(cfg.seed)

    def post_model_load(self, cfg: "DictDefault", model: "PreTrainedModel") -> None:
        """Axolotl makes the trainer next: with DeepSpeed or FSDP it spreads the model."""
        emit(Event("stage", "preparing the first update"))

    def add_callbacks_post_trainer(self, cfg: "DictDefault", trainer: "Trainer") -> list[TrainerCallback]:
        """The callback; Axolotl adds it to the trainer."""
        return [Watch()]


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
        # Axolotl's names, of its trainer's log(), and TRL's, of pairs; memory is 0 where there is no GPU.
        tokens = logs.get("tokens/total", logs.get("num_tokens"))
        self.most_gib = max(self.most_gib, logs.get("memory/device_reserved (GiB)", 0.0))
        emit(
            Event(
                "step",
                step=state.global_step,
                steps=state.max_steps,
                epoch=state.epoch,
                loss=logs["loss"],
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
