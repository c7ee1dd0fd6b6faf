"""The CPU plugin: the loss on trained tokens alone is the loss, and its gradients are the gradients."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tools.axolotl_cpu import CpuPlugin, loss_on_trained_tokens


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    return LlamaForCausalLM(sizes)


def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels [1, 40]: a prompt, and two trained spans."""
    ids = torch.arange(40)[None] % 97
    labels = torch.full_like(ids, -100)
    labels[0, 10:15] = ids[0, 10:15]
    labels[0, 30:40] = ids[0, 30:40]
    return ids, labels


@pytest.mark.parametrize("items", [None, 30])
def test_the_loss_and_its_gradients_are_those_of_all_logits(model: LlamaForCausalLM, items: int | None) -> None:
    ids, labels = labelled()
    results = []
    for forward in (model.forward, loss_on_trained_tokens(model)):
        model.zero_grad()
        loss = forward(input_ids=ids, labels=labels, num_items_in_batch=items).loss
        loss.backward()
        results.append((loss.item(), model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1])


def test_only_trained_positions_get_logits(model: LlamaForCausalLM) -> None:
    ids, labels = labelled()
    CpuPlugin().post_model_load(None, model)
    assert model(input_ids=ids, labels=labels).logits.shape == (1, 15, 97)
    assert model(input_ids=ids).logits.shape == (1, 40, 97)
    two = {"input_ids": ids.repeat(2, 1), "labels": labels.repeat(2, 1)}
    assert model(**two).logits.shape == (2, 40, 97)


def test_training_arguments_ask_for_the_cpu() -> None:
    assert CpuPlugin().get_training_args(None) == {"use_cpu": True}
