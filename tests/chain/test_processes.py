"""Several processes on a CPU, by the same command as on GPUs: DDP, ZeRO-1, 2, 3 and FSDP2 learn what one does."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import safetensors.torch

from tests.chain.conftest import tiny_recipe
from tests.parts.trainings import Trainings
from tools.core import catalog, run_folder
from tools.recipes import recipe

pytestmark = pytest.mark.slow
FSDP2: dict[str, Any] = {
    "fsdp_version": 2,
    "fsdp_config": {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "Qwen2DecoderLayer",
        "state_dict_type": "FULL_STATE_DICT",
        "reshard_after_forward": True,
        "offload_params": False,
        "cpu_ram_efficient_loading": False,
    },
}
WAYS: dict[str, dict[str, Any]] = {
    "DDP": {},
    "DeepSpeed ZeRO-1": {"deepspeed": "recipes/deepspeed/zero1.json"},
    "DeepSpeed ZeRO-2": {"deepspeed": "recipes/deepspeed/zero2.json"},
    "DeepSpeed ZeRO-3": {"deepspeed": "recipes/deepspeed/zero3.json"},
    "FSDP2": FSDP2,
}


def start(outputs: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`python -m tools train` in a process group of its own, in float32."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools", "train", *arguments, "--set", "bf16=false"],
        cwd=run_folder.ROOT,
        env=os.environ | {"REACT_RECIPES_OUTPUTS": str(outputs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train(folder: Path, path: Path, *arguments: str) -> Path:
    """A training to its good end; the run's folder."""
    process = start(folder / "outputs", str(path), *arguments)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed[-3000:]
    return folder / "outputs" / path.parent.name / path.stem


def losses(folder: Path) -> list[float]:
    """The loss of every update of a finished run, from its last checkpoint."""
    last = max(folder.glob("checkpoints/checkpoint-*"), key=lambda each: int(each.name.split("-")[1]))
    history = orjson.loads((last / "trainer_state.json").read_bytes())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def spread(trainings: Trainings, path: Path, processes: int = 2, resume: bool = False, bf16: bool = False) -> Path:
    """A training by as many processes, which import Axolotl once for all trainings; the run's folder.

    In float32 unless asked otherwise: what differs is the sharing alone, not where FSDP2 rounds to bf16.
    """
    asked = recipe.read_recipe(path, catalog.tiers()["cpu"], changes={"bf16": bf16})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REACT_RECIPES_OUTPUTS", str(path.parent / "outputs"))
        return trainings.run(asked, Path(asked.base), processes, resume)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny: Path, trainings: Trainings) -> list[float]:
    """The losses of one process, with the same effective batch."""
    found = losses(spread(trainings, tiny_recipe(tmp_path_factory.mktemp("alone"), tiny), 1))
    assert len(found) == 10 and found[-1] < found[0]
    return found


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_learn_what_one_does(
    tmp_path: Path, tiny: Path, alone: list[float], trainings: Trainings, way: str
) -> None:
    path = tiny_recipe(tmp_path, tiny, **WAYS[way])
    zero3 = way == "DeepSpeed ZeRO-3"  # its file asks for bf16
    folder = spread(trainings, path, bf16=zero3)
    assert f"2 processes on the CPU (gloo), {way}" in (folder / "train.log").read_text()
    assert recipe.read_recipe(folder / "recipe.yaml").settings["gradient_accumulation_steps"] == 1
    assert losses(folder) == pytest.approx(alone, abs=5e-2 if zero3 else 1e-2)
    assert list((folder / "adapter").glob("*.safetensors"))


def test_a_killed_process_ends_the_run_which_goes_on_to_the_same_loss(
    tmp_path: Path, tiny: Path, alone: list[float]
) -> None:
    path = tiny_recipe(tmp_path, tiny, **WAYS["DeepSpeed ZeRO-2"])
    process = start(tmp_path / "outputs", str(path), "--gpus", "2")
    folder = tmp_path / "outputs" / tmp_path.name / "tiny"
    deadline = time.monotonic() + 300
    while not (folder / "checkpoints" / "checkpoint-5" / "trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    ranks = [each for each in psutil.Process(process.pid).children(recursive=True) if rank(each) == "1"]
    ranks[0].send_signal(signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == 1, printed
    assert not (folder / "adapter").exists()
    train(tmp_path, path, "--gpus", "2", "--resume")
    assert "checkpoint-5" in (folder / "train.log").read_text()
    assert losses(folder)[-1] == pytest.approx(alone[-1], abs=1e-2)


def test_an_adapter_that_fsdp2_spreads_is_whole_after_a_stop(tmp_path: Path, tiny: Path, trainings: Trainings) -> None:
    """As a run that was killed after its checkpoint: each process's part of adapter and optimizer comes back.

    An adapter's first values are drawn without a seed, so the run is compared with itself unbroken.
    """
    kernels = {f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o")}
    adapter = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True, "learning_rate": 1e-2}
    saved = {"state_dict_type": "SHARDED_STATE_DICT", "final_state_dict_type": "FULL_STATE_DICT"}
    sharded = {"fsdp_version": 2, "fsdp_config": FSDP2["fsdp_config"] | saved}
    path = tiny_recipe(tmp_path, tiny, **sharded, **adapter, **kernels)
    folder = spread(trainings, path)
    unbroken = losses(folder)
    assert len(unbroken) == 10 and unbroken[-1] < unbroken[0] - 0.1
    before = safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")
    for made in (folder / "adapter", folder / "checkpoints" / "checkpoint-10"):
        shutil.rmtree(made)
    spread(trainings, path, resume=True)
    assert "checkpoint-5" in (folder / "train.log").read_text()
    assert losses(folder) == pytest.approx(unbroken, abs=1e-4)
    after = safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {name: part.shape for name, part in after.items()} == {name: part.shape for name, part in before.items()}
    assert max(float((after[name] - before[name]).abs().max()) for name in before) < 1e-4


def rank(process: psutil.Process) -> str:
    """The rank that torchrun gave a process; empty for any other process."""
    try:
        return process.environ().get("RANK", "") if "axolotl.cli.train" in process.cmdline() else ""
    except psutil.Error:
        return ""


def test_two_machines_meet_and_learn_what_one_does(tmp_path: Path, tiny: Path, alone: list[float]) -> None:
    """Two nodes of one process each, on loopback; each is started as a person starts it on its machine."""
    path = tiny_recipe(tmp_path, tiny)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ("--gpus", "1", "--nodes", "2", "--master-addr", "127.0.0.1", "--master-port", port)
    second = start(tmp_path / "outputs", str(path), *where, "--node-rank", "1")
    folder = train(tmp_path, path, *where, "--node-rank", "0")
    printed, _ = second.communicate()
    assert second.returncode == 0, printed[-3000:]
    assert "2 processes on the CPU (gloo), DDP" in (folder / "train.log").read_text()
    assert losses(folder) == pytest.approx(alone, abs=1e-2)
