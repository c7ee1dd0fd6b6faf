"""What each trainer takes for one recipe on this machine: memory, speed and loss, as `make train TRAINER=` notes them.

    python bench/trainers.py                                    SmolLM2-135M on the CPU, 12 episodes each
    python bench/trainers.py --recipe 24gb/qwen7b-qlora --episodes 200 --json

All train the same episodes by the same recipe, Unsloth where there is a GPU. bench/train.py compares each at settings
that are best for it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import orjson

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tools.core import machine, trajectory  # noqa: E402
from tools.recipes import recipe  # noqa: E402

TRAINERS = ("axolotl", "llamafactory", "trl", "unsloth")
# Of run.json: seconds from the check's end to the adapter; memory of all processes, and of the GPU where there is one.
NOTED = ("tokens_per_second", "peak_gib", "device_gib", "seconds", "loss")


def measured(trainer: str, name: str, data: Path, folder: Path) -> dict[str, float | None]:
    """What run.json says of a training by one trainer. Raises SystemExit with the end of its output where it fails."""
    command = [sys.executable, "-m", "tools", "train", name, "--trainer", trainer, "--data", str(data)]
    environment = os.environ | {"REACT_RECIPES_OUTPUTS": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{trainer}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    (run,) = folder.glob("*/*/run.json")
    noted = orjson.loads(run.read_bytes())["train"]
    return {key: noted.get(key) for key in NOTED}


def main() -> None:
    """Train by each trainer and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cpu/smollm2-135m-lora")
    parser.add_argument("--episodes", type=int, default=12, help="episodes of the shipped data")
    parser.add_argument("--trainers", default=",".join(TRAINERS), help="which, by commas")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    asked = parser.parse_args()
    chosen = asked.trainers.split(",")
    if unknown := set(chosen) - set(TRAINERS):
        parser.error(f"no such trainer: {', '.join(sorted(unknown))}; there are {', '.join(TRAINERS)}")
    if "unsloth" in chosen and not machine.devices():
        print("unsloth: needs a GPU, and there is none here; left out", file=sys.stderr)
        chosen.remove("unsloth")
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.jsonl"
        episodes = islice(trajectory.read(recipe.read_recipe(recipe.find(asked.recipe)).data), asked.episodes)
        data.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in episodes))
        for trainer in chosen:
            rows[trainer] = measured(trainer, asked.recipe, data, folder / trainer)
            print(trainer, json.dumps(rows[trainer]), file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps({"recipe": asked.recipe, "episodes": asked.episodes, "rows": rows}))
        return
    print("| trainer | tokens/s | memory GiB | GPU GiB | seconds | loss |\n|---|---|---|---|---|---|")
    for trainer, row in rows.items():
        print(f"| {trainer} | {' | '.join('' if row[key] is None else f'{row[key]:.5g}' for key in NOTED)} |")


if __name__ == "__main__":
    main()
