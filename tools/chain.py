"""The stages in their order, each done once: what a stage was made from stands in run.json beside its seconds."""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tools import BadInput, Failed, base, catalog, doctor, files, find_base, hf_folder, progress, quote, recipe, run
from tools.catalog import Tier
from tools.run import Run

# The first prompt that people try.
CLASSIC = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a fridge 1, a microwave 1, "
    "a countertop 1, a diningtable 1. Your task is to: heat some potato and put it in diningtable."
)
# Tokens that a model of another's adapter is given to remember, where its base can.
CONTEXT = 4096
TEST_DATA = run.ROOT / "data" / "test.jsonl"


def base_folder(path: Path, other: str) -> Path:
    """The folder of the base model: `other` (BASE=) where it is given, else the recipe's."""

    return find_base.resolve(other or recipe.load(path)["base_model"])


@dataclass(frozen=True)
class Job:
    """One recipe as a person asked for it: its file, the tier it is for, another base, changes to its keys."""

    path: Path
    tier: Tier
    other: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)


def job(name: str, tier: str = "", other: str = "", pairs: Sequence[str] = (), data: str = "") -> Job:
    """The job of a recipe's name or path. Raises BadInput for what is not there or cannot be read."""
    path = find(name, tier)
    wanted = catalog.tiers()[tier] if tier else recipe.tier_of(path) or catalog.tiers()[doctor.tier()]
    return Job(path, wanted, other, recipe.overrides(list(pairs), data, path))


def find(name: str, tier: str = "") -> Path:
    """The file of a recipe by name or path, on `tier` or on this machine's own. Raises BadInput as `recipe.find`."""
    return recipe.find(name, tier, doctor.tier())


def check(job: Job, force: bool = False, as_json: bool = False) -> None:
    """Check recipe and data; print what was found and one episode with its loss mask.

    Raises Failed when it found an error, unless `force`.
    """
    from tools import preflight, train

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
    inputs = train.fingerprint(job.path, folder, job.changes) if isinstance(folder, Path) else None
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
            raise Failed(f"{job.path}: {len(found.errors)} to mend first, above; FORCE=1 goes on all the same")
        notes |= {key: value for key, value in preflight.as_json(found).items() if key not in ("findings", "ok")}


def check_all(as_json: bool) -> None:
    """Hold every recipe against Axolotl's schema under its tier. Raises Failed when one is refused."""
    from tools import preflight

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


def train(job: Job, launch: Any, force: bool = False, resume: bool = False) -> None:
    """Check, then train to an adapter; what the check finds, or another training's results, stop it, unless `force`."""
    from tools import train

    # What is wrong at once is told at once.
    train.spread(recipe.load(job.path, job.changes), job.tier, train.world(job.tier, launch), str(job.path))
    if resume:
        train.resumable(recipe.folder(job.path))
    if launch.rank == 0:
        check(job, force)
    train.train(job.path, base_folder(job.path, job.other), job.changes, job.tier, launch, resume, force)


def submit(job: Job, launch: Any, how: str) -> None:
    """Print the command of a training (`how`: dry-run), or give it to Slurm or Ray where they are, else say how.

    Raises BadInput for a recipe that Axolotl refuses.
    """
    from tools import cluster

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


@dataclass(frozen=True)
class Tuned:
    """An adapter and its base, ours or another's: all that the stages after training need to know of them.

    `name`: the recipe's, or the adapter folder's. `served`: its name in Ollama, where NAME= says nothing else.
    `base_name`: as the recipe or a person wrote it. `hashes`: SHA-256 of the adapter and of what it was made from
    (recipe, data, base: what is known of them). `sequence_len`: tokens. `system`: the system prompt of its data.
    """

    run: Run
    name: str
    served: str
    adapter: Path
    base: Path
    base_name: str
    hashes: dict[str, str]
    sequence_len: int
    system: str | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer and chat template of training: the adapter's, where it has them."""
        return self.adapter if any((self.adapter / name).is_file() for name in base.TOKENIZER_FILES) else self.base

    @property
    def metadata(self) -> dict[str, str]:
        """What a GGUF says of where it is from."""
        about = {
            "general.name": self.name,
            "react_recipes.recipe": self.name,
            "react_recipes.base_model": self.base_name,
        }
        return about | {f"react_recipes.{key}_sha256": value for key, value in self.hashes.items()}


