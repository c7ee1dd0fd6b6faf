"""The importance matrix: what the training conversations use most in each weight, for llama-quantize to keep best."""

import os
import random
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tools import Failed
from tools.core import files, machine, preference, progress
from tools.core.process import Program
from tools.core.trajectory import Episode
from tools.gguf import llamacpp

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that are read at a time, and how many times at most; the size is llama-imatrix's and llama-perplexity's own.
CONTEXT = 512
CHUNKS = 128


def make_imatrix(f16: Path, data: Path, tokenizer: "PreTrainedTokenizerBase", out: Path, chunks: int = CHUNKS) -> None:
    """Measure the importance matrix of an f16 GGUF on training conversations, with llama-imatrix; `out` is a GGUF.

    `data`: messages, one episode a line. `tokenizer`: training's. `chunks`: of CONTEXT tokens, at most; the episodes
    are drawn from all of the file, the same ones each time. Raises BadInput for data that are none, Failed.
    """
    with progress.step(f"{out.name}: reading {data.name}"):
        text = rendered(tokenizer, sample(data, chunks))
    with files.scratch(out) as folder, files.atomic(out) as partial:
        # The file carries the name of the text that it was made of: that of the data, not of a passing folder.
        (folder / data.name).write_text(text, encoding="utf-8")
        command = [str(llamacpp.built("llama-imatrix")), "--model", str(f16.resolve()), "--file", data.name]
        command += ["--parse-special", "--output-file", str(partial.resolve()), "--output-format", "gguf", "--no-ppl"]
        measure([*command, "--chunks", str(chunks)], f"{out.name}: measuring", chunks, folder)


def sample(data: Path, count: int) -> list[Episode]:
    """At most `count` episodes of a file, drawn evenly from all of it in one reading, the same ones each time."""
    drawn: list[Episode] = []
    chance = random.Random(0)
    for number, episode in enumerate(preference.conversations(data)):
        place = number if number < count else chance.randrange(number + 1)
        drawn[place : place + 1] = [episode] if place < count else []
    return drawn


def rendered(tokenizer: "PreTrainedTokenizerBase", episodes: Iterable[Episode]) -> str:
    """The text of episodes as the chat template of training writes it, one after the other."""
    return "\n".join(str(tokenizer.apply_chat_template(each["messages"], tokenize=False)) for each in episodes)


def measure(command: list[str], title: str, chunks: int, folder: Path) -> str:
    """Run llama-imatrix or llama-perplexity in `folder`, the chunks it has read on a bar; what it wrote.

    Raises Failed with the last line that speaks of an error.
    """
    command = [*command, "--ctx-size", str(CONTEXT), "--threads", str(machine.cores()), "--offline"]
    written = ""
    with (
        progress.bar(f"{title}: loading the model", unit="pieces") as shown,
        Program(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder) as process,
    ):
        assert process.stdout
        # Its figures stand in one line, "[1]4.1,[2]3.9": a line would come at the very end.
        while piece := os.read(process.stdout.fileno(), 2**16):
            written += piece.decode(errors="replace")
            show_progress(shown, title, written, chunks, one_pass="--no-ppl" in command)
    if process.returncode:
        lines = [line.strip() for line in written.splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"error|failed|need at least|GGML_ASSERT", line, re.I)]
        raise Failed(f"{title} failed: {(errors or lines or [f'exit status {process.returncode}'])[-1]}")
    return written


def show_progress(shown: progress.Work, title: str, written: str, chunks: int, one_pass: bool) -> None:
    """Show how far a program is by all that it has written.

    llama-perplexity tells each chunk. llama-imatrix (`one_pass`) tells the time of its first pass, and no more.
    """
    if begun := re.search(r"over (\d+) chunks, .*n_seq=(\d+)", written):
        shown.update(title=title, total=chunks)
        if one_pass:
            first = re.search(r"([\d.]+) seconds per pass", written)
            seconds = float(first[1]) * int(begun[1]) / int(begun[2]) if first else 0
            in_all = f", about {progress.lasting(seconds)} in all" if first else ""
            shown.update(title=f"{title} {begun[1]} pieces{in_all}", total=0)
    if steps := re.findall(r"(?:\[(\d+)\]|^ *(\d+)  )", written[-2000:], re.M):
        shown.update(int("".join(steps[-1])))
