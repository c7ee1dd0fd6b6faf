"""Recipe to adapter: checked, trained, or given to a cluster."""

import contextlib
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import orjson

from tools import BadInput, Failed
from tools.core import catalog, progress
from tools.pipeline.job import Job, base_folder
from tools.recipes import recipe


def check_recipe(job: Job, force: bool = False, as_json: bool = False) -> None:
    """Check recipe and data; print what was found and one episode with its loss mask.

    Raises Failed when it found an error, unless `force`.
    """
    from tools.training import preflight, run_axolotl

    with progress.step("check: reading the data"):
        preflight.read(job.path, job.changes)
    this = recipe.folder(job.path)
    try:
        folder: Path | str = base_folder(job.path, job.other)
    except Failed as error:
        folder = str(job.other or recipe.load(job.path)["base_model"])
        unread = preflight.Finding(
            "warning",
            f"the tokens were not looked at: {error}",
            f"{job.path}:{recipe.line_of(job.path, 'base_model')}",
            "training looks at them, once the base is here",
        )
    inputs = run_axolotl.fingerprint(job.path, folder, job.changes) if isinstance(folder, Path) else None
    if inputs and not as_json and this.done("check", inputs):
        print(f"check: {job.path.stem} and its data are good, as before")
        return
    with contextlib.ExitStack() as stack:
        notes = stack.enter_context(this.stage("check", inputs)) if inputs else {}
        with progress.step("check: Axolotl reads the recipe and the data"):
            found = preflight.check(job.path, folder, job.changes, tier=job.tier)
        if not isinstance(folder, Path):
            found.findings.append(unread)
        if as_json:
            print(orjson.dumps(preflight.as_json(found)).decode())
        else:
            preflight.show(found)
        if found.errors and not force:
            # Not kept as done: the next check looks again.
            raise Failed(
                f"{job.path}: {len(found.errors)} to mend first, above; make train FORCE=1 trains all the same"
            )
        notes |= {key: value for key, value in preflight.as_json(found).items() if key not in ("findings", "ok")}


def check_all_recipes(as_json: bool) -> None:
    """Hold every recipe against Axolotl's schema under its tier. Raises Failed when one is refused."""
    from tools.training import preflight

    bad = total = 0
    with progress.bar("check: loading Axolotl", sum(map(len, map(recipe.names, catalog.tiers()))), "recipes") as shown:
        for row in preflight.all_recipes():
            total += 1
            bad += not row["ok"]
            shown.update(total, title="check")
            if as_json:
                print(orjson.dumps(row).decode())
            elif not row["ok"]:
                print(f"{row['recipe']}: {'; '.join(row['findings'])}")
    if bad:
        raise Failed(f"{bad} of {total} recipes are not as Axolotl wants them")
    if not as_json:
        print(f"{total} recipes, all as Axolotl wants them")


def train_recipe(job: Job, launch: Any, force: bool = False, resume: bool = False) -> None:
    """Check, then train to an adapter; what the check finds, or another training's results, stop it, unless `force`."""
    from tools.training import run_axolotl

    # What is wrong at once is told at once.
    run_axolotl.spread(recipe.load(job.path, job.changes), job.tier, run_axolotl.world(job.tier, launch), str(job.path))
    if resume:
        run_axolotl.resumable(recipe.folder(job.path))
    if launch.rank == 0:
        check_recipe(job, force)
    run_axolotl.train(job.path, base_folder(job.path, job.other), job.changes, job.tier, launch, resume, force)


def submit_recipe(job: Job, launch: Any, how: str) -> None:
    """Print the command of a training (`how`: dry-run), or give it to Slurm or Ray where they are, else say how.

    Raises BadInput for a recipe that Axolotl refuses.
    """
    from tools.training import cluster

    if how not in ("dry-run", "slurm", "ray"):
        raise BadInput(f"{how}: a training is submitted to slurm or to ray")
    with progress.step("loading Axolotl, which checks the recipe"):
        recipe.validate(job.path, job.changes, job.tier)
    base_model = job.other or recipe.load(job.path)["base_model"]
    if how == "dry-run":
        print(cluster.dry_run(job.path, base_model, job.changes, job.tier, launch))
        return
    if how == "slurm":
        file = cluster.slurm(job.path, base_model, job.changes, job.tier, launch)
        start = ["sbatch", str(file)]
    else:
        start = shlex.split(cluster.ray(job.path, base_model, job.changes, job.tier, launch))
    if shutil.which(start[0]) is None:
        print(f"{start[0]} is not on this machine; where it is:\n{shlex.join(start)}")
        return
    if subprocess.run(start, check=False).returncode:
        raise Failed(f"{shlex.join(start)}: refused, above")
