"""A training for another place or time: the command to copy, a job for Slurm, one for Ray."""

import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml

from tools.core import files, run_folder, templates
from tools.recipes.recipe import Recipe
from tools.training import run_axolotl
from tools.training.run_axolotl import Launch


def dry_run(recipe: Recipe, launch: Launch) -> str:
    """Write the composed recipe and return the command, with its environment, as a shell takes it."""
    composed = run_axolotl.compose(recipe, recipe.base, launch)
    file = written(recipe, "dry-run.yaml", composed)
    start, environment = run_axolotl.command(file, composed, recipe.tier, launch)
    assigned = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
    return f"cd {shlex.quote(str(run_folder.home()))} && {assigned} {shlex.join(start)}"


def slurm(recipe: Recipe, launch: Launch) -> Path:
    """Write the run's train.sbatch: a job on the tier's machines, queued again when it is preempted."""
    composed, gpus = run_axolotl.compose(recipe, recipe.base, launch), run_axolotl.processes(recipe.tier, launch)
    file = written(recipe, "cluster.yaml", composed)
    # One task a machine starts its processes; the rank and the meeting point are Slurm's, known when it runs.
    start, environment = run_axolotl.command(file, composed, recipe.tier, Launch(gpus, max(2, launch.nodes)))
    known = {"--nnodes": str(launch.nodes), "--node_rank": "$SLURM_NODEID", "--master_addr": "$MASTER_ADDR"}
    words = [known.get(before) or shlex.quote(each) for before, each in itertools.pairwise(["", *start])]
    text = templates.template("cluster/slurm.sbatch.j2").render(
        name=recipe.name,
        nodes=launch.nodes,
        gpus=gpus,
        folder=file.parent,
        root=run_folder.home(),
        environment=environment,
        command=" ".join(words),
    )
    job = file.parent / "train.sbatch"
    files.write(job, text.encode())
    return job


def ray(recipe: Recipe, launch: Launch) -> str:
    """Write the recipe with Axolotl's Ray Train keys and return the command that gives it to a Ray cluster."""
    tier = recipe.tier
    composed = run_axolotl.compose(recipe, recipe.base, launch) | {
        "use_ray": True,
        "ray_run_name": recipe.name,
        "ray_num_workers": run_axolotl.world(tier, launch),
        "resources_per_worker": {"GPU": 1} if tier.gpu else {"CPU": 1},
    }
    file = written(recipe, "ray.yaml", composed)
    environment = orjson.dumps({"env_vars": run_axolotl.ENVIRONMENT}).decode()
    start = ["axolotl", "train", str(file)]
    return shlex.join(["ray", "job", "submit", "--runtime-env-json", environment, "--", *start])


def written(recipe: Recipe, name: str, composed: Mapping[str, Any]) -> Path:
    """Write a composed recipe under `name` into the run's folder; its absolute path."""
    file = (recipe.run.folder / name).absolute()
    files.write(file, yaml.safe_dump(dict(composed), sort_keys=False).encode())
    return file
