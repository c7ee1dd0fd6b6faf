"""Recipes held against Axolotl's own schema: what it does not take is named with its line."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tools import BadInput
from tools.core import catalog
from tools.recipes import commands, recipe, schema
from tools.training import preflight, recipe_checks

NAME = "smollm2-135m-lora"


def test_the_keys_of_the_catalog_are_those_that_axolotl_knows(tmp_path: Path) -> None:
    plugins = ["liger.LigerPlugin", "cut_cross_entropy.CutCrossEntropyPlugin"]
    path = tmp_path / "my.yaml"
    path.write_text(f"base_model: a\nplugins: [{', '.join(f'axolotl.integrations.{each}' for each in plugins)}]\n")
    known = schema.known_keys(schema.schema(recipe.read_recipe(path)))
    assert schema.axolotl_keys() == known.keys()


def test_a_misspelt_key_is_told_before_axolotl_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("base_model: a\nsample_pakking: true\n")
    with pytest.raises(BadInput, match="my.yaml:2: sample_pakking: no such key; did you mean sample_packing?"):
        schema.check_keys(recipe.read_recipe(path))
    path.write_text("base_model: a\nzzz: true\n")
    with pytest.raises(BadInput, match="my.yaml:2: zzz: no such key; Axolotl has nothing like it"):
        schema.check_keys(recipe.read_recipe(path))


def test_a_plugin_of_ones_own_may_bring_its_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("base_model: a\nplugins: [pytest.Plugin]\nzzz: true\n")
    schema.check_keys(recipe.read_recipe(path))


def test_axolotl_accepts_the_committed_recipe_and_names_the_line_of_a_wrong_key(tmp_path: Path) -> None:
    schema.validate(recipe.open_recipe(NAME))
    path = tmp_path / "my.yaml"
    path.write_text(recipe.find(NAME).read_text().replace("lora_r: 16", "lora_r: sixteen"))
    line = path.read_text().splitlines().index("lora_r: sixteen") + 1
    with pytest.raises(BadInput, match=f"my.yaml:{line}: lora_r: "):
        schema.validate(recipe.read_recipe(path))


@pytest.mark.parametrize("name", ["24gb/qwen7b-qlora", "2x24gb/qwen7b-lora", "8x80gb/qwen32b-full"])
def test_a_recipe_that_is_changed_for_a_long_sequence_has_nothing_wrong(name: str) -> None:
    tier, _, title = name.partition("/")
    asked = commands.open_asked(title, tier, "", 0, "", [], 16384, "")
    assert asked.settings["sequence_len"] == 16384
    assert schema.validate(asked) == []
    assert list(recipe_checks.findings(asked, catalog.model_of(asked.base))) == []


LONG = [("qlora", "24gb", 32768), ("qlora", "2x24gb", 16384), ("lora", "4x24gb", 16384), ("full", "48gb", 32768)]


@pytest.mark.parametrize(("method", "tier", "length"), LONG)
def test_axolotl_accepts_what_makes_a_long_sequence_fit(
    method: str, tier: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its schema imports ring_flash_attn, which needs a GPU's compiler; an empty module stands in for it."""
    path = tmp_path / "my.yaml"
    commands.new("qwen7b", method, tier, str(path), seq=length)
    asked = recipe.read_recipe(path)
    assert asked.settings.get("activation_offloading") or asked.settings.get("context_parallel_size")
    if "context_parallel_size" in asked.settings:
        monkeypatch.setitem(sys.modules, "ring_flash_attn", None)
        with pytest.raises(
            BadInput, match=r"my.yaml:\d+: context_parallel_size > 1 but ring_flash_attn is not installed"
        ):
            schema.validate(asked)
        monkeypatch.setitem(sys.modules, "ring_flash_attn", ModuleType("ring_flash_attn"))
    schema.validate(asked)
    for changes in ({"micro_batch_size": 2}, {"attn_implementation": "sdpa"}):
        if asked.settings.get("context_parallel_size"):
            with pytest.raises(BadInput):
                schema.validate(recipe.read_recipe(path, changes=changes))


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
        schema.validate(recipe.read_recipe(path, catalog.tiers()["24gb"]))
    assert f"{path}:{len(kept) + 1}: " in str(caught.value) and says in str(caught.value)


def test_a_value_that_axolotl_refuses_by_name_is_found_at_its_key(tmp_path: Path) -> None:
    lines = (recipe.RECIPES / "2x24gb" / "qwen14b-qlora.yaml").read_text().splitlines()
    number = next(number for number, line in enumerate(lines) if line.startswith("optimizer:"))
    lines[number] = "optimizer: adamw_bnb_8bit"
    (tmp_path / "my.yaml").write_text("\n".join(lines))
    with pytest.raises(BadInput, match=rf"my.yaml:{number + 1}: FSDP2 not compatible with adamw_bnb_8bit"):
        schema.validate(recipe.read_recipe(tmp_path / "my.yaml", catalog.tiers()["2x24gb"]))


def test_a_key_that_nobody_knows_is_found_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(recipe.find(NAME).read_text().replace("    type: chat_template", "    tipe: chat_template"))
    line = path.read_text().splitlines().index("    tipe: chat_template") + 1
    with pytest.raises(BadInput) as caught:
        schema.validate(recipe.read_recipe(path))
    assert str(caught.value) == f"{path}:{line}: datasets.0.tipe: no such key; did you mean type?"


def test_a_key_that_will_go_is_reported(tmp_path: Path) -> None:
    text = (recipe.RECIPES / "24gb" / "qwen7b-qlora.yaml").read_text()
    path = tmp_path / "my.yaml"
    path.write_text(text + "dataset_processes: 2\n")
    with pytest.raises(BadInput, match="dataset_processes is of an older Axolotl; now: dataset_num_proc"):
        schema.validate(recipe.read_recipe(path, catalog.tiers()["24gb"]))
    path.write_text(text + "gradient_checkpointing_steps: 2\n")
    with pytest.raises(BadInput, match="no such key; did you mean gradient_checkpointing"):
        schema.validate(recipe.read_recipe(path, catalog.tiers()["24gb"]))
    path.write_text(text.replace("gradient_checkpointing: false", "gradient_checkpointing: offload"))
    assert any("deprecated" in said for said in schema.validate(recipe.read_recipe(path, catalog.tiers()["24gb"])))


def test_what_axolotl_says_of_packing_without_attention_that_keeps_episodes_apart_is_told(tmp_path: Path) -> None:
    text = (recipe.RECIPES / "24gb" / "qwen7b-qlora.yaml").read_text()
    path = tmp_path / "my.yaml"
    path.write_text(text.replace("attn_implementation: flash_attention_2", "attn_implementation:"))
    (said,) = schema.validate(recipe.read_recipe(path, catalog.tiers()["24gb"]))
    assert "does not handle cross-sample decontamination" in said


def test_every_recipe_is_as_axolotl_wants_it() -> None:
    """All of them, under their tiers' capabilities: no unknown key, no refusal, nothing that will go."""
    rows = list(preflight.all_recipes())
    assert len(rows) == len([path for path in recipe.RECIPES.glob("*/*.yaml") if path.parent.name in catalog.tiers()])
    assert [row for row in rows if not row["ok"]] == []
