"""The Axolotl plugin that watches a training (watch.py) and says what Axolotl does before the first update.

The recipe's seed also holds for the first values of an adapter, and the order of packed rows repeats.
"""

from typing import TYPE_CHECKING

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback, set_seed

from tools.core import chat_template
from tools.training.events import Event, emit
from tools.training.pair_tokens import train_as_served
from tools.training.sample_order import repeat_order
from tools.training.watch import Watch

if TYPE_CHECKING:
    from axolotl.utils.dict import DictDefault
    from transformers import PreTrainedModel, Trainer


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
