"""Train a recipe by another trainer than Axolotl: the same folder, progress, checkpoints and resume."""

import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import orjson
import yaml

from tools import BadInput, Failed
from tools.core import catalog, files, machine, progress
from tools.core.run_folder import Run
from tools.recipes import plan
from tools.recipes.recipe import Recipe
from tools.training import environments, llamafactory, run_axolotl, trl, unsloth
from tools.training.run_axolotl import Launch
from tools.training.tokens import save_tokenizer

AXOLOTL = "axolotl"
WRITERS = {each.NAME: each for each in (llamafactory, trl, unsloth)}
# What each is run as, in the folder that was written for it: see watched.py.
STARTS = {
    llamafactory.NAME: ["llamafactory.launcher", "train.yaml"],
    trl.NAME: ["trl.scripts.sft", "--config", "train.yaml"],
    unsloth.NAME: ["train.py"],
}
# The files of a result that are the trainer's; the tokenizer is the recipe's.
RESULTS = ("adapter_config.json", "config.json", "generation_config.json", "model.safetensors.index.json")


def begun_by(this: Run) -> str:
    """The trainer that a run's training was begun by."""
    begun = this.checkpoints / "inputs.json"
    return str(orjson.loads(begun.read_bytes()).get("trainer", AXOLOTL)) if begun.exists() else AXOLOTL


def check(trainer: str, recipe: Recipe, launch: Launch) -> None:
    """Raise BadInput for what a trainer cannot do of a recipe, or cannot do here."""
    if trainer == AXOLOTL:
        return
    if launch.nodes > 1:
        raise BadInput(f"TRAINER={trainer} trains on one machine here; without it, NODES={launch.nodes} does it")
    if trainer == unsloth.NAME and not machine.devices():
        raise BadInput("TRAINER=unsloth needs a GPU, and there is none here; axolotl, llamafactory and trl need none")
    WRITERS[trainer].arguments(recipe)


def train(recipe: Recipe, base: Path, trainer: str, launch: Launch, resume: bool = False, force: bool = False) -> Run:
    """Train a recipe by `trainer`; all else as run_axolotl.train, which says what is raised."""
    this = recipe.run
    inputs = run_axolotl.fingerprint(recipe, base) | {"trainer": trainer}
    with this.held("train", wait=False):
        if this.adapter.exists() and this.done("train", inputs):
            print(f"{this.adapter}: already trained from this recipe, data and base, by {trainer}")
            return this
        files.need_space(this.folder, 2)
        python = interpreter(trainer)
        run_axolotl.prepare(this, inputs, resume, force)
        with this.stage("train", inputs) as notes:
            settings = {**recipe.settings, "base_model": os.path.abspath(base)}
            settings["datasets"] = [{**recipe.dataset, "path": str(recipe.data)}]
            files.write(this.recipe, yaml.safe_dump(settings, sort_keys=False).encode())
            notes |= follow(recipe, base, trainer, python, launch)
            notes |= {"bf16": bool(settings.get("bf16")), "trainer": trainer} | versions(trainer)
            copy_result(recipe, base, trainer)
    return this


def interpreter(trainer: str) -> Path:
    """The Python that runs a trainer: TRL is in ours."""
    return Path(sys.executable) if trainer == trl.NAME else environments.programs(trainer) / "python"


def versions(trainer: str) -> dict[str, str]:
    """The versions of what trains, for run.json."""
    packages = (trainer, "torch", "transformers", "peft")
    if trainer == trl.NAME:
        return {package: version(package) for package in packages}
    return environments.pinned(trainer, *packages)


def follow(recipe: Recipe, base: Path, trainer: str, python: Path, launch: Launch) -> dict[str, float]:
    """Write what the trainer reads, run it, and show how far it is; returns what run_axolotl.followed notes."""
    this, count = recipe.run, run_axolotl.processes(recipe.tier, launch)
    rows = run_axolotl.spread(recipe, count)
    changes: dict[str, object] = {
        "model_name_or_path": os.path.abspath(base),
        "output_dir": str(this.checkpoints.resolve()),
        "per_device_train_batch_size": rows["micro_batch_size"],
        "gradient_accumulation_steps": rows["gradient_accumulation_steps"],
        "include_num_input_tokens_seen": True,
    }
    if whole := run_axolotl.checkpoints(this):
        changes["resume_from_checkpoint"] = str(whole[-1].resolve())
    folder = this.folder / trainer
    files.remove(folder)
    WRITERS[trainer].write(recipe, folder, changes)
    start = [str(python)]
    if count > 1 or recipe.settings.get("deepspeed"):
        start = [str(python.with_name("torchrun")), "--standalone", "--nproc_per_node", str(count)]
    start += ["-m", "tools.training.watched", *STARTS[trainer]]
    environment = run_axolotl.ENVIRONMENT | {"OMP_NUM_THREADS": str(max(1, machine.cores() // count))}
    if "flash" not in str(recipe.settings.get("attn_implementation")):  # else a kernel may come from the hub
        environment["HF_HUB_OFFLINE"] = "1"
    model = catalog.model_of(str(recipe.settings["base_model"]))
    planned = plan.of(model, recipe.tier, plan.from_recipe(recipe.settings, recipe.tier)) if model else None
    title = WRITERS[trainer].words().title
    return run_axolotl.followed(this, this.folder / "train.log", title, start, environment, folder, planned)


def copy_result(recipe: Recipe, base: Path, trainer: str) -> None:
    """Copy what was trained under its final name, with the tokenizer and chat template of the recipe."""
    this = recipe.run
    with progress.step(f"train: copying {this.adapter.name}"), files.atomic(this.adapter) as partial:
        partial.mkdir()
        for item in this.checkpoints.iterdir():
            if item.suffix == ".safetensors" or item.name in RESULTS:
                shutil.copy2(item, partial / item.name)
        if not list(partial.glob("*.safetensors")):
            raise Failed(f"{this.checkpoints}: {trainer} ended without an adapter or weights")
        save_tokenizer(base, recipe.dataset, recipe.settings, partial)
