"""A tuned model behind its server: what Ollama is told of it, and no name before its tokens and weights are proven."""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tools import BadInput, Failed
from tools.core import catalog, files, hf_folder, progress, quote, trajectory
from tools.core.trajectory import Episode, test_set
from tools.gguf import base
from tools.pipeline import context
from tools.pipeline.model import f16_told, make_adapter_gguf, make_gguf, merge_adapter
from tools.pipeline.trained import Tuned, run_and_name

if TYPE_CHECKING:
    from ollama import Client

    from tools.evaluation.backends import Chat, Sampling
    from tools.parity.values import Values
    from tools.serving.ollama import Spec

# What is proven of a model before it gets its name: its tokens and weights, or its tokens alone.
WEIGHTS, TOKENS = "weights", "tokens"
# The first prompt that people try.
CLASSIC = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a fridge 1, a microwave 1, "
    "a countertop 1, a diningtable 1. Your task is to: heat some potato and put it in diningtable."
)


def spec(model: Tuned, quant: str, who: str, name: str, needed: bool = True) -> "Spec":
    """All that Ollama is told of a tuned model or of its base, `name` in place of its own.

    Where llama-quantize is not there, the f16 GGUF takes its place, for Ollama to quantise. Raises BadInput when there
    is no GGUF and it is `needed`.
    """
    from tools.gguf import llamacpp
    from tools.serving import ollama

    file, f16 = model.run.gguf(quant, who), model.run.gguf("F16", who)
    by_ollama = not file.exists() and f16.exists() and llamacpp.find("llama-quantize") is None
    if needed and not file.exists() and not by_ollama:
        by_folder = f"ADAPTER={model.adapter}" if model.adapter else f"MODEL={model.base}"
        asked = f"RECIPE={model.name}" if model.run.recipe.exists() else by_folder
        raise BadInput(f"{file}: not there; make gguf {asked} QUANT={quant} makes it")
    known = catalog.model_of(model.base_name)
    remembered = context.choose(context.limits_of(model, f16 if by_ollama else file), model.num_ctx)
    called = name or model.served
    ends = base.end_texts(model.tokenizer, model.base)
    sampled, source = sampling(model.base, known.family if known else "")
    return ollama.Spec(
        name=called if who == "tuned" else f"{called}-base",
        gguf=f16 if by_ollama else file,
        recipe=model.name,
        recipe_hash=model.hashes.get("recipe", model.hashes["adapter"]),
        license=known.licence if known else "that of the base model",
        parameters={"num_ctx": remembered.tokens, **sampled},
        context_reason=remembered.why,
        sampling_source=source,
        # Where there is no such template in Go, the one in the GGUF serves.
        family=known.family if known and (ollama.TEMPLATES / f"{known.family}.gotmpl").exists() else None,
        system=model.system,
        # All tokens that end an answer: by training's tokenizer, the base's settings, the catalog.
        stop=list(dict.fromkeys([*ends, *([known.eos] if known else [])])),
        quantize=quant if by_ollama else None,
    )


def context_line(wanted: "Spec") -> str:
    """The tokens that a model remembers and why so many, for the screen."""
    return f"{wanted.name}: num_ctx {wanted.parameters['num_ctx']} ({wanted.context_reason})"


def sampling(folder: Path, family: str) -> tuple[dict[str, float], str]:
    """How a server samples answers of a base in `folder`, by Ollama's names, and where that is from.

    By its generation_config.json, else by the catalog's entry of its family. Raises BadInput for a file that says it
    wrongly.
    """
    facts = catalog.sampling()
    advised = facts.families.get(family)
    own = {} if advised and advised.replaces_own else hf_folder.sampling(folder / "generation_config.json")
    if own:
        return own | facts.always.values, "the base's generation_config.json"
    if advised and advised.values:
        return advised.values | facts.always.values, advised.source
    return facts.always.values, ""


def give_to_ollama(model: Tuned, quant: str, called: str, force: bool = False, proof: str = WEIGHTS) -> None:
    """Give the tuned model to Ollama once it is proven; without Ollama, prove llama-server's tokens alone.

    `force`: also in place of another model of that name, and when its answers do not end. `proof`: see `publish`.
    """
    with player(model, quant.upper(), "tuned", called, force, proof):
        pass


class Place(NamedTuple):
    """Where a model is served: by its name in the Ollama of `client`, or by llama-server at a URL without a client."""

    client: "Client | None"
    where: str


