"""Kills each command at random moments (kill -9), runs it again, and counts what was left.

    python bench/faults.py                        # every command, 20 moments each: about two hours on two cores
    python bench/faults.py --only convert,lint --moments 5

The model is a random llama of two layers with SmolLM2's tokenizer; everything else is real. Slow commands are killed
several times in a row before a run is left to its end, so that they are killed while they go on, too.
"""

import argparse
import contextlib
import importlib.metadata
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import orjson  # noqa: E402
import psutil  # noqa: E402
import yaml  # noqa: E402

from tools.core import files  # noqa: E402
from tools.gguf import find_base, llamacpp  # noqa: E402

# Seconds within which every process of a killed command must have ended.
GONE = 5.0
RUN = "outputs/work/small"
OLLAMA = ["ollama", "small.yaml", "--base", "base", "--name", "react-small"]
PLAYED = ["eval", "small.yaml", "--base", "base", "--name", "react-small", "--rooms", "4"]
# What later commands read, and so is run once where it is not to be killed.
NEEDED = ("train", "gguf", "ollama")


@dataclass(frozen=True)
class Command:
    """A command to kill.

    `makes`: what it leaves, below the work folder. `in_a_row`: kills before it is left to its end. `longest`: seconds
    after which it is killed at the latest; else a whole run's.
    """

    name: str
    arguments: list[str]
    makes: tuple[str, ...]
    stages: tuple[str, ...] = ()  # of run.json, forgotten before the next round
    in_a_row: int = 1
    longest: float = 0.0


@dataclass
class Count:
    """What was counted of one command."""

    killed: int = 0
    ended_before: int = 0  # the kill came too late
    runs: int = 0  # left to their end, after kills
    ended_well: int = 0
    half_files: int = 0
    processes_left: int = 0


def commands() -> list[Command]:
    """Every command that writes, in the order in which each needs those before it."""
    data = ["train.jsonl", "test.jsonl"]
    small = ["small.yaml", "--base", "base"]
    return [
        Command("convert", ["convert", "large.jsonl", "out.json", "--to", "sharegpt", "--force"], ("out.json",)),
        Command("convert-gz", ["convert", "large.jsonl", "o.jsonl.gz", "--to", "alpaca", "--force"], ("o.jsonl.gz",)),
        Command("convert-set", ["convert", *data, "set", "--to", "llamafactory", "--force"], ("set",)),
        Command("lint", ["lint", *data, "--fix", "fixed.jsonl", "--force"], ("fixed.jsonl",)),
        Command("split", ["split", *data, "--out", "parts", "--force"], ("parts",)),
        Command("stats", ["stats", *data, "--html", "stats.html", "--force"], ("stats.html",)),
        Command("episodes", ["episodes", "more.jsonl", "--count", "3000", "--force"], ("more.jsonl",)),
        Command("new", ["new", "qwen7b", "qlora", "new.yaml", "--tier", "24gb", "--force"], ("new.yaml",)),
        Command("check", ["check", *small, "--force"], (), ("check",), in_a_row=5),
        Command(
            "train", ["train", *small, "--force"], (f"{RUN}/adapter", f"{RUN}/checkpoints"), ("train",), in_a_row=5
        ),
        Command("gguf", ["gguf", *small, "--quant", "F16 Q8_0"], (f"{RUN}/*.gguf",), ("gguf-f16", "gguf-q8_0"), 2),
        Command("merge", ["merge", *small], (f"{RUN}/merged",), ("merge",), 2),
        Command("ollama", [*OLLAMA, "--force"], (f"{RUN}/Modelfile", f"{RUN}/parity.json"), ("ollama",), 5),
        Command("eval", PLAYED, (f"{RUN}/eval-*.json",), ("eval-base-q8_0", "eval-tuned-q8_0"), 5),
        Command("parity", ["parity", *small, "--name", "react-small"], (f"{RUN}/parity.json",), (), 5),
        Command("quality", ["quality", *small, "--chunks", "4"], (f"{RUN}/quality.json",), ("quality",), 5),
        Command("export", ["export", *small, "--to", "vllm"], (f"{RUN}/export",), (), 2),
        Command("setup", ["setup"], ("cache",), in_a_row=20, longest=40.0),
    ]


