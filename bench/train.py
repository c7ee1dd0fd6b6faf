"""How fast SmolLM2-135M is tuned on this machine's CPU: this project, stock Axolotl, LLaMA-Factory, a plain TRL script.

    python bench/train.py                               48 episodes with each, one after the other; about 15 minutes
    python bench/train.py --episodes 12 --tools ours,trl --json    fewer, and one JSON object in place of the table

All train the same adapter on the same episodes in the same order, with the CPU recipe's rates and micro batch of 1.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import orjson
import yaml

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tests.parts import llamafactory_programs as its_own  # noqa: E402
from tools.core import files, machine, trajectory  # noqa: E402
from tools.gguf import find_base  # noqa: E402
from tools.recipes import recipe  # noqa: E402
from tools.training import run_axolotl  # noqa: E402
from tools.training.run_axolotl import Launch  # noqa: E402
from tools.training.tokens import IGNORED, Tokenised, tokenise  # noqa: E402

# Updates that the speed leaves out: the first ones also make what later ones use again.
WARM = 2
NOTES = """One run each on {cores} cores ({cpu}), {episodes} episodes of {tokens:,} tokens, {trained:,} of them trained.
Tokens/s: of the data, padding not counted, after {warm} updates; tokens/core-s: the same by processor time, for a
machine that does other things too. Loss: the mean of the last quarter of the updates. Start: from the command to the
end of the first update. Peak: resident memory of the process. Each at the best settings we found: ours as `make train`
starts it; Axolotl without a plugin with the CPU recipe as it is shipped, in 32 bits, because {axolotl}; LLaMA-Factory
and TRL in bf16 autocast on weights in bf16, without gradient checkpointing, TRL with the loss that skips logits without
a label (its default) and our token ids. LLaMA-Factory's template ends a turn with a newline that it trains too."""
AXOLOTL = "transformers refuses bf16 autocast on a machine without a GPU unless a plugin sets use_cpu"


@dataclass(frozen=True)
class Work:
    """What every tool trains on: a folder for it, the base, the data as messages, its tokens, the recipe's settings."""

    folder: Path
    base: Path
    data: Path
    tokens: list[Tokenised]
    settings: Mapping[str, object]


# A command and what its environment has beside ours.
Start = tuple[list[str], dict[str, str]]


def prepared(folder: Path, episodes: int) -> Work:
    """The first so many episodes of the shipped data, as messages and as tokens."""
    asked = recipe.read_recipe(recipe.find("cpu/smollm2-135m-lora"))
    rows, data, base = (
        list(islice(trajectory.read(asked.data), episodes)),
        folder / "data.jsonl",
        find_base.resolve(asked.base),
    )
    data.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    tokens = tokenise(base, asked.dataset, rows, int(asked.settings["sequence_len"]), asked.settings)
    return Work(folder, base, data, tokens, asked.settings)


def axolotl(work: Work, plugins: bool) -> Start:
    """Axolotl on the CPU recipe: as `make train` starts it, or as it comes."""
    file = work.folder / "recipe.yaml"
    # In the order of the file.
    pairs = ("shuffle_merged_datasets=false", "curriculum_sampling=true")
    asked = recipe.open_recipe("smollm2-135m-lora", "cpu", str(work.base), pairs, str(work.data))
    composed = run_axolotl.compose(asked, str(work.base), Launch())
    composed |= {"save_strategy": "no", "save_steps": None, "save_total_limit": None}
    composed |= {"output_dir": str(work.folder / "out"), "dataset_prepared_path": str(work.folder / "prepared")}
    if not plugins:
        composed |= {"plugins": [], "bf16": asked.settings["bf16"]}
    file.write_text(yaml.safe_dump(composed))
    return run_axolotl.command(file, composed, asked.tier, Launch())


