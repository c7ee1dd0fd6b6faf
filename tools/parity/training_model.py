"""Training's own model on a CPU, computed in float32 one tensor at a time, so that no copy of all of it is needed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools import BadInput, Failed
from tools.core import progress
from tools.gguf import merge

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BROKEN = "answers NaN in place of probabilities: its weights are broken; check the loss in train.log and train again"


def load(folder: Path, adapter: Path | None) -> "PreTrainedModel":
    """A model as its training had it, the adapter beside its base, in the type in which the weights are stored.

    So they stay in the file, which the system reads as they are used. Raises Failed where transformers cannot read
    them.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        if adapter:
            tuned: PreTrainedModel = merge.with_adapter(folder, adapter, "auto")  # type: ignore[assignment]
            return tuned.eval()
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        whole: PreTrainedModel = merge.model_class(config).from_pretrained(
            folder, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
    except (BadInput, Failed):
        raise
    except Exception as error:  # the settings of a model of any origin, in the hands of a class of any
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise Failed(f"{folder}: transformers cannot read the model: {first}") from error
    return whole.eval()


def log_probabilities(
    model: "PreTrainedModel", talks: Sequence[list[int]], where: Sequence[list[int]]
) -> "list[torch.Tensor]":
    """What a model of `load` gives each token after so many tokens of each talk, float32 [vocabulary] each.

    All talks are read in one pass, so each tensor is widened once. Raises Failed when the model computes NaN.
    """
    import torch

    longest = max(len(ids) for ids in talks)
    # What fills up the shorter ones comes after them, where it changes nothing.
    ids = torch.tensor([[*each, *[0] * (longest - len(each))] for each in talks])
    kept = sorted({place for each in where for place in each})
    with progress.bar("parity: what the model of training expects", unit="tensors") as shown, torch.inference_mode():
        count = widen_as_used(model, shown.advance)
        shown.update(total=count)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=torch.tensor(kept) - 1).logits
    if logits.isnan().any():
        raise Failed(f"the base with its adapter, in transformers, {BROKEN}")
    at = {place: number for number, place in enumerate(kept)}
    found = [logits[number, at[place]] for number, each in enumerate(where) for place in each]
    return [torch.log_softmax(each.float(), dim=-1) for each in found]


def widen_as_used(model: "PreTrainedModel", done: Callable[[], None]) -> int:
    """Have each module that holds 16-bit tensors compute in float32; how many do. `done` is called after each.

    Its tensors are widened as it begins and are what they were when it has ended. A module of an adapter is one with
    the base's module in it, whose tensors it may read by itself.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.nn import Module, Parameter

    narrow = (torch.bfloat16, torch.float16)

    def wide(value: object) -> object:
        return value.float() if isinstance(value, torch.Tensor) and value.dtype in narrow else value

    def hook(module: Module, held: list[Parameter]) -> None:
        before: list[tuple[Parameter, torch.Tensor]] = []

        def begin(
            _: Module, args: tuple[object, ...], kwargs: dict[str, object]
        ) -> tuple[tuple[object, ...], dict[str, object]]:
            for each in held:
                before.append((each, each.data))
                each.data = each.data.float()
            return tuple(wide(each) for each in args), {key: wide(each) for key, each in kwargs.items()}

        def end(_: Module, __: tuple[object, ...], result: object) -> object:
            while before:
                each, data = before.pop()
                each.data = data
            done()
            return wide(result)

        module.register_forward_pre_hook(begin, with_kwargs=True)
        module.register_forward_hook(end)

    adapters = [each for each in model.modules() if isinstance(each, BaseTunerLayer)]
    inside = {id(part) for each in adapters for part in each.modules()}
    alone = [each for each in model.modules() if id(each) not in inside]
    count = 0
    for module in (*adapters, *alone):
        parts = module.parameters(recurse=isinstance(module, BaseTunerLayer))
        if held := [each for each in parts if each.dtype in narrow]:
            hook(module, held)
            count += 1
    return count
