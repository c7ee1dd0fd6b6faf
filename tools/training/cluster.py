"""A training for another place or time: the command to copy, a job for Slurm, one for Ray."""

import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml

from tools.core import files, run_folder, templates
from tools.core.catalog import Tier
from tools.recipes import recipe
from tools.training import run_axolotl
from tools.training.run_axolotl import Launch


def dry_run(path: Path, base: str, changes: Mapping[str, Any], tier: Tier, launch: Launch) -> str:
    """Write the composed recipe and return the command, with its environment, as a shell takes it."""
    this = recipe.folder(path)
    file = (this.folder / "dry-run.yaml").absolute()
    files.write(
        file, yaml.safe_dump(run_axolotl.compose(path, this, base, changes, tier, launch), sort_keys=False).encode()
    )
    start, environment = run_axolotl.command(file, tier, launch)
    assigned = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
    return f"cd {shlex.quote(str(run_folder.home()))} && {assigned} {shlex.join(start)}"


def slurm(path: Path, base: str, changes: Mapping[str, Any], tier: Tier, launch: Launch) -> Path:
    """Write the run's train.sbatch: a job on the tier's machines, queued again when it is preempted."""
    this = recipe.folder(path)
    folder = this.folder.absolute()
    composed = folder / "cluster.yaml"
    files.write(
        composed, yaml.safe_dump(run_axolotl.compose(path, this, base, changes, tier, launch), sort_keys=False).encode()
    )
    # One task a machine starts its processes; the rank and the meeting point are Slurm's, known when it runs.
    start, environment = run_axolotl.command(
        composed, tier, Launch(run_axolotl.processes(tier, launch), max(2, launch.nodes))
    )
    known = {"--nnodes": str(launch.nodes), "--node_rank": "$SLURM_NODEID", "--master_addr": "$MASTER_ADDR"}
    words = [known.get(before) or shlex.quote(each) for before, each in itertools.pairwise(["", *start])]
    text = templates.template("cluster/slurm.sbatch.j2").render(
        name=path.stem,
        nodes=launch.nodes,
        gpus=run_axolotl.processes(tier, launch),
        folder=folder,
        root=run_folder.home(),
        environment=environment,
        command=" ".join(words),
    )
    file = folder / "train.sbatch"
    files.write(file, text.encode())
    return file


def ray(path: Path, base: str, changes: Mapping[str, Any], tier: Tier, launch: Launch) -> str:
    """Write the recipe with Axolotl's Ray Train keys and return the command that gives it to a Ray cluster."""
    this = recipe.folder(path)
    composed = run_axolotl.compose(path, this, base, changes, tier, launch) | {
        "use_ray": True,
        "ray_run_name": path.stem,
        "ray_num_workers": run_axolotl.world(tier, launch),
        "resources_per_worker": {"GPU": 1} if tier.gpu else {"CPU": 1},
    }
    file = (this.folder / "ray.yaml").absolute()
    files.write(file, yaml.safe_dump(composed, sort_keys=False).encode())
    environment = orjson.dumps({"env_vars": run_axolotl.ENVIRONMENT}).decode()
    start = ["axolotl", "train", str(file)]
    return shlex.join(["ray", "job", "submit", "--runtime-env-json", environment, "--", *start])
