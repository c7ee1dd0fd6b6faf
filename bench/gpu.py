"""Recipes on a real GPU, against the planner: memory, speed, packing. No model hub is needed.

    python bench/gpu.py                      # every case, most telling first; a table last
    python bench/gpu.py --only 7b-lora,7b-lora-packed
    python bench/gpu.py --seconds 500        # no case is begun that would end later
    python bench/gpu.py --tiny               # every case on the CPU, with models of two small layers

A case is a recipe of recipes/80gb through our own training for some updates. The weights are random, in the model's
real shape; the tokenizer is Qwen2.5's own vocabulary; the data are the shipped episodes.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import orjson  # noqa: E402

from bench.shapes import config  # noqa: E402
from tools import BadInput, Failed  # noqa: E402
from tools.core import catalog, files, machine, run_folder  # noqa: E402
from tools.core.catalog import Model, Tier  # noqa: E402
from tools.recipes import memory, plan  # noqa: E402
from tools.recipes import recipe as recipes  # noqa: E402
from tools.recipes.recipe import read_recipe  # noqa: E402
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
NOTES = """Error: predicted / the driver's - 1, where rows are full (packed): what is predicted is for full rows.
Slots: tokens of the batches, padding included; filled: the share of them that is no padding; tokens: of the data,
measured and predicted.
Attention is PyTorch's (sdpa), since FlashAttention 2, which the recipes name, was not on that machine. It takes more:
it repeats the keys and values of each group of heads, and without FlashAttention 2 Axolotl 0.19 leaves embeddings and
norms in 32 bits when every weight is trained (loaders/model.py), and with them what flows between the layers.
The planner counts all of this since these rows were measured; before, it was 14 to 20 % too low, and let
7b-lora-packed, with the micro batch of 8 that its recipe had, run out of memory.
Not run yet: the other cases of `python bench/gpu.py`. Two updates are left out of the speed, for warming up."""
# Steps before the clock starts: Triton compiles its kernels, cuBLAS picks its own.
WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """One training: a recipe of the 80 GB tier, what is changed in it, and how many updates it makes."""

    name: str
    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)
    steps: int = 6


def cases() -> list[Case]:
    """Every case, the most telling first: a run that is cut short still says most."""
    seven, small = "qwen7b-lora", "qwen0.5b-full"
    batch = {"micro_batch_size": 2, "gradient_accumulation_steps": 8}
    long = {"sequence_len": 8192, "micro_batch_size": 1, "gradient_accumulation_steps": 4}
    return [
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
    ]


class Bench:
    """A work folder with data and bases, the tier of this machine's GPU, and what each case needs of them."""

    def __init__(self, folder: Path, tiny: bool) -> None:
        self.folder, self.tiny = folder, tiny
        self.tier = catalog.tiers()["cpu"] if tiny else this_gpu()
        self.makers = ThreadPoolExecutor(1)  # The next base is made while this one trains.
        self.bases: dict[str, Future[Path]] = {}
        self.data = folder / "train.jsonl"
        self.data.write_bytes((ROOT / "data" / "train.jsonl").read_bytes() * (1 if tiny else 2))

    def prepare(self, case: Case) -> None:
        """Have the base of a case made, after those that are asked for before it."""
        model = model_of(case)
        if model.key not in self.bases:
            self.bases[model.key] = self.makers.submit(make_base, model, self.folder / "bases", self.tiny)

    def run(self, case: Case) -> dict[str, Any]:
        """Train a case; what was predicted and what was measured, or why it failed."""
        base = self.bases[model_of(case).key].result()
        path = self.folder / "cases" / f"{case.name}.yaml"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(RECIPES / f"{case.recipe}.yaml", path)
        changes = SHORT | {"attn_implementation": "sdpa"} | case.changes | {"max_steps": case.steps}
        changes["datasets"] = [{**read_recipe(path).dataset, "path": str(self.data)}]
        if self.tiny:
            changes |= ON_CPU | {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
            changes |= {"max_steps": WARM_UP + 1, "load_in_8bit": None, "load_in_4bit": None}
            changes |= {"adapter": "lora"} if case.recipe.endswith("lora") else {}
        recipe = read_recipe(path, self.tier, changes=changes)
        predicted = plan.of(model_of(case), self.tier, plan.from_recipe(recipe.settings, self.tier))
        row: dict[str, Any] = {
            "case": case.name,
            "recipe": f"80gb/{case.recipe}",
            "changes": {key: value for key, value in case.changes.items() if value is not None},
            "attention": recipe.settings["attn_implementation"],
            "micro_batch": recipe.settings["micro_batch_size"],
            "predicted_gib": round(predicted.total, 2),
            "parts_gib": {part: round(value, 2) for part, value in predicted.parts.items()},
            "predicted_tokens_per_second": round(predicted.tokens_per_second),
        }
        began = time.monotonic()
        with Driver() as driver:
            try:
                row |= measured(run_axolotl.train(recipe, base, run_axolotl.Launch(gpus=1), force=True))
            except Failed as error:
                row["failed"] = str(error)[:1000]
        row |= {"driver_gib": round(driver.peak, 2), "seconds": round(time.monotonic() - began, 1)}
        shutil.rmtree(recipe.run.folder, ignore_errors=True)
        return row


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


def measured(this: run_folder.Run) -> dict[str, Any]:
    """What Axolotl wrote of a training: GiB at its peak, the loss, and tokens a second after the first steps.

    allocated and reserved: torch's own counts. tokens: those of the data, counted by the trained ones, whose share of
    the data is known; slots: padding included.
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
    trained, slots = values("tokens/trainable"), values("tokens/total")
    rows = load_from_disk(str(next((this.checkpoints / "prepared").glob("*/dataset_info.json")).parent))
    tokens = sum(len(ids) for ids in rows["input_ids"])
    share = sum(label != IGNORED for labels in rows["labels"] for label in labels) / tokens
    real = (trained[-1] - trained[WARM_UP - 1]) / share
    return {
        "steps": len(losses),
        "first_loss": round(losses[0].value, 4),
        "last_loss": round(losses[-1].value, 4),
        "allocated_gib": max(values("memory/max_allocated (GiB)"), default=0.0),
        "reserved_gib": max(values("memory/device_reserved (GiB)"), default=0.0),
        "tokens_per_second": round(real / seconds),
        "slots_per_second": round((slots[-1] - slots[WARM_UP - 1]) / seconds),
        "filled": round(real / (slots[-1] - slots[WARM_UP - 1]), 3),
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
        "table": [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *map(table_row, rows)],
        "notes": NOTES,
        "rows": rows,
    }


def table_row(row: dict[str, Any]) -> str:
    """A row of the table. The error is left out where rows are not full, for which nothing is predicted."""
    if "failed" in row:
        cells = [f"{row['predicted_gib']:.1f}", "", "", f"{row['driver_gib']:.1f}", row["failed"].split(":")[0]]
        return f"| {row['case']} | {' | '.join(cells)} |" + " |" * 4
    error = row["predicted_gib"] / row["driver_gib"] - 1 if row["driver_gib"] else 0.0
    cells = [f"{row[key]:.1f}" for key in ("predicted_gib", "allocated_gib", "reserved_gib", "driver_gib")]
    cells += [f"{error:+.1%}" if row["changes"].get("sample_packing") else ""]
    cells += [f"{row['slots_per_second']:,}", f"{row['filled']:.0%}"]
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
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of gpu.json and logs")
    parser.add_argument("--work", default="/dev/shm", help="folder for weights: memory, where there is enough")
    given = parser.parse_args()
    began = time.monotonic()
    wanted = given.only.split(",") if given.only else []
    chosen = [each for each in cases() if not wanted or each.name in wanted]
    rows = kept(given.out / "gpu.json")
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=given.work, ignore_cleanup_errors=True) as folder:
        os.environ["REACT_RECIPES_OUTPUTS"] = str(Path(folder) / "outputs")
        bench = Bench(Path(folder), given.tiny)
        for case in chosen:
            bench.prepare(case)
        for case in chosen:
            if time.monotonic() - began > given.seconds:
                print(f"no time left for {case.name}", flush=True)
                continue
            rows[case.name] = bench.run(case)
            print(orjson.dumps(rows[case.name]).decode(), flush=True)
            files.write_json(given.out / "gpu.json", as_json(list(rows.values()), versions()))
    print("\n".join(as_json(list(rows.values()), versions())["table"]))


if __name__ == "__main__":
    main()
