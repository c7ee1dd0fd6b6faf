"""Compose a recipe and start Axolotl, in one process or on many nodes: progress, checkpoints, resume, stop."""

import contextlib
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import yaml

from tools import BadInput, Failed
from tools.core import catalog, files, machine, progress, run_folder
from tools.core.catalog import Model, Tier
from tools.core.process import Program, following
from tools.core.run_folder import Run
from tools.recipes import plan
from tools.recipes.plan import Plan
from tools.recipes.recipe import Recipe
from tools.training import events
from tools.training.events import Event

# Axolotl and the libraries below it: no telemetry; the plugins are found in the project's root.
ENVIRONMENT = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": os.environ.get("WANDB_MODE", "offline"),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": str(run_folder.ROOT),
}
# Keys of a recipe that change what a training costs, but not what it learns.
SAME_RESULT = {"gradient_checkpointing", "micro_batch_size", "gradient_accumulation_steps"}
# The files of a whole model, which no adapter needs.
WHOLE = re.compile(r"config\.json|generation_config\.json|model(-.*)?\.safetensors(\.index\.json)?")
# After a training ran out of memory, only changes that save more than this share of the predicted memory are named.
LEAST_SAVED = 0.1
# What run.json keeps of the last step, see events.Event.
NOTED = ("steps", "loss", "reward", "tokens", "tokens_per_second", "device_gib")


@dataclass(frozen=True)
class Launch:
    """How many processes, where: `gpus` on each of `nodes` machines (0: the tier's), this one's rank, the first."""

    gpus: int = 0
    nodes: int = 1
    rank: int = 0
    master: str = ""
    port: int = 29500


def train(recipe: Recipe, base: Path, launch: Launch, resume: bool = False, force: bool = False) -> Run:
    """Train a recipe to an adapter (or whole weights) in its run's folder, and return that folder.

    Nothing is done when the result of the same recipe, data and base is there; an interrupted training goes on from
    its last whole checkpoint. `base`: the base model's folder. `force`: replace what another training left. Raises
    Failed with Axolotl's error or while another process trains in the folder, BadInput when `resume` finds nothing to
    go on from or another training's results are there, and KeyboardInterrupt after a stop that left a checkpoint.
    """
    this, inputs = recipe.run, fingerprint(recipe, base)
    with this.held("train", wait=False) if launch.rank == 0 else contextlib.nullcontext():
        if this.adapter.exists() and this.done("train", inputs):
            print(f"{this.adapter}: already trained from this recipe, data and base")
            return this
        files.need_space(this.folder, 2)
        composed = compose(recipe, str(base), launch)
        model = catalog.model_of(str(recipe.settings["base_model"]))
        if launch.rank:  # The first machine alone keeps the run's folder.
            file = this.folder / f"recipe-{launch.rank}.yaml"
            files.write(file, yaml.safe_dump(composed, sort_keys=False).encode())
            follow(this, file, composed, recipe.tier, launch, model)
            return this
        prepare(this, inputs, resume, force)
        with this.stage("train", inputs) as notes:
            files.write(this.recipe, yaml.safe_dump(composed, sort_keys=False).encode())
            notes |= follow(this, this.recipe, composed, recipe.tier, launch, model)
            notes |= {"bf16": bool(composed.get("bf16"))} | versions()
            copy_result(this)
    return this


def fingerprint(recipe: Recipe, base: Path) -> dict[str, Any]:
    """What a training depends on: SHA-256 of recipe, data, base (see `folder_hash`); changes."""
    own = {key: value for key, value in recipe.changes.items() if key != "datasets"}
    return {"recipe": recipe.sha256, "data": files.sha256(recipe.data), "base": folder_hash(base)} | own


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


