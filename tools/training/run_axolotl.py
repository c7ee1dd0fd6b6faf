"""Compose a recipe and start Axolotl, in one process or on many nodes: progress, checkpoints, resume, stop."""

import contextlib
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from tools import BadInput, Failed
from tools.core import catalog, files, machine, progress, run_folder
from tools.core.catalog import Model, Tier
from tools.core.process import Program, following
from tools.core.run_folder import Run
from tools.recipes import plan, recipe

# Axolotl and the libraries below it: no telemetry; the plugins are found in the project's root.
ENVIRONMENT = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": os.environ.get("WANDB_MODE", "offline"),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": str(run_folder.ROOT),
}
# Keys of a recipe that change what a training takes, and not what it learns.
SAME_RESULT = {"gradient_checkpointing", "micro_batch_size", "gradient_accumulation_steps"}
# Of the memory predicted: a change that wins less is not named after a training ran out of it.
LITTLE = 0.1
# What progress_plugin.py prints: Axolotl itself ends with status 0 after a stop as after the last step.
STOPPED = "react-recipes: stopped, with a checkpoint, at step"


@dataclass(frozen=True)
class Launch:
    """How many processes, where: `gpus` on each of `nodes` machines (0: the tier's), this one's rank, the first."""

    gpus: int = 0
    nodes: int = 1
    rank: int = 0
    master: str = ""
    port: int = 29500


def train(
    path: Path,
    base: Path,
    changes: Mapping[str, Any],
    tier: Tier,
    launch: Launch,
    resume: bool = False,
    force: bool = False,
) -> Run:
    """Train a recipe to an adapter (or whole weights) in its run's folder, and return that folder.

    Nothing is done when the result of the same recipe, data and base is there; an interrupted training goes on from
    its last whole checkpoint. `changes` take the place of the recipe's own values. `force`: replace what another
    training left. Raises Failed with Axolotl's error or while another process trains in the folder, BadInput when
    `resume` finds nothing to go on from or another training's results are there, and KeyboardInterrupt after a stop
    that left a checkpoint.
    """
    this = recipe.folder(path)
    inputs = fingerprint(path, base, changes)
    with this.held("train", wait=False) if launch.rank == 0 else contextlib.nullcontext():
        if this.adapter.exists() and this.done("train", inputs):
            print(f"{this.adapter}: already trained from this recipe, data and base")
            return this
        files.need_space(this.folder, 2)
        composed = compose(path, this, str(base), changes, tier, launch)
        model = catalog.model_of(str(recipe.load(path, changes)["base_model"]))
        if launch.rank:  # The first machine alone keeps the run's folder.
            file = this.folder / f"recipe-{launch.rank}.yaml"
            files.write(file, yaml.safe_dump(composed, sort_keys=False).encode())
            follow(this, file, tier, launch, model)
            return this
        prepare(this, inputs, resume, force)
        with this.stage("train", inputs) as notes:
            files.write(this.recipe, yaml.safe_dump(composed, sort_keys=False).encode())
            notes |= follow(this, this.recipe, tier, launch, model) | {"bf16": bool(composed.get("bf16"))} | versions()
            keep(this)
    return this


