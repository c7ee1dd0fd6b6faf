"""Recipes on a real GPU, against the planner: memory, speed, packing. No model hub is needed.

    python bench/gpu.py                      # every case, most telling first; a table last
    python bench/gpu.py --only 7b-lora,7b-lora-packed
    python bench/gpu.py --seconds 500        # no case is begun that would end later
    python bench/gpu.py --tiny               # every case but DeepSpeed's on the CPU, with models of two small layers;
                                             # its results go to outputs/gpu-tiny

A case is a recipe of recipes/80gb through our own training for some updates. The weights are random, in the model's
real shape; the tokenizer is Qwen2.5's own vocabulary; the data are the shipped episodes. The first three cases are
about what may happen to a training: memory runs out, it is killed, its weights and optimizer are offloaded.

The case `demo` trains as `make demo` does on a GPU, for minutes, from SmolLM2's own weights (in REACT_RECIPES_CACHE, or
from the package that brings them). It writes adapter/, recipe.yaml and losses.json into the folder demo of --out. On
any machine this proves, serves and plays it:

    make eval ADAPTER=bench/results/demo/adapter BASE=smollm2-135m
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import orjson  # noqa: E402
import psutil  # noqa: E402

from bench.shapes import config  # noqa: E402
from tools import BadInput, Failed  # noqa: E402
from tools.core import catalog, files, machine, run_folder, trajectory  # noqa: E402
from tools.core.catalog import Model, Tier  # noqa: E402
from tools.core.preference import Pair  # noqa: E402
from tools.gguf import find_base  # noqa: E402
from tools.pipeline import demo  # noqa: E402
from tools.recipes import memory, plan  # noqa: E402
from tools.recipes import recipe as recipes  # noqa: E402
from tools.recipes.recipe import Recipe, read_recipe  # noqa: E402
from tools.training import run_axolotl  # noqa: E402
from tools.training.tokens import IGNORED  # noqa: E402

RECIPES = recipes.RECIPES / "80gb"
# A training of some updates: nothing is validated or saved on the way.
SHORT = {
    "val_set_size": 0,
    "evals_per_epoch": None,
    "load_best_model_at_end": False,
    "saves_per_epoch": None,
    "save_strategy": "no",
    "num_epochs": 20,
}
PACKED = {"sample_packing": True}
UNPACKED: dict[str, Any] = {"sample_packing": False, "pad_to_sequence_len": None, "eval_sample_packing": None}
UNPACKED |= {"micro_batch_size": 8, "gradient_accumulation_steps": 2}
RECOMPUTED = {"gradient_checkpointing": True}
NO_KERNELS = dict.fromkeys(catalog.training().lora_kernels, False)
LIGER = ("liger_rope", "liger_rms_norm", "liger_fused_linear_cross_entropy", "liger_glu_activation")
NO_LIGER: dict[str, Any] = {"plugins": []} | dict.fromkeys(LIGER)
# What a CPU needs in place of a GPU's kernels, and the shape of a model that it trains in seconds.
ON_CPU = NO_KERNELS | NO_LIGER | {"bf16": False, "tf32": False, "optimizer": "adamw_torch", "sequence_len": 1024}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
# Updates between two checkpoints of a training that is killed.
SAVED = 3
# Preference pairs that are made: 5 updates of 8.
PAIRS = 40
# How many times the GPU's memory a training takes, by prediction, that is to run out of it.
TOO_MUCH = 1.5
# What a training may allocate on a CPU, in GiB, that is to run out of memory, and the micro batch with which it does.
TINY_GIB, TINY_BATCH = 6, 8
NOTES = """Error: predicted / the driver's - 1, of full rows (packed, or pairs), which are what is predicted.
Slots: tokens of the batches, padding included; filled: the share of them that is no padding; tokens: of the data,
measured and predicted.
Attention is PyTorch's (sdpa), since FlashAttention 2, which the recipes name, was not on that machine. It takes more:
it repeats the keys and values of each group of heads, and without FlashAttention 2 Axolotl 0.19 leaves embeddings and
norms in 32 bits when every weight is trained (loaders/model.py), and with them what flows between the layers.
The planner counts all of this since the rows of full training and 7b-qlora-packed were measured; before, it was 14 to
20 % too low. Since then it also knows that no pass is faster than the processor launches it: that explains 0.5b-full,
not 1.5b-full. That 0.5b-full-packed has 60 % of the predicted speed is not explained either; 1.5B packed has 88 %, 7B
all of it. The case demo was cut at its time limit, after 684 of 912 updates of 12,288 tokens: 0.31 to 0.41 seconds
each, as launching takes them (28,000 to 39,000 tokens a second, where 213,000 were predicted), 7.6 GiB (7.7 predicted),
a loss of 0.003 from update 336 on.
Two updates are left out of the speed, for warming up."""
# Steps before the clock starts: Triton compiles its kernels, cuBLAS picks its own.
WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """One training: a recipe of the 80 GB tier, what is changed in it, and how many updates it makes.

    `way`: what is done with it, one of Bench.ways.
    """

    name: str
    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)
    steps: int = 6
    way: str = "measure"


def cases() -> list[Case]:
    """Every case, the most telling first: a run that is cut short still says most."""
    seven, small = "qwen7b-lora", "qwen0.5b-full"
    batch = {"micro_batch_size": 2, "gradient_accumulation_steps": 8}
    long = {"sequence_len": 8192, "micro_batch_size": 1, "gradient_accumulation_steps": 4}
    saved = {"save_strategy": "steps", "save_steps": SAVED, "save_total_limit": 9}
    return [
        Case("out-of-memory", small, PACKED, steps=4, way="out_of_memory"),
        Case("killed", "qwen0.5b-lora", PACKED | saved, steps=3 * SAVED, way="killed"),
        Case("0.5b-full-zero3-offload", small, PACKED | {"deepspeed": "zero3_offload_all.json"}, steps=4),
        Case("0.5b-full-packed", small, PACKED, steps=8),
        Case("0.5b-full", small, UNPACKED, steps=8),
        Case("7b-lora-packed", seven, PACKED, steps=5),
        Case("7b-qlora-packed", "qwen7b-qlora", PACKED, steps=4),
        Case("1.5b-full-packed", "qwen1.5b-full", PACKED),
        Case("1.5b-full", "qwen1.5b-full", UNPACKED),
        Case("7b-lora", seven, UNPACKED, steps=5),
        Case("7b-lora-packed-recomputed", seven, PACKED | RECOMPUTED, steps=4),
        Case("7b-lora-packed-no-kernels", seven, PACKED | NO_KERNELS | batch, steps=4),
        Case("7b-qlora-packed-recomputed", "qwen7b-qlora", PACKED | RECOMPUTED, steps=4),
        Case("3b-lora-packed", "qwen3b-lora", PACKED, steps=5),
        Case("7b-lora-8bit-base", seven, PACKED | NO_KERNELS | batch | {"load_in_8bit": True}, steps=4),
        Case("7b-lora-packed-no-liger", seven, PACKED | NO_LIGER | batch, steps=4),
        Case("0.5b-full-packed-recomputed", small, PACKED | RECOMPUTED, steps=8),
        Case("7b-lora-8192", seven, PACKED | RECOMPUTED | long, steps=4),
        Case("7b-full-packed", "qwen7b-full", PACKED, steps=4),
        Case("0.5b-full-packed-8bit-states", small, PACKED | {"optimizer": "adamw_8bit"}, steps=8),
        Case("7b-qlora", "qwen7b-qlora", UNPACKED, steps=4),
        Case("0.5b-full-packed-flex", small, PACKED | {"attn_implementation": "flex_attention"}, steps=8),
        Case("0.5b-dpo", "qwen0.5b-dpo", steps=5, way="pairs"),
        Case("demo", "smollm2-135m-lora", way="demo"),
    ]


class Bench:
    """A work folder with data and bases, the tier of this machine's GPU, and what each case needs of them."""

    def __init__(self, folder: Path, out: Path, tiny: bool) -> None:
        self.folder, self.out, self.tiny = folder, out, tiny
        self.tier = catalog.tiers()["cpu"] if tiny else this_gpu()
        self.makers = ThreadPoolExecutor(1)  # The next base is made while this one trains.
        self.bases: dict[str, Future[Path]] = {}
        self.data = folder / "train.jsonl"
        self.data.write_bytes((ROOT / "data" / "train.jsonl").read_bytes() * (1 if tiny else 2))
        self.ways = {each.__name__: each for each in (self.measure, self.pairs, self.out_of_memory, self.killed)}
        self.ways["demo"] = self.demo

    def prepare(self, case: Case) -> None:
        """Have the base of a case made, after those that are asked for before it."""
        model = model_of(case)
        if model.key in self.bases:
            return
        if case.way == "demo":
            self.bases[model.key] = self.makers.submit(find_base.resolve, model.hub)
        else:
            self.bases[model.key] = self.makers.submit(make_base, model, self.folder / "bases", self.tiny)

    def run(self, case: Case) -> dict[str, Any]:
        """Train a case; what was predicted and what was measured, or why it failed."""
        row: dict[str, Any] = {
            "case": case.name,
            "recipe": f"80gb/{case.recipe}",
            "changes": {key: value for key, value in case.changes.items() if value is not None},
        }
        began = time.monotonic()
        with Driver() as driver:
            try:
                self.ways[case.way](case, self.bases[model_of(case).key].result(), row)
            except Failed as error:
                row["failed"] = str(error)[:1000]
        return row | {"driver_gib": round(driver.peak, 2), "seconds": round(time.monotonic() - began, 1)}

    def recipe(self, case: Case, name: str = "", **more: Any) -> Recipe:
        """The recipe of a case under its own name or another, as this machine can train it; `more`: further changes."""
        path = self.folder / "cases" / f"{name or case.name}.yaml"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(RECIPES / f"{case.recipe}.yaml", path)
        changes = SHORT | {"attn_implementation": "sdpa"} | case.changes | {"max_steps": case.steps}
        data = self.data.with_name("pairs.jsonl") if case.way == "pairs" else self.data
        changes["datasets"] = [{**read_recipe(path).dataset, "path": str(data)}]
        if self.tiny:
            changes |= ON_CPU | {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
            changes |= {"max_steps": case.steps if case.way == "killed" else WARM_UP + 1}
            changes |= {"load_in_8bit": None, "load_in_4bit": None}
            # The loss of a pair has all logits of its two sequences at once.
            changes |= {"sequence_len": 512} if case.way == "pairs" else {}
            changes |= {"adapter": "lora"} if case.recipe.endswith("lora") else {}
        if "deepspeed" in changes:
            changes |= {"deepspeed": str(self.deepspeed(changes["deepspeed"])), "bf16": True}
        return read_recipe(path, self.tier, changes=changes | more)

    def deepspeed(self, name: str) -> Path:
        """A file of recipes/deepspeed for this machine: without nvcc DeepSpeed cannot build its Adam for the CPU."""
        settings = files.read_object(ROOT / "recipes" / "deepspeed" / name)
        path = self.folder / name
        if shutil.which("nvcc") is None:
            settings["zero_force_ds_cpu_optimizer"] = False
        files.write_json(path, settings)
        return path

    def measure(self, case: Case, base: Path, row: dict[str, Any]) -> None:
        """Train some updates: memory, speed and loss, beside what is predicted."""
        recipe = self.recipe(case)
        predicted = plan.of(model_of(case), self.tier, plan.from_recipe(recipe.settings, self.tier))
        row |= {
            "attention": recipe.settings["attn_implementation"],
            "micro_batch": recipe.settings["micro_batch_size"],
            "predicted_gib": round(predicted.total, 2),
            "parts_gib": {part: round(value, 2) for part, value in predicted.parts.items()},
            "predicted_tokens_per_second": round(predicted.tokens_per_second),
        }
        row |= measured(train(recipe, base))
        shutil.rmtree(recipe.run.folder, ignore_errors=True)

    def pairs(self, case: Case, base: Path, row: dict[str, Any]) -> None:
        """Train on preference pairs of the shipped episodes, as long as a row may be; see `measure`."""
        length = self.recipe(case).settings["sequence_len"]
        made = itertools.islice(pairs(trajectory.read(self.data), base, length), PAIRS)
        self.data.with_name("pairs.jsonl").write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in made))
        self.measure(case, base, row)

    def out_of_memory(self, case: Case, base: Path, row: dict[str, Any]) -> None:
        """Train with too large a micro batch, then with the first change that the failed training advises.

        A GPU's memory is its own limit; on a CPU the process may allocate TINY_GIB.
        """
        size = TINY_BATCH
        if not self.tiny:
            sizes = (self.planned(case, micro_batch_size=size) for size in range(1, 1000))
            size = next(each.settings.micro_batch for each in sizes if each.total > TOO_MUCH * self.tier.usable_gib)
        large: dict[str, Any] = {"micro_batch_size": size, "gradient_accumulation_steps": 1}
        with limited(TINY_GIB) if self.tiny else contextlib.nullcontext():
            try:
                train(self.recipe(case, **large), base)
            except Failed as error:
                said = str(error).partition(" (the whole log")[0]
            else:
                raise Failed(f"a micro batch of {size} did not run out of memory")
            words = said.partition("To change first: ")[2].partition(" wins ")[0]
            advice = next((each for each in plan.advice(self.planned(case, **large)) if each.words == words), None)
            if advice is None:
                raise Failed(f"no advice in: {said}")
            found = measured(train(self.recipe(case, f"{case.name}-advised", **large | dict(advice.keys)), base))
        took = f", {found['allocated_gib']:.1f} GiB allocated" if found["allocated_gib"] else ""
        row |= found | {"said": said, "advice": dict(advice.keys)}
        row["outcome"] = f"micro batch {size} ran out of memory; with the first advice, {words}, it trained{took}"

    def planned(self, case: Case, **more: Any) -> plan.Plan:
        """The plan of a case with further changes."""
        return plan.of(model_of(case), self.tier, plan.from_recipe(self.recipe(case, **more).settings, self.tier))

    def killed(self, case: Case, base: Path, row: dict[str, Any]) -> None:
        """Train unbroken; then the same again, killed after its first checkpoint and run a second time."""
        whole = losses(train(self.recipe(case, f"{case.name}-not"), base))
        recipe = self.recipe(case)
        child = multiprocessing.get_context("spawn").Process(target=train, args=(recipe, base))
        child.start()
        while child.is_alive() and not run_axolotl.checkpoints(recipe.run):
            time.sleep(0.02)
        started = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        child.join()
        psutil.wait_procs(started, timeout=60)
        if not (saved := run_axolotl.checkpoints(recipe.run)) or recipe.run.adapter.exists():
            raise Failed("it ended before it could be killed after a checkpoint")
        again = losses(train(recipe, base))
        if again.keys() != whole.keys():
            raise Failed(f"updates {[*again]} in place of {[*whole]}")
        worst = max(abs(again[step] - whole[step]) for step in whole)
        row |= {"unbroken": whole, "resumed": again, "largest_difference": worst}
        row["outcome"] = (
            f"killed after {saved[-1].name}, {len(whole)} updates in all: losses differ by at most {worst:.1e}"
        )

    def demo(self, case: Case, base: Path, row: dict[str, Any]) -> None:
        """Train as `make demo` does on a GPU; write what the model can be served from under `out`."""
        recipe = demo.on_gpu(recipes.open_recipe(case.recipe, "80gb" if self.tiny else ""))
        if self.tiny:
            cut = {"max_steps": WARM_UP + 1, "micro_batch_size": 1, "sequence_len": 2048, "save_strategy": "steps"}
            changes = {**recipe.changes, **SHORT, **ON_CPU, **UNPACKED, **cut}
            recipe = read_recipe(recipe.path, self.tier, changes=changes)
        this = train(recipe, base)
        row |= measured(this) | {"epochs": recipe.settings["num_epochs"], "losses": losses(this)}
        with files.atomic(self.out / "demo") as partial:
            shutil.copytree(this.adapter, partial / "adapter")
            shutil.copyfile(this.recipe, partial / "recipe.yaml")
            files.write_json(partial / "losses.json", row.pop("losses"))
        made = f"{demo.facts().episodes:,} episodes, {row['epochs']} epochs, {row['steps']} updates"
        row["outcome"] = (
            f"{made}: loss {row['first_loss']} to {row['last_loss']}, {row['tokens_per_second']:,} tokens/s"
        )