@contextlib.contextmanager
def player(
    model: Tuned,
    quant: str,
    who: str,
    called: str,
    force: bool = False,
    proof: str = WEIGHTS,
    backend: str = "auto",
    sampling: "Sampling | None" = None,
) -> Iterator["Chat"]:
    """A chat with the tuned or the base model behind its server, see `served`; `sampling`: how answers are drawn."""
    from tools.evaluation import backends

    sampling = sampling or backends.Sampling()
    with served(model, quant, who, called, force, proof, backend) as (client, where):
        if client:
            yield backends.ollama_chat(client, where, sampling)
        else:
            yield backends.openai_chat(where, sampling=sampling)


@contextlib.contextmanager
def served(
    model: Tuned,
    quant: str,
    who: str,
    called: str,
    force: bool = False,
    proof: str = WEIGHTS,
    backend: str = "auto",
) -> Iterator[Place]:
    """The tuned or the base model behind its server, for as long as the `with` lasts. The tuned one is proven.

    `backend`: "ollama", "llama-server", or "auto": Ollama, and llama-server where there is none.
    """
    from tools.core import chat_template
    from tools.gguf import llamacpp
    from tools.serving import ollama as server

    wanted, client = spec(model, quant, who, called), None
    if who == "tuned":
        print(context_line(wanted))
    else:
        # The base's own template, which training may not have used, is tried.
        chat_template.tokenizer(model.before or model.base)
    with contextlib.ExitStack() as stack:
        if backend != "llama-server":
            try:
                client = stack.enter_context(server.session()).client
            except server.NoOllama as missing:
                if backend == "ollama":
                    raise
                print(f"{missing}: the chain ends in llama-server")
        if who == "tuned":
            publish(client, model, wanted, force, proof)
        elif client:
            server.create(client, wanted)
        if client:
            yield Place(client, wanted.name)
        else:
            tokens = int(wanted.parameters["num_ctx"])
            yield Place(None, stack.enter_context(llamacpp.server(wanted.gguf, tokens, server.PARALLEL)))


def publish(client: "Client | None", model: Tuned, wanted: "Spec", force: bool = False, proof: str = WEIGHTS) -> None:
    """Have the tuned model proven and, with a client, in Ollama: created under another name, proven, then named.

    Proven are its tokens, its weights (but where `proof` is TOKENS) and that its answers end. The name is given at
    once, by a copy within Ollama: when this is stopped or killed, there is no half-made model under it. Raises BadInput
    when the name is another model's.
    """
    files.need_space(model.run.folder, 0.01)
    with model.run.held("ollama"):
        prove_and_name(client, model, wanted, force, proof)


def prove_and_name(client: "Client | None", model: Tuned, wanted: "Spec", force: bool, proof: str) -> None:
    """The work of `publish`, which holds the lock of its stage."""
    from tools.serving import ollama as server

    this, inputs = model.run, proof_inputs(wanted)
    there = client is None or (server.there(client, wanted.name) and server.holder(client, wanted) is None)
    if there and this.done("ollama", inputs) and this.parity.exists() and this.modelfile.exists():
        before = files.read_object(this.parity).get("weights")
        if before or proof == TOKENS:
            print(f"{wanted.name}: there, its tokens{' and weights' if before else ''} proven before")
            return
    if client is not None and not force:
        server.free(client, wanted)
    # Heavy, and not needed where all is there.
    from tools.core import chat_template
    from tools.gguf import llamacpp
    from tools.parity import choose_template, prove

    tokenizer, episode = chat_template.tokenizer(model.tokenizer), next(test_set())["messages"]
    first = [{"role": "user", "content": CLASSIC}]
    with (
        this.stage("ollama", inputs) as notes,
        progress.step("parity: preparing llama-server and Ollama"),
        prove.sides(client, wanted, tokenizer, episode) as (tried, seen),
    ):
        found = prove.tokens(this, model.base, model.tokenizer, wanted.gguf, seen, test_set())
        prove.raise_if_different(found, "so the model gets no name: ")
        if proof == TOKENS:
            found["weights"] = None
        else:
            found = prove.with_weights(found, weigh(model, wanted.gguf, test_set()))
        files.write_json(this.parity, found)
        prove.raise_if_different(found, "so the model gets no name: ")
        notes |= {key: found[key] for key in ("conversations", "tokens", "sides")}
        notes["llama.cpp"] = llamacpp.described()
        if client is not None:
            notes |= {"template": tried.family or "in the GGUF"}
            asked = {"the first prompt": first, "an observation": episode[:4]}
            with progress.step(f"Ollama: trying whether the answers of {tried.name} end"):
                notes["ends"] = choose_template.answers_end(client, tried.name, asked, force)
        files.write(this.modelfile, server.modelfile(replace(tried, name=wanted.name)).encode())
        if why := quote.not_in_modelfile(wanted.system or ""):
            print(f"{this.modelfile}: without the system prompt, which has {why}; Ollama has it", file=sys.stderr)
        if client is None:
            return
        client.copy(tried.name, wanted.name)
    print(f"{wanted.name}: in Ollama, its tokens{'' if proof == TOKENS else ' and weights'} proven")


