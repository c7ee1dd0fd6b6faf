"""How fast episodes are converted, and in how much memory, beside `datasets` and a bare orjson loop on the same file.

python bench/convert.py                       500 MB, lines, an array, Parquet; bench/results/convert.json
python bench/convert.py --mb 100 --json       less, and one JSON object on stdout
"""

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.core import files, process, run_folder  # noqa: E402

DIRECTIONS = (
    ("messages", "sharegpt"),
    ("messages", "alpaca"),
    ("sharegpt", "messages"),
    ("alpaca", "messages"),
    ("sharegpt", "alpaca"),
)
# How the files that are read and written end.
KINDS = {
    "lines": ("jsonl", "jsonl"),
    "array": ("json", "json"),
    "from Parquet": ("parquet", "jsonl"),
    "to Parquet": ("jsonl", "parquet"),
}
NOTES = """Seconds are wall time from start to end of the command, fsync included for ours; of lines the median of three
rounds, in each of which all three run in turn, of an array, which takes a minute, one round. MB is the largest sum of
the resident memory of all its processes, looked at every 50 ms (pages that processes share count once for each).
datasets: load_dataset, map and to_json, in as many processes as cores, in an empty cache (an array is written with
lines=False as one batch, the only way that it can; Parquet by to_parquet). orjson: one process, `loads` and `dumps` of
each line and the same renaming, nothing checked, counted or kept beside it; an array is read whole. All read and write
the same episodes."""
# The conversion as a user of `datasets` writes it: (from, to) -> the body of a function of one row.
MAPS = {
    ("messages", "sharegpt"): """
    tags = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": tags[t["role"]], "value": t["content"]} for t in row["messages"]]}""",
    ("sharegpt", "messages"): """
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    return {"messages": [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"]]}""",
    ("messages", "alpaca"): """
    texts = [t["content"] for t in row["messages"]]
    system = texts.pop(0) if row["messages"][0]["role"] == "system" else ""
    return {"instruction": texts[-2], "input": "", "output": texts[-1], "system": system,
            "history": [[texts[i], texts[i + 1]] for i in range(0, len(texts) - 2, 2)]}""",
    ("alpaca", "messages"): """
    turns = [{"role": "system", "content": row["system"]}] if row["system"] else []
    for asked, answer in row["history"] + [[row["instruction"], row["output"]]]:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"messages": turns}""",
    ("sharegpt", "alpaca"): """
    texts = [t["value"] for t in row["conversations"]]
    system = texts.pop(0) if row["conversations"][0]["from"] == "system" else ""
    return {"instruction": texts[-2], "input": "", "output": texts[-1], "system": system,
            "history": [[texts[i], texts[i + 1]] for i in range(0, len(texts) - 2, 2)]}""",
}
DROPPED = {"messages": ["messages"], "sharegpt": ["conversations"]}
ALPACA = ["instruction", "input", "output", "system", "history", "extra"]
DATASETS = """
import sys
import datasets
datasets.disable_progress_bars()
def change(row):{body}
if __name__ == "__main__":
    cores = int(sys.argv[4])
    kind = "parquet" if sys.argv[1].endswith(".parquet") else "json"
    rows = datasets.load_dataset(kind, data_files=sys.argv[1], split="train", cache_dir=sys.argv[3], num_proc=cores)
    gone = [name for name in {dropped!r} if name in rows.column_names]
    rows = rows.map(change, remove_columns=gone, num_proc=cores)
    if sys.argv[2].endswith(".parquet"):
        rows.to_parquet(sys.argv[2])
    elif sys.argv[2].endswith(".json"):
        rows.to_json(sys.argv[2], lines=False, batch_size=len(rows))
    else:
        rows.to_json(sys.argv[2], num_proc=cores)
"""
ORJSON = """
import sys
import orjson
def change(row):{body}
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb") as target:
    if sys.argv[1].endswith(".json"):
        target.write(orjson.dumps([change(row) for row in orjson.loads(source.read())]))
    else:
        for line in source:
            target.write(orjson.dumps(change(orjson.loads(line))) + b"\\n")
"""


def timed(command: list[str]) -> tuple[float, float]:
    """Wall seconds of a command, and MB at the peak of all its processes. Raises when it fails."""
    os.sync()  # What was written before is not written to disk on this command's time.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    began, peak = time.monotonic(), 0
    program = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    ended = os.pidfd_open(program.pid)
    # Each look takes time of cores that are all at work; the end is told at once.
    while not select.select([ended], [], [], 0.05)[0]:
        peak = max(peak, run_folder.resident_bytes(program.pid))
    seconds = time.monotonic() - began
    os.close(ended)
    program.wait()
    if program.returncode:
        raise SystemExit(program.stderr.read().decode()[-2000:] if program.stderr else "")
    return round(seconds, 2), round(peak / 1e6, 1)


def made(folder: Path, megabytes: float) -> Path:
    """A file of so many MB: the committed training episodes, over and over, each with an id of its own."""
    path = folder / "messages.jsonl"
    episodes = [orjson.loads(line) for line in (ROOT / "data" / "train.jsonl").open("rb")]
    with path.open("wb") as file:
        number = 0
        while file.tell() < megabytes * 1e6:
            file.write(orjson.dumps(episodes[number % len(episodes)] | {"id": f"household-{number}"}) + b"\n")
            number += 1
    return path