def compose(recipe: Recipe, base: str, launch: Launch) -> dict[str, Any]:
    """The recipe as it is run here: the base, the run's folders, resume, this many processes, and what a CPU needs.

    The rows of an update stay as the recipe and its tier have them, or nearly so (`spread`).
    """
    this, tier = recipe.run, recipe.tier
    composed = {
        **recipe.settings,
        "base_model": os.path.abspath(base) if os.path.isdir(base) else base,  # Axolotl runs in the project's root
        "output_dir": str(this.checkpoints),
        "dataset_prepared_path": str(this.checkpoints / "prepared"),
        "auto_resume_from_checkpoints": True,
    }
    if deepspeed := composed.get("deepspeed"):
        composed["deepspeed"] = str(run_folder.found(str(deepspeed)))
    if run_folder.INSTALLED:  # Axolotl runs in the current folder, where our own episodes are not.
        composed["datasets"] = [{**recipe.dataset, "path": str(recipe.data)}, *composed["datasets"][1:]]
    if not composed.get("dataset_num_proc") and recipe.data.is_file():
        composed["dataset_num_proc"] = tokenisers(recipe.data.stat().st_size, machine.cores())
    composed |= spread(recipe, world(tier, launch))
    plugins = [*(composed.get("plugins") or []), "tools.training.progress_plugin.WatchPlugin"]
    if not tier.gpu:
        plugins.append("tools.training.cpu_plugin.CpuPlugin")
        if "bf16" not in recipe.changes:
            sharded = recipe.deepspeed("bf16", "enabled") is True
            composed["bf16"] = sharded or (not composed.get("deepspeed") and bf16_pays())
    return composed | {"plugins": plugins}


def tokenisers(size: int, cores: int) -> int:
    """Processes that tokenise data of `size` bytes the soonest: each works fast and starts slowly.

    Axolotl takes one a core and hands the tokenizer to one after the other. Qwen2.5's took 2.4 s for each of 16 on an
    H100's machine (November 2026): 39 s for 1,920 episodes, which one process does in 8. One process tokenises 250
    episodes of 2.5 kB a second, so n of them take 2.4 n + size / (0.6 MB n) seconds; the root of size / 1.5 MB is best.
    """
    return max(1, min(cores, round((size / 1.5e6) ** 0.5)))


