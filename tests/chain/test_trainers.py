"""TRAINER=: another trainer's run leaves what ours leaves, stops with a checkpoint and goes on from it."""

import os
import signal
import subprocess
from pathlib import Path

import orjson
import pytest

from tests.chain.conftest import tiny_recipe
from tests.chain.test_stops import ended, none_left, start, step_of, wait_for, written
from tests.parts import command
from tools.core import run_folder
from tools.gguf import llamacpp
from tools.serving import ollama

SHORT = ("--set", "max_steps=8 save_steps=8 sequence_len=1024")
NAME = "cpu/smollm2-135m-lora"


def test_a_trainer_that_there_is_not_is_one_line_with_those_that_there_are() -> None:
    done = command.run(("train", "smollm2-135m-lora", "--trainer", "torchtune"), {})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert all(name in done.stderr for name in ("axolotl", "llamafactory", "trl", "unsloth"))


def stopped(process: "subprocess.Popen[bytes]", folder: Path, step: int, number: int) -> int:
    """Send a training this signal after this update, Ctrl-C and kill -9 as a terminal does; where it goes on from."""
    running = wait_for(process, folder / "train.log", step)
    (os.kill if number == signal.SIGTERM else os.killpg)(process.pid, number)
    printed = ended(process)
    assert process.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL), printed
    assert none_left(running) and not (folder / "adapter").exists()
    last = max(folder.glob("checkpoints/checkpoint-*"), key=step_of)
    assert number == signal.SIGKILL or f"goes on from {last.name}" in printed, printed
    return step_of(last)


def steps(folder: Path) -> tuple[int, int]:
    """The update that a training went on from, and its last."""
    told = [event.step for event in written(folder / "train.log") if event.event == "step"]
    assert told[0] is not None and told[-1] is not None
    return told[0], told[-1]


@pytest.mark.slow
def test_what_llamafactory_trains_in_spite_of_stops_is_proven_and_in_ollama(tmp_path: Path) -> None:
    """A few updates of SmolLM2; what comes after needs not be told who trained."""
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"".join((run_folder.ROOT / "data" / "train.jsonl").read_bytes().splitlines(keepends=True)[:40]))
    outputs, asked = tmp_path / "outputs", (NAME, "--data", str(data), *SHORT)
    folder = outputs / NAME
    step = stopped(start(outputs, *asked, "--trainer", "llamafactory"), folder, 1, signal.SIGINT)
    assert 1 <= step < 8
    assert stopped(start(outputs, *asked), folder, step + 1, signal.SIGKILL) == step
    printed = ended(start(outputs, *asked))
    assert steps(folder) == (step, 8), printed
    noted = orjson.loads((folder / "run.json").read_bytes())["train"]
    assert noted["trainer"] == "llamafactory" and noted["llamafactory"] == "0.9.5" and noted["steps"] == 8, printed
    assert noted["loss"] > 0 and noted["tokens"] > 0
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        each.name for each in (folder / "adapter").iterdir()
    }
    assert "already trained" in ended(start(outputs, *asked))
    refused = start(outputs, *asked, "--trainer", "axolotl")
    assert "of another recipe, data or base" in ended(refused) and refused.returncode == 2

    told = {"REACT_RECIPES_OUTPUTS": str(outputs), "OLLAMA_HOST": f"127.0.0.1:{llamacpp.free_port()}"}
    # After so few updates it has not learned to stop.
    for words in (("gguf", NAME), ("ollama", NAME, "--force")):
        made = command.run(words, told)
        assert made.returncode == 0, made.stderr[-2000:]
    assert (folder / "model-q8_0.gguf").exists()
    found = orjson.loads((folder / "parity.json").read_bytes())
    assert found["equal"] is True and found["conversations"] > 20 and found["tokens"] > 1000
    assert found["weights"]["equal"] is True and found["weights"]["places"] >= 32
    assert found["sides"] == ["transformers", "llama-server", *(["Ollama"] if ollama.find() else [])]
    assert "FROM ./model-q8_0.gguf" in (folder / "Modelfile").read_text()


@pytest.mark.slow
def test_trl_stops_with_a_checkpoint_and_goes_on_from_it(tmp_path: Path, tiny: Path) -> None:
    path = tiny_recipe(tmp_path, tiny, max_steps=40, save_steps=40)
    outputs, folder = tmp_path / "outputs", tmp_path / "outputs" / tmp_path.name / "tiny"
    step = stopped(start(outputs, str(path), "--trainer", "trl"), folder, 3, signal.SIGTERM)
    assert 3 <= step < 40
    assert stopped(start(outputs, str(path), "--resume"), folder, step + 1, signal.SIGKILL) == step
    printed = ended(start(outputs, str(path), "--resume"))
    assert steps(folder) == (step, 40), printed
    assert (folder / "adapter" / "model.safetensors").exists()
    assert orjson.loads((folder / "run.json").read_bytes())["train"]["trainer"] == "trl"
