"""The commands for a person at the keyboard: list, recommend, plan, copy, compare, add a model."""

from pathlib import Path

import orjson
import pytest
import yaml

from tools import BadInput
from tools.core import catalog
from tools.recipes import commands, plan, recipe, render


def test_the_list_shows_models_by_tier(capsys: pytest.CaptureFixture[str]) -> None:
    commands.show("", "qwen7b")
    printed = capsys.readouterr().out
    assert "lora qlora full without a GPU qwen7b 7.6 16gb 12gb 48gb" in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 80
    commands.show("24gb", "qwen7b")
    assert "qwen7b-qlora" in capsys.readouterr().out
    with pytest.raises(BadInput, match="no such tier; nearest: 24gb"):
        commands.show("24g", "")


def test_a_gpu_gets_recommendations_that_there_are_recipes_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="GPUS=2, and this machine has none; GPU= names another"):
        commands.recommend("", 2)
    commands.recommend("rtx3060", 0)
    printed = capsys.readouterr().out
    assert "recipes/12gb" in printed and "Start small: Qwen2.5-3B-Instruct" in printed
    for line in printed.splitlines():
        if "RECIPE=" in line:
            assert (recipe.RECIPES / "12gb" / f"{line.split('RECIPE=')[1].split()[0]}.yaml").exists()


@pytest.mark.parametrize(
    ("gpu", "count", "tier"), [("t4", 1, "16gb-turing"), ("rtx4090", 4, "4x24gb"), ("b200", 8, "8x80gb")]
)
def test_a_gpu_finds_its_tier(gpu: str, count: int, tier: str) -> None:
    assert commands.near(plan.for_gpu(catalog.gpus()[gpu], count)) == tier


def test_a_plan_takes_any_change(capsys: pytest.CaptureFixture[str]) -> None:
    commands.plan_of("qwen7b-qlora", "24gb", "", 0, {"sequence_len": 8192, "micro_batch_size": 4}, ["lora_r=64"], True)
    made = orjson.loads(capsys.readouterr().out)
    assert (made["settings"]["sequence_len"], made["settings"]["micro_batch"], made["settings"]["rank"]) == (
        8192,
        4,
        64,
    )
    assert made["fits"] is False and made["changes"]
    commands.plan_of("qwen7b-lora", "", "rtx4090", 0, {}, [], False)
    assert "weights" in (printed := capsys.readouterr().out) and "fits; drops longer episodes" in printed
    # 2 x 28 layers x 4 heads x 128 x 2 bytes x 8192 tokens
    assert "when served             0.44 GiB, the KV cache of a conversation of 8192 tokens" in printed


