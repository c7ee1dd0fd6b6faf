"""The CPU plugin: its loss is the loss, its gradients are the gradients, and no run shares its work in another way."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from axolotl.utils.dict import DictDefault
from peft import LoraConfig, PeftModel, get_peft_model
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
    model.forward = loss_on_trained_tokens(model)
    made: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda _module, _input, logits: made.append(logits))
    assert model.train()(input_ids=ids, labels=labels).logits is None
    assert made[0].shape == (1, 15, 97)
    model.eval()
    assert model(input_ids=ids, labels=labels).logits.shape == (1, 15, 97)
    assert model(input_ids=ids).logits.shape == (1, 40, 97)
    two = {"input_ids": ids.repeat(2, 1), "labels": labels.repeat(2, 1)}
    assert model(**two).logits.shape == (2, 40, 97)


def test_padding_is_skipped(model: LlamaForCausalLM) -> None:
    ids, labels = labelled()
    expected = model(input_ids=ids, labels=labels).loss
    padded = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    padded = {
        name: torch.nn.functional.pad(each, (0, 24), value=-100 * (name == "labels")) for name, each in padded.items()
    }
    seen: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda _module, _input, rows: seen.append(rows))
    torch.testing.assert_close(loss_on_trained_tokens(model)(**padded).loss, expected)
    assert seen[0].shape == (1, 40, 32)


def adapted(model: LlamaForCausalLM, **settings: Any) -> PeftModel:
    """The model with an adapter on its upper layer, whose B is not zero; Axolotl's hook on its embeddings."""
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, layers_to_transform=[1], **settings)
    model.enable_input_require_grads()
    made = get_peft_model(model, config)
    assert isinstance(made, PeftModel)
    for name, each in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.1)
    return made


def learned(model: PeftModel, bf16: bool) -> dict[str, torch.Tensor]:
    """The loss of one update and the gradients of the adapter, by name."""
    ids, labels = labelled()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return found | {"loss": loss.detach()}


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 2e-2)])
def test_an_adapter_learns_what_it_does_without_the_plugin(
    model: LlamaForCausalLM, bf16: bool, tolerance: float
) -> None:
    tuned = adapted(model)
    expected = learned(tuned, bf16)
    CpuPlugin().post_model_load(DictDefault({}), tuned)
    found = learned(tuned, bf16)
    assert len(found) == 9 and found.keys() == expected.keys()
    for name, each in expected.items():
        assert torch.linalg.vector_norm(found[name] - each) <= tolerance * torch.linalg.vector_norm(each), name


@pytest.mark.parametrize(("recomputed", "calls"), [(False, 0), (True, 1)])
def test_the_backward_pass_ends_at_the_lowest_trained_layer(
    model: LlamaForCausalLM, recomputed: bool, calls: int
) -> None:
    tuned = adapted(model)
    CpuPlugin().post_model_load(DictDefault({"gradient_checkpointing": recomputed}), tuned)
    reached: list[object] = []
    model.model.layers[0].register_full_backward_hook(lambda *_: reached.append(None))
    learned(tuned, bf16=False)
    assert len(reached) == calls


@pytest.mark.parametrize(
    ("settings", "sharing", "count"),
    [({}, {}, 4), ({"lora_dropout": 0.1}, {}, 0), ({"use_dora": True}, {}, 0), ({}, ZERO_3, 0)],
)
def test_only_plain_lora_layers_are_replaced(
    model: LlamaForCausalLM, settings: dict, sharing: dict, count: int
) -> None:
    tuned = adapted(model, **settings)
    CpuPlugin().post_model_load(DictDefault(sharing), tuned)
    replaced = [name for name, module in tuned.named_modules() if "forward" in vars(module) and "proj" in name]
    assert len(replaced) == count


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