def fingerprint(path: Path, base: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a training depends on: SHA-256 of recipe, data, base (see `folder_hash`); changes."""
    data = run_folder.ROOT / recipe.dataset(path, changes)["path"]
    own = {key: value for key, value in changes.items() if key != "datasets"}
    return {"recipe": files.sha256(path), "data": files.sha256(data), "base": folder_hash(base)} | own


def folder_hash(base: Path) -> str:
    """SHA-256 of a base model's small files, and of the names and sizes of its large ones."""
    small = {item.name: files.sha256(item) for item in base.iterdir() if item.suffix in {".json", ".jinja"}}
    large = {item.name: item.stat().st_size for item in base.glob("*.safetensors")}
    return files.sha256_of(orjson.dumps({**small, **large}, option=orjson.OPT_SORT_KEYS))


def versions() -> dict[str, str]:
    """The versions of what trains, for run.json."""
    from importlib.metadata import version

    return {name: version(name) for name in ("axolotl", "torch", "transformers", "peft")}


def prepare(this: Run, inputs: dict[str, Any], resume: bool = False, force: bool = False) -> None:
    """Clear what belongs to another training, and checkpoints that were being written when a run was killed.

    Raises BadInput when `resume` is asked for and no checkpoint of this training is there, and, without `force`, when
    there are checkpoints or results of another training: days of a GPU may be in them.
    """
    begun = this.checkpoints / "inputs.json"
    if not begun.exists() or orjson.loads(begun.read_bytes()) != inputs:
        if resume and this.checkpoints.exists():
            raise BadInput(f"{this.checkpoints}: of another recipe, data or base; make train starts anew")
        there = [*checkpoints(this)[-1:], *([this.adapter] if this.adapter.exists() else [])]
        if there and not force:
            raise BadInput(
                f"{there[-1]}: of another recipe, data or base; make train FORCE=1 trains anew in its place, "
                "a copy of the recipe under another name trains beside it"
            )
        files.remove(this.checkpoints)
    whole = resumable(this) if resume else checkpoints(this)
    this.checkpoints.mkdir(parents=True, exist_ok=True)
    files.write_json(begun, inputs)
    log = this.checkpoints / "debug.log"  # Axolotl's own, which it makes for everybody's eyes
    log.touch()
    log.chmod(0o600)
    for checkpoint in this.checkpoints.glob("checkpoint-*"):
        if checkpoint not in whole:
            files.remove(checkpoint)


def checkpoints(this: Run) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [each for each in this.checkpoints.glob("checkpoint-*") if complete(each)]
    return sorted(found, key=lambda each: int(each.name.split("-")[1]))


def resumable(this: Run) -> list[Path]:
    """The whole checkpoints of a run. Raises BadInput when there is none."""
    if not (found := checkpoints(this)):
        raise BadInput(f"{this.checkpoints}: no checkpoint to go on from; make train starts anew")
    return found


def complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: transformers writes trainer_state.json last."""
    try:
        orjson.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False
    return True


def processes(tier: Tier, launch: Launch) -> int:
    """Training processes in each machine: what was asked for, else the tier's devices, else one.

    Raises BadInput for more GPUs than the machine has, where it has any.
    """
    here = len(machine.devices())
    if tier.gpu and here and launch.gpus > here:
        raise BadInput(f"GPUS={launch.gpus}, and this machine has {here}")
    return launch.gpus or max(1, tier.devices)


def world(tier: Tier, launch: Launch) -> int:
    """Training processes on all machines together."""
    return processes(tier, launch) * launch.nodes


def compose(path: Path, this: Run, base: str, changes: Mapping[str, Any], tier: Tier, launch: Launch) -> dict[str, Any]:
    """The recipe as it is run here: the base, the run's folders, resume, this many processes, and what a CPU needs.

    The effective batch stays as the recipe and its tier have it. Raises BadInput when the processes do not divide it.
    """
    composed = recipe.load(path, changes) | {
        "base_model": os.path.abspath(base) if os.path.isdir(base) else base,  # Axolotl runs in the project's root
        "output_dir": str(this.checkpoints),
        "dataset_prepared_path": str(this.checkpoints / "prepared"),
        "auto_resume_from_checkpoints": True,
    }
    if deepspeed := composed.get("deepspeed"):
        composed["deepspeed"] = str(run_folder.ROOT / str(deepspeed))
    data = run_folder.ROOT / recipe.dataset(path, changes)["path"]
    if not composed.get("dataset_num_proc") and data.is_file():
        composed["dataset_num_proc"] = tokenisers(data.stat().st_size, machine.cores())
    composed |= spread(composed, tier, world(tier, launch), str(path))
    plugins = [*(composed.get("plugins") or []), "tools.training.progress_plugin.WatchPlugin"]
    if not tier.gpu:
        plugins.append("tools.training.cpu_plugin.CpuPlugin")
        if "bf16" not in changes:
            composed["bf16"] = not composed.get("deepspeed") and bf16_pays()
    return composed | {"plugins": plugins}


def tokenisers(size: int, cores: int) -> int:
    """Processes that tokenise data of `size` bytes the soonest: each works fast and starts slowly.

    Axolotl takes one a core and hands the tokenizer to one after the other. Qwen2.5's took 2.4 s for each of 16 on an
    H100's machine (November 2026): 39 s for 1,920 episodes, which one process does in 8. One process tokenises 250
    episodes of 2.5 kB a second, so n of them take 2.4 n + size / (0.6 MB n) seconds; the root of size / 1.5 MB is best.
    """
    return max(1, min(cores, round((size / 1.5e6) ** 0.5)))


def spread(composed: Mapping[str, Any], tier: Tier, world: int, where: str) -> dict[str, int]:
    """Micro batch and accumulation that reach the recipe's effective batch with `world` processes.

    Raises BadInput when they cannot.
    """
    micro = int(composed.get("micro_batch_size") or 1)
    batch = micro * int(composed.get("gradient_accumulation_steps") or 1) * tier.world
    if batch % world:
        why = f"{batch} episodes an update cannot be shared by {world} processes"
        raise BadInput(f"{where}: {why}; GPUS and NODES must divide it")
    micro = math.gcd(micro, batch // world)
    return {"micro_batch_size": micro, "gradient_accumulation_steps": batch // world // micro}


def bf16_pays() -> bool:
    """Whether this processor multiplies matrices faster in bfloat16 than in float32, by trying.

    Having the instructions is not enough. With avx512_bf16 and no AMX, two machines measured in November 2026: one
    trains 2.4 times faster in bf16, on another bf16 has 155 GFLOP/s and fp32 276.
    """
    if not machine.cpu_bf16():
        return False
    with progress.step("loading torch, to try whether bfloat16 is faster here"):
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


def command(file: Path, tier: Tier, launch: Launch) -> tuple[list[str], dict[str, str]]:
    """The command that trains a composed recipe, and its environment beside this one's.

    One process: axolotl. Several on one machine: accelerate launch with the tier's file, torchrun on a CPU (accelerate
    starts one process only there). Several machines: torchrun, which meets at MASTER_ADDR.
    """
    programs = Path(sys.executable).parent
    count = processes(tier, launch)
    threads = max(1, machine.cores() // count)
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}
    composed = recipe.load(file)
    if Path(composed["base_model"]).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if not tier.gpu and composed.get("deepspeed"):
        environment["DS_ACCELERATOR"] = "cpu"
    if launch.nodes > 1:
        meet = ["--nnodes", launch.nodes, "--node_rank", launch.rank]
        meet += ["--master_addr", launch.master, "--master_port", launch.port]
        start = [programs / "torchrun", *meet, "--nproc_per_node", count, "-m", "axolotl.cli.train", file]
    elif count == 1:
        start = [programs / "axolotl", "train", file, "--launcher", "python"]
    elif tier.gpu:
        shape = [
            "--config_file",
            run_folder.ROOT / "recipes" / "accelerate" / f"{tier.key}.yaml",
            "--num_processes",
            count,
        ]
        start = [programs / "accelerate", "launch", *shape, "-m", "axolotl.cli.train", file]
    else:
        start = [programs / "torchrun", "--standalone", "--nproc_per_node", count, "-m", "axolotl.cli.train", file]
    return [str(each) for each in start], environment


def follow(this: Run, file: Path, tier: Tier, launch: Launch, model: Model | None) -> dict[str, Any]:
    """Run Axolotl on a composed recipe with a progress line; returns steps, tokens, tokens/s and the last loss.

    `model`: the recipe's, where the catalog knows it, for advice when memory does not suffice.
    Ctrl-C or SIGTERM: Axolotl ends its step and saves a checkpoint (progress_plugin.py), then KeyboardInterrupt is
    raised; a second one ends it at once.
    """
    start, environment = command(file, tier, launch)
    log = this.folder / ("train.log" if launch.rank == 0 else f"train-{launch.rank}.log")
    with (
        files.log(log) as kept,
        following(start, kept, cwd=run_folder.ROOT, env=os.environ | environment) as (process, lines),
        Patience(process) as patience,
    ):
        notes = show(lines)
    written = log.read_text(errors="replace")
    if STOPPED in written:
        step = written.rsplit(STOPPED, 1)[1].split()[0]
        told = f"stopped at step {step}; the same command goes on from its checkpoint in {this.checkpoints}"
        print(told, file=sys.stderr)
    if STOPPED in written or patience.asked:
        raise KeyboardInterrupt
    if process.returncode:
        raise Failed(f"{why(log, written, process.returncode, this, tier, model)} (all of it: {log})")
    return notes


class Patience:
    """While it lasts, the first Ctrl-C or SIGTERM asks `process` to stop and waits; the second is taken as it comes."""

    def __init__(self, process: Program) -> None:
        self.process, self.asked = process, False

    def __enter__(self) -> "Patience":
        """Take both signals."""
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, *_: Any) -> None:
        """Pass the signal on, once."""
        print("stopping after this step, with a checkpoint; once more to stop at once", file=sys.stderr)
        self.asked = True
        self.process.send_signal(signal.SIGTERM)
        self.__exit__()


def why(log: Path, written: str, status: int, this: Run, tier: Tier, model: Model | None) -> str:
    """Why a training failed: out of memory with the planner's advice, a loss that is no number, else its error."""
    error = last_error(log)
    if re.search(r"OutOfMemoryError|out of memory", written):
        changes = []
        if model:
            planned = plan.of(model, tier, plan.from_recipe(recipe.load(this.recipe), tier))
            # The prediction was too low, so what wins little is no help. First what leaves the training as it is.
            changes = [each for each in plan.advice(planned) if each.won > LITTLE * planned.total]
            changes = sorted(changes, key=lambda each: not each.keys.keys() <= SAME_RESULT)[:3]
        say = "; ".join(f"{each.words} wins {each.won:.1f} GiB, {each.slower:.0%} slower" for each in changes)
        return f"out of memory: {error}. To change first: {say or 'a smaller micro batch or sequence'}"
    if "FloatingPointError" in written:
        good = checkpoints(this)
        last = f"the last good checkpoint is {good[-1].name}" if good else "no checkpoint was written before"
        return f"{error}; {last}; a lower learning_rate is the first thing to try"
    return f"Axolotl ended with status {status}: {error}"


