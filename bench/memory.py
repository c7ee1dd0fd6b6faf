"""How right the planner is: against a simulated training step, published measurements and other planners.

python bench/memory.py                   everything; bench/results/memory.json and a table; half an hour on 2 cores
python bench/memory.py published         only what needs no simulation; seconds
python bench/memory.py simulate CASE     simulated cases alone
"""

import argparse
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.shapes import config  # noqa: E402
from tools.core import catalog, files, machine  # noqa: E402
from tools.core.catalog import Model, Sizes  # noqa: E402
from tools.recipes import memory, plan  # noqa: E402
from tools.recipes.memory import GIB, Settings  # noqa: E402
from tools.recipes.recipe import RECIPES, read_recipe  # noqa: E402

# Other code than the transformers, peft and bitsandbytes that Axolotl drives; and figures that hold PyTorch's cache,
# which grows with batches of varying length to what was free.
UNLIKE = {
    "litgpt": "other code than transformers and peft",
    "torchtune": "other code than transformers and peft",
    "swift": "reserved over batches of varying length: the cache, not the need",
}
NOTES = """Error: predicted / measured - 1. Simulated: the second training step of the real transformers and peft
classes on fake tensors, under PyTorch's own memory tracker, without what it cannot see (the CUDA context,
fragmentation). Published: what others measured, each with its page and settings in bench/published.yaml and
bench/held_out.yaml; the planner's constants were chosen with the first in sight, the second was collected afterwards by
another hand. accelerate: the training figure of `accelerate estimate-memory`; deepspeed: its ZeRO-2 or ZeRO-3
estimator; fitcheck: the package fitcheck-llm 0.3.1. Listed in the results but not counted, with the reason beside each:
code other than transformers and peft, and figures that hold PyTorch's cache."""
EARLY = "qwen"  # the cases of QwenLM/Qwen, measured in 2023
# What a simulation cannot see: it counts tensors, not what the allocator and CUDA take beside them.
UNSEEN = ("fragmentation", "CUDA context", "NCCL", "process")


def published() -> list[dict[str, Any]]:
    """The published cases with what this planner and its peers say of each.

    The planner's constants were chosen with published.yaml in sight. held_out.yaml was collected afterwards, by another
    hand, and first looked at with the constants fixed.
    """
    cases = []
    for name in ("published", "held_out"):
        read = yaml.safe_load((ROOT / "bench" / f"{name}.yaml").read_text(encoding="utf-8"))
        cases += [each | {"tuned_on": name == "published"} for each in read]
    cases = [each for each in cases if each["model"]["architecture"] in catalog.architectures()]
    rows = [predicted(case) for case in cases]
    for row, said in zip(rows, peers(cases), strict=True):
        row |= said
    return rows


def predicted(case: dict[str, Any]) -> dict[str, Any]:
    """One published case with the planner's figure for what was measured, and the error as a share of that."""
    model, s = as_model(case), as_settings(case)
    parts = memory.device(model, s, case["gpus"])
    if s.rank and case["master"] != "fp32" and not s.sharding.startswith("zero"):
        for part in ("adapter", "gradients", "optimizer"):  # adapters in 16 bits: peft before 0.12, and other libraries
            parts[part] = parts.get(part, 0.0) / (1 if part == "optimizer" and "8bit" in s.optimizer else 2)
    states = case["states"]
    # Where a page does not say how memory was read, it is taken as what nvidia-smi shows. In 2023 CUDA 11 loaded all of
    # a library's kernels at once: 1.3 GB, https://huggingface.co/docs/transformers/model_memory_anatomy.
    if case["id"].startswith(EARLY):
        parts["CUDA context"] = 1.3e9 / GIB
    left_out = {"allocated": UNSEEN, "reserved": ("CUDA context", "NCCL")}
    total = sum(value for part, value in parts.items() if part not in left_out.get(states, ()))
    measured = case["measured"] * {"GB": 1e9 / GIB, "GiB": 1.0, "MiB": 1 / 1024}[case["unit"]]
    return {
        "case": case["id"],
        "kind": "published",
        "source": case["source"],
        "tuned_on": case["tuned_on"],
        "unlike": case.get("unlike", UNLIKE.get(case["id"].split("-")[0], "")),
        "measured_gib": round(measured, 2),
        "predicted_gib": round(total, 2),
        "error": round(total / measured - 1, 4),
        "parts_gib": {part: round(value, 2) for part, value in parts.items()},
    }


