"""What a recipe says that would fail or train otherwise, and the generated recipes, of which nothing is said."""

from pathlib import Path

import pytest

from tools.core import catalog
from tools.recipes import recipe
from tools.recipes.recipe import RECIPES
from tools.training import recipe_checks

CPU = "cpu/smollm2-135m-lora"
QLORA = "24gb/qwen7b-qlora"
FULL = "24gb/qwen3b-full"
HELD = {"val_set_size": 0.1, "load_best_model_at_end": False}
UNFROZEN = {"unfrozen_parameters": ["^lm_head.weight$"]}
HOME = "does not read ~ as your home folder"


def found(name: str, changes: dict[str, object]) -> list[tuple[str, str]]:
    """The level and the words of what is found in a recipe with a few changes."""
    path = recipe.find(name)
    asked = recipe.read_recipe(path, changes=changes)
    findings = list(recipe_checks.findings(asked, catalog.model_of(asked.base)))
    assert all(each.fix and each.where.startswith(f"{path}:") for each in findings)
    return [(each.level, each.what) for each in findings]


@pytest.mark.parametrize(
    ("name", "changes", "level", "says"),
    [
        (CPU, {"learning_rate": 0.01}, "warning", "0.01 is more than 10 times above 5e-05 to 0.0001"),
        (CPU, {"learning_rate": "1e-6"}, "warning", "1e-06 is more than 10 times below"),
        (QLORA, {"learning_rate": 2e-3}, "warning", "0.002 is above 0.0001 to 0.0002"),
        (QLORA, {"lora_alpha": 1}, "warning", "lora_alpha 1 with lora_r 16 multiplies the adapter by 0.0625"),
        (QLORA, {"lora_r": 256, "lora_alpha": 2, "peft_use_rslora": True}, "warning", "by 0.125"),
        (FULL, {"bf16": False, "fp16": True}, "error", "Attempting to unscale FP16 gradients"),
        (FULL, {"bf16": None, "float16": True}, "error", "Attempting to unscale FP16 gradients"),
        ("8x80gb/qwen72b-full", {"bf16": False, "fp16": True}, "warning", "overflows where bf16 does not"),
        (QLORA, UNFROZEN, "error", "freezes all else, the adapter too"),
        (QLORA, {"group_by_length": True}, "warning", "does nothing beside sample_packing"),
        (QLORA, {"deepspeed": "recipes/deepspeed/zero3.json"}, "warning", "does not shard a quantised base"),
        (QLORA, {"deepspeed": "recipes/deepspeed/zero9.json"}, "error", "no such DeepSpeed configuration"),
        (CPU, {"resume_from_checkpoint": "outputs/nowhere/checkpoint-10"}, "error", "no such checkpoint"),
        (QLORA, {"evals_per_epoch": 3}, "error", "not every save has a validation"),
        (QLORA, {"saves_per_epoch": 3}, "error", "not every save has a validation"),
        (QLORA, {"val_set_size": 0}, "error", "no validation part says which one"),
        (QLORA, {"num_epochs": 1, "saves_per_epoch": 1}, "error", "saves and evals by steps"),
        (QLORA, {**HELD, "num_epochs": 1, "evals_per_epoch": 1}, "error", "no validation at all"),
        (QLORA, {**HELD, "evals_per_epoch": None}, "warning", "no validation; what is kept"),
        (CPU, {"output_dir": "~/out"}, "error", HOME),
        (CPU, {"base_model": "~/models/mine"}, "error", HOME),
        (CPU, {"lora_model_dir": "~me/adapter"}, "error", HOME),
        (CPU, {"datasets": [{"path": "~/train.jsonl"}]}, "error", HOME),
        (CPU, {"test_datasets": [{"path": "data/test.jsonl", "data_files": ["~\\a.jsonl"]}]}, "error", HOME),
        (CPU, {"test_datasets": [{"path": "missing/test.jsonl"}]}, "error", "missing/test.jsonl: no such data"),
    ],
)
def test_what_would_train_otherwise_is_found(name: str, changes: dict[str, object], level: str, says: str) -> None:
    assert [each for each, what in found(name, changes) if says in what] == [level]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (CPU, {"learning_rate": "7e-4"}),
        (CPU, {"learning_rate": 1e-4, "num_epochs": "3"}),
        (CPU, {"max_steps": 3}),
        (QLORA, {"lora_alpha": 16, "lora_r": 64}),
        (QLORA, {"evals_per_epoch": 4}),
        (QLORA, {"saves_per_epoch": None, "evals_per_epoch": None, "save_steps": 40, "eval_steps": 20}),
        (QLORA, {"val_set_size": 0, "load_best_model_at_end": False}),
        (QLORA, {**HELD, "evals_per_epoch": None, "eval_strategy": "epoch"}),
        (FULL, {"bf16": "auto", "fp16": False}),
        (QLORA, {"group_by_length": True, "sample_packing": False}),
        (QLORA, {"bf16": False, "fp16": True}),
        (CPU, {"chat_template_jinja": "~/{{ messages }}", "tokens": ["~/"]}),
        (CPU, {"hub_model_id": "me/mine", "lora_model_dir": "me/adapter"}),
    ],
)
def test_what_is_right_stays_without_a_word(name: str, changes: dict[str, object]) -> None:
    assert found(name, changes) == []


def test_the_line_is_that_of_the_key(tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    text = recipe.find(CPU).read_text()
    copy.write_text(text.replace("path: data/train.jsonl", "path: ~/train.jsonl"))
    (error,) = recipe_checks.home(recipe.read_recipe(copy))
    line = 1 + text[: text.index("path: data/train.jsonl")].count("\n")
    assert error.where == f"{copy}:{line}" and f"write {Path.home()}/train.jsonl" in error.fix


def test_a_second_data_set_that_is_missing_is_found(tmp_path: Path) -> None:
    entries = [{"path": "data/train.jsonl"}, {"path": "missing/second.jsonl"}]
    assert found(CPU, {"datasets": entries}) == [
        ("error", "missing/second.jsonl: no such data"),
        ("advice", "only the first of the data sets is looked at here"),
    ]


def test_nothing_is_said_of_a_generated_recipe() -> None:
    for tier in catalog.tiers():
        for path in sorted((RECIPES / tier).glob("*.yaml"))[::7]:
            asked = recipe.read_recipe(path)
            assert list(recipe_checks.findings(asked, catalog.model_of(asked.base))) == [], path
