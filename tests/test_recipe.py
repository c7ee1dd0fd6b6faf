"""Recipes: found by name or path, read with file:line for what is wrong, valid to Axolotl itself."""

from pathlib import Path

import pytest

from tools import BadInput, recipe, run

NAME = "smollm2-135m-lora"


def test_a_recipe_is_found_by_name_and_by_path() -> None:
    path = recipe.find(NAME)
    assert path == run.ROOT / "recipes" / "cpu" / f"{NAME}.yaml"
    assert recipe.find(str(path)) == path


def test_an_unknown_recipe_is_told_the_nearest_names() -> None:
    with pytest.raises(BadInput, match=f"smolm2-135m-lora: no such recipe; nearest: {NAME}"):
        recipe.find("smolm2-135m-lora")
    with pytest.raises(BadInput, match="no such recipe file"):
        recipe.find("nowhere/my.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base_model: a\nlora_r: [16\n", ":3: not YAML"),
        ("base_model: a\n\tlora_r: 16\n", ":2: not YAML"),
        ("lora_r: 16\n", ":1: not a recipe: it names no base_model"),
        ("", ":1: not a recipe"),
        ("- base_model\n", ":1: not a recipe"),
    ],
)
def test_what_is_not_a_recipe_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        recipe.load(path)
    assert f"{path}{says}" in str(caught.value)


def test_a_recipe_without_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("base_model: a\n")
    with pytest.raises(BadInput, match="needs `datasets:`"):
        recipe.dataset(path)


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
