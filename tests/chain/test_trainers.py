"""TRAINER=: another trainer's run leaves what ours leaves, stops with a checkpoint and goes on from it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from tests.chain.conftest import tiny_recipe
from tests.chain.test_stops import ended, start, written
from tests.parts import command
from tools.core import run_folder

SHORT = ("--set", "max_steps=2 save_steps=1 sequence_len=1024")


def test_a_trainer_that_there_is_not_is_one_line_with_those_that_there_are() -> None:
    done = command.run(("train", "smollm2-135m-lora", "--trainer", "torchtune"), {})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert all(name in done.stderr for name in ("axolotl", "llamafactory", "trl", "unsloth"))


@pytest.mark.slow
def test_llamafactory_trains_into_our_folder_and_its_adapter_becomes_a_gguf(tmp_path: Path) -> None:
    """Two updates of SmolLM2; what comes after needs not be told who trained."""
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"".join((run_folder.ROOT / "data" / "train.jsonl").read_bytes().splitlines(keepends=True)[:40]))
    asked = ("cpu/smollm2-135m-lora", "--data", str(data), *SHORT)
    printed = ended(start(tmp_path / "outputs", *asked, "--trainer", "llamafactory"))
    folder = tmp_path / "outputs" / "cpu" / "smollm2-135m-lora"
    noted = orjson.loads((folder / "run.json").read_bytes())["train"]
    assert noted["trainer"] == "llamafactory" and noted["llamafactory"] == "0.9.5" and noted["steps"] == 2, printed
    assert noted["loss"] > 0 and noted["tokens"] > 0
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        each.name for each in (folder / "adapter").iterdir()
    }
    assert "already trained" in ended(start(tmp_path / "outputs", *asked))
    refused = start(tmp_path / "outputs", *asked, "--trainer", "axolotl")
    assert "of another recipe, data or base" in ended(refused) and refused.returncode == 2
    made = subprocess.run(
        [sys.executable, "-m", "tools", "gguf", "cpu/smollm2-135m-lora"],
        cwd=run_folder.ROOT, env=os.environ | {"REACT_RECIPES_OUTPUTS": str(tmp_path / "outputs")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0 and (folder / "model-q8_0.gguf").exists(), made.stderr[-2000:]


@pytest.mark.slow
def test_trl_stops_with_a_checkpoint_and_goes_on_from_it(tmp_path: Path, tiny: Path) -> None:
    path = tiny_recipe(tmp_path, tiny, max_steps=20, save_steps=20)
    process = start(tmp_path / "outputs", str(path), "--trainer", "trl")
    folder = tmp_path / "outputs" / tmp_path.name / "tiny"
    deadline = time.monotonic() + 300
    while not any(event.step == 3 for event in written(folder / "train.log")):
        assert process.poll() is None and time.monotonic() < deadline, ended(process)
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    printed = ended(process)
    assert process.returncode == 130 and "goes on from its checkpoint" in printed, printed
    (checkpoint,) = folder.glob("checkpoints/checkpoint-*")
    assert not (folder / "adapter").exists()
    step = int(checkpoint.name.split("-")[1])
    printed = ended(start(tmp_path / "outputs", str(path), "--resume"))
    steps = [event.step for event in written(folder / "train.log") if event.event == "step"]
    assert (steps[0], steps[-1]) == (step, 20), printed
    assert (folder / "adapter" / "model.safetensors").exists()
    assert orjson.loads((folder / "run.json").read_bytes())["train"]["trainer"] == "trl"