def train(recipe: Recipe, base: Path) -> run_folder.Run:
    """Train a recipe in one process, whatever an earlier run left; the folder of its run."""
    return run_axolotl.train(recipe, base, run_axolotl.Launch(gpus=1), force=True)


@contextlib.contextmanager
def limited(gib: float) -> Iterator[None]:
    """While it lasts, programs that are started may allocate so much: a larger request fails, and none is killed."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def model_of(case: Case) -> Model:
    """The catalog's model of a case's recipe."""
    model = catalog.model_of(read_recipe(RECIPES / f"{case.recipe}.yaml").settings["base_model"])
    assert model
    return model


def this_gpu() -> Tier:
    """The tier of the one GPU that is here. Raises SystemExit where there is none that the catalog knows."""
    here = machine.devices()
    if not here:
        raise SystemExit("no GPU here; --tiny tries every case on the CPU")
    try:
        return plan.for_gpu(catalog.gpu_of(here[0].name))
    except BadInput as error:
        raise SystemExit(f"{error}; catalog/gpus.yaml lists those that are known") from error


def make_base(model: Model, folder: Path, tiny: bool) -> Path:
    """A base of a model's real shape with random weights in bfloat16 and its tokenizer, under its own name.

    The weights repeat a block of 16 million normal values: drawing billions takes minutes.
    """
    import torch
    import transformers

    from tests.parts import models

    place = folder / model.hub.split("/")[-1]
    tokenizer = models.make_tokenizer("qwen2", place)
    shape = config(
        model,
        **(TINY if tiny else {}),
        max_position_embeddings=model.context,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        net = transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    net = net.to_empty(device="cpu")
    net.tie_weights()
    block = (torch.randn(2**24, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            flat = weight.view(-1)
            for start in range(0, len(flat), len(block)):
                part = flat[start : start + len(block)]
                part.copy_(block[: len(part)])
    net.save_pretrained(place)
    return place


def pairs(episodes: Iterable[trajectory.Episode], base: Path, length: int) -> Iterator[Pair]:
    """Preference pairs of nearly `length` tokens: turns of one episode after the other, then two answers.

    The answer that was given is chosen, one that does nothing is rejected.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    idle = {"role": "assistant", "content": "Thought: I look around once more.\nAction: look"}
    said: list[dict[str, str]] = []
    for turn in (turn for episode in episodes for turn in episode["messages"]):
        # A prompt begins with the first system turn, or the user's, and has no other.
        if (turn["role"] == "system" and said) or (turn["role"] == "assistant" and len(said) < 2):
            continue
        turns = [*said, {"role": turn["role"], "content": turn["content"]}]
        if len(tokenizer.apply_chat_template(turns, return_dict=False)) <= length:
            said = turns
            continue
        end = max(number for number, each in enumerate(said) if each["role"] == "assistant")
        yield {"prompt": said[:end], "chosen": [said[end]], "rejected": [idle]}
        said = said[:1]


