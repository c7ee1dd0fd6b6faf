"""Recipe to adapter: checked, trained, or given to a cluster."""

import contextlib
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tools import BadInput, Failed
from tools.core import catalog, preference, progress, trajectory
from tools.core.finding import Finding
from tools.gguf import find_base
from tools.recipes import schema
from tools.recipes.recipe import Recipe, names

if TYPE_CHECKING:
    from tools.training.run_axolotl import Launch


def check_recipe(recipe: Recipe, force: bool = False, as_json: bool = False) -> None:
    """Check recipe and data; print what was found and one episode with its loss mask.

    Raises Failed when it found an error, unless `force`.
    """
    from tools.training import preflight, run_axolotl

    with progress.step("check: reading the data"):
        preflight.read(recipe)
    this, unread = recipe.run, []
    try:
        folder: Path | str = find_base.resolve(recipe.base)
    except Failed as error:
        folder = recipe.base
        what = f"the tokens were not looked at: {error}"
        fix = "training looks at them, once the base is here"
        unread = [Finding("warning", what, recipe.at("base_model"), fix)]
    inputs = run_axolotl.fingerprint(recipe, folder) if isinstance(folder, Path) else None
    if inputs and not as_json and this.done("check", inputs):
        before = [Finding(**each) for each in this.provenance()["check"].get("findings", [])]
        if not any(each.level == "error" for each in before):  # Else an earlier FORCE=1 went on in spite of it.
            preflight.show_findings(before)
            print(f"check: {recipe.name} and its data are good, as before")
            return
    with contextlib.ExitStack() as stack:
        notes = stack.enter_context(this.stage("check", inputs)) if inputs else {}
        with progress.step("check: Axolotl reads the recipe and the data"):
            found = preflight.check(recipe, folder)
        found.findings.extend(unread)
        if as_json:
            print(orjson.dumps(preflight.as_json(found)).decode())
        else:
            preflight.show(found)
        if found.errors and not force:
            # Not kept as done: the next check looks again.
            raise Failed(
                f"{recipe.path}: {len(found.errors)} to fix first, above; make train FORCE=1 trains all the same"
            )
        notes |= {key: value for key, value in preflight.as_json(found).items() if key != "ok"}


def check_all_recipes(as_json: bool) -> None:
    """Hold every recipe against Axolotl's schema under its tier. Raises Failed when one is refused."""
    from tools.training import preflight

    bad = total = 0
    with progress.bar("check: loading Axolotl", sum(map(len, map(names, catalog.tiers()))), "recipes") as shown:
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


def train_recipe(
    recipe: Recipe, launch: "Launch", force: bool = False, resume: bool = False, trainer: str | None = None
) -> None:
    """Check, then train to an adapter; what the check finds, or another training's results, stop it, unless `force`.

    `trainer`: axolotl, llamafactory, trl or unsloth; by default the one that began this training, else Axolotl.
    """
    from tools.training import run_axolotl, run_trainer

    trainer = trainer or run_trainer.begun_by(recipe.run)
    # What is wrong at once is told at once.
    run_axolotl.spread(recipe, run_axolotl.world(recipe.tier, launch))
    run_trainer.check(trainer, recipe, launch)
    if resume:
        run_axolotl.resumable(recipe.run)
    if launch.rank == 0:
        check_recipe(recipe, force)
    base = find_base.resolve(recipe.base)
    if trainer == run_trainer.AXOLOTL:
        run_axolotl.train(recipe, base, launch, resume, force)
    else:
        run_trainer.train(recipe, base, trainer, launch, resume, force)


def write_for_trainer(trainer: str, recipe: Recipe) -> None:
    """Write a recipe and its data as another trainer takes them; print its commands, and ours for what it trained.

    Raises BadInput for a recipe that this trainer cannot train as it says.
    """
    from tools.training.run_trainer import WRITERS

    writer = WRITERS[trainer]
    folder, commands = writer.write(recipe)
    print(f"{folder}, in which to run:")
    for each in commands:
        print(f"  {each}")
    made = "ADAPTER" if recipe.settings.get("adapter") else "MODEL"
    print(f"then here: make ollama {made}={shlex.quote(str(folder / writer.SAVED))}")


def submit_recipe(recipe: Recipe, launch: "Launch", how: str) -> None:
    """Print the command of a training (`how`: dry-run), or give it to Slurm or Ray where they are, else say how.

    Raises BadInput for a recipe that Axolotl refuses, and for data that do not begin with episodes.
    """
    from tools.training import cluster

    if how not in ("dry-run", "slurm", "ray"):
        raise BadInput(f"{how}: a training is submitted to slurm or to ray")
    if recipe.settings.get("rl") == "dpo":
        next(preference.read(recipe.data))
    else:
        trajectory.check_beginning(recipe.data)
    with progress.step("loading Axolotl, which checks the recipe"):
        schema.validate(recipe)
    if how == "dry-run":
        print(cluster.dry_run(recipe, launch))
        return
    if how == "slurm":
        file = cluster.slurm(recipe, launch)
        start = ["sbatch", str(file)]
    else:
        start = shlex.split(cluster.ray(recipe, launch))
    if shutil.which(start[0]) is None:
        print(f"{start[0]} is not on this machine; where it is:\n{shlex.join(start)}")
        return
    if subprocess.run(start, check=False).returncode:
        raise Failed(f"{shlex.join(start)}: refused, above")