def weigh(model: Tuned, gguf: Path, episodes: Iterable[Episode]) -> "Values":
    """Compare what training's model and a GGUF expect next on held-out conversations: see values.compare_values."""
    from tools.parity import prove

    return prove.weights(model.base, model.adapter, model.tokenizer, gguf, episodes, model.run.folder / "weights.log")


def check_parity(model: Tuned, quant: str, called: str, answers: bool, as_json: bool, held_out: str = "") -> None:
    """Compare the tuned model's tokens in training and in every server and, if asked, its weights and answers.

    parity.json has what is found. `held_out`: a file of conversations in place of the committed test set. Raises Failed
    with the first difference.
    """
    from tools.core import chat_template
    from tools.parity import prove
    from tools.serving import ollama

    this, wanted = model.run, spec(model, quant.upper(), "tuned", called)
    data = Path(held_out) if held_out else trajectory.TEST_DATA
    with contextlib.ExitStack() as stack:
        stack.enter_context(this.held("ollama"))
        stack.enter_context(progress.step("parity: preparing llama-server and Ollama"))
        try:
            client = stack.enter_context(ollama.session()).client
        except ollama.NoOllama:
            client = None
        tokenizer, episode = chat_template.tokenizer(model.tokenizer), next(test_set())["messages"]
        _, seen = stack.enter_context(prove.sides(client, wanted, tokenizer, episode))
        found = prove.tokens(this, model.base, model.tokenizer, wanted.gguf, seen, trajectory.read(data))
    if answers and found["equal"]:
        found = prove.with_weights(found, weigh(model, wanted.gguf, trajectory.read(data)))
        if found["equal"]:
            with f16_told(this):
                with contextlib.redirect_stdout(sys.stderr):  # What it says is not for those who read --json.
                    make_gguf(model, "F16")
                found["greedy"] = prove.answers(model.base, model.adapter, this.gguf("F16"), trajectory.read(data))
        files.write_json(this.parity, found)
    prove.print_result(found, as_json)


def check_file_parity(
    gguf: str, recipe: str, base_model: str, held_out: str, adapter: str, called: str, answers: bool, as_json: bool
) -> None:
    """Compare a GGUF of any origin with its base (a folder or a hub name), and Ollama's model `called` if named.

    `held_out`: a file of conversations in place of the committed test set. `adapter`: the one that is in the GGUF.
    Raises BadInput without a base or with a `recipe`, Failed with the first difference.
    """
    from tools.parity import prove

    if recipe:
        raise BadInput(f"a GGUF or a recipe, not both: {gguf} (GGUF=) and {recipe}; leave one out")
    if not base_model:
        raise BadInput(f"{gguf}: --base (BASE=) must name the model that it was made from")
    data, merged = Path(held_out) if held_out else trajectory.TEST_DATA, Path(adapter) if adapter else None
    prove.print_result(prove.of_file(Path(gguf), base_model, data, merged, called, answers), as_json)


def proof_inputs(wanted: "Spec") -> dict[str, str]:
    """What a proof of parity depends on: the model's file and what Ollama is told of it."""
    from tools.serving import ollama

    return {"gguf": files.sha256(wanted.gguf), "modelfile": files.sha256_of(ollama.modelfile(wanted).encode())}


def talk(name: str, called: str, adapter: str = "", tier: str = "") -> None:
    """Run Ollama's own chat on a recipe's or an adapter's model, `called` in place of its own name.

    Our server runs for as long as it lasts. Raises BadInput when Ollama has no such model.
    """
    from tools.serving import ollama as server

    title = called or run_and_name(name, adapter, tier)[1]
    with server.session() as session:
        if not server.there(session.client, title):
            asked = f"ADAPTER={adapter}" if adapter else f"RECIPE={name}"
            raise BadInput(f"{title} is not in Ollama; make ollama {asked} brings it")
        program = server.find()
        if program is None:
            raise BadInput("the program `ollama` is not on PATH")
        subprocess.run([str(program), "run", title], env=os.environ | {"OLLAMA_HOST": session.url}, check=False)


def forget(model: str) -> None:
    """Remove one of our models from Ollama. Raises BadInput when there is none of that name, or it is not ours."""
    from tools.serving import ollama as server

    server.ours(model)
    with server.session() as session:
        if not server.remove(session.client, model):
            held = (each.model or "" for each in session.client.list().models)
            names = ", ".join(sorted(name for name in held if name.startswith(server.PREFIX)))
            raise BadInput(f"{model} is not in Ollama; ours there: {names or 'none'}")
        print(f"removed {model}")