def ours(source: Path, target: Path, to: str) -> tuple[float, float]:
    """Seconds and MB of our own command."""
    return timed([sys.executable, "-m", "tools", "convert", str(source), str(target), "--to", to, "--force"])


def theirs(script: Path, source: Path, target: Path) -> tuple[float, float]:
    """Seconds and MB of a script with `datasets`, in an empty cache."""
    with tempfile.TemporaryDirectory(dir=script.parent) as cache:
        return timed([sys.executable, str(script), str(source), str(target), cache, str(process.cores())])


def direction(folder: Path, lines: Path, source: str, target: str, kind: str, repeats: int) -> dict[str, Any]:
    """One direction: ours, each peer's, and the ratios; the median of all rounds, in each of which all run in turn.

    `kind`: a key of KINDS, the files that are read and written.
    """
    before, after = KINDS[kind]
    path, out = folder / f"{source}.{before}", folder / f"out.{after}"
    if not path.exists():
        ours(lines, path, source)
    body = MAPS[source, target]
    script = folder / "peer.py"
    script.write_text(DATASETS.format(body=body, dropped=DROPPED.get(source, ALPACA)))
    loop = [sys.executable, "-c", ORJSON.format(body=body), str(path), str(out)]
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "datasets": []}
    if "parquet" not in KINDS[kind]:
        found["orjson"] = []
    for _ in range(repeats):
        found["ours"].append(ours(path, out, target))
        if "orjson" in found:
            found["orjson"].append(timed(loop))
        found["datasets"].append(theirs(script, path, out))
    out.unlink()
    row: dict[str, Any] = {"from": source, "to": target, "file": kind}
    row["mb"] = round(path.stat().st_size / 1e6, 1)
    for name, each in found.items():
        seconds = [one[0] for one in each]
        row[name] = {
            "seconds": statistics.median(seconds),
            "all_seconds": seconds,
            "peak_mb": max(one[1] for one in each),
        }
    for peer in found.keys() - {"ours"}:
        row[peer]["ratio"] = round(row[peer]["seconds"] / row["ours"]["seconds"], 2)
    return row


def flat(folder: Path, sizes: list[float]) -> list[dict[str, float]]:
    """Our peak for files of other sizes: it should not grow."""
    found = []
    for megabytes in sizes:
        path = made(folder, megabytes)
        seconds, peak = ours(path, folder / "out.jsonl", "sharegpt")
        found.append({"mb": megabytes, "seconds": seconds, "peak_mb": peak})
        path.unlink()
    return found


def table(rows: list[dict[str, Any]], sizes: list[dict[str, float]]) -> list[str]:
    """The results in Markdown."""
    lines = ["| direction | file | ours | datasets | orjson loop | datasets / ours |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [
            f"{row[name]['seconds']:.1f} s, {row[name]['peak_mb']:.0f} MB" if name in row else ""
            for name in ("ours", "datasets", "orjson")
        ]
        name = f"{row['from']} to {row['to']}"
        lines.append(
            f"| {name} | {row['mb']:.0f} MB, {row['file']} | {' | '.join(cells)} | {row['datasets']['ratio']:.1f} |"
        )
    for each in sizes:
        cell = f"{each['seconds']:.1f} s, {each['peak_mb']:.0f} MB"
        lines.append(f"| messages to sharegpt | {each['mb']:.0f} MB, lines | {cell} | | | |")
    return lines


def main() -> None:
    """Measure, and print; the whole measurement (without --mb) is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=500, help="size of the file of messages")
    parser.add_argument("--sizes", default="50,5000", help="MB, comma between: our memory at other sizes; 0 for none")
    parser.add_argument("--repeats", type=int, default=3, help="rounds with lines, of which the median counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", help="where the files are made; they are removed")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        lines = made(folder, given.mb)
        for kind in KINDS:
            for source, target in DIRECTIONS[:1] if "parquet" in KINDS[kind] else DIRECTIONS:
                rows.append(direction(folder, lines, source, target, kind, 1 if kind == "array" else given.repeats))
                if not given.json:
                    print(json.dumps(rows[-1]), flush=True)
        for path in folder.iterdir():
            files.remove(path)
        sizes = [float(each) for each in given.sizes.split(",") if float(each)] if given.mb == 500 else []
        memory = flat(folder, sizes)
    cores = process.cores()
    drawn = table(rows, memory)
    written = {
        "title": f"Converting {given.mb:g} MB of episodes, {cores} cores",
        "command": "python bench/convert.py",
        "versions": {"Python": platform.python_version()}
        | {each: version(each) for each in ("orjson", "datasets", "pyarrow")},
        "table": drawn,
        "notes": NOTES,
        "cases": rows,
        "memory": memory,
    }
    print(orjson.dumps(written).decode() if given.json else "\n".join(drawn))
    if given.mb == 500:
        files.write_json(ROOT / "bench" / "results" / "convert.json", written)


if __name__ == "__main__":
    main()