class Place:
    """A work folder with data, a small base, a recipe, and an environment by which its processes are known."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        for name in ("train", "test"):
            shutil.copy2(ROOT / "data" / f"{name}.jsonl", folder)
        lines = (ROOT / "data" / "train.jsonl").read_bytes()
        (folder / "large.jsonl").write_bytes(lines * (60 * 2**20 // len(lines)))
        self.environment = os.environ | {
            "REACT_RECIPES_FAULTS": self.mark,
            "REACT_RECIPES_OUTPUTS": str(folder / "outputs"),
            "OLLAMA_HOST": f"127.0.0.1:{llamacpp.free_port()}",
            "PYTHONPATH": str(ROOT),
        }

    def make_model(self, base: Path) -> None:
        """Make the recipe of a small base."""
        (self.folder / "base").symlink_to(base)
        settings = yaml.safe_load((ROOT / "recipes" / "cpu" / "smollm2-135m-lora.yaml").read_text())
        settings |= {"peft_layers_to_transform": [0, 1], "max_steps": 6, "save_steps": 1}
        settings["datasets"][0]["path"] = str(self.folder / "test.jsonl")
        (self.folder / "work").mkdir()
        (self.folder / "small.yaml").symlink_to("work/small.yaml")
        (self.folder / "work" / "small.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))

    def start(self, command: Command) -> subprocess.Popen[bytes]:
        """Start a command, its output in log."""
        environment = dict(self.environment)
        if command.name == "setup":
            environment["REACT_RECIPES_CACHE"] = str(self.folder / "cache")
        with (self.folder / "log").open("ab") as log:
            line = [sys.executable, "-m", "tools", *command.arguments]
            return subprocess.Popen(line, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def forget(self, command: Command) -> None:
        """Remove what a command made."""
        for pattern in command.makes:
            for path in self.folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        notes = self.folder / RUN / "run.json"
        if command.stages and notes.exists():
            kept = orjson.loads(notes.read_bytes())
            notes.write_bytes(orjson.dumps({key: value for key, value in kept.items() if key not in command.stages}))

    def processes(self) -> list[psutil.Process]:
        """The processes that were started here and run."""
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if each.status() != psutil.STATUS_ZOMBIE and each.environ().get("REACT_RECIPES_FAULTS") == self.mark:
                    found.append(each)
        return found

    def left(self) -> int:
        """How many of them still run GONE seconds from now; those are ended."""
        end = time.monotonic() + GONE
        while (still := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        for each in still:
            print(f"  left: {each.pid} {' '.join(each.cmdline())[:200]}", flush=True)
            each.kill()
        return len(still)

    def half(self, command: Command) -> int:
        """How many files stand under their final name and are not whole."""
        found = 0
        for pattern in command.makes:
            for top in self.folder.glob(pattern):
                for path in [top] if top.is_file() else files.below(top):
                    hidden = any(part.startswith(".") for part in path.relative_to(self.folder).parts)
                    if not hidden and not in_progress(path) and (why := unsound(path)):
                        print(f"  half: {path}: {why}", flush=True)
                        found += 1
        return found


def small_base(folder: Path) -> Path:
    """Make a random llama of two layers with SmolLM2's tokenizer."""
    from tests.parts.models import make_llama

    return make_llama(folder, find_base.resolve("HuggingFaceTB/SmolLM2-135M-Instruct"), hidden=256)


def in_progress(path: Path) -> bool:
    """Whether a file is part of work that goes on: a checkpoint without its state, which comes last, a build's tree."""
    building = any(part.endswith(".build") for part in path.parts)
    checkpoint = next((each for each in path.parents if each.name.startswith("checkpoint-")), None)
    unfinished = checkpoint is not None and not (checkpoint / "trainer_state.json").exists()
    return building or unfinished or path.suffix == ".log" or "prepared" in path.parts or "runs" in path.parts


