"""Compose a recipe for this machine and start Axolotl: progress, checkpoints, resume."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson
import yaml

from tools import Failed, doctor, recipe, run
from tools.run import Run

# Axolotl and the libraries below it: no telemetry; the plugin is found in the project's root.
ENVIRONMENT = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": os.environ.get("WANDB_MODE", "offline"),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": str(run.ROOT),
}


def train(path: Path, base: Path, changes: dict[str, int]) -> Run:
    """Train a recipe to an adapter in its run's folder, and return that folder.

    Nothing is done when the adapter of the same recipe, data and base is there; an interrupted training goes on from
    its last whole checkpoint. `changes` take the place of the recipe's own values. Raises Failed with Axolotl's error.
    """
    this = recipe.folder(path)
    inputs = fingerprint(path, base) | changes
    if this.adapter.exists() and this.done("train", inputs):
        print(f"{this.adapter}: already trained from this recipe, data and base")
        return this
    run.need_space(this.folder, 2)
    prepare(this, inputs)
    with this.stage("train", inputs) as notes:
        composed = compose(path, this, base) | changes
        run.write(this.recipe, yaml.safe_dump(composed, sort_keys=False).encode())
        notes |= follow(this) | {"bf16": bool(composed.get("bf16"))} | versions()
        keep(this)
    return this


def fingerprint(path: Path, base: Path) -> dict[str, Any]:
    """What a training depends on, as SHA-256: recipe, data, base (its small files, and names and sizes of the rest)."""
    small = {item.name: run.sha256(item) for item in base.iterdir() if item.suffix in {".json", ".jinja"}}
    large = {item.name: item.stat().st_size for item in base.glob("*.safetensors")}
    data = run.ROOT / recipe.dataset(path)["path"]
    described = orjson.dumps({**small, **large}, option=orjson.OPT_SORT_KEYS)
    return {"recipe": run.sha256(path), "data": run.sha256(data), "base": run.sha256_of(described)}


def versions() -> dict[str, str]:
    """The versions of what trains, for run.json."""
    from importlib.metadata import version

    return {name: version(name) for name in ("axolotl", "torch", "transformers", "peft")}


def prepare(this: Run, inputs: dict[str, Any]) -> None:
    """Clear what belongs to another training, and checkpoints that were being written when a run was killed."""
    begun = this.checkpoints / "inputs.json"
    if this.checkpoints.exists() and (not begun.exists() or orjson.loads(begun.read_bytes()) != inputs):
        run.remove(this.checkpoints)
    this.checkpoints.mkdir(parents=True, exist_ok=True)
    run.write_json(begun, inputs)
    for checkpoint in this.checkpoints.glob("checkpoint-*"):
        if not complete(checkpoint):
            run.remove(checkpoint)


def complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: transformers writes trainer_state.json last."""
    try:
        orjson.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False
    return True


def compose(path: Path, this: Run, base: Path) -> dict[str, Any]:
    """The recipe as it is run here: the base's folder, the run's folders, resume, and what a CPU needs."""
    composed = recipe.load(path) | {
        "base_model": str(base),
        "output_dir": str(this.checkpoints),
        "dataset_prepared_path": str(this.checkpoints / "prepared"),
        "auto_resume_from_checkpoints": True,
    }
    if doctor.gpu() is None:
        composed["plugins"] = [*composed.get("plugins", []), "tools.axolotl_cpu.CpuPlugin"]
        composed["bf16"] = bf16_pays()
    return composed


def bf16_pays() -> bool:
    """Whether this processor multiplies matrices faster in bfloat16 than in float32, by trying.

    Having the instructions is not enough. With avx512_bf16 and no AMX, two machines measured in November 2026: one
    trains 2.4 times faster in bf16, on another bf16 has 155 GFLOP/s and fp32 276.
    """
    if not doctor.cpu_bf16():
        return False
    import torch

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        # The shape of a small model's layer: 768 tokens, hidden size 576, feed-forward 1536.
        tokens, weight = torch.ones(768, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        trials = []
        for _ in range(20):
            start = time.perf_counter()
            torch.nn.functional.linear(tokens, weight)
            trials.append(time.perf_counter() - start)
        seconds[dtype] = min(trials)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def follow(this: Run) -> dict[str, Any]:
    """Run Axolotl on the composed recipe with a progress line; returns steps, tokens, tokens/s and the last loss."""
    axolotl = Path(sys.executable).parent / "axolotl"
    command = run.tied([str(axolotl), "train", str(this.recipe), "--launcher", "python"])
    environment = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(doctor.cores())}
    if Path(recipe.load(this.recipe)["base_model"]).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    log = this.folder / "train.log"
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, cwd=run.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        assert process.stdout
        notes = show(lines(process.stdout, file))
    if process.returncode:
        raise Failed(f"Axolotl ended with status {process.returncode}: {last_error(log)} (all of it: {log})")
    return notes


def lines(stream: IO[bytes], log: IO[bytes]) -> Iterator[str]:
    """The output's lines, each also written to the log; a progress bar's carriage return ends a line too."""
    pending = b""
    while piece := os.read(stream.fileno(), 65536):
        log.write(piece)
        log.flush()
        *whole, pending = re.split(rb"[\r\n]", pending + piece)
        yield from (line.decode(errors="replace") for line in whole)


def show(output: Iterator[str]) -> dict[str, Any]:
    """Draw one progress line from Axolotl's output: step, loss, tokens/s, time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    loss, tokens, first = 0.0, 0, (0.0, 0)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    notes: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=1) as progress:
        task = progress.add_task("train: loading model and data", total=None)
        for line in output:
            if step := re.search(r"(\d+)/(\d+) \[\d", line):
                progress.update(task, completed=int(step[1]), total=int(step[2]))
                notes["steps"] = int(step[2])
            if found := re.search(r"'loss': '?([\d.e+-]+)", line):
                loss = float(found[1])
            if found := re.search(r"'tokens/total': '?(\d+)", line):
                tokens = int(found[1])
                first = first if first[0] else (time.monotonic(), tokens)
                seconds = time.monotonic() - first[0]
                speed = (tokens - first[1]) / seconds if seconds else 0.0
                notes |= {"loss": loss, "tokens": tokens, "tokens_per_second": round(speed, 1)}
                progress.update(task, description=f"train: loss {loss:.3f}, {speed:.0f} tokens/s")
    return notes


def last_error(log: Path) -> str:
    """The last line of a log that names an exception, else its last line."""
    written = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in written if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or written or ["it wrote nothing"])[-1][:300]


def keep(this: Run) -> None:
    """Copy the trained adapter, with its tokenizer and chat template, under its final name."""
    with run.whole(this.adapter) as partial:
        partial.mkdir()
        for item in this.checkpoints.iterdir():
            kept = item.suffix in {".json", ".jinja", ".safetensors", ".model", ".txt"}
            if kept and item.name != "inputs.json":
                shutil.copy2(item, partial / item.name)
        if not (partial / "adapter_model.safetensors").exists():
            raise Failed(f"{this.checkpoints}: Axolotl ended without an adapter")
