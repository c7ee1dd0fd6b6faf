"""Whether a model learns from its wins: unseen rooms won before, after a second round of SFT, and after DPO.

    python bench/learn.py                       SmolLM2-135M on the CPU, 200 training rooms and 200 unseen ones; hours
    python bench/learn.py --rooms 4 --games 1 --set max_steps=2

The tuned model plays training rooms. (a) The base is trained again, on the shipped episodes and what was won. (b) The
tuned model, merged, is trained by DPO on what was lost beside what was won. All three play the same unseen rooms. What
is done is kept in --folder, so the same command goes on where it was stopped.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import orjson

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tools.core import files, trajectory  # noqa: E402
from tools.evaluation import report, scores  # noqa: E402

FIRST, DPO, TIER, QUANT = "smollm2-135m-lora", "smollm2-135m-dpo", "cpu", "Q8_0"
SERVED = ["--quant", QUANT, "--backend", "llama-server"]
NOTES = """Rooms won of the same unseen ones, with 95 % Wilson intervals; p is McNemar's exact test against the first
model. Round two trains the base again on {shipped} shipped episodes and {wins} won games of {played}; DPO trains the
first model, merged, on {pairs} pairs of a lost game and a won one. Temperature 0, {quant} by llama-server."""


def ours(folder: Path, *words: str) -> None:
    """Run one of our commands with its outputs in `folder`. Raises SystemExit where it fails."""
    print("python -m tools", *words, file=sys.stderr, flush=True)
    environment = os.environ | {"REACT_RECIPES_OUTPUTS": str(folder / "outputs")}
    if subprocess.run([sys.executable, "-m", "tools", *words], cwd=ROOT, env=environment).returncode:
        raise SystemExit(f"failed: python -m tools {' '.join(words)}")


def evaluated(folder: Path, recipe: str, rooms: int, base: str = "") -> scores.Evaluation:
    """The games of a recipe's model in unseen rooms. `base`: a folder in place of the recipe's base."""
    at = ["--tier", TIER, *(["--base", base] if base else [])]
    ours(folder, "gguf", recipe, *at, "--quant", QUANT)
    ours(folder, "eval", recipe, *at, *SERVED, "--rooms", str(rooms))
    (found,) = (folder / "outputs").glob(f"*/{Path(recipe).stem}/eval-tuned-{QUANT.lower()}.json")
    return report.read_evaluation(found)


def lines(path: Path) -> list[bytes]:
    """The rows of a JSONL file."""
    return path.read_bytes().splitlines(keepends=True)


def table(evaluations: dict[str, scores.Evaluation]) -> list[str]:
    """Rooms won by each model, and how each does beside the first."""
    made = ["| model | rooms won | 95 % | p against the first |", "|---|---|---|---|"]
    first, *_ = evaluations.values()
    for name, each in evaluations.items():
        summary = each["summary"]
        low, high = (f"{100 * value:.0f}" for value in summary["wilson95"])
        p = "" if each is first else f"{scores.compare(first, each)['p']:.3g}"
        made.append(f"| {name} | {summary['won']} of {summary['rooms']} | {low}-{high} % | {p} |")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, play, collect, train twice more, play; write bench/results/learn.json, or print it where rooms are few."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=200, help="training rooms, and unseen ones")
    parser.add_argument("--games", type=int, default=4, help="games of each training room")
    parser.add_argument("--set", action="append", default=[], help="a change of the recipes, for a trial")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "learn", help="what is done so far")
    asked = parser.parse_args(arguments)
    folder, rooms = asked.folder.resolve(), str(asked.rooms)
    changes = [f"--set={each}" for each in asked.set]
    collected = folder / "collected"
    ours(folder, "train", FIRST, "--tier", TIER, *changes)
    found = {"tuned": evaluated(folder, FIRST, asked.rooms)}
    played = ["--rooms", rooms, "--repeat", str(asked.games), "--out", str(collected)]
    ours(folder, "collect", FIRST, "--tier", TIER, *SERVED, *played)

    wins, pairs = lines(collected / "wins.jsonl"), lines(collected / "pairs.jsonl")
    second, data = folder / "round-two.yaml", folder / "round-two.jsonl"
    files.write(data, b"".join([*lines(trajectory.TRAIN_DATA), *wins]))
    if not second.exists():
        ours(folder, "new", "smollm2-135m", "lora", str(second), "--tier", TIER)
    ours(folder, "train", str(second), "--data", str(data), *changes)
    found["round two of SFT on its wins"] = evaluated(folder, str(second), asked.rooms)

    ours(folder, "merge", FIRST, "--tier", TIER)
    ours(folder, "train", DPO, "--tier", TIER, "--data", str(collected / "pairs.jsonl"), *changes)
    found["DPO on its losses"] = evaluated(folder, DPO, asked.rooms)

    told = {"shipped": len(lines(trajectory.TRAIN_DATA)), "wins": len(wins), "pairs": len(pairs), "quant": QUANT}
    games = len(lines(collected / "games.jsonl")) - 1
    result = {
        "title": "Learning from wins",
        "command": "python bench/learn.py",
        "versions": {name: version(name) for name in ("axolotl", "trl", "torch", "transformers")},
        "table": table(found),
        "notes": NOTES.format(**told, played=games).replace("\n", " "),
        "rows": {name: each["summary"] for name, each in found.items()},
    }
    if asked.set:
        print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    else:
        files.write_json(ROOT / "bench" / "results" / "learn.json", result)


if __name__ == "__main__":
    main()