def unsound(path: Path) -> str:
    """Why a file is not whole, by its format; empty where it is."""
    import gzip

    from gguf import GGUFReader
    from safetensors import safe_open

    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda each: orjson.loads(each.read_bytes()),
        ".jsonl": lambda each: [orjson.loads(line) for line in each.read_bytes().splitlines(keepends=True)],
        ".gz": lambda each: gzip.decompress(each.read_bytes()),
        ".yaml": lambda each: yaml.safe_load(each.read_text()),
        ".html": lambda each: each.read_text().rindex("</html>"),
        ".gguf": GGUFReader,
        ".safetensors": lambda each: safe_open(each, framework="numpy").keys(),
    }
    try:
        readers.get(path.suffix, lambda each: None)(path)
    except Exception as error:  # whatever a reader says against it
        return str(error)[:200] or type(error).__name__
    return ""


def kill(place: Place, command: Command, moments: int, chance: random.Random) -> Count:
    """Kill a command so often, and leave what it makes for the commands that need it; what was counted."""
    count = Count()
    place.forget(command)
    began = time.monotonic()
    if not command.longest and place.start(command).wait() != 0:
        raise SystemExit(f"{command.name} fails by itself; see {place.folder / 'log'}")
    seconds = command.longest or time.monotonic() - began
    place.forget(command)
    while count.killed < moments:
        process = place.start(command)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.02, seconds))
        if process.poll() is not None:
            count.ended_before += 1
            place.forget(command)
            continue
        process.send_signal(signal.SIGKILL)
        process.wait()
        count.killed += 1
        count.processes_left += place.left()
        count.half_files += place.half(command)
        if count.killed % command.in_a_row == 0 or count.killed == moments:
            count.runs += 1
            status = place.start(command).wait()
            partial = [path for path in place.folder.rglob(".*.partial") if "cache" not in path.parts]
            count.half_files += place.half(command)
            sound = status == 0 and all(list(place.folder.glob(pattern)) for pattern in command.makes)
            count.ended_well += sound and not partial
            if not sound or partial:
                print(f"  ended with {status}, {partial or 'no leftovers'}", flush=True)
            if count.killed < moments:
                place.forget(command)
    return count


def main() -> None:
    """Print a row for each command; those that were killed 20 times stand in bench/results/faults.json from then on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--only", default="", help="names of commands, with commas between")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    known = commands()
    chosen = [each for each in known if not given.only or each.name in given.only.split(",")]
    if not chosen:
        parser.error(f"--only {given.only}: the commands are {', '.join(each.name for each in known)}")
    results = ROOT / "bench" / "results" / "faults.json"
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        place = Place(Path(folder))
        place.make_model(small_base(Path(folder) / "small"))
        for command in known[: known.index(chosen[-1]) + 1]:
            if command not in chosen:
                if command.name in NEEDED and any(RUN in made for each in chosen for made in each.makes):
                    place.start(command).wait()
                continue
            count = kill(place, command, given.moments, random.Random(given.seed))
            rows[command.name] = {"command": command.name} | vars(count)
            print(orjson.dumps(rows[command.name]).decode(), flush=True)
            if given.moments == 20:
                before = files.read_object(results)["rows"] if results.exists() else []
                kept = {row["command"]: row for row in before} | rows
                files.write_json(results, as_json([kept[each.name] for each in known if each.name in kept]))
    print("\n".join(as_json(list(rows.values()))["table"]))


def as_json(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What bench/results/faults.json holds."""
    heads = ("command", "killed", "runs", "ended_well", "half_files", "processes_left")
    titles = ("command", "killed", "left to its end", "ended well", "half files", "processes left")
    total = {head: sum(row[head] for row in rows) for head in heads[1:]} | {"command": "all"}
    return {
        "title": "Killed at random moments",
        "command": "python bench/faults.py",
        "versions": {"Python": sys.version.split()[0], "axolotl": importlib.metadata.version("axolotl")},
        "table": [
            f"| {' | '.join(titles)} |",
            f"|{'---|' * len(titles)}",
            *(f"| {' | '.join(str(row[head]) for head in heads)} |" for row in [*rows, total]),
        ],
        "notes": "Each command is killed (kill -9) at moments drawn evenly from a whole run's time, and run again,\n"
        "slow ones after several kills in a row. Half files: under a final name and not whole by their format.\n"
        f"Processes left: {GONE:.0f} s after the kill. A random llama of two layers; downloads and builds are real.",
        "rows": rows,
    }


if __name__ == "__main__":
    main()