def tuned(name: str, other: str = "", adapter: str = "") -> Tuned:
    """What a recipe trained, or any `adapter` folder (ADAPTER=) with its base, which is `other` where it is given.

    Raises BadInput when there is none, Failed when its base cannot be had.
    """
    if adapter:
        return foreign(Path(adapter), other)
    path = find(name)
    this = recipe.folder(path)
    if not this.adapter.exists():
        raise BadInput(f"{this.adapter}: no adapter; make train RECIPE={name} makes it")
    asrun = recipe.load(path)
    trained = this.provenance()["train"]["inputs"]
    hashes = {key: trained[key] for key in ("recipe", "data", "base")} | {"adapter": files.sha256(this.adapter)}
    called, source = other or asrun["base_model"], base_folder(path, other)
    length, words = int(asrun["sequence_len"]), system(run.ROOT / recipe.load(this.recipe)["datasets"][0]["path"])
    return Tuned(this, path.stem, name_of(path), this.adapter, source, called, hashes, length, words)


def foreign(folder: Path, other: str) -> Tuned:
    """An adapter that no recipe of ours trained, in outputs/adapters/<its folder's name>. Raises as `tuned`."""
    from tools import lora, ollama, train

    name = quote.plain_name(folder.resolve().name, "an adapter")
    config = lora.check(folder)
    called = other or str(config.get("base_model_name_or_path") or "")
    if not called:
        raise BadInput(f"{folder}: adapter_config.json names no base; --base (BASE=) says which")
    source = find_base.resolve(called)
    hashes = {"adapter": files.sha256(folder), "base": train.folder_hash(source)}
    path = source / "config.json"
    longest = hf_folder.text_settings(files.read_object(path)).get("max_position_embeddings", CONTEXT)
    if type(longest) is not int or longest < 1:
        raise hf_folder.wrong(path, "max_position_embeddings", longest, "a number of tokens")
    this, served = Run(run.outputs() / "adapters" / name), ollama.PREFIX + re.sub(r"[^\w.-]", "-", name)
    return Tuned(this, name, served, folder, source, called, hashes, min(longest, CONTEXT))


def gguf(name: str, other: str, quants: str, adapter: str = "", guided: bool = False) -> None:
    """Make the GGUF of the tuned model and, to compare with, of its base, in each of `quants` ("Q4_K_M Q8_0").

    `guided`: quantised by an importance matrix of the training conversations.
    """
    from tools import gguf

    wanted = list(dict.fromkeys(gguf.check_quant(each) for each in quants.split()))
    model = tuned(name, other, adapter)
    inputs = {key: model.hashes.get(key, "") for key in ("adapter", "base", *(["data"] if guided else []))}
    before = f16_files(model.run)
    with model.run.held("gguf"):
        make_ggufs(model, inputs, wanted, guided)
    if "F16" not in wanted:
        tell_f16(model.run, before)


def make_ggufs(model: Tuned, inputs: dict[str, Any], wanted: Sequence[str], guided: bool) -> None:
    """Make what is missing of the GGUFs of `gguf`."""
    from tools import gguf, imatrix

    missing = []
    for quant in wanted:
        pair = [model.run.gguf(quant, who) for who in ("tuned", "base")]
        if model.run.done(f"gguf-{quant.lower()}", inputs) and all(file.exists() for file in pair):
            print(f"{pair[0]}: already made of this adapter")
        else:
            missing.append(quant)
    if len([quant for quant in missing if quant not in gguf.UNQUANTISED]) > (not guided) and "F16" not in missing:
        missing.insert(0, "F16")  # one pass over the weights, for all of them
    for quant in sorted(missing, key=lambda quant: quant != "F16"):
        with model.run.stage(f"gguf-{quant.lower()}", inputs):
            for who, folder in (("tuned", model.adapter), ("base", None)):
                file, f16 = model.run.gguf(quant, who), model.run.gguf("F16", who)
                guide = imatrix.of_run(model.run, who) if guided and quant not in gguf.UNQUANTISED else None
                gguf.build(model.base, folder, file, quant, model.metadata, f16, guide)