def as_model(case: dict[str, Any]) -> Model:
    """The model of a published case: sizes from its entry."""
    sizes = {key: value for key, value in case["model"].items() if key not in ("architecture", "note")}
    facts = {"title": case["id"], "hub": "", "licence": "", "gated": False, "family": "", "eos": "", "context": 1}
    architecture = case["model"]["architecture"]
    return Model(key=case["id"], **facts, architecture=architecture, sizes=Sizes(**sizes), parameters=0)


def as_settings(case: dict[str, Any]) -> Settings:
    """The settings of a published case."""
    sharding = {"fsdp": "fsdp2"}.get(case["sharding"], case["sharding"])
    losses = {"cut_cross_entropy": "cut", "liger": "fused"}
    targets = case.get("targets", "all-linear")
    optimizers = {"adamw": "adamw_torch", "paged_adamw_32bit": "paged_adamw"}
    full = case["method"] == "full"
    return Settings(
        rank=0 if full else case["rank"],
        bits=4 if case["method"] == "qlora" else 16,
        sequence_len=case["sequence"],
        micro_batch=case["micro_batch"],
        accumulation=case["accumulation"],
        checkpointing=case["checkpointing"],
        attention=case["attention"],
        loss=losses.get(case["logits"], case["logits"]),
        optimizer=optimizers.get(case["optimizer"], case["optimizer"]),
        sharding=sharding,
        offload=case["offload"],
        targets=tuple(targets) if isinstance(targets, list) else None,
        whole=2 if case["trained_embeddings"] and not full else 0,
        evaluation=0,
        uneven=False,  # no page says how long its rows were
    )


# Recipes whose training step is simulated: dense models from 0.5 to 72 billion parameters, adapters and every weight,
# with and without recomputed layers.
SIMULATED = (
    "6gb/qwen0.5b-lora",
    "12gb/qwen3b-lora",
    "24gb/qwen7b-lora",
    "48gb/qwen14b-lora",
    "80gb/qwen32b-lora",
    "4x80gb/qwen72b-lora",
    "24gb/qwen3-8b-lora",
    "24gb/llama3.1-8b-lora",
    "24gb/mistral-7b-lora",
    "8gb/gemma3-1b-lora",
    "48gb/phi4-lora",
    "24gb/smollm2-1.7b-full",
    "12gb/qwen0.5b-full",
    "48gb/qwen3b-full",
    "24gb/llama3.2-1b-full",
)
# Layers are alike, so memory grows by as much with each: these many are simulated, the rest is extrapolated.
LAYERS = (2, 4)


def simulated(name: str) -> dict[str, Any]:
    """One recipe's training step as PyTorch's memory tracker counts it on fake tensors, and as the planner does.

    Simulated is what transformers and peft run themselves: PyTorch's attention, no fused kernel or loss, torch's AdamW,
    one device. The planner is asked for the same.
    """
    tier, _, title = name.partition("/")
    written = read_recipe(RECIPES / tier / f"{title}.yaml").settings
    model = catalog.model_of(written["base_model"])
    assert model
    s = replace(
        plan.from_recipe(written, catalog.tiers()[tier]),
        attention="sdpa",
        loss="plain",
        kernels=False,
        liger=False,
        optimizer="adamw_torch",
        sharding="none",
        offload="none",
        evaluation=0,
        uneven=False,
        wide=False,
        dropout=0.0,  # on a CPU its mask has 4 bytes an element, on a GPU 1
    )
    few, more = (step_peak(model, s, layers) for layers in LAYERS)
    total = few + (more - few) * (model.sizes.layers - LAYERS[0]) / (LAYERS[1] - LAYERS[0])
    parts = memory.device(model, s, 1)
    expected = sum(value for part, value in parts.items() if part not in UNSEEN)
    return {
        "case": name,
        "kind": "simulated",
        "source": "torch.distributed._tools.mem_tracker on fake tensors",
        "tuned_on": False,
        "measured_gib": round(total, 2),
        "predicted_gib": round(expected, 2),
        "error": round(expected / total - 1, 4),
        "parts_gib": {part: round(value, 2) for part, value in parts.items()},
    }


