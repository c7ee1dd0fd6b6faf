"""What joins the stages; tests/chain runs them for real."""

from pathlib import Path

import orjson
import pytest

from tools import BadInput, chain, ollama, recipe, run

NAME = "smollm2-135m-lora"


@pytest.fixture
def this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run.Run:
    """A run's folder with what the later stages read: training's hashes, its tokenizer's settings, a GGUF."""
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    this = recipe.folder(recipe.find(NAME))
    this.adapter.mkdir(parents=True)
    (this.adapter / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    run.write_json(this.folder / "run.json", {"train": {"inputs": {"recipe": "abc"}}})
    run.write(this.gguf("Q8_0"), b"GGUF")
    return this


def test_ollama_is_told_what_training_saw(this: run.Run) -> None:
    wanted = chain.spec(recipe.find(NAME), "Q8_0", "tuned", "", "")
    data = orjson.loads((run.ROOT / "data" / "train.jsonl").read_bytes().splitlines()[0])
    assert wanted.name == "react-smollm2"
    assert wanted.system == data["messages"][0]["content"]
    assert wanted.stop == ["<|im_end|>"]
    assert wanted.parameters["num_ctx"] == 2048 and wanted.parameters["temperature"] == 0.7
    assert wanted.parameters["top_p"] == 0.8 and wanted.parameters["top_k"] == 20
    assert "<|im_start|>" in ollama.modelfile(wanted) and "recipe abc" in ollama.modelfile(wanted)


def test_another_base_brings_its_own_template(this: run.Run) -> None:
    wanted = chain.spec(recipe.find(NAME), "Q8_0", "tuned", "some/other", "react-mine")
    assert wanted.name == "react-mine" and wanted.family is None


def test_a_model_that_is_not_there_names_the_command_that_makes_it(this: run.Run) -> None:
    with pytest.raises(BadInput, match=f"make gguf RECIPE={NAME} QUANT=Q4_K_M"):
        chain.spec(recipe.find(NAME), "Q4_K_M", "tuned", "", "")
    with pytest.raises(BadInput, match="make eval"):
        chain.demo(NAME, "Q8_0", "")


def test_a_proof_is_for_one_file_and_one_modelfile(this: run.Run) -> None:
    first = chain.proof_inputs(chain.spec(recipe.find(NAME), "Q8_0", "tuned", "", ""))
    run.write(this.gguf("Q8_0"), b"GGUF2")
    second = chain.proof_inputs(chain.spec(recipe.find(NAME), "Q8_0", "tuned", "", ""))
    third = chain.proof_inputs(chain.spec(recipe.find(NAME), "Q8_0", "tuned", "", "react-other"))
    assert first != second != third and first["modelfile"] == second["modelfile"] != third["modelfile"]