def spread(recipe: Recipe, world: int) -> dict[str, int]:
    """Micro batch and accumulation with which `world` processes reach the rows that the recipe has in an update.

    Where they do not share them evenly, an update has the fewest rows more. Raises BadInput for more than 1.5 times,
    for rows that Axolotl cannot split over these processes, and for games on several.
    """
    micro = int(recipe.settings.get("micro_batch_size") or 1)
    split = int(recipe.settings.get("context_parallel_size") or 1)
    if world > 1 and recipe.settings.get("rl") == "grpo":
        raise BadInput(f"{recipe.at('rl')}: rl: grpo: its games are played on one device, and {world} are asked for")
    if split > 1 and (why := cannot_split(recipe, world, split)):
        raise BadInput(f"{recipe.at('context_parallel_size')}: context_parallel_size {split}: {why}")
    groups = world // split
    batch = micro * int(recipe.settings.get("gradient_accumulation_steps") or 1) * max(1, recipe.tier.world // split)
    share = math.ceil(batch / groups)
    if share * groups > plan.MOST_TOKENS * batch:
        why = f"{batch} rows an update are too few for {world} processes"
        raise BadInput(f"{recipe.path}: {why}; fewer GPUS or NODES, or a larger gradient_accumulation_steps")
    if share * groups != batch:
        print(f"train: {world} processes make updates of {share * groups} rows; the recipe has {batch}")
    micro = math.gcd(micro, share)
    return {"micro_batch_size": micro, "gradient_accumulation_steps": share // micro}


def cannot_split(recipe: Recipe, world: int, split: int) -> str:
    """Why Axolotl cannot split each row over `split` of `world` processes, and what it can; empty where it can.

    See `plan.splits`; Axolotl itself checks none of it before it starts.
    """
    if world % split:
        return f"it does not divide {world} processes; change it or GPUS"
    if recipe.settings.get("deepspeed"):
        return "Axolotl splits no rows under DeepSpeed; remove deepspeed: or this key"
    if world > split and not recipe.settings.get("fsdp_config"):
        return f"without FSDP2 all {world} processes share each row; context_parallel_size: {world}"
    return ""


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


def command(file: Path, composed: Mapping[str, Any], tier: Tier, launch: Launch) -> tuple[list[str], dict[str, str]]:
    """The command that trains a `composed` recipe, written to `file`, and its environment beside this one's.

    One process: axolotl, or with DeepSpeed, which asks for a rank, torchrun. Several on one machine: accelerate launch
    with the tier's file, torchrun on a CPU (accelerate starts one process only there). Several machines: torchrun,
    which meets at MASTER_ADDR.
    """
    programs = Path(sys.executable).parent
    count = processes(tier, launch)
    threads = max(1, machine.cores() // count)
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}
    # Without flash-attn a recipe that names FlashAttention takes a ready-made kernel from the hub.
    kernel = "flash" in str(composed.get("attn_implementation") or "") and find_spec("flash_attn") is None
    if Path(composed["base_model"]).is_dir() and not composed.get("hub_model_id") and not kernel:
        environment["HF_HUB_OFFLINE"] = "1"
    if not tier.gpu and composed.get("deepspeed"):
        environment["DS_ACCELERATOR"] = "cpu"
    if launch.nodes > 1:
        meet = ["--nnodes", launch.nodes, "--node_rank", launch.rank]
        meet += ["--master_addr", launch.master, "--master_port", launch.port]
        start = [programs / "torchrun", *meet, "--nproc_per_node", count, "-m", "axolotl.cli.train", file]
    elif count == 1 and not composed.get("deepspeed"):
        start = [programs / "axolotl", "train", file, "--launcher", "python"]
    elif tier.gpu and count > 1:
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


def follow(
    this: Run, file: Path, composed: Mapping[str, Any], tier: Tier, launch: Launch, model: Model | None
) -> dict[str, float]:
    """Run Axolotl on a composed recipe and show how far it is; returns what `follow_events` notes.

    `model`: the recipe's, where the catalog knows it, for advice when memory runs out.
    Ctrl-C or SIGTERM: Axolotl ends its step and saves a checkpoint (watch.py), then KeyboardInterrupt is
    raised; a second one ends it at once.
    """
    start, environment = command(file, composed, tier, launch)
    log = this.folder / ("train.log" if launch.rank == 0 else f"train-{launch.rank}.log")
    planned = plan.of(model, tier, plan.from_recipe(composed, tier)) if model else None
    return followed(this, log, "Axolotl", start, environment, run_folder.home(), planned)


def followed(
    this: Run,
    log: Path,
    trainer: str,
    start: Sequence[str],
    environment: Mapping[str, str],
    at: Path,
    planned: Plan | None,
) -> dict[str, float]:
    """Run a trainer's command in the folder `at` and show how far it is; see `follow`.

    `environment`: what it has beside ours. `planned`: the recipe's plan, where the catalog knows its model.
    """
    ended: Event | None = None
    try:
        with (
            files.log(log) as kept,
            following(start, kept, cwd=at, env=os.environ | environment) as (process, lines),
            stop_after_step(process) as asked,
        ):
            notes, ended = follow_events(events.read(lines), trainer)
        if asked.is_set() or (ended and ended.event == "stopped"):
            raise KeyboardInterrupt
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        print(what_is_kept(this, ended), file=sys.stderr)
        raise
    if process.returncode:
        why = failure(log, ended, process.returncode, this, planned, trainer)
        raise Failed(f"{why} (the whole log: {log})")
    return notes


def what_is_kept(this: Run, ended: Event | None) -> str:
    """What a training leaves that was stopped, with the event of a stop after an update, or at once; in words."""
    if whole := checkpoints(this):
        at = f" at step {ended.step}" if ended else ""
        return f"stopped{at}; the same command goes on from {whole[-1].name} in {this.checkpoints}"
    return "stopped before the first checkpoint; the same command begins anew"


@contextlib.contextmanager
def stop_after_step(process: Program) -> Iterator[threading.Event]:
    """Have the first Ctrl-C or SIGTERM ask the training to stop, and the second act as usual; yields "it was asked"."""
    asked = threading.Event()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def ask(*_: object) -> None:
        print("stopping; an update that has begun ends with a checkpoint; once more to stop at once", file=sys.stderr)
        asked.set()
        process.send_signal(signal.SIGTERM)
        restore()

    for number in usual:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        restore()


def follow_events(told: Iterable[Event], trainer: str = "Axolotl") -> tuple[dict[str, float], Event | None]:
    """Show a training's events on one line: stage or step, loss, tokens/s, memory, time left.

    Returns the last known NOTED and eval_loss, for run.json, and the event that ended it before its last step, if any.
    """
    notes: dict[str, float] = {}
    ended = None
    with progress.bar(f"train: loading {trainer}") as shown:
        for event in told:
            if event.event == "stage":
                shown.update(title=f"train: {event.stage}")
            elif event.event == "step":
                notes |= {key: value for key in NOTED if (value := getattr(event, key)) is not None}
                shown.update(event.step, event.steps, title(notes), unit="steps")
            elif event.event == "evaluated" and event.loss is not None:
                notes["eval_loss"] = event.loss
            elif event.event in ("stopped", "diverged"):
                ended = event
    return notes, ended


def title(notes: Mapping[str, float]) -> str:
    """How a training goes in words, as far as known: "train: loss 1.213, 2100 tokens/s, 7.5 GiB"."""
    forms = {
        "loss": "loss {:.3f}",
        "reward": "reward {:.2f}",
        "tokens_per_second": "{:.0f} tokens/s",
        "device_gib": "{:.1f} GiB",
    }
    words = [form.format(notes[key]) for key, form in forms.items() if key in notes]
    return f"train: {', '.join(words)}" if words else "train"


def failure(
    log: Path, ended: Event | None, status: int, this: Run, planned: Plan | None, trainer: str = "Axolotl"
) -> str:
    """Why a training failed and, where memory ran out or the loss is not a number, what helps."""
    error = last_error(log)
    if ended and ended.event == "diverged":
        good = checkpoints(this)
        last = f"the last good checkpoint is {good[-1].name}" if good else "no checkpoint was written before"
        return f"{error}; {last}; try a lower learning_rate first"
    if re.search(r"OutOfMemoryError|out of memory|can't allocate memory", log.read_text(errors="replace")):
        return f"out of memory: {error}. To change first: {memory_advice(planned)}"
    return f"{trainer} ended with status {status}: {error}"


def memory_advice(planned: Plan | None) -> str:
    """The planner's three best changes for a training that ran out of memory; `planned`: None for an unknown model."""
    changes: list[plan.Change] = []
    if planned:
        # The prediction was too low, so what wins little is no help. First what leaves the training as it is.
        changes = [each for each in plan.advice(planned) if each.won > LEAST_SAVED * planned.total]
        changes = sorted(changes, key=lambda each: not each.keys.keys() <= SAME_RESULT)[:3]
    told = (f"{each.words} wins {each.won:.1f} GiB, {each.slower:.0%} slower" for each in changes)
    return "; ".join(told) or "a smaller micro batch or sequence"


def last_error(log: Path) -> str:
    """The last line of a log that names an exception, else its last line; events aside."""
    written = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    # torchrun and accelerate put the rank of a process before what it wrote.
    written = [re.sub(r"^\[rank\d+\]: ?", "", line) for line in written if line and not line.startswith(events.MARK)]
    errors = [line for line in written if re.match(r"[\w.]*((Error|Exception|Interrupt|BadInput)\b|Failed:)", line)]
    own = [line for line in errors if "ChildFailedError" not in line and "CalledProcessError" not in line]
    return (own or errors or written or ["it wrote nothing"])[-1][:300]


def copy_result(this: Run) -> None:
    """Copy the trained adapter or weights, with tokenizer and chat template, under their final name.

    Beside the adapter of preference pairs Axolotl 0.19 writes the base too, with the adapter's layers in it (train.py,
    save_trained_model: `model.save_pretrained` after the trainer's): of no use, as large as the base, and removed.
    """
    with progress.step(f"train: copying {this.adapter.name}"), files.atomic(this.adapter) as partial:
        partial.mkdir()
        adapter = (this.checkpoints / "adapter_config.json").exists()
        for item in this.checkpoints.iterdir():
            if adapter and WHOLE.fullmatch(item.name):
                item.unlink()
                continue
            kept = item.suffix in {".json", ".jinja", ".safetensors", ".model", ".txt"}
            if kept and item.name != "inputs.json":
                shutil.copy2(item, partial / item.name)
        if not list(partial.glob("*.safetensors")):
            raise Failed(f"{this.checkpoints}: Axolotl ended without an adapter or weights")
