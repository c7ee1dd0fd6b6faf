"""What a finished run can be asked for besides the chain: its quality, the adapter alone, the merged model, exports."""

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from tools import Failed, chain, files, progress, recipe, run, serve


def quality(name: str, other: str, quants: str, guided: bool, chunks: int, data: str) -> None:
    """Score quantisations of the tuned model against its f16 on held-out episodes; print the table.

    What is missing of the GGUFs is made. `data`: other episodes than the committed test set.
    """
    from rich.console import Console

    from tools import chat_template, gguf, trajectory
    from tools import quality as score

    names = [each for each in map(gguf.check_quant, quants.split()) if each != "F16"]
    path = chain.find(name)
    this, held_out = recipe.folder(path), Path(data) if data else chain.TEST_DATA
    before = chain.f16_files(this)
    chain.gguf(name, other, "F16")
    chain.gguf(name, other, " ".join(names), guided=guided)
    made = {quant: this.gguf(quant) for quant in names}
    inputs = {quant: files.sha256(file) for quant, file in {"F16": this.gguf("F16"), **made}.items()}
    inputs |= {"data": files.sha256(held_out), "chunks": str(chunks)}
    with this.held("quality"):
        if not this.done("quality", inputs) or not this.quality.exists():
            with this.stage("quality", inputs) as notes, progress.step("quality"):
                tokenizer = chat_template.tokenizer(this.adapter)
                found = score.compare(this.gguf("F16"), made, trajectory.read(held_out), tokenizer, chunks)
                files.write_json(this.quality, found)
                notes |= {"tokens": found["tokens"]}
    Console().print(score.table(orjson.loads(this.quality.read_bytes())["models"]))
    chain.tell_f16(this, before)


def merge(name: str, other: str) -> Path:
    """Merge the adapter into its base, as a Hugging Face folder in the run's folder; its path."""
    from tools import merge

    model = chain.tuned(name, other)
    this, inputs = model.run, {key: model.hashes[key] for key in ("adapter", "base")}
    with this.held("merge"):
        if this.done("merge", inputs) and this.merged.exists():
            print(f"{this.merged}: already merged of this adapter")
            return this.merged
        with this.stage("merge", inputs):
            merge.merge(model.base, model.adapter, this.merged)
    print(f"{this.merged}: merged")
    return this.merged


def adapter_gguf(name: str, other: str, adapter: str = "") -> Path:
    """Make the GGUF of a recipe's adapter alone, or of any `adapter` folder; say what it took; its path."""
    from tools import adapter_gguf

    model = chain.tuned(name, other, adapter)
    this, inputs = model.run, {"adapter": model.hashes["adapter"]}
    with this.held("adapter-gguf"):
        if not this.done("adapter-gguf", inputs) or not this.adapter_gguf.exists():
            with this.stage("adapter-gguf", inputs):
                adapter_gguf.convert(model.adapter, model.base, this.adapter_gguf, model.metadata)
    seconds = this.provenance()["adapter-gguf"]["seconds"]
    print(f"{this.adapter_gguf}: {this.adapter_gguf.stat().st_size / 1e6:.1f} MB, made in {seconds} s")
    return this.adapter_gguf


def adapter_ollama(name: str, other: str, quant: str, model: str, over: str, force: bool = False) -> None:
    """Give Ollama the adapter over a base: the model `over` that it has, else the base's own GGUF.

    It gets its name when Ollama renders the test conversations as the chat template of training does.
    Raises Failed where Ollama takes no adapters, with the command that serves it all the same.
    """
    from tools import gguf
    from tools import ollama as server

    file, tuned = adapter_gguf(name, other), chain.tuned(name, other)
    this, file_of = tuned.run, tuned.run.gguf
    if not over and not file_of(quant, "base").exists():
        gguf.build(tuned.base, None, file_of(quant, "base"), quant, tuned.metadata, file_of("F16", "base"))
    wanted = replace(serve.spec(tuned, quant, "base", model, not over), adapter=file, base=over)
    wanted = replace(wanted, name=wanted.name.removesuffix("-base"))
    with this.held("ollama"), server.session() as session:
        if not force:
            server.free(session.client, wanted)
        trial = replace(wanted, name=f"{wanted.name}-trial")
        try:
            with without_adapters(wanted):
                server.create(session.client, trial, force=True)
            same_text(session.client, trial.name, this)
            session.client.copy(trial.name, wanted.name)
        finally:
            server.remove(session.client, trial.name)
    files.write(this.modelfile, server.modelfile(wanted).encode())
    print(f"{wanted.name}: in Ollama, the adapter over {over or wanted.gguf.name}")


@contextlib.contextmanager
def without_adapters(wanted: Any) -> Iterator[None]:
    """Say, when Ollama takes no adapters (since 0.34.1), how the model is served all the same."""
    try:
        yield
    except Failed as error:
        if "adapters are no longer supported" not in str(error):
            raise
        there = str(wanted.gguf) if wanted.gguf.exists() else "BASE.gguf"
        command = ["llama-server", "--model", there, "--lora", str(wanted.adapter), "--jinja"]
        command += ["--ctx-size", str(wanted.parameters["num_ctx"]), "--host", "127.0.0.1"]
        raise Failed(
            f"{error} (Ollama took them up to 0.34.0); without ADAPTER_ONLY=1 the adapter is merged and Ollama takes "
            f"it, or: {shlex.join(command)}"
        ) from error


def same_text(client: Any, name: str, this: run.Run) -> None:
    """Raise Failed unless a model in Ollama renders test conversations to the very text that training's template does.

    Its tokens are then those of training, so far as its base has training's vocabulary.
    """
    from tools import chat_template, parity
    from tools import ollama as server

    tokenizer = chat_template.tokenizer(this.adapter)
    for number, episode in enumerate(islice(chain.test_set(), parity.COUNT), 1):
        turns = episode["messages"][:-1]
        mine: Any = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        theirs = server.render(client, name, turns)
        if mine != theirs:
            pairs = enumerate(zip(mine, theirs, strict=False))
            place = next((i for i, (one, two) in pairs if one != two), min(len(mine), len(theirs)))
            around = slice(max(0, place - 30), place + 30)
            raise Failed(
                f"training and serving differ, so the model gets no name: conversation {number}, letter {place}: "
                f"{mine[around]!r} in training and {theirs[around]!r} in Ollama"
            )


def export(name: str, other: str, quant: str, model: str, to: Sequence[str]) -> None:
    """Write the folders of `to` (all where it is empty) and print the command of each."""
    from tools import export
    from tools import ollama as server

    tuned, places = chain.tuned(name, other), export.chosen(list(to))
    this, wanted = tuned.run, serve.spec(tuned, quant, "tuned", model)
    server.ours(wanted.name)
    if any(each in export.MERGED for each in places):
        merge(name, other)
    exported = export.Model(
        this=this,
        name=wanted.name,
        merged=this.merged,
        gguf=wanted.gguf,
        quant=quant.upper(),
        base_hub=tuned.base_name,
        context=int(wanted.parameters["num_ctx"]),
        sampling={key: value for key, value in wanted.parameters.items() if key != "num_ctx"},
        system=wanted.system or "",
        stop=wanted.stop[0],
    )
    for place in places:
        command = export.write(exported, place)
        print(f"{this.folder / 'export' / place}\n  {command}")