def step_peak(model: Model, s: Settings, layers: int) -> float:
    """GiB at the peak of the second training step of the real class with so many layers."""
    import torch
    import transformers
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.utils.hooks import RemovableHandle

    shape = config(
        model,
        num_hidden_layers=layers,
        max_position_embeddings=s.sequence_len,
        attn_implementation="sdpa",
        use_cache=False,
        pad_token_id=0,
    )
    with torch.device("meta"):
        net = transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
        base = net
        if s.rank:
            from peft import LoraConfig, get_peft_model

            targets = list(model.linears)
            net = get_peft_model(net, LoraConfig(r=s.rank, lora_dropout=s.dropout, target_modules=targets))
    if s.checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": True})
        base.enable_input_require_grads()
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = net.to_empty(device="cpu")
        base.tie_weights()
        net.train()
        optimizer = torch.optim.AdamW([each for each in net.parameters() if each.requires_grad], foreach=False)
        tracker = MemTracker()
        for each in net.parameters():
            if not each.requires_grad:  # The tracker would hook its gradient, of which there is none.
                handle = RemovableHandle(OrderedDict())
                tracker._param_to_grad_hook_handles[each] = (handle, handle)
        tracker.track_external(net, optimizer)
        ids = torch.ones(s.micro_batch, s.sequence_len, dtype=torch.long)
        with tracker:
            for _ in range(2):
                # What is accumulated is there from the second micro step on.
                for _ in range(min(2, s.accumulation)):
                    with torch.autocast("cpu", torch.bfloat16):
                        loss = net(input_ids=ids, labels=ids).loss
                    loss.backward()
                    del loss
                    tracker.reset_mod_stats()
                optimizer.step()
                optimizer.zero_grad()
    (counted,) = tracker.get_tracker_snapshot("peak").values()
    return float(counted["Total"]) / GIB


# Runs apart, by its own dependencies, which are not ours.
FITCHECK = "fitcheck-llm==0.3.1"
ASK_FITCHECK = """
import json, sys
from fitcheck import ModelConfig, TrainingConfig, estimate, get_gpu
for line in sys.stdin:
    model, training = json.loads(line)
    print(estimate(ModelConfig(**model), TrainingConfig(**training), get_gpu("a100-80")).total_mib / 1024)
"""


