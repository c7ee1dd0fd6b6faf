"""The whole chain for real, cut short: SmolLM2, three optimizer steps, Q8_0, Ollama, parity, two rooms, and kill -9."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from tools.core import run_folder

pytestmark = pytest.mark.slow
NAME = "smollm2-135m-lora"
CUT = ("--set", "max_steps=3", "--set", "save_steps=1")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs folder that all of this file's commands share, in their order."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def folder(outputs: Path) -> Path:
    return outputs / "cpu" / NAME


def start(outputs: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m tools` in a process group of its own, so that all of it can be killed at once."""
    environment = {key: value for key, value in os.environ.items() if key != "OLLAMA_HOST"}
    return subprocess.Popen(
        [sys.executable, "-m", "tools", *arguments],
        cwd=run_folder.ROOT,
        env=environment | {"REACT_RECIPES_OUTPUTS": str(outputs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def tools(outputs: Path, *arguments: str) -> str:
    """`python -m tools` to its good end; what it printed."""
    process = start(outputs, *arguments)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


def kill_when(process: subprocess.Popen[str], seen: Path, pattern: str) -> None:
    """kill -9 the process and all it started as soon as a file of this pattern appears."""
    deadline = time.monotonic() + 300
    while not list(seen.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    time.sleep(0.3)  # the file is being written
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finals(folder: Path) -> set[str]:
    """The names in a run's folder that say that something is whole."""
    return {item.name for item in folder.iterdir() if not item.name.startswith(".")}


def test_training_killed_goes_on_from_its_checkpoint(outputs: Path, folder: Path) -> None:
    tools(outputs, "check", NAME)
    killed = start(outputs, "train", NAME, *CUT)
    kill_when(killed, folder, "checkpoints/checkpoint-1/trainer_state.json")
    assert "adapter" not in finals(folder)
    tools(outputs, "train", NAME, *CUT)
    assert "adapter" in finals(folder)
    assert "checkpoint-1" in (folder / "train.log").read_text()  # it says what it resumes from
    made = orjson.loads((folder / "run.json").read_bytes())["train"]
    assert made["steps"] == 3 and made["tokens"] > 0 and made["peak_gib"] > 0
    assert list(folder.glob("checkpoints/**/events.out.tfevents*"))  # TensorBoard's log
    assert "already trained" in tools(outputs, "train", NAME, *CUT)


def test_a_killed_gguf_step_is_made_again_from_whole_inputs(outputs: Path, folder: Path) -> None:
    killed = start(outputs, "gguf", NAME)
    kill_when(killed, folder, ".model-q8_0.gguf.*.partial")
    assert not [name for name in finals(folder) if name.endswith(".gguf")]
    tools(outputs, "gguf", NAME)
    assert {"model-q8_0.gguf", "base-q8_0.gguf"} <= finals(folder)
    assert not list(folder.glob(".*"))
    assert "already made" in tools(outputs, "gguf", NAME)


def test_ollama_gets_the_model_with_the_tokens_of_training(outputs: Path, folder: Path) -> None:
    printed = tools(outputs, "ollama", NAME, "--force")  # after three steps it has not learned to stop
    found = orjson.loads((folder / "parity.json").read_bytes())
    assert found["equal"] is True and found["conversations"] > 20 and found["tokens"] > 1000
    assert found["weights"]["equal"] is True and found["weights"]["places"] >= 32 and found["weights"]["cause"] is None
    without = "chain ends in llama-server" in printed
    assert found["sides"] == ["transformers", "llama-server", *([] if without else ["Ollama"])]
    modelfile = (folder / "Modelfile").read_text()
    for line in ("FROM ./model-q8_0.gguf", "PARAMETER num_ctx 8192", 'PARAMETER stop "<|im_end|>"', "SYSTEM "):
        assert line in modelfile


def test_both_models_play_and_the_demo_sums_up(outputs: Path, folder: Path) -> None:
    tools(outputs, "eval", NAME, "--rooms", "2")
    printed = tools(outputs, "demo", NAME)
    summed = orjson.loads((folder / "demo.json").read_bytes())
    assert summed["parity"] is True
    assert {"check", "train", "gguf-q8_0", "ollama"} <= set(summed["seconds"])
    assert 0 < summed["peak_gib"] < 8 and summed["tokens_per_second"] > 0
    for who in ("base", "tuned"):
        assert summed[who]["rooms"] == 2 and set(summed[who]["by_quantisation"]) == {"Q8_0"}
    assert "ollama run react-smollm2" in printed or "llama-server" in printed
    assert "already played" in tools(outputs, "eval", NAME, "--rooms", "2")


def test_ollama_killed_leaves_no_model_of_the_name(outputs: Path, folder: Path) -> None:
    """kill -9 while the model is on trial; then the same command ends well, and the trial is gone."""
    names = outputs / "ollama" / "models" / "manifests" / "registry.ollama.ai" / "library"
    if not names.exists():
        pytest.skip("neither Ollama nor Go is installed")
    arguments = ("ollama", NAME, "--name", "react-killed", "--force")
    kill_when(start(outputs, *arguments), names, "react-killed-trial/latest")
    assert not (names / "react-killed").exists()
    assert "its tokens and weights proven" in tools(outputs, *arguments)
    assert (names / "react-killed" / "latest").exists() and not list(names.glob("*-trial/latest"))
    assert tools(outputs, "ollama-rm", "react-killed") == "removed react-killed\n"


def test_several_quantisations_are_made_of_one_pass(outputs: Path, folder: Path) -> None:
    tools(outputs, "gguf", NAME, "--quant", "Q4_K_M Q5_0")
    assert {"model-f16.gguf", "model-q4_k_m.gguf", "model-q5_0.gguf"} <= finals(folder)
    before = (folder / "model-f16.gguf").stat().st_mtime_ns
    tools(outputs, "gguf", NAME, "--quant", "Q6_K")
    assert (folder / "model-f16.gguf").stat().st_mtime_ns == before


def test_without_ollama_the_chain_ends_in_llama_server(outputs: Path, folder: Path, tmp_path: Path) -> None:
    """No `ollama` on PATH, none in the cache: the same proof and the same games through llama-server."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for item in run_folder.cache().iterdir():
        if not item.name.startswith("ollama"):
            (cache / item.name).symlink_to(item)
    places = [place for place in os.environ["PATH"].split(os.pathsep) if not (Path(place) / "ollama").exists()]
    environment = os.environ | {
        "PATH": os.pathsep.join(places),
        "REACT_RECIPES_CACHE": str(cache),
        "REACT_RECIPES_OUTPUTS": str(outputs),
    }
    (folder / "eval-tuned-q8_0.json").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "tools", "eval", NAME, "--rooms", "2"],
        cwd=run_folder.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "the chain ends in llama-server" in done.stdout
    assert orjson.loads((folder / "eval-tuned-q8_0.json").read_bytes())["summary"]["rooms"] == 2
