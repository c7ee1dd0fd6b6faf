"""Names that the model, the optimizers or the schedules do not have."""

import pytest

from tools.gguf import find_base
from tools.recipes import recipe
from tools.training import model_checks

CPU = "cpu/smollm2-135m-lora"
FSDP = "4x24gb/qwen32b-qlora"
pytestmark = pytest.mark.heavy


def found(name: str, changes: dict[str, object]) -> list[str]:
    """What is found in a recipe with a few changes; each an error, with its line and how to fix it."""
    asked = recipe.read_recipe(recipe.find(name), changes=changes)
    findings = list(model_checks.findings(asked, asked.base))
    assert all(each.level == "error" and each.fix and each.where.startswith(f"{asked.path}:") for each in findings)
    return [f"{each.what}. {each.fix}" for each in findings]


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        (CPU, {"optimizer": "adamw"}, "adamw: no such optimizer"),
        (CPU, {"optimizer": "adamw_torch_fuzed"}, "did you mean adamw_torch_fused?"),
        (CPU, {"lr_scheduler": "cosine_annealing"}, "cosine_annealing: no such schedule"),
        (CPU, {"lr_scheduler": "linear_warmup"}, "did you mean linear?"),
        (CPU, {"lr_scheduler": "warmup_stable_decay"}, "does not take its lr_scheduler_kwargs"),
        (
            CPU,
            {"lr_scheduler": "polynomial", "lr_scheduler_kwargs": {"min": 0}},
            "does not take its lr_scheduler_kwargs",
        ),
        (CPU, {"lora_target_modules": ["c_attn", "q_proj"]}, "c_attn: no layer of the model"),
        (CPU, {"lora_target_modules": ["self_attn"]}, "the linear layers are down_proj, gate_proj, k_proj, lm_head"),
        (CPU, {"lora_target_modules": "transformer.h.*"}, "no layer of the model"),
        (CPU, {"lora_modules_to_save": ["wte"]}, "wte: the model has no such module"),
        (CPU, {"peft_layers_to_transform": [28, 29, 30]}, "30 layers, 0 to 29; 30 would get no adapter"),
        (CPU, {"peft_layers_to_transform": 30}, "30 would get no adapter"),
        (FSDP, {"fsdp_config": {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}}, ": Qwen2DecoderLayer"),
        (FSDP, {"fsdp_config": {"fsdp_transformer_layer_cls_to_wrap": "Qwen2Block"}}, "no layer of this class"),
    ],
)
def test_a_name_that_is_nowhere_is_found(name: str, changes: dict[str, object], says: str) -> None:
    (what,) = found(name, changes)
    assert says in what


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (CPU, {}),
        (FSDP, {}),
        ("24gb/phi4-mini-qlora", {"lora_target_modules": ["qkv_proj"]}),
        (CPU, {"optimizer": "muon", "lr_scheduler": "rex"}),
        (CPU, {"optimizer": "paged_adamw_8bit", "lr_scheduler": "constant_with_warmup"}),
        (CPU, {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}}),
        (CPU, {"lora_target_modules": ["q_proj", "embed_tokens", "mlp.down_proj"]}),
        (CPU, {"lora_target_modules": r".*\.(q|v)_proj"}),
        (CPU, {"lora_target_modules": "all-linear", "lora_modules_to_save": ["embed_tokens", "lm_head"]}),
    ],
)
def test_a_name_that_is_there_stays_without_a_word(name: str, changes: dict[str, object]) -> None:
    assert found(name, changes) == []


def test_the_bases_own_folder_says_what_it_has() -> None:
    asked = recipe.read_recipe(recipe.find(CPU), changes={"peft_layers_to_transform": [29, 40]})
    (error,) = model_checks.findings(asked, find_base.resolve("smollm2-135m"))
    assert "40 would get no adapter" in error.what


@pytest.mark.parametrize("name", [CPU, "24gb/qwen3b-qlora"])
def test_a_sequence_beyond_the_models_context_is_found(name: str) -> None:
    base = find_base.resolve("smollm2-135m") if name == CPU else ""
    own = 8192 if name == CPU else 32768
    (warning,) = model_checks.findings(recipe.read_recipe(recipe.find(name), changes={"sequence_len": own + 1}), base)
    assert warning.level == "warning" and f"context ends at {own}" in warning.what
    assert list(model_checks.findings(recipe.read_recipe(recipe.find(name), changes={"sequence_len": own}), base)) == []
