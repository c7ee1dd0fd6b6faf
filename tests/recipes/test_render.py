"""recipes/ is what catalog and templates give, each file marked as ours, a person's edits never lost."""

import shutil
from pathlib import Path

import orjson
import pytest
import yaml

from tools import BadInput
from tools.core import catalog, quote, run_folder
from tools.recipes import render


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of recipes/ that `write` works on."""
    shutil.copytree(render.RECIPES, tmp_path / "recipes")
    monkeypatch.setattr(render, "RECIPES", tmp_path / "recipes")
    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    return tmp_path / "recipes"


def test_the_committed_files_are_what_the_templates_give() -> None:
    made = render.generated()
    there = {str(path.relative_to(render.RECIPES)) for path in render.RECIPES.rglob("*") if path.is_file()}
    assert there == set(made)
    for name, text in made.items():
        assert (render.RECIPES / name).read_text(encoding="utf-8") == text, f"{name}: run `make recipes`"


def test_there_are_recipes_for_every_tier_and_method() -> None:
    names = [name for name in render.generated() if name.split("/")[0] in catalog.tiers()]
    assert len(names) >= 150
    assert {name.split("/")[0] for name in names} == set(catalog.tiers())
    for method in catalog.methods():
        assert any(name.endswith(f"-{method}.yaml") for name in names)


def test_writing_again_changes_nothing(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.yaml")}
    counts = render.write()
    assert (counts["written"], counts["removed"]) == (0, 0)
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*.yaml")}


def test_a_recipe_edited_in_place_stops_it_before_anything_is_written(copy: Path) -> None:
    mine, other = copy / "24gb" / "qwen7b-qlora.yaml", copy / "24gb" / "qwen3b-qlora.yaml"
    mine.write_text(mine.read_text().replace("lora_r: 16", "lora_r: 64"))
    other.unlink()
    line = mine.read_text().splitlines().index("lora_r: 64") + 1
    with pytest.raises(BadInput, match=rf"recipes/24gb/qwen7b-qlora.yaml:{line}: generated, and edited in place; copy"):
        render.write()
    assert "lora_r: 64" in mine.read_text() and not other.exists()
    render.write(force=True)
    assert "lora_r: 64" not in mine.read_text() and other.exists()


@pytest.mark.parametrize("name", ["deepspeed/zero3.json", "24gb/qwen7b-qlora.yaml"])
def test_a_persons_own_text_under_a_generated_name_is_kept(copy: Path, name: str) -> None:
    """Neither bears our hash: a DeepSpeed file cannot, and a person wrote the recipe from scratch."""
    (copy / name).write_text('{"mine": 1}')
    with pytest.raises(BadInput, match=f"recipes/{name}:1: generated, and edited in place"):
        render.write()
    assert (copy / name).read_text() == '{"mine": 1}'


def test_a_persons_own_file_is_left_and_an_old_one_of_ours_removed(copy: Path) -> None:
    own, old = copy / "24gb" / "mine.yaml", copy / "24gb" / "gone-lora.yaml"
    own.write_text("base_model: mine\n")
    old.write_text(render.sealed("# an older catalog's\nbase_model: gone\n"))
    assert render.write()["removed"] == 1
    assert own.exists() and not old.exists()


@pytest.mark.parametrize("text", ["# head\nkey: 1\n", "<!doctype html>\n<p>x</p>\n"])
def test_the_hash_knows_an_edit(text: str) -> None:
    sealed = render.sealed(text)
    assert render.ours(sealed) and not render.ours(sealed.replace("1", "2").replace("x", "y")) and not render.ours(text)


def test_a_recipe_says_what_it_is_for_takes_and_how_to_run_it() -> None:
    text = (render.RECIPES / "4x24gb" / "qwen32b-qlora.yaml").read_text()
    for wanted in ("# For ", "# Memory ", "# Run       make train RECIPE=qwen32b-qlora TIER=4x24gb", "# Change "):
        assert wanted in text
    assert "accelerate launch --config_file recipes/accelerate/4x24gb.yaml" in text
    written = yaml.safe_load(text)
    assert written["trust_remote_code"] is False
    assert (
        written["datasets"][0]["roles_to_train"] == ["assistant"] and written["datasets"][0]["train_on_eos"] == "turn"
    )


def test_defaults_are_the_designs() -> None:
    written = yaml.safe_load((render.RECIPES / "24gb" / "qwen7b-lora.yaml").read_text())
    wanted: dict[str, object] = {
        "sequence_len": 2048,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "num_epochs": 3,
    }
    wanted |= {"warmup_ratio": 0.1, "lr_scheduler": "cosine", "val_set_size": 0.1, "saves_per_epoch": 2}
    wanted |= {"save_total_limit": 2, "use_tensorboard": True, "lora_target_linear": True}
    assert {key: written[key] for key in wanted} == wanted
    assert float(written["learning_rate"]) == 1e-4
    assert "# wandb_project:" in (render.RECIPES / "24gb" / "qwen7b-lora.yaml").read_text()


@pytest.mark.parametrize("path", sorted((render.RECIPES / "deepspeed").iterdir()), ids=lambda path: path.stem)
def test_deepspeed_takes_its_files(path: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    written = orjson.loads(path.read_bytes())
    # "auto" is Trainer's to fill in, from the recipe.
    filled: dict[str, object] = {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 16,
    }
    filled |= {"gradient_clipping": 1.0, "bf16": {"enabled": True}, "fp16": {"enabled": False}}
    zero = {key: 1000 if value == "auto" else value for key, value in written["zero_optimization"].items()}
    made = DeepSpeedConfig(written | filled | {"zero_optimization": zero})
    assert made.zero_optimization_stage == int(path.stem[4])
    offloaded = made.zero_config.offload_optimizer is not None
    assert offloaded == ("offload" in path.stem)


@pytest.mark.parametrize("path", sorted((render.RECIPES / "accelerate").iterdir()), ids=lambda path: path.stem)
def test_accelerate_takes_its_files(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    made = load_config_from_file(str(path))
    tier = catalog.tiers()[path.stem]
    assert (made.num_processes, made.num_machines) == (tier.world, tier.nodes)


def test_values_that_python_takes_for_equal_are_quoted_each_by_its_own_text() -> None:
    assert [quote.yaml_scalar(value) for value in (1, True, 1.0, "1")] == ['"1"', '"True"', '"1.0"', '"1"']
