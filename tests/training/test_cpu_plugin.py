"""The CPU plugin: its loss is the loss, its gradients are the gradients, and no run shares its work in another way."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerControl, TrainerState

from tools.training.cpu_plugin import CpuPlugin, Sharing, asked, gathered_in_order, loss_on_trained_tokens, running

ZERO_3 = {"deepspeed": {"zero_optimization": {"stage": 3}}}


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
        assert loss is not None
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


@pytest.mark.parametrize(
    ("count", "recipe", "words"),
    [
        ("1", {}, "1 process on the CPU"),
        ("2", {}, "2 processes on the CPU (gloo), DDP"),
        ("2", ZERO_3, "2 processes on the CPU (gloo), DeepSpeed ZeRO-3"),
        ("2", {"deepspeed": {"train_batch_size": "auto"}}, "2 processes on the CPU (gloo), DeepSpeed ZeRO-0"),
        ("4", {"fsdp_config": {"offload_params": False}}, "4 processes on the CPU (gloo), FSDP2"),
        ("1", ZERO_3, "1 process on the CPU (gloo), DeepSpeed ZeRO-3"),
    ],
)
def test_a_recipe_and_torchrun_say_how_the_work_is_shared(
    monkeypatch: pytest.MonkeyPatch, count: str, recipe: dict, words: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    assert asked(recipe) == words


def begin(recipe: dict, wrapped: object) -> None:
    """The start of training of `wrapped` by that recipe, in the first process."""
    trainer: Any = SimpleNamespace(model_wrapped=wrapped)
    args: Any = None
    Sharing(asked(recipe), trainer).on_train_begin(args, TrainerState(is_world_process_zero=True), TrainerControl())


def test_one_process_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, model: LlamaForCausalLM
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    begin({}, model)
    assert capsys.readouterr().out == "react-recipes: 1 process on the CPU\n"


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("recipe", [ZERO_3, {"fsdp_config": {"offload_params": False}}])
def test_a_recipe_whose_sharing_did_not_take_hold_is_stopped(
    monkeypatch: pytest.MonkeyPatch, model: LlamaForCausalLM, recipe: dict, count: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(RuntimeError, match="the recipe asks for .*; what would run is 1 process"):
        begin(recipe, model)


def test_the_stage_is_the_engine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    engine = SimpleNamespace(zero_optimization_stage=lambda: 2)
    assert running(engine) == "2 processes on the CPU (gloo), DeepSpeed ZeRO-2"
    with pytest.raises(RuntimeError, match="asks for .* ZeRO-3; what would run is .* ZeRO-2"):
        begin(ZERO_3, engine)


def test_a_gather_is_finished_when_it_returns() -> None:
    done: list[str] = []

    def gather(output: torch.Tensor, asynchronous: bool) -> Any:
        assert not torch.is_grad_enabled()
        return SimpleNamespace(wait=lambda: done.append("waited")) if asynchronous else None

    in_order = gathered_in_order(gather)
    assert in_order(torch.zeros(2), asynchronous=False) is None and done == []
    assert in_order(torch.zeros(2), asynchronous=True) is not None and done == ["waited"]
    assert torch.is_grad_enabled()
