"""Training's model computed from its file, tensor by tensor, gives what all of it in float32 gives."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gguf.test_lora import KINDS, make_base
from tests.parts import models
from tools.gguf import merge
from tools.parity import training_model

TALKS = [list(range(1, 40)), list(range(50, 70))]
WHERE = [[3, 20, 39], [3, 9, 20]]


def wanted(model: Any) -> list[torch.Tensor]:
    """What a float32 model gives each token, as training_model.log_probabilities."""
    with torch.no_grad():
        read = [model.eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1) for ids in TALKS]
    return [read[number][place - 1] for number, each in enumerate(WHERE) for place in each]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_each_kind_beside_its_base(tmp_path: Path, kind: str, tied: bool) -> None:
    base = make_base(tmp_path / "base", tied)
    tuned = models.make_peft(base, **KINDS[kind])
    tuned.save_pretrained(str(tmp_path / "adapter"))
    loaded = training_model.load(base, tmp_path / "adapter")
    # Tensors that an adapter has whole are rounded to the base's type, as they are in the GGUF.
    rounded = bool({"modules_to_save", "bias", "trainable_token_indices"} & KINDS[kind].keys())
    for mine, theirs in zip(training_model.log_probabilities(loaded, TALKS, WHERE), wanted(tuned), strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.02 if rounded else 1e-4, rtol=1e-4)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "phi3", "qwen2.5-vl"])
def test_a_whole_model_whose_weights_stay_as_they_are(tmp_path: Path, name: str) -> None:
    base = models.make(name, tmp_path / "base")
    loaded = training_model.load(base, None)
    found = training_model.log_probabilities(loaded, TALKS, WHERE)
    in_full: Any = merge.model_class(loaded.config).from_pretrained(base, dtype=torch.float32)
    for mine, theirs in zip(found, wanted(in_full), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert {each.dtype for each in loaded.parameters()} == {torch.bfloat16}
