"""What the stages after training know of an adapter; tests/chain runs them for real."""

import shutil
from pathlib import Path

import numpy
import orjson
import pytest
from safetensors.numpy import save_file

from tools import BadInput
from tools.core import files, run_folder
from tools.pipeline.trained import run_and_name, tuned
from tools.pipeline.training import submit_recipe
from tools.recipes.recipe import open_recipe
from tools.training.run_axolotl import Launch


def test_anothers_adapter_gets_a_run_of_its_own(others: tuple[Path, Path]) -> None:
    source, adapter = others
    model = tuned("", str(source), str(adapter))
    called = f"their-adapter-{files.sha256(adapter)[:8]}"
    assert model.run.folder == run_folder.outputs() / "adapters" / called
    assert (model.name, model.served, model.base, model.longest) == (called, "react-their-adapter", source, 0)
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


def test_a_model_is_a_recipes_or_an_adapters(others: tuple[Path, Path]) -> None:
    _, adapter = others
    assert run_and_name("smollm2-135m-lora", tier="cpu")[1] == "react-smollm2"
    run, called = run_and_name("", str(adapter))
    assert (run.folder.parent, called) == (run_folder.outputs() / "adapters", "react-their-adapter")
    with pytest.raises(BadInput, match="not both"):
        tuned("", "", str(adapter), "24gb")
    with pytest.raises(BadInput, match="no model named"):
        tuned("")


def test_adapters_of_one_name_are_kept_apart(others: tuple[Path, Path], tmp_path: Path) -> None:
    source, adapter = others
    runs = []
    for project in ("projA", "projB"):
        shutil.copytree(adapter, tmp_path / project / "checkpoint-60")
        (tmp_path / project / "checkpoint-60" / "README.md").write_text(project)
        runs.append(tuned("", str(source), str(tmp_path / project / "checkpoint-60")))
    assert [each.served for each in runs] == ["react-projA-checkpoint-60", "react-projB-checkpoint-60"]
    shutil.copytree(tmp_path / "projA", tmp_path / "other" / "projA")
    (tmp_path / "other" / "projA" / "checkpoint-60" / "README.md").write_text("another")
    again = tuned("", str(source), str(tmp_path / "other" / "projA" / "checkpoint-60"))
    # The name in Ollama is the same; that of the run, which the GGUF has in it, is not.
    assert again.served == runs[0].served and again.name != runs[0].name and again.run.folder != runs[0].run.folder


def test_the_newest_checkpoint_of_a_folder_is_taken_and_said(
    others: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, adapter = others
    for step in (20, 100, 40):
        shutil.copytree(adapter, tmp_path / "run" / f"checkpoint-{step}")
    (tmp_path / "run" / "runs").mkdir()
    model = tuned("", str(source), str(tmp_path / "run"))
    assert model.adapter == tmp_path / "run" / "checkpoint-100" and model.served == "react-run-checkpoint-100"
    assert f"taken is the newest checkpoint, {model.adapter}" in capsys.readouterr().err
    shutil.copytree(adapter, tmp_path / "parent" / "default")
    assert tuned("", str(source), str(tmp_path / "parent")).adapter == tmp_path / "parent" / "default"
    shutil.copytree(adapter, tmp_path / "parent" / "second")
    with pytest.raises(BadInput, match="it holds default, second; name one"):
        tuned("", str(source), str(tmp_path / "parent"))


def test_a_whole_model_has_no_adapter_and_the_base_that_a_person_names(others: tuple[Path, Path]) -> None:
    source, _ = others
    model = tuned("", "", str(source))
    assert (model.adapter, model.base, model.before, model.tokenizer) == (None, source, None, source)
    other = shutil.copytree(source, source.parent / "other")
    assert tuned("", str(other), str(source)).before == other
    with pytest.raises(BadInput, match="no such folder, and no model hub's org/name"):
        tuned("", "", str(source / "nowhere"))
    with pytest.raises(BadInput, match="not an adapter: it has no adapter_config.json"):
        (source.parent / "empty").mkdir()
        tuned("", str(source), str(source.parent / "empty"))


def test_what_adapter_config_says_of_the_base_is_held_against_what_a_person_says(
    others: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, adapter = others
    other = shutil.copytree(source, source.parent / "other-base")

    def named(name: str) -> None:
        (adapter / "adapter_config.json").write_bytes(
            orjson.dumps({"peft_type": "LORA", "base_model_name_or_path": name})
        )

    named("/mnt/somewhere/else")
    with pytest.raises(BadInput, match=r"base_model_name_or_path is /mnt/somewhere/else, which is not here; BASE="):
        tuned("", "", str(adapter))
    assert tuned("", str(source), str(adapter)).base == source
    assert f"over /mnt/somewhere/else by its own words, and added to {source}" in capsys.readouterr().err
    named(str(source))
    tuned("", str(source), str(adapter))
    assert capsys.readouterr().err == ""
    tuned("", str(other), str(adapter))
    assert f"over {source} by its own words, and added to {other}" in capsys.readouterr().err
    for folder, value in ((source, 1.0), (other, 2.0)):
        save_file({"model.norm.weight": numpy.full(4, value)}, folder / "model.safetensors")
    with pytest.raises(BadInput, match=rf"{other}: its weights are not those of {source}"):
        tuned("", str(other), str(adapter))


def test_a_lost_chat_template_is_the_bases(others: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, adapter = others
    (adapter / "tokenizer.json").write_text("{}")
    assert tuned("", str(source), str(adapter)).tokenizer == adapter  # Neither has one.
    (source / "chat_template.jinja").write_text("{{ messages }}")
    model = tuned("", str(source), str(adapter))
    assert (model.tokenizer / "chat_template.jinja").read_text() == "{{ messages }}"
    assert "no chat template beside its tokenizer; the base's is taken" in capsys.readouterr().err
    several = [{"name": "rag", "template": "a"}, {"name": "tool_use", "template": "b"}]
    (adapter / "tokenizer_config.json").write_bytes(orjson.dumps({"chat_template": several}))
    with pytest.raises(BadInput, match="its chat templates are named rag, tool_use, and none is the default"):
        _ = tuned("", str(source), str(adapter)).tokenizer
    several[0]["name"] = "default"
    (adapter / "tokenizer_config.json").write_bytes(orjson.dumps({"chat_template": several}))
    assert tuned("", str(source), str(adapter)).tokenizer == adapter


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