def test_a_plan_of_what_has_no_recipe_says_that_it_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    commands.plan_of("qwen72b-full", "24gb", "", 0, {}, [], False)
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "tier", "pairs", "says"),
    [
        ("qwen9b-lora", "", [], "no such recipe"),
        ("qwen7b-lara", "", [], "nearest: .*qwen7b-lora"),
        ("qwen7b-lora", "23gb", [], "no such tier"),
        ("qwen7b-lora", "", ["seed=3"], "does not affect the memory plan"),
    ],
)
def test_what_is_not_known_is_named(name: str, tier: str, pairs: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        commands.plan_of(name, tier, "", 0, {}, pairs, False)


def test_a_copied_recipe_is_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my.yaml"
    commands.new("qwen7b", "qlora", "24gb", str(out))
    assert not render.ours(out.read_text()) and "# from 24gb/qwen7b-qlora" in out.read_text()
    original = dict(recipe.open_recipe("24gb/qwen7b-qlora").settings)
    assert yaml.safe_load(out.read_text()) == original | {"output_dir": f"outputs/{tmp_path.name}/my/checkpoints"}
    with pytest.raises(BadInput, match="is there already"):
        commands.new("qwen7b", "qlora", "24gb", str(out))
    with pytest.raises(BadInput, match="does not fit on tier 6gb"):
        commands.new("qwen72b", "full", "6gb", str(tmp_path / "b.yaml"))
    out.write_text(out.read_text().replace("lora_r: 16", "lora_r: 32"))
    commands.diff("24gb/qwen7b-qlora", str(out))
    assert "lora_r: 16 becomes 32" in capsys.readouterr().out.splitlines()


def test_a_copy_knows_its_own_name_folder_and_tier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my own" / "agent.yaml"
    out.parent.mkdir()
    commands.new("qwen7b", "qlora", "24gb", str(out))
    text = out.read_text()
    assert f"make train RECIPE='{out}' TIER=24gb" in text and f"axolotl train '{out}'" in text
    assert recipe.read_recipe(out).settings["output_dir"] == "outputs/my own/agent/checkpoints"
    assert "qwen7b-qlora" not in text.replace("# from 24gb/qwen7b-qlora\n", "")
    assert recipe.tier_of(out, out.read_text()) == catalog.tiers()["24gb"]
    commands.plan_of(str(out), "", "", 0, {}, [], False)
    assert "on 24gb" in capsys.readouterr().out


def test_a_recipe_of_no_known_tier_has_none(tmp_path: Path) -> None:
    for number, head in enumerate(("", "# Run       make train RECIPE=x TIER=13gb\n", "# Run make train RECIPE=x\n")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(f"{head}base_model: org/model\n")
        assert recipe.tier_of(path, path.read_text()) is None


def test_a_difference_is_shown_by_its_whole_key_on_a_tier_that_both_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my.yaml"
    out.write_text(recipe.find("24gb/qwen7b-qlora").read_text().replace("data/train.jsonl", "my data.jsonl"))
    commands.diff("24gb/qwen7b-qlora", str(out))
    assert capsys.readouterr().out == "datasets.0.path: data/train.jsonl becomes my data.jsonl\n"
    commands.diff("qwen7b-qlora", "qwen7b-full")  # neither is for a machine without a GPU
    assert "load_in_4bit: True in the first alone" in capsys.readouterr().out
    commands.diff("qwen7b-qlora", "qwen7b-qlora")
    assert capsys.readouterr().out == "nothing but comments\n"


def test_a_gpu_by_name_is_its_tier() -> None:
    assert commands.tier_for("", "", 0) == "" and commands.tier_for("cpu", "", 2) == "cpu"
    assert commands.tier_for("", "rtx4090", 0) == "24gb" and commands.tier_for("", "RTX 4090", 2) == "2x24gb"
    with pytest.raises(BadInput, match="a tier or a GPU, not both"):
        commands.tier_for("cpu", "rtx4090", 0)


def test_another_sequence_length_comes_with_what_makes_it_fit() -> None:
    assert commands.with_length(["lora_r=8"], 0, "qwen7b-qlora", "24gb") == ["lora_r=8"]
    assert commands.with_length(["lora_r=8"], 4096, "my.yaml", "") == ["lora_r=8", "sequence_len=4096"]
    own = dict(recipe.open_recipe("24gb/qwen3b-lora").settings)
    longer = recipe.overrides(commands.with_length([], 8192, "qwen3b-lora", "24gb"))
    assert longer["sequence_len"] == 8192 and longer["gradient_checkpointing"] is True
    found = commands.planned("qwen3b-lora", "24gb", "", 0, {}, 8192)
    assert found.fits and found.settings == plan.from_recipe(own | longer, found.tier)
    # What a person sets is left to the person.
    kept = commands.with_length(["gradient_checkpointing=false"], 8192, "qwen3b-lora", "24gb")
    changes = recipe.overrides(kept)
    assert (changes["gradient_checkpointing"], changes["sequence_len"]) == (False, 8192)


def test_a_copy_is_planned_anew_for_another_sequence_length(tmp_path: Path) -> None:
    out = tmp_path / "long.yaml"
    commands.new("qwen7b", "qlora", "24gb", str(out), seq=8192)
    made = recipe.read_recipe(out)
    assert made.settings["sequence_len"] == 8192 and "# from 24gb/qwen7b-qlora" in made.text
    assert f"make train RECIPE={out} TIER=24gb" in made.text
    found = plan.of(catalog.models()["qwen7b"], made.tier, plan.from_recipe(made.settings, made.tier))
    assert found.fits
    with pytest.raises(
        BadInput, match="6gb/qwen7b-lora: 8192 tokens do not fit; make plan RECIPE=6gb/qwen7b-lora SEQ=8192"
    ):
        commands.new("qwen7b", "lora", "6gb", str(tmp_path / "no.yaml"), seq=8192)
    with pytest.raises(BadInput, match="context ends at 32768 tokens"):
        commands.new("qwen7b", "qlora", "80gb", str(tmp_path / "no.yaml"), seq=65536)
    with pytest.raises(BadInput, match="context of Qwen2.5-7B-Instruct ends at 32768 tokens"):
        commands.planned("qwen7b-qlora", "80gb", "", 0, {}, 65536)
