"""Base + adapter -> GGUF, quantised or not, in one pass; without an adapter, the base itself."""

import json
import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import TypedDict

from tools import BadInput, Failed
from tools.core import files, hf_folder, machine, progress, run_folder
from tools.core.process import following, without_secrets
from tools.gguf import adapter_config, base, llamacpp, lora, merge

# All types of llama-quantize; its --help says what each is, and itself when one needs an importance matrix.
QUANTS = (
    *("F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "IQ4_NL"),
    *("IQ4_XS", "Q4_1", "Q4_0", "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS", "Q2_K"),
    *("Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0", "MXFP4_MOE"),
)
# What the converter writes by itself.
UNQUANTISED = {"F32": 4, "BF16": 2, "F16": 2}
# How a line of the converter's process begins that the person who waits for it must see.
NOTE = "react-recipes: "
# Bytes of a weight that is quantised, at most (Q8_0).
QUANTISED = 1.07


class Request(TypedDict):
    """What converter_hook.py is asked, as JSON: paths are absolute, `quant` one of QUANTS, `metadata` ours by key.

    `converter`: llama.cpp's script. `work`: a folder for what is needed on the way. `program`: llama-quantize.
    `library`: libggml, empty where nothing is quantised. `vocabulary`: the tokenizer alone is wanted, and no weights
    are needed.
    """

    converter: str
    base: str
    work: str
    adapter: str | None
    out: str
    quant: str
    metadata: dict[str, str]
    threads: int
    program: str
    library: str
    vocabulary: bool


def check_quant(name: str) -> str:
    """The name of a quantisation as llama-quantize spells it. Raises BadInput that names those there are."""
    if name.upper() not in QUANTS:
        raise BadInput(f"{name}: no such quantisation; there are {', '.join(QUANTS)}")
    return name.upper()


def build_gguf(
    base_model: Path,
    adapter: Path | None,
    out: Path,
    quant: str,
    metadata: dict[str, str],
    f16: Path,
    imatrix: Path | None = None,
) -> None:
    """Make `out` of a base and its adapter in one pass; without an adapter, of the base itself.

    Where `f16`, the model before it is quantised, is there and not older than the weights, `out` is made of it: the
    same bytes, unless `imatrix` guides llama-quantize. `metadata` (keys like "react_recipes.recipe", or "general.name")
    goes into the file, which gets its name only when it is complete. Raises BadInput for an unknown `quant` or folders
    that cannot be used, Failed when a step fails.
    """
    quant = check_quant(quant)
    base.check_folder(base_model)
    if adapter:
        adapter_config.check_adapter(adapter)
    there = fresh(f16, adapter or base_model)
    if there and out == f16:
        return
    weights = sum(math.prod(shape) for shape in lora.shapes(base_model).values())
    files.need_space(out.parent, weights * UNQUANTISED.get(quant, QUANTISED) / 2**30)
    if there and quant not in UNQUANTISED:
        quantize_gguf(f16, out, quant, imatrix)
    else:
        to_gguf(base_model, out, metadata, adapter, quant)


def fresh(path: Path, source: Path) -> bool:
    """Whether `path` is there and not older than any file in the folder `source`."""
    return path.is_file() and path.stat().st_mtime >= max(item.stat().st_mtime for item in source.iterdir())


def to_gguf(
    folder: Path, out: Path, metadata: dict[str, str] | None = None, adapter: Path | None = None, quant: str = "F16"
) -> None:
    """Convert a Hugging Face folder with llama.cpp's converter, the adapter added on the way, `metadata` as strings.

    An adapter of a kind that cannot be added so is merged by peft first, and where llama.cpp's quantiser cannot be
    called, an f16 file is made first, each with a line on stderr. Raises Failed when the adapter is another base's, and
    with the converter's own words.
    """
    with files.scratch(out) as work:
        stored = four_bits(folder, adapter)
        if stored:
            print(f"{folder}: stored in 4 bits, made 16 bits again on the way", file=sys.stderr)
        if adapter and (why := unsupported(folder, adapter)):
            if stored:
                raise BadInput(
                    f"{adapter}: {why}, and {folder} is stored in 4 bits; --base (BASE=) wants the 16-bit one"
                )
            print(f"{adapter}: {why}: peft merges it first", file=sys.stderr)
            files.need_space(out.parent, sum(item.stat().st_size for item in folder.glob("*.safetensors")) / 2**30)
            merged = work / folder.resolve().name  # llama.cpp takes a model's name from its folder
            merge.merge_to_folder(folder, adapter, merged)
            folder, adapter = merged, None
        if quant in UNQUANTISED or llamacpp.library():
            one_pass(request(folder, out, metadata or {}, adapter, quant, work))
            return
        print(f"{out.name}: an f16 file first ({llamacpp.described()})", file=sys.stderr)
        files.need_space(out.parent, 2 * sum(math.prod(shape) for shape in lora.shapes(folder).values()) / 2**30)
        f16 = work / f"{out.stem}-f16.gguf"
        one_pass(request(folder, f16, metadata or {}, adapter, "F16", work))
        quantize_gguf(f16, out, quant)


def tokenizer_to_gguf(folder: Path, adapter: Path | None, out: Path) -> None:
    """Write a GGUF that holds the tokenizer and chat template of a base and its adapter, and no tensors.

    `folder`: the base's, with or without weights. Raises BadInput without a config.json, Failed with the converter's
    own words.
    """
    if not (folder / "config.json").is_file():
        raise BadInput(
            f"{folder}: no config.json beside the tokenizer, which llama.cpp's converter reads; copy it there"
        )
    with files.scratch(out) as work:
        one_pass(request(folder, out, {}, adapter, "F16", work, vocabulary=True))


def four_bits(folder: Path, adapter: Path | None) -> bool:
    """Whether bitsandbytes stored a base in 4 bits. Raises BadInput for other ways, where an adapter is to be added."""
    path = folder / "config.json"
    how = files.read_object(path).get("quantization_config") or {}
    if not isinstance(how, dict):
        raise hf_folder.wrong(path, "quantization_config", how, "an object")
    found = how.get("quant_method") == "bitsandbytes" and bool(how.get("load_in_4bit") or how.get("_load_in_4bit"))
    if adapter and how and not found:
        method = how.get("quant_method", "something else than 16 bits")
        raise BadInput(f"{folder}: stored as {method}; an adapter is added to the 16-bit base: --base (BASE=)")
    return found


def unsupported(base_model: Path, adapter: Path) -> str | None:
    """What of an adapter cannot be added in one pass, None when all can. Raises Failed when it is another base's."""
    try:
        merge.fitted(base_model, adapter)
    except adapter_config.Unsupported as why:
        return str(why)
    return None


def one_pass(asked: Request) -> None:
    """Run llama.cpp's converter as asked, with the changes that converter_hook.py makes to it. Raises Failed."""
    source, out = llamacpp.source(), Path(asked["out"])
    # The converter goes with its own version of the gguf package; nothing may be fetched on the way.
    paths = os.pathsep.join([str(source / "gguf-py"), str(source), str(run_folder.ROOT)])
    environment = without_secrets() | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    with files.atomic(out) as partial:
        told = json.dumps({**asked, "out": str(partial)})
        command = [sys.executable, "-m", "tools.gguf.converter_hook", told]
        follow(command, f"{out.name}: converting", environment)


def request(
    folder: Path,
    out: Path,
    metadata: dict[str, str],
    adapter: Path | None,
    quant: str,
    work: Path,
    vocabulary: bool = False,
) -> Request:
    """What converter_hook.py is asked to write `out`. Raises Failed where llama.cpp is not there."""
    return {
        "converter": str(llamacpp.source() / "convert_hf_to_gguf.py"),
        "base": str(folder.resolve()),
        "work": str(work),
        "adapter": str(adapter.resolve()) if adapter else None,
        "out": str(out),
        "quant": quant,
        "metadata": metadata,
        "threads": machine.cores(),
        "program": str(llamacpp.program("llama-quantize")),
        "library": "" if quant in UNQUANTISED else str(llamacpp.library()),
        "vocabulary": vocabulary,
    }


def quantize_gguf(f16: Path, out: Path, quant: str, imatrix: Path | None = None) -> None:
    """Quantise an f16 GGUF with llama-quantize; its metadata stays. Raises Failed with llama-quantize's own words.

    `imatrix`: what matters most in each weight, from imatrix.make_imatrix; the file remembers that it was guided.
    """
    with files.atomic(out) as partial:
        # A relative path: the file that others get carries it.
        guide = ["--imatrix", os.path.relpath(imatrix)] if imatrix else []
        command = [str(llamacpp.program("llama-quantize")), *guide, str(f16), str(partial), quant, str(machine.cores())]
        follow(command, f"{out.name}: quantising", without_secrets())


def follow(command: list[str], title: str, environment: dict[str, str]) -> None:
    """Run a program with its own progress on a bar: "45%|" of the converter, "[ 12/ 272]" of llama-quantize.

    Raises Failed with the last line that speaks of an error.
    """
    lines: list[str] = []
    with progress.bar(title) as shown, following(command, env=environment) as (process, written):
        for line in written:
            if line.startswith(NOTE):
                print(line.removeprefix(NOTE).rstrip(), file=sys.stderr)
            if step := re.match(r"\[ *(\d+)/ *(\d+)\]", line) or re.search(r"(\d+)()%\|", line):
                shown.update(int(step[1]), int(step[2] or 100), unit="tensors" if step[2] else "%")
            if line.strip() and (not step or "error" in line):  # llama-quantize fails in the middle of a line
                lines.append(line.strip())
    if process.returncode:
        # The last words of llama-quantize only repeat its arguments: the reason stands before them.
        errors = [line for line in lines if re.search("error|failed(?! to quantize model from)", line, re.I)]
        reason = (errors or lines or [f"exit status {process.returncode}"])[-1].removeprefix("error: ")
        # The limit of a file's size ends a program by a signal; its own words for a full disk say nothing.
        if process.returncode in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ) or "iostream error" in reason:
            reason = "no space left on the disk; free some and run the same command again"
        raise Failed(f"{title} failed: {reason}")