class Driver:
    """While it lasts, watches what the driver says is taken on the first GPU, beyond what was at its begin."""

    peak = 0.0

    def __enter__(self) -> "Driver":
        """Begin to watch; without a GPU there is nothing to see."""
        self.done = threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no longer."""
        self.done.set()
        self.watcher.join()

    def watch(self) -> None:
        """Look ten times a second."""
        if not machine.devices():
            return
        import pynvml

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        before = pynvml.nvmlDeviceGetMemoryInfo(device).used
        while not self.done.wait(0.1):
            self.peak = max(self.peak, (pynvml.nvmlDeviceGetMemoryInfo(device).used - before) / memory.GIB)


def losses(this: run_folder.Run) -> dict[str, float]:
    """The loss of each update, by its number, as the last checkpoint has them: of a resumed training all of them."""
    state = files.read_object(run_axolotl.checkpoints(this)[-1] / "trainer_state.json")
    return {str(entry["step"]): entry["loss"] for entry in state["log_history"] if "loss" in entry}


def measured(this: run_folder.Run) -> dict[str, Any]:
    """What Axolotl wrote of a training: GiB at its peak, the loss, and tokens a second after the first steps.

    allocated and reserved: torch's own counts. tokens: those of the data, counted by the trained ones, whose share of
    the data is known; slots: padding included. Of preference pairs TRL counts the tokens, and there are no slots.
    """
    from datasets import load_from_disk
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(this.checkpoints.rglob("events.out.tfevents*")).parent), {"scalars": 0})
    events.Reload()

    def values(name: str) -> list[float]:
        tag = f"train/{name}"
        return [each.value for each in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []

    losses = events.Scalars("train/loss")
    seconds = losses[-1].wall_time - losses[WARM_UP - 1].wall_time
    slots: dict[str, float] = {}
    if read := values("num_tokens"):
        real = read[-1] - read[WARM_UP - 1]
    else:
        trained, total = values("tokens/trainable"), values("tokens/total")
        rows = load_from_disk(str(next((this.checkpoints / "prepared").glob("*/dataset_info.json")).parent))
        tokens = sum(len(ids) for ids in rows["input_ids"])
        share = sum(label != IGNORED for labels in rows["labels"] for label in labels) / tokens
        real, all_slots = (trained[-1] - trained[WARM_UP - 1]) / share, total[-1] - total[WARM_UP - 1]
        slots = {"slots_per_second": round(all_slots / seconds), "filled": round(real / all_slots, 3)}
    return {
        "steps": len(losses),
        "first_loss": round(losses[0].value, 4),
        "last_loss": round(losses[-1].value, 4),
        "allocated_gib": max(values("memory/max_allocated (GiB)"), default=0.0),
        "reserved_gib": this.provenance()["train"].get("device_gib") or 0.0,
        "tokens_per_second": round(real / seconds),
        **slots,
        "step_seconds": round(seconds / (len(losses) - WARM_UP), 3),
    }


def as_json(rows: list[dict[str, Any]], versions: dict[str, str]) -> dict[str, Any]:
    """What bench/results/gpu.json holds."""
    heads = (
        "case",
        "predicted GiB",
        "allocated",
        "reserved",
        "driver's",
        "error",
        "slots/s",
        "filled",
        "tokens/s",
        "predicted",
    )
    return {
        "title": "Recipes on a GPU",
        "command": "python bench/gpu.py",
        "versions": versions,
        "table": [
            *[f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"],
            *(table_row(row) for row in rows if "predicted_gib" in row),
            *outcomes([row for row in rows if "predicted_gib" not in row]),
        ],
        "notes": f"{NOTES}\n{not_run({row['case'] for row in rows if 'failed' not in row})}".strip(),
        "rows": rows,
    }


def not_run(done: set[str]) -> str:
    """The cases beside those that are done, in a sentence, in lines of up to 118 letters; empty where all are."""
    left = [each.name for each in cases() if each.name not in done]
    said = f"Not run on a GPU yet, or not to the end: {', '.join(left)}. `--tiny` tries each of them on the CPU."
    return textwrap.fill(said, 118, break_on_hyphens=False) if left else ""


def outcomes(rows: list[dict[str, Any]]) -> list[str]:
    """A second table: what came out of the cases for which nothing is predicted; none without such cases."""
    told = (row.get("outcome") or f"failed: {row['failed']}" for row in rows)
    lines = [f"| {row['case']} | {each} | {row['seconds']:.0f} |" for row, each in zip(rows, told, strict=True)]
    return ["", "| case | what came out | seconds |", "|---|---|---|", *lines] if lines else []


def table_row(row: dict[str, Any]) -> str:
    """A row of the table. The error is left out where rows are not full, for which nothing is predicted."""
    if "failed" in row:
        cells = [f"{row['predicted_gib']:.1f}", "", "", f"{row['driver_gib']:.1f}", row["failed"].split(":")[0]]
        return f"| {row['case']} | {' | '.join(cells)} |" + " |" * 4
    sizes = ("predicted_gib", "allocated_gib", "reserved_gib", "driver_gib")
    cells = [f"{row[key]:.1f}" if row[key] else "" for key in sizes]
    full = row["driver_gib"] and (row["changes"].get("sample_packing") or "slots_per_second" not in row)
    cells += [f"{row['predicted_gib'] / row['driver_gib'] - 1:+.1%}" if full else ""]
    cells += [f"{row['slots_per_second']:,}", f"{row['filled']:.0%}"] if "filled" in row else ["", ""]
    cells += [f"{row[key]:,}" for key in ("tokens_per_second", "predicted_tokens_per_second")]
    return f"| {row['case']} | {' | '.join(cells)} |"


def versions() -> dict[str, str]:
    """The card and the libraries that trained."""
    names = ("torch", "axolotl", "transformers", "peft", "bitsandbytes", "liger-kernel")
    return {"card": machine.gpu() or "CPU"} | {name: version(name) for name in names}


def kept(results: Path) -> dict[str, dict[str, Any]]:
    """The cases, by name, that the same card and versions ran before."""
    before = files.read_object(results) if results.exists() else {}
    same = before.get("versions") == versions()
    return {row["case"]: row for row in before["rows"]} if same else {}


def main() -> None:
    """Run the cases; a JSON line after each, the table last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of cases, with commas between")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after so long")
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU")
    parser.add_argument("--out", type=Path, help="folder of gpu.json and logs; by default bench/results")
    parser.add_argument("--work", default="/dev/shm", help="folder for weights: memory, where there is enough")
    given = parser.parse_args()
    out = given.out or (run_folder.outputs() / "gpu-tiny" if given.tiny else ROOT / "bench" / "results")
    began = time.monotonic()
    wanted = given.only.split(",") if given.only else []
    chosen = [each for each in cases() if not wanted or each.name in wanted]
    rows = kept(out / "gpu.json")
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=given.work, ignore_cleanup_errors=True) as folder:
        os.environ["REACT_RECIPES_OUTPUTS"] = str(Path(folder) / "outputs")
        bench = Bench(Path(folder), out, given.tiny)
        for case in chosen:
            bench.prepare(case)
        for case in chosen:
            if time.monotonic() - began > given.seconds:
                print(f"no time left for {case.name}", flush=True)
                continue
            rows[case.name] = bench.run(case)
            print(orjson.dumps(rows[case.name]).decode(), flush=True)
            files.write_json(out / "gpu.json", as_json(list(rows.values()), versions()))
    print("\n".join(as_json(list(rows.values()), versions())["table"]))


if __name__ == "__main__":
    main()