def peers(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What other planners say of published cases, in GiB: accelerate estimate-memory, DeepSpeed's estimator, fitcheck.

    The first two know parameters only: no sequence, and no adapter. Each gets all of the case that it has a name for.
    """
    from accelerate.commands.estimate import estimate_training_usage
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    found, questions = [], []
    for case in cases:
        model, s = as_model(case), as_settings(case)
        count = model.text_parameters
        usage = estimate_training_usage(4 * count, "bfloat16")
        if s.sharded:
            _, on_gpu, _ = estimate_zero3_model_states_mem_needs(
                count, model.embedding, case["gpus"], 1, False, False, 1
            )
        else:
            _, on_gpu = estimate_zero2_model_states_mem_needs(count, case["gpus"], 1, False, 1)
        found.append({"accelerate": max(usage.values()) / GIB, "deepspeed": on_gpu / GIB})
        questions.append(as_fitcheck(model, s))
    uv = machine.uv()
    assert uv
    command = [
        uv,
        "run",
        "--quiet",
        "--no-project",
        "--python",
        "3.11",
        "--with",
        FITCHECK,
        "python",
        "-c",
        ASK_FITCHECK,
    ]
    asked = "".join(orjson.dumps(each).decode() + "\n" for each in questions)
    done = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, check=True)
    for each, line in zip(found, done.stdout.splitlines(), strict=True):
        each["fitcheck"] = float(line)
    return [{name: round(value, 2) for name, value in each.items()} for each in found]


def as_fitcheck(model: Model, s: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """A case in fitcheck's own words."""
    z = model.sizes
    sizes = {
        "name": model.key,
        "num_params": model.text_parameters,
        "hidden_size": z.hidden,
        "num_layers": z.layers,
        "num_attention_heads": z.heads,
        "num_kv_heads": z.kv_heads,
        "intermediate_size": z.intermediate,
        "vocab_size": z.vocab,
        "head_dim": z.head_dim,
        "tie_word_embeddings": z.tied,
    }
    training: dict[str, Any] = {
        "quantization": {4: "nf4", 8: "int8"}.get(s.bits, "none"),
        "double_quant": s.bits == 4,
        "optimizer": "adam8bit" if "8bit" in s.optimizer else "adamw",
        "batch_size": s.micro_batch,
        "seq_len": s.sequence_len,
        "lora_rank": s.rank or None,
        "lora_targets": [each for each in model.linears if each in (s.targets or model.linears)],
        "grad_checkpoint": s.checkpointing,
        "flash_attn": s.attention != "eager",
    }
    return sizes, training


def summary(rows: list[dict[str, Any]], key: str = "predicted_gib") -> dict[str, Any]:
    """How many cases, and the median and extremes of the errors of one planner's figures."""
    errors = [row[key] / row["measured_gib"] - 1 for row in rows]
    return {
        "cases": len(errors),
        "median": round(median(abs(each) for each in errors), 3),
        "lowest": round(min(errors), 3),
        "highest": round(max(errors), 3),
    }


def line(name: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    return f"| {name} | {found['cases']} | {found['median']:.1%} | {found['lowest']:+.1%} | {found['highest']:+.1%} |"


def main() -> None:
    """Print the table, and without an argument write bench/results/memory.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["published", "simulate"], help="by default everything")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"for simulate: of {', '.join(SIMULATED)}")
    given = parser.parse_args()
    if unknown := [name for name in given.cases if name not in SIMULATED]:
        parser.error(f"{unknown[0]}: no such case")
    what = given.what or ""
    rows = [] if what == "published" else [simulated(name) for name in given.cases or SIMULATED]
    if what != "simulate":
        rows += published()
    steps = [row for row in rows if row["kind"] == "simulated"]
    counted = [row for row in rows if row["kind"] == "published" and not row["unlike"]]
    table = ["| planner and cases | cases | median error | lowest | highest |", "|---|---|---|---|---|"]
    if steps:
        table.append(line("this one, simulated steps", summary(steps)))
    if counted:
        for name, chosen in (("tuned on", True), ("untouched", False)):
            table.append(line(f"this one, published, {name}", summary([r for r in counted if r["tuned_on"] == chosen])))
        for peer in ("accelerate", "deepspeed", "fitcheck"):
            table.append(line(f"{peer}, published, all", summary(counted, peer)))
        table.append(line("this one, published, all", summary(counted)))
    for row in sorted(rows, key=lambda each: float(each["error"])):
        note = f"   not counted: {row['unlike']}" if row.get("unlike") else ""
        print(f"{row['case']:44} {row['measured_gib']:7.2f} {row['predicted_gib']:7.2f} {row['error']:+7.1%}{note}")
    print("\n".join(table))
    if not what:
        written = {
            "title": "Predicted against measured memory",
            "command": "python bench/memory.py",
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "deepspeed")},
            "table": table,
            "notes": NOTES,
            "cases": rows,
        }
        files.write_json(ROOT / "bench" / "results" / "memory.json", written)


if __name__ == "__main__":
    main()
