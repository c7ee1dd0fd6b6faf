"""Adapter to files: GGUFs in any quantisation and what each costs, the adapter alone, the merged model."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from tools import BadInput
from tools.core import chat_template, files, progress, run_folder, trajectory
from tools.core.run_folder import Run
from tools.gguf import imatrix, llamacpp
from tools.pipeline.trained import Tuned
from tools.recipes.recipe import read_recipe


def make_gguf(model: Tuned, quants: str, guided: bool = False) -> None:
    """Make the GGUF of the tuned model and, to compare with, of its base, in each of `quants` ("Q4_K_M Q8_0").

    `guided`: quantised by an importance matrix of the training conversations.
    """
    from tools.gguf import convert

    wanted = list(dict.fromkeys(convert.check_quant(each) for each in quants.split()))
    inputs = {key: model.hashes.get(key, "") for key in ("adapter", "base", *(["data"] if guided else []))}
    told = contextlib.nullcontext() if "F16" in wanted else f16_told(model.run)
    with told, model.run.held("gguf"):
        make_missing(model, inputs, wanted, guided)


def make_missing(model: Tuned, inputs: dict[str, str], wanted: Sequence[str], guided: bool) -> None:
    """Make what is missing of the GGUFs of `gguf`."""
    from tools.gguf import convert

    missing = []
    for quant in wanted:
        both = [model.run.gguf(quant, who) for who, _, _ in sources(model)]
        if model.run.done(f"gguf-{quant.lower()}", inputs) and all(file.exists() for file in both):
            print(f"{both[0]}: already made of this {'adapter' if model.adapter else 'model'}")
        else:
            missing.append(quant)
    if len([quant for quant in missing if quant not in convert.UNQUANTISED]) > (not guided) and "F16" not in missing:
        missing.insert(0, "F16")  # one pass over the weights, for all of them
    for quant in sorted(missing, key=lambda quant: quant != "F16"):
        with model.run.stage(f"gguf-{quant.lower()}", inputs) as notes:
            for who, weights, adapter in sources(model):
                file, f16 = model.run.gguf(quant, who), model.run.gguf("F16", who)
                guide = imatrix_of(model.run, who) if guided and quant not in convert.UNQUANTISED else None
                convert.build_gguf(weights, adapter, file, quant, model.metadata, f16, guide)
            notes["llama.cpp"] = llamacpp.described()


def sources(model: Tuned) -> list[tuple[str, Path, Path | None]]:
    """What GGUFs are made of, the tuned model's and, where it is known, its base's: whose, weights, adapter."""
    before: list[tuple[str, Path, Path | None]] = [("base", model.before, None)] if model.before else []
    return [("tuned", model.base, model.adapter), *before]


@contextlib.contextmanager
def f16_told(this: Run) -> Iterator[None]:
    """Say at the end, after an error too, which F16 GGUFs were made on the way and stay: path and size."""
    before = f16_files(this)
    try:
        yield
    finally:
        for file in f16_files(this):
            if file not in before:
                size = file.stat().st_size / 1e6
                print(f"{file}: {size:,.0f} MB, kept for the next quantisation; you may remove it", file=sys.stderr)


def f16_files(this: Run) -> list[Path]:
    """The F16 GGUFs of a run that are there, of the tuned model and of the base."""
    return [file for file in (this.gguf("F16", who) for who in ("tuned", "base")) if file.exists()]


def imatrix_of(this: run_folder.Run, who: str) -> Path:
    """The matrix of a run's tuned or base model, measured on its training conversations unless it is there.

    Raises BadInput when no recipe of ours says what those were.
    """
    if not this.recipe.exists():
        raise BadInput(f"{this.folder}: no recipe of ours, so no training conversations to measure what matters by")
    f16, out = this.gguf("F16", who), this.imatrix(who)
    if not out.exists() or out.stat().st_mtime < f16.stat().st_mtime:
        imatrix.make_imatrix(f16, read_recipe(this.recipe).data, chat_template.tokenizer(this.adapter), out)
    return out


def merge_adapter(model: Tuned) -> Path:
    """Merge the adapter into its base, as a Hugging Face folder in the run's folder; its path.

    A model whose whole weights were trained is such a folder already.
    """
    from tools.gguf import merge

    if not model.adapter:
        print(f"{model.base}: a whole model, nothing to merge")
        return model.base
    this, inputs = model.run, {key: model.hashes[key] for key in ("adapter", "base")}
    with this.held("merge"):
        if this.done("merge", inputs) and this.merged.exists():
            print(f"{this.merged}: already merged of this adapter")
            return this.merged
        with this.stage("merge", inputs):
            merge.merge_to_folder(model.base, model.adapter, this.merged)
    print(f"{this.merged}: merged")
    return this.merged


def make_adapter_gguf(model: Tuned) -> Path:
    """Make the GGUF of the adapter alone; say what it took; its path."""
    from tools.gguf.adapter import adapter_to_gguf

    if not model.adapter:
        raise BadInput(f"{model.base}: a whole model has no adapter; without ADAPTER_ONLY=1 it becomes a GGUF")
    this, inputs = model.run, {"adapter": model.hashes["adapter"]}
    with this.held("adapter-gguf"):
        if not this.done("adapter-gguf", inputs) or not this.adapter_gguf.exists():
            with this.stage("adapter-gguf", inputs):
                adapter_to_gguf(model.adapter, model.base, this.adapter_gguf, model.metadata)
    seconds = this.provenance()["adapter-gguf"]["seconds"]
    print(f"{this.adapter_gguf}: {this.adapter_gguf.stat().st_size / 1e6:.1f} MB, made in {seconds} s")
    return this.adapter_gguf


def score_quality(model: Tuned, quants: str, guided: bool, chunks: int, held_out: str) -> None:
    """Score quantisations of the tuned model against its f16 on held-out episodes; print the table, with rooms won.

    What is missing of the GGUFs is made. `held_out`: a file of other episodes than the committed test set.
    """
    from rich.console import Console

    from tools.gguf import convert, perplexity

    names = [each for each in map(convert.check_quant, quants.split()) if each != "F16"]
    this, data = model.run, Path(held_out) if held_out else trajectory.TEST_DATA
    with f16_told(this):
        make_gguf(model, "F16")
        make_gguf(model, " ".join(names), guided)
        made = {quant: this.gguf(quant) for quant in names}
        inputs = {quant: files.sha256(file) for quant, file in {"F16": this.gguf("F16"), **made}.items()}
        inputs |= {"data": files.sha256(data), "chunks": str(chunks)}
        with this.held("quality"):
            if not this.done("quality", inputs) or not this.quality.exists():
                with this.stage("quality", inputs) as notes, progress.step("quality: preparing the scores"):
                    tokenizer = chat_template.tokenizer(model.tokenizer)
                    found = perplexity.score_quants(this.gguf("F16"), made, trajectory.read(data), tokenizer, chunks)
                    files.write_json(this.quality, found)
                    notes |= {"tokens": found["tokens"]}
    Console().print(perplexity.table(orjson.loads(this.quality.read_bytes())["models"], rooms_won(this)))


def rooms_won(this: Run) -> dict[str, str]:
    """The rooms that a run's tuned model won, "35/48", by quantisation."""
    played = [files.read_object(path) for path in this.usual_evaluations()]
    tuned = [each for each in played if each["player"] == "tuned"]
    return {each["quant"]: f"{each['summary']['won']}/{each['summary']['rooms']}" for each in tuned}