def clean() -> None:
    """Remove our models from Ollama, and nothing else."""
    from tools.serving import ollama

    with ollama.session() as session:
        for each in session.client.list().models:
            if each.model and each.model.startswith(ollama.PREFIX):
                ollama.remove(session.client, each.model)
                print(f"removed {each.model}")


def give_adapter_to_ollama(trained: Tuned, quant: str, called: str, over: str, force: bool = False) -> None:
    """Give Ollama the adapter over a base: the model `over` that it has, else the base's own GGUF.

    It gets its name when Ollama renders the test conversations as the chat template of training does.
    Raises Failed where Ollama takes no adapters, with the command that serves it all the same.
    """
    from tools.gguf import convert
    from tools.serving import ollama as server

    file = make_adapter_gguf(trained)
    this, file_of = trained.run, trained.run.gguf
    if not over and not file_of(quant, "base").exists():
        convert.build_gguf(trained.base, None, file_of(quant, "base"), quant, trained.metadata, file_of("F16", "base"))
    wanted = replace(spec(trained, quant, "base", called, not over), adapter=file, base=over)
    wanted = replace(wanted, name=wanted.name.removesuffix("-base"))
    print(context_line(wanted))
    with this.held("ollama"), server.session() as session:
        if not force:
            server.free(session.client, wanted)
        trial = replace(wanted, name=f"{wanted.name}-trial")
        try:
            with without_adapters(wanted):
                server.create(session.client, trial, force=True)
            same_text(session.client, trial.name, trained)
            session.client.copy(trial.name, wanted.name)
        finally:
            server.remove(session.client, trial.name)
    files.write(this.modelfile, server.modelfile(wanted).encode())
    print(f"{wanted.name}: in Ollama, the adapter over {over or wanted.gguf.name}")


@contextlib.contextmanager
def without_adapters(wanted: "Spec") -> Iterator[None]:
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


def same_text(client: "Client", name: str, trained: Tuned) -> None:
    """Raise Failed unless a model in Ollama renders test conversations to the very text that training's template does.

    Its tokens are then those of training, so far as its base has training's vocabulary.
    """
    from tools.core import chat_template
    from tools.parity import compare
    from tools.serving import ollama as server

    tokenizer = chat_template.tokenizer(trained.tokenizer)
    for number, episode in enumerate(islice(test_set(), compare.COUNT), 1):
        turns = episode["messages"][:-1]
        mine = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        theirs = server.render(client, name, turns)
        if mine != theirs:
            pairs = enumerate(zip(mine, theirs, strict=False))
            place = next((i for i, (one, two) in pairs if one != two), min(len(mine), len(theirs)))
            around = slice(max(0, place - 30), place + 30)
            raise Failed(
                f"training and serving differ, so the model gets no name: conversation {number}, letter {place}: "
                f"{mine[around]!r} in training and {theirs[around]!r} in Ollama"
            )


def write_exports(trained: Tuned, quant: str, called: str, to: Sequence[str], data: str = "") -> None:
    """Write the folders of `to` (all where it is empty; one text may name several) and print the command of each.

    Raises BadInput where `data`, if it is named, is not what the model was trained on.
    """
    from tools.serving import export
    from tools.serving import ollama as server

    if data and trained.hashes.get("data") != files.sha256(Path(data)):
        raise BadInput(f"{data}: not the data that {trained.name} was trained on; leave DATA= out")
    places = export.chosen(" ".join(to).split())
    if not trained.run.recipe.exists() and "huggingface" in places:
        if to:
            raise BadInput(
                "huggingface: a model card tells of the training; an adapter of another origin has no recipe"
            )
        places.remove("huggingface")
        print("huggingface: left out, since a model card tells of the training, and this adapter has no recipe of ours")
    this, wanted = trained.run, spec(trained, quant, "tuned", called)
    server.ours(wanted.name)
    print(context_line(wanted))
    if any(each in export.MERGED for each in places):
        merge_adapter(trained)
    exported = export.Model(
        this=this,
        name=wanted.name,
        merged=this.merged,
        gguf=wanted.gguf,
        quant=quant.upper(),
        base_hub=trained.base_name,
        context=int(wanted.parameters["num_ctx"]),
        sampling={key: value for key, value in wanted.parameters.items() if key != "num_ctx"},
        system=wanted.system or "",
        stop=wanted.stop[0],
    )
    for place in places:
        command = export.export_folder(exported, place)
        print(f"{this.folder / 'export' / place}\n  {command}")
