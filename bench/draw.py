"""Draw BENCHMARKS.md from bench/results/*.json: title, command, versions, table (Markdown), notes of each."""

import sys
from pathlib import Path

import orjson

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.core import files  # noqa: E402


def main() -> None:
    """Write BENCHMARKS.md anew."""
    parts = ["# Benchmarks\n\nDrawn by `python bench/draw.py` from bench/results/, where every case stands.\n"]
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        found = orjson.loads(path.read_bytes())
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        table = "\n".join(found["table"])
        parts.append(f"\n## {found['title']}\n\n`{found['command']}`, with {versions}\n\n{table}\n\n{found['notes']}\n")
    files.write(ROOT / "BENCHMARKS.md", "".join(parts).encode())


if __name__ == "__main__":
    main()
