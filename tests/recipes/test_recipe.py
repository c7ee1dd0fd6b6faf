"""Recipes: found by name or path, read with file:line for what is wrong, valid to Axolotl itself."""

from pathlib import Path

import pytest

from tools import BadInput
from tools.core import run_folder
from tools.recipes import recipe

NAME = "smollm2-135m-lora"


def test_a_recipe_is_found_by_name_and_by_path() -> None:
    path = recipe.find(NAME)
    assert path == run_folder.ROOT / "recipes" / "cpu" / f"{NAME}.yaml"
    assert recipe.find(str(path)) == path


def test_an_unknown_recipe_is_told_the_nearest_names() -> None:
    assert recipe.find("24gb/qwen7b-qlora") == recipe.find("qwen7b-qlora", "24gb")
    with pytest.raises(BadInput, match=f"smolm2-135m-lora: no such recipe; nearest: {NAME}"):
        recipe.find("smolm2-135m-lora")
    with pytest.raises(BadInput, match="no such recipe file"):
        recipe.find("nowhere/my.yaml")
    with pytest.raises(BadInput, match="no such tier; nearest: 24gb"):
        recipe.find("qwen7b-qlora", "24g")
    with pytest.raises(BadInput, match="qwen72b-full: does not fit on tier 24gb; there is TIER=8x80gb"):
        recipe.find("qwen72b-full", "24gb")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base_model: a\nlora_r: [16\n", ":3: not YAML"),
        ("base_model: a\n\tlora_r: 16\n", ":2: not YAML"),
        ("lora_r: 16\n", ":1: not a recipe: it names no base_model"),
        ("", ":1: not a recipe"),
        ("- base_model\n", ":1: not a recipe"),
        ("base_model: a\nlora_r: 8\nlora_r: 16\n", ":3: lora_r stands here and on line 2; keep one of them"),
        ("base_model: a\ndatasets:\n  - {path: a, path: b}\n", ":3: path stands here and on line 3"),
        ("base_model: a\nfsdp_config: &all\n  inner: *all\n", ":2: a value that contains itself"),
        ("base_model: a\ndatasets:\n\t- path: x\n", ":3: not YAML: a tab; YAML is indented with spaces"),
    ],
)
def test_what_is_not_a_recipe_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        recipe.read_recipe(path)
    assert f"{path}{says}" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("lora_r: sixteen", "lora_r: 'sixteen' is not a whole number of at least 1"),
        ("lora_r: 1.5", "lora_r: 1.5 is not a whole number of at least 1"),
        ("micro_batch_size: 0", "micro_batch_size: 0 is not a whole number of at least 1"),
        ("sequence_len: [1]", "sequence_len: [1] is not a whole number of at least 1"),
        ("gradient_accumulation_steps: true", "gradient_accumulation_steps: True is not a whole number of at least 1"),
        ("learning_rate: fast", "learning_rate: 'fast' is not a number of at least 0"),
        ("learning_rate: .nan", "learning_rate: nan is not a number of at least 0"),
        ("load_in_4bit: maybe", "load_in_4bit: 'maybe' is neither true nor false"),
        ("optimizer: 7", "optimizer: 7 is no text"),
        (
            "flash_attention: true",
            "flash_attention is of an older Axolotl; now: attn_implementation: flash_attention_2",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_told_before_axolotl_is_asked(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(f"base_model: a\n{line}\n")
    with pytest.raises(BadInput) as caught:
        recipe.read_recipe(path)
    assert str(caught.value) == f"{path}:2: {says}"


def test_numbers_in_any_writing_and_keys_without_a_value_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("base_model: a\nlearning_rate: 1e-4\nlora_r: '16'\nlora_alpha:\nflash_attention: false\n")
    assert recipe.read_recipe(path).settings["lora_r"] == "16"


@pytest.mark.parametrize("text", ["", "datasets:\n  - {type: chat_template}\n", "datasets:\n  - {path: 5}\n"])
def test_a_recipe_without_data_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(f"base_model: a\n{text}")
    with pytest.raises(BadInput, match="needs `datasets:`"):
        _ = recipe.read_recipe(path).dataset


def test_a_keys_line_is_found_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("base_model: a\ndatasets:\n  - path: x\n  - path: y\n    type: z\n")
    found = recipe.read_recipe(path)
    assert [found.line(*keys) for keys in ((), ("datasets",), ("datasets", 1, "type"))] == [1, 2, 5]
    assert found.line("datasets", 1, "nothing") == 4 and found.line("nothing") == 1


def test_a_runs_folder_is_named_for_tier_and_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    assert recipe.open_recipe(NAME).run.folder == tmp_path / "cpu" / NAME


def test_changes_are_values_of_yaml() -> None:
    assert recipe.overrides(["lora_r=32", "learning_rate=1e-4", "bf16=false"]) == {
        "lora_r": 32, "learning_rate": 1e-4, "bf16": False,
    }  # fmt: skip
    with pytest.raises(BadInput, match="a change is written key=value"):
        recipe.overrides(["lora_r"])
    with pytest.raises(BadInput, match="lora_r is given two values"):
        recipe.overrides(["lora_r=8", "lora_r=16"])
    with pytest.raises(BadInput, match="no such data"):
        recipe.open_recipe(NAME, data="nowhere.jsonl")