def show(output: Iterator[str]) -> dict[str, Any]:
    """Show one progress line from Axolotl's output: step, loss, tokens/s, memory, time left."""
    loss, tokens, first, memory = 0.0, 0, (0.0, 0), 0.0
    notes: dict[str, Any] = {}
    with progress.bar("train: loading model and data") as shown:
        for line in output:
            if step := re.search(r"(\d+)/(\d+) \[\d", line):
                shown.update(int(step[1]), int(step[2]), unit="steps")
                notes["steps"] = int(step[2])
            if found := re.search(r"'loss': '?([\d.e+-]+)", line):
                loss = float(found[1])
            if found := re.search(r"'memory/device_reserved \(GiB\)': '?([\d.]+)", line):
                memory = max(memory, float(found[1]))
            if found := re.search(r"'tokens/total': '?(\d+)", line):
                tokens = int(found[1])
                first = first if first[0] else (time.monotonic(), tokens)
                seconds = time.monotonic() - first[0]
                speed = (tokens - first[1]) / seconds if seconds else 0.0
                notes |= {"loss": loss, "tokens": tokens, "tokens_per_second": round(speed, 1)}
                device = f", {memory:.1f} GiB" if memory else ""
                shown.update(title=f"train: loss {loss:.3f}, {speed:.0f} tokens/s{device}")
    return notes | ({"device_gib": memory} if memory else {})


def last_error(log: Path) -> str:
    """The last line of a log that names an exception, else its last line."""
    written = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # torchrun and accelerate put the rank of a process before what it wrote.
    written = [re.sub(r"^\[rank\d+\]: ?", "", line) for line in written]
    errors = [line for line in written if re.match(r"[\w.]*(Error|Exception|Interrupt|BadInput)\b", line)]
    own = [line for line in errors if "ChildFailedError" not in line and "CalledProcessError" not in line]
    return (own or errors or written or ["it wrote nothing"])[-1][:300]


def keep(this: Run) -> None:
    """Copy the trained adapter or weights, with tokenizer and chat template, under their final name."""
    with progress.step(f"train: keeping {this.adapter.name}"), files.whole(this.adapter) as partial:
        partial.mkdir()
        for item in this.checkpoints.iterdir():
            kept = item.suffix in {".json", ".jinja", ".safetensors", ".model", ".txt"}
            if kept and item.name != "inputs.json":
                shutil.copy2(item, partial / item.name)
        if not list(partial.glob("*.safetensors")):
            raise Failed(f"{this.checkpoints}: Axolotl ended without an adapter or weights")
