"""Draw what bench/results/ holds: BENCHMARKS.md from *.json, the README's picture from what `make demo` printed."""

import re
import sys
from pathlib import Path

import orjson

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.core import files  # noqa: E402


def picture(printed: str) -> str:
    """The end of a demo's won game and its table as an SVG of a terminal, which reads on light and dark pages alike."""
    import os

    from rich.console import Console
    from rich.text import Text

    game, _, rest = printed.partition("The classic first prompt:")
    text = Text(game + rest[rest.index("Rooms won") :].rstrip(), no_wrap=True)
    text.highlight_regex(r"(?m)^(user|assistant)$", "dim italic")
    text.highlight_regex(r"(?m)^(Thought|Action): .*", "green")
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=76, file=nowhere)
        console.print(text)
    drawn = console.export_svg(title="make demo", unique_id="demo")
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)  # no page of GitHub loads a font for a picture


def main() -> None:
    """Write BENCHMARKS.md and docs/demo.svg."""
    parts = ["# Benchmarks\n\nDrawn by `python bench/draw.py` from bench/results/, where every case stands.\n"]
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        found = orjson.loads(path.read_bytes())
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        table = "\n".join(found["table"])
        parts.append(f"\n## {found['title']}\n\n`{found['command']}`, with {versions}\n\n{table}\n\n{found['notes']}\n")
    files.write(ROOT / "BENCHMARKS.md", "".join(parts).encode())
    printed = (ROOT / "bench" / "results" / "demo.txt").read_text(encoding="utf-8")
    files.write(ROOT / "docs" / "demo.svg", picture(printed).encode())


if __name__ == "__main__":
    main()
