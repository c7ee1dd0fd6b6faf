"""What the stages after training know of an adapter; tests/chain runs them for real."""

from pathlib import Path

import orjson
import pytest

from tools import BadInput
from tools.core import files, run_folder
from tools.pipeline.trained import run_and_name, tuned
from tools.pipeline.training import submit_recipe
from tools.recipes.recipe import open_recipe
from tools.training.run_axolotl import Launch


def test_anothers_adapter_gets_a_run_of_its_own(others: tuple[Path, Path]) -> None:
    source, adapter = others
    model = tuned("", str(source), str(adapter))
    assert model.run.folder == run_folder.outputs() / "adapters" / "their-adapter"
    assert (model.name, model.base, model.longest) == ("their-adapter", source, 0)
    assert model.metadata["react_recipes.adapter_sha256"] == files.sha256(adapter)
    assert model.metadata["react_recipes.base_model"] == str(source)
    assert "react_recipes.data_sha256" not in model.metadata


def test_anothers_adapter_names_its_base_or_a_person_does(others: tuple[Path, Path]) -> None:
    source, adapter = others
    with pytest.raises(BadInput, match=r"adapter_config\.json names no base; --base"):
        tuned("", "", str(adapter))
    named = orjson.dumps({"peft_type": "LORA", "base_model_name_or_path": str(source)})
    (adapter / "adapter_config.json").write_bytes(named)
    assert tuned("", "", str(adapter)).base == source
    with pytest.raises(BadInput, match="not an adapter"):
        tuned("", "", str(source))


def test_a_model_is_a_recipes_or_an_adapters(others: tuple[Path, Path]) -> None:
    _, adapter = others
    assert run_and_name("smollm2-135m-lora", tier="cpu")[1] == "react-smollm2"
    run, called = run_and_name("", str(adapter))
    assert (run.folder, called) == (run_folder.outputs() / "adapters" / "their-adapter", "react-their-adapter")
    with pytest.raises(BadInput, match="not both"):
        tuned("", "", str(adapter), "24gb")
    with pytest.raises(BadInput, match="no model named"):
        tuned("")


@pytest.mark.parametrize("how", ["dry-run", "slurm", "ray"])
def test_a_command_for_another_machine_is_of_a_recipe_that_axolotl_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    asked = open_recipe("qwen7b-qlora", "24gb", pairs=["sequense_len=1024"])
    with pytest.raises(BadInput, match="sequense_len: no such key; did you mean sequence_len?"):
        submit_recipe(asked, Launch(), how)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["dry-run", "slurm", "ray"])
def test_a_command_for_another_machine_is_of_data_that_are_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    data = tmp_path / "notes.jsonl"
    data.write_text("Not JSON.\n")
    asked = open_recipe("qwen7b-qlora", "24gb", data=str(data))
    with pytest.raises(BadInput, match="notes.jsonl:1: not JSON"):
        submit_recipe(asked, Launch(), how)
    assert not (tmp_path / "outputs").exists()
