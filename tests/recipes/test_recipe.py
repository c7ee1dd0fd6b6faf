"""Recipes: found by name or path, read with file:line for what is wrong, valid to Axolotl itself."""

from pathlib import Path

import pytest

from tools import BadInput
from tools.core import catalog, run_folder
from tools.recipes import recipe
from tools.training import preflight

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
        recipe.load(path)
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
        recipe.load(path)
    assert str(caught.value) == f"{path}:2: {says}"


def test_numbers_in_any_writing_and_keys_without_a_value_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("base_model: a\nlearning_rate: 1e-4\nlora_r: '16'\nlora_alpha:\nflash_attention: false\n")
    assert recipe.load(path)["lora_r"] == "16"


def test_no_key_of_axolotls_counts_as_another_misspelt() -> None:
    plugins = ("axolotl.integrations.liger.LigerPlugin",)
    recipe.misspelt(run_folder.ROOT / "pyproject.toml", recipe.known_keys(recipe.schema(plugins, run_folder.ROOT)))
    with pytest.raises(BadInput, match="sequence_length: no such key; did you mean sequence_len?"):
        recipe.misspelt(recipe.find(NAME), {"sequence_length": 512})


@pytest.mark.parametrize("text", ["", "datasets:\n  - {type: chat_template}\n", "datasets:\n  - {path: 5}\n"])
def test_a_recipe_without_data_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(f"base_model: a\n{text}")
    with pytest.raises(BadInput, match="needs `datasets:`"):
        recipe.dataset(path)


def test_a_keys_line_is_found_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("base_model: a\ndatasets:\n  - path: x\n  - path: y\n    type: z\n")
    assert [recipe.line_of(path, *keys) for keys in ((), ("datasets",), ("datasets", 1, "type"))] == [1, 2, 5]
    assert recipe.line_of(path, "datasets", 1, "nothing") == 4 and recipe.line_of(path, "nothing") == 1


def test_a_runs_folder_is_named_for_tier_and_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    assert recipe.folder(recipe.find(NAME)).folder == tmp_path / "cpu" / NAME


def test_axolotl_accepts_the_committed_recipe_and_names_the_line_of_a_wrong_key(tmp_path: Path) -> None:
    recipe.validate(recipe.find(NAME))
    path = tmp_path / "my.yaml"
    path.write_text(recipe.find(NAME).read_text().replace("lora_r: 16", "lora_r: sixteen"))
    line = path.read_text().splitlines().index("lora_r: sixteen") + 1
    with pytest.raises(BadInput, match=f"my.yaml:{line}: lora_r: "):
        recipe.validate(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("lora_rr: 16", "lora_rr: no such key; did you mean lora_r?"),
        (
            "flash_attention: true",
            "flash_attention is of an older Axolotl; now: attn_implementation: flash_attention_2",
        ),
        ("evaluation_strategy: steps", "evaluation_strategy is of an older Axolotl; now: eval_strategy"),
        ("num_epochs: many", "num_epochs: "),
        ("learning_rate: []", "learning_rate: [] is not a number of at least 0"),
        ("logging_steps: [1]", "logging_steps: "),
        (
            "fsdp_config: {state_dict_tipe: a}",
            "fsdp_config.state_dict_tipe: no such key; did you mean state_dict_type?",
        ),
    ],
)
def test_what_axolotl_does_not_take_is_named_with_its_line(tmp_path: Path, line: str, says: str) -> None:
    key = line.split(":")[0]
    text = (recipe.RECIPES / "24gb" / "qwen7b-qlora.yaml").read_text()
    kept = [each for each in text.splitlines() if not each.startswith(f"{key}:")]
    path = tmp_path / "my.yaml"
    path.write_text("\n".join([*kept, line]) + "\n")
    with pytest.raises(BadInput) as caught:
        recipe.validate(path, tier=catalog.tiers()["24gb"])
    assert f"{path}:{len(kept) + 1}: " in str(caught.value) and says in str(caught.value)


def test_a_key_that_nobody_knows_is_found_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(recipe.find(NAME).read_text().replace("    type: chat_template", "    tipe: chat_template"))
    line = path.read_text().splitlines().index("    tipe: chat_template") + 1
    with pytest.raises(BadInput) as caught:
        recipe.validate(path)
    assert str(caught.value) == f"{path}:{line}: datasets.0.tipe: no such key; did you mean type?"


def test_a_key_that_will_go_is_reported(tmp_path: Path) -> None:
    text = (recipe.RECIPES / "24gb" / "qwen7b-qlora.yaml").read_text()
    path = tmp_path / "my.yaml"
    path.write_text(text + "dataset_processes: 2\n")
    with pytest.raises(BadInput, match="dataset_processes is of an older Axolotl; now: dataset_num_proc"):
        recipe.validate(path, tier=catalog.tiers()["24gb"])
    path.write_text(text + "gradient_checkpointing_steps: 2\n")
    with pytest.raises(BadInput, match="no such key; did you mean gradient_checkpointing"):
        recipe.validate(path, tier=catalog.tiers()["24gb"])
    path.write_text(text.replace("gradient_checkpointing: false", "gradient_checkpointing: offload"))
    assert any("deprecated" in said for said in recipe.validate(path, tier=catalog.tiers()["24gb"]))


def test_changes_are_values_of_yaml() -> None:
    assert recipe.overrides(["lora_r=32", "learning_rate=1e-4", "bf16=false"]) == {
        "lora_r": 32, "learning_rate": 1e-4, "bf16": False,
    }  # fmt: skip
    with pytest.raises(BadInput, match="a change is written key=value"):
        recipe.overrides(["lora_r"])
    with pytest.raises(BadInput, match="lora_r is given two values"):
        recipe.overrides(["lora_r=8", "lora_r=16"])
    with pytest.raises(BadInput, match="no such data"):
        recipe.overrides([], "nowhere.jsonl", recipe.find(NAME))


def test_every_recipe_is_as_axolotl_wants_it() -> None:
    """All of them, under their tiers' capabilities: no unknown key, no refusal, nothing that will go."""
    rows = list(preflight.all_recipes())
    assert len(rows) == len([path for path in recipe.RECIPES.glob("*/*.yaml") if path.parent.name in catalog.tiers()])
    assert [row for row in rows if not row["ok"]] == []