def f16_files(this: Run) -> list[Path]:
    """The F16 GGUFs of a run that are there, of the tuned model and of the base."""
    return [file for file in (this.gguf("F16", who) for who in ("tuned", "base")) if file.exists()]


def tell_f16(this: Run, before: Sequence[Path]) -> None:
    """Say which F16 GGUFs were made on the way to something else, and stay; those there `before` are no news."""
    if made := [file for file in f16_files(this) if file not in before]:
        names, size = " and ".join(file.name for file in made), sum(file.stat().st_size for file in made) / 1e6
        stay = f"{'stay' if len(made) > 1 else 'stays'} for the next quantisation: {size:,.0f} MB"
        print(f"{names} {stay}; remove {'them' if len(made) > 1 else 'it'} if the disk is short", file=sys.stderr)


def name_of(path: Path) -> str:
    """A recipe's model in Ollama, where NAME= says nothing else: react-smollm2 for smollm2-135m-lora."""
    from tools import ollama

    return f"{ollama.PREFIX}{path.stem.split('-')[0]}"


def system(data: Path = TEST_DATA) -> str | None:
    """The system prompt of a file of episodes, by its first one; None where it has none. Games use the test set's."""
    from tools import trajectory

    first = next(trajectory.read(data))["messages"][0]
    return str(first["content"]) if first["role"] == "system" else None


def test_set() -> Iterator[dict[str, Any]]:
    """The committed test conversations."""
    from tools import trajectory

    return trajectory.read(TEST_DATA)


def evaluate(name: str, other: str, quant: str, rooms: int, called: str) -> None:
    """Let the base and the tuned model play the same unseen rooms; print the table."""
    from rich.console import Console

    from tools import evaluate, report, serve
    from tools.household import episodes

    model, quant = tuned(name, other), quant.upper()
    this, drawn, words = model.run, list(episodes.unseen_rooms(rooms)), str(system())
    with this.held("eval"):
        for who in ("base", "tuned"):
            stage, file = f"eval-{who}-{quant.lower()}", this.evaluation(f"{who}-{quant.lower()}")
            wanted = serve.spec(model, quant, who, called)
            inputs = serve.proof_inputs(wanted) | {
                "rooms": files.sha256_of("".join(each.introduction for each in drawn).encode())
            }
            if this.done(stage, inputs) and file.exists():
                print(f"{file}: already played")
                continue
            with this.stage(stage, inputs), serve.player(model, quant, who, called) as chat:
                start = time.monotonic()
                games = evaluate.play_all(chat, drawn, words, title=f"{who} {quant}")
                summary = evaluate.summary(games, time.monotonic() - start)
                turns = [{"role": "system", "content": words}, {"role": "user", "content": CLASSIC}]
                with progress.step(f"{who} {quant}: one more answer, to the first prompt that people try"):
                    classic = {"prompt": CLASSIC, "answer": chat(turns).text}
                written = {"player": who, "quant": quant, "summary": summary, "classic": classic}
                files.write_json(file, written | {"games": [evaluate.as_json(game) for game in games]})
    Console().print(report.table(evaluations(this)))


def evaluations(this: Run) -> list[dict[str, Any]]:
    """All games of a run: the base first, then by quantisation."""
    return [orjson.loads(item.read_bytes()) for item in sorted(this.folder.glob("eval-*.json"))]


def demo(name: str, quant: str, called: str) -> None:
    """Write demo.json; print the table, a won game, the classic prompt's answer and what comes next."""
    from rich.console import Console

    from tools import ollama as server
    from tools import report

    path = find(name)
    this = recipe.folder(path)
    played = evaluations(this)
    tuned = next((each for each in played if (each["player"], each["quant"]) == ("tuned", quant.upper())), None)
    if tuned is None:
        raise BadInput(f"{this.folder}: no games of {quant}; make eval RECIPE={name} QUANT={quant} plays them")
    files.write_json(this.folder / "demo.json", report.demo(this, played, quant.upper()))
    console = Console()
    won = next((game for game in tuned["games"] if game["won"]), None)
    if won:
        console.print(report.transcript(won))
    answer = quote.visible(tuned["classic"]["answer"], keep="\n")
    print(f"\nThe classic first prompt:\n{CLASSIC}\n\n{answer}\n")
    console.print(report.table(played))
    print(report.closing(this, called or name_of(path), own=server.users_own() is None))