def shared(work: Work) -> dict[str, object]:
    """The recipe's training arguments, as transformers' Trainer names them."""
    kept = ("num_train_epochs", "learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "seed", "optim")
    renamed = {"num_epochs": "num_train_epochs", "lr_scheduler": "lr_scheduler_type", "optimizer": "optim"}
    made = {renamed.get(key, key): value for key, value in work.settings.items()}
    steps = round(len(work.tokens) * float(str(work.settings["warmup_ratio"])))
    fixed: dict[str, object] = {
        "use_cpu": True,
        "bf16": run_axolotl.bf16_pays(),
        "per_device_train_batch_size": 1,
        "warmup_steps": steps,
    }
    fixed |= {"logging_steps": 1, "save_strategy": "no", "report_to": "none", "output_dir": str(work.folder / "out")}
    return {
        key: float(str(value)) if key == "learning_rate" else value for key, value in made.items() if key in kept
    } | fixed


def targets(work: Work) -> list[str]:
    """The linear layers that the recipe gives an adapter, by the ends of their names."""
    parts = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    layers = work.settings["peft_layers_to_transform"]
    assert isinstance(layers, list)
    return [f"layers.{layer}.{part}" for layer in layers for part in parts]


def trl(work: Work) -> Start:
    """The plain TRL script, on our tokens."""
    training = shared(work) | {"gradient_checkpointing": False, "train_sampling_strategy": "sequential"}
    training |= {"max_length": None, "model_init_kwargs": {"dtype": "bfloat16" if training["bf16"] else "float32"}}
    lora = {"r": work.settings["lora_r"], "lora_alpha": work.settings["lora_alpha"], "target_modules": targets(work)}
    asked = {"base": str(work.base), "tokens": work.tokens, "training": training, "lora": lora}
    file = work.folder / "trl.json"
    file.write_text(json.dumps(asked))
    return [sys.executable, str(ROOT / "bench" / "train_trl.py"), str(file)], {}


def llamafactory(work: Work) -> Start:
    """LLaMA-Factory's command line, on the same messages with its template for this model."""
    entry: dict[str, object] = {
        "file_name": str(work.data),
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
    }
    roles = {name: name.removesuffix("_tag") for name in ("user_tag", "assistant_tag", "system_tag")}
    entry["tags"] = {"role_tag": "role", "content_tag": "content"} | roles
    (work.folder / "dataset_info.json").write_text(json.dumps({"episodes": entry}))
    asked = shared(work) | {"stage": "sft", "do_train": True, "finetuning_type": "lora", "template": "smollm2"}
    asked |= {"model_name_or_path": str(work.base), "dataset": "episodes", "dataset_dir": str(work.folder)}
    asked |= {"lora_rank": work.settings["lora_r"], "lora_alpha": work.settings["lora_alpha"], "lora_dropout": 0}
    asked |= {"lora_target": ",".join(targets(work)), "cutoff_len": work.settings["sequence_len"], "flash_attn": "sdpa"}
    asked |= {"disable_gradient_checkpointing": True, "disable_shuffling": True, "dataloader_num_workers": 0}
    file = work.folder / "llamafactory.yaml"
    file.write_text(yaml.safe_dump(asked))
    return [str(its_own.programs() / "llamafactory-cli"), "train", str(file)], {}


TOOLS: dict[str, Callable[[Work], Start]] = {
    "ours": lambda work: axolotl(work, plugins=True),
    "axolotl": lambda work: axolotl(work, plugins=False),
    "llamafactory": llamafactory,
    "trl": trl,
}


def measured(start: Start, work: Work) -> dict[str, float]:
    """Run a tool and read the loss of each update off what it prints, as transformers' Trainer does.

    Raises SystemExit with the end of what it printed where it fails or makes other updates.
    """
    command, environment = start
    environment = (
        os.environ
        | run_axolotl.ENVIRONMENT
        | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(machine.cores())}
        | environment
    )
    began, ends, used, losses, printed = time.monotonic(), [], [], [], []
    program = subprocess.Popen(
        command, cwd=work.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert program.stdout
    for line in program.stdout:
        printed.append(line)
        if found := re.search(r"'loss': '?([\d.]+)", line):
            ends.append(time.monotonic())
            used.append(processor_seconds(program.pid))
            losses.append(float(found[1]))
    # Of the process and of what it has waited for.
    _, status, usage = os.wait4(program.pid, 0)
    program.returncode = os.waitstatus_to_exitcode(status)
    if program.returncode or len(ends) != len(work.tokens):
        raise SystemExit("".join(printed[-30:]) + f"{command}: status {program.returncode}, {len(ends)} updates")
    last = losses[-max(1, len(losses) // 4) :]
    tokens = sum(len(ids) for ids, _ in work.tokens[WARM:])
    return {
        "tokens_per_second": round(tokens / (ends[-1] - ends[WARM - 1]), 1),
        "tokens_per_processor_second": round(tokens / (used[-1] - used[WARM - 1]), 1),
        "loss": round(sum(last) / len(last), 4),
        "peak_gib": round(usage.ru_maxrss / (1 << 20), 2),
        "start_seconds": round(ends[0] - began, 1),
    }


def processor_seconds(pid: int) -> float:
    """The processor time that a running process has used, of all its threads: user and system, of proc(5)."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def processor() -> str:
    """The processor's name, and whether it has AMX."""
    name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{name[1] if name else 'unknown'}, {'AMX' if 'amx_bf16' in machine.features() else 'no AMX'}"


def main() -> None:
    """Train with each tool, write the results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tools", default=",".join(TOOLS), help="which, by commas; others leave the results as they are"
    )
    parser.add_argument("--episodes", type=int, default=48, help="episodes, at least 4: one update each")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    asked = parser.parse_args()
    chosen = asked.tools.split(",")
    if unknown := set(chosen) - TOOLS.keys():
        parser.error(f"no such tool: {', '.join(sorted(unknown))}; there are {', '.join(TOOLS)}")
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = prepared(Path(folder), asked.episodes)
        for name in chosen:
            own = replace(work, folder=work.folder / name)
            own.folder.mkdir()
            rows[name] = measured(TOOLS[name](own), own)
            print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)
    table = [
        "| tool | tokens/s | ours / it | tokens/core-s | loss | peak GiB | start s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ratio = f"{rows['ours']['tokens_per_second'] / row['tokens_per_second']:.2f}" if "ours" in rows else ""
        speed = f"{row['tokens_per_second']:.0f} | {ratio} | {row['tokens_per_processor_second']:.0f}"
        cells = f"{speed} | {row['loss']:.3f} | {row['peak_gib']} | {row['start_seconds']}"
        table.append(f"| {name} | {cells} |")
    versions = {name: version(name) for name in ("axolotl", "trl", "transformers", "torch")}
    made = {
        "title": "Training on a CPU",
        "command": "python bench/train.py",
        "versions": versions | {"llamafactory": its_own.VERSION},
        "table": table,
        "notes": NOTES.format(
            cores=machine.cores(),
            cpu=processor(),
            episodes=len(work.tokens),
            tokens=sum(len(ids) for ids, _ in work.tokens),
            trained=sum(label != IGNORED for _, labels in work.tokens for label in labels),
            warm=WARM,
            axolotl=AXOLOTL,
        ),
        "rows": rows,
    }
    if rows.keys() == TOOLS.keys():
        files.write_json(ROOT / "bench" / "results" / "train.json", made)
    print(json.dumps(made) if asked.json else "\n".join(table))


if __name__ == "__main__":
    main()
