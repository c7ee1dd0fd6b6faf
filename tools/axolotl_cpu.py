"""The Axolotl plugin that trains without a GPU. Named under `plugins:` of the recipe as run, by train.py."""

import functools
from typing import Any

from axolotl.integrations.base import BasePlugin


class CpuPlugin(BasePlugin):
    """Lets Axolotl train on the CPU, and computes logits only where there is a loss."""

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Without `use_cpu`, transformers refuses bf16 autocast on a machine that has no GPU."""
        return {"use_cpu": True}

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """Replace the causal model's loss by the same loss, computed from the trained tokens' logits alone."""
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        causal.forward = loss_on_trained_tokens(causal)


def loss_on_trained_tokens(causal: Any) -> Any:
    """A forward for a transformers causal model of micro batch 1 that skips logits without a label.

    In household episodes six tokens in ten carry none, and the vocabulary's projection is a fifth of this model's
    arithmetic. `labels` is [1, tokens] with -100 where nothing is trained; the loss is transformers' own.
    """
    forward = causal.forward

    # The trainer keeps those columns of the data that forward's signature names.
    @functools.wraps(forward)
    def trained_only(*args: Any, labels: Any = None, num_items_in_batch: Any = None, **rest: Any) -> Any:
        if labels is None or labels.shape[0] != 1:
            return forward(*args, labels=labels, num_items_in_batch=num_items_in_batch, **rest)
        # Position i predicts token i + 1.
        positions = (labels[0, 1:] != -100).nonzero()[:, 0]
        output = forward(*args, logits_to_keep=positions, **rest)
        output.loss = causal.loss_function(
            logits=output.logits,
            labels=None,
            shift_labels=labels[:, positions + 1],
            vocab_size=causal.config.vocab_size,
            num_items_in_batch=num_items_in_batch,
        )
        return output

    return trained_only
