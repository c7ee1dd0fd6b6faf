"""What Ollama is told of a model, and when its proof is done anew; tests/chain gives real ones to it."""

import ctypes
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from tools import BadInput
from tools.core import files, run_folder, trajectory
from tools.pipeline.evaluation import sum_up
from tools.pipeline.serving import proof_inputs, sampling, spec, write_exports
from tools.pipeline.trained import tuned
from tools.recipes import recipe
from tools.serving import ollama

NAME = "smollm2-135m-lora"


@pytest.fixture
def this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run_folder.Run:
    """A run's folder with what the later stages read: training's hashes, its tokenizer's settings, a GGUF."""
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    this = recipe.open_recipe(NAME).run
    this.adapter.mkdir(parents=True)
    (this.adapter / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    inputs = {"recipe": "abc", "data": "def", "base": "123"}
    files.write_json(
        this.folder / "run.json", {"train": {"inputs": inputs}, "check": {"inputs": inputs, "longest": 939}}
    )
    shutil.copy2(recipe.find(NAME), this.recipe)
    files.write(this.gguf("Q8_0"), b"GGUF")
    return this


def told(quant: str = "Q8_0", other: str = "", name: str = "") -> Any:
    """What Ollama is told of the run's tuned model."""
    return spec(tuned(NAME, other), quant, "tuned", name)


def test_ollama_is_told_what_training_saw(this: run_folder.Run) -> None:
    wanted = told()
    data = orjson.loads((run_folder.ROOT / "data" / "train.jsonl").read_bytes().splitlines()[0])
    assert wanted.name == "react-smollm2"
    assert wanted.system == data["messages"][0]["content"]
    assert wanted.stop == ["<|im_end|>"]
    assert wanted.parameters["num_ctx"] == 8192
    assert "# num_ctx: at least 8192; KV cache 0.18 GiB a conversation.\n" in ollama.modelfile(wanted)
    assert "<|im_start|>" in ollama.modelfile(wanted) and "recipe abc" in ollama.modelfile(wanted)


def test_an_export_of_other_data_than_the_model_was_trained_on_is_refused(this: run_folder.Run) -> None:
    with pytest.raises(BadInput, match="test.jsonl: not the data that smollm2-135m-lora was trained on"):
        write_exports(tuned(NAME), "Q8_0", "", ["vllm"], str(trajectory.TEST_DATA))


@pytest.mark.heavy
def test_without_a_check_of_the_same_data_the_longest_episode_is_counted(this: run_folder.Run) -> None:
    for noted in ({}, {"check": {"inputs": {"data": "of another", "base": "123"}, "longest": 7}}):
        files.write_json(this.folder / "run.json", {"train": this.provenance()["train"]} | noted)
        assert tuned(NAME).longest == 939


def said_by_modelfile(made: Any) -> dict[str, float]:
    """The sampling that a Modelfile sets."""
    lines = (line.split() for line in ollama.modelfile(made).splitlines() if line.startswith("PARAMETER"))
    return {key: float(value) for _, key, value in lines if key not in ("num_ctx", "stop")}


def test_each_family_is_sampled_as_its_makers_advise(this: run_folder.Run) -> None:
    wanted = told()
    assert said_by_modelfile(wanted) == {"temperature": 0.2, "top_p": 0.9, "repeat_penalty": 1.0}
    assert "# Sampling: https://huggingface.co/HuggingFaceTB/SmolLM2" in ollama.modelfile(wanted)
    values, source = sampling(this.adapter, "qwen2.5")
    qwen = replace(wanted, parameters=values, sampling_source=source)
    assert said_by_modelfile(qwen) == {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repeat_penalty": 1.0}
    assert sampling(this.adapter, "mistral") == ({"repeat_penalty": 1.0}, "")


def test_the_bases_own_sampling_wins(tmp_path: Path) -> None:
    own = tmp_path / "generation_config.json"
    own.write_text('{"eos_token_id": 2, "do_sample": true, "top_k": 64, "top_p": 0.95, "repetition_penalty": 1.1}')
    values = {"temperature": 1.0, "top_p": 0.95, "top_k": 64, "repeat_penalty": 1.0}
    assert sampling(tmp_path, "qwen2.5") == (values, "the base's generation_config.json")
    # Qwen3's own is for thinking, which we do not train.
    assert sampling(tmp_path, "qwen3")[0]["temperature"] == 0.7
    own.write_text('{"eos_token_id": 2}')
    assert sampling(tmp_path, "llama3")[0] == {"temperature": 0.6, "top_p": 0.9, "repeat_penalty": 1.0}


@pytest.mark.parametrize("wrong", ['"top_p": 1.5', '"temperature": "hot"', '"top_k": -1', '"temperature": true'])
def test_a_base_that_says_nonsense_of_sampling_is_refused(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "generation_config.json").write_text(f"{{{wrong}}}")
    with pytest.raises(BadInput, match=rf"generation_config.json: {wrong.split(chr(34))[1]} is .* and must be "):
        sampling(tmp_path, "")


def test_every_end_token_stops_an_answer(this: run_folder.Run) -> None:
    added = [{"id": 7, "content": "<|endoftext|>", "special": True}]
    (this.adapter / "tokenizer.json").write_text(orjson.dumps({"added_tokens": added}).decode())
    (this.adapter / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert told().stop == ["<|im_end|>", "<|endoftext|>"]


@pytest.mark.heavy
def test_without_llama_quantize_ollama_is_asked_to_quantise(
    this: run_folder.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(this.gguf("F16"), b"GGUF")
    model = tuned(NAME)
    with pytest.raises(BadInput, match="make gguf"):
        told("Q4_K_M")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("REACT_RECIPES_CACHE", str(this.folder / "no-cache"))
    wanted = spec(model, "Q4_K_M", "tuned", "")
    assert (wanted.gguf, wanted.quantize) == (this.gguf("F16"), "Q4_K_M")


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_made(this: run_folder.Run) -> None:
    code = (
        "from tools.pipeline.serving import publish, spec; from tools.pipeline.trained import tuned; "
        f"model = tuned({NAME!r}); publish(None, model, spec(model, 'Q8_0', 'tuned', ''))"
    )
    before = set(this.folder.iterdir())
    this.folder.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code.replace("NAME", repr(NAME))],
            cwd=run_folder.ROOT,
            capture_output=True,
            text=True,
            preexec_fn=as_anyone,
        )
    finally:
        this.folder.chmod(0o755)
    assert done.stderr.splitlines()[-1].startswith(f"tools.Failed: {this.folder}: cannot be written to")
    assert set(this.folder.iterdir()) == before


def as_anyone() -> None:
    """Give up root's right to write everywhere: prctl(2), PR_CAPBSET_DROP of CAP_DAC_OVERRIDE."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_another_base_brings_its_own_template(this: run_folder.Run, others: tuple[Path, Path]) -> None:
    wanted = told(other=str(others[0]), name="react-mine")
    assert wanted.name == "react-mine" and wanted.family is None


def test_the_system_prompt_is_that_of_the_data(this: run_folder.Run, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Thought: Hi.\nAction: wave"}]
    data = tmp_path / "mine.jsonl"
    data.write_bytes(orjson.dumps({"messages": turns}))
    this.recipe.write_text(this.recipe.read_text().replace("data/train.jsonl", str(data)))
    assert told().system is None


def test_a_model_that_is_not_there_names_the_command_that_makes_it(this: run_folder.Run) -> None:
    with pytest.raises(BadInput, match=f"make gguf RECIPE={NAME} QUANT=Q4_K_M"):
        told("Q4_K_M")
    with pytest.raises(BadInput, match="make eval"):
        sum_up(NAME, "Q8_0", "")


def test_a_proof_is_for_one_file_and_one_modelfile(this: run_folder.Run) -> None:
    first = proof_inputs(told())
    files.write(this.gguf("Q8_0"), b"GGUF2")
    second = proof_inputs(told())
    third = proof_inputs(told(name="react-other"))
    assert first != second != third and first["modelfile"] == second["modelfile"] != third["modelfile"]
