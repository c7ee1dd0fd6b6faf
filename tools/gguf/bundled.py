"""The llama.cpp that an installed Ollama brings: where it lies, and which one it is."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

# What Ollama has of llama.cpp since 0.30; it has no llama-imatrix and no llama-perplexity.
PROGRAMS = ("llama-server", "llama-quantize")


def folder() -> Path | None:
    """Where the Ollama on PATH has PROGRAMS; None where it has not both (before 0.30), or there is no Ollama.

    As Ollama itself looks for them (0.34, llm/llama_binary.go): in lib/ollama beside its bin/ or below it; on macOS
    beside its program.
    """
    program = shutil.which("ollama")
    if program is None:
        return None
    beside = Path(program).resolve().parent
    places = [beside.parent / "lib" / "ollama", beside / "lib" / "ollama"]
    places += [beside] if sys.platform == "darwin" else []
    there = (place for place in places if all(os.access(place / name, os.X_OK) for name in PROGRAMS))
    return next(there, None)


@cache
def version(place: Path) -> str | None:
    """What the llama-server in a folder says of its version: "10969 (1a2b3c4)"; None where it does not run."""
    try:
        command = [str(place / "llama-server"), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = re.search(r"^version: (.+)", done.stdout + done.stderr, re.M)
    return said[1].strip() if said and done.returncode == 0 else None
