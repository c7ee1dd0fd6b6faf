"""A proof of parity: of a recipe's model before it gets its name, or of a GGUF that we did not make."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from tools import BadInput, Failed, base, files, greedy, llamacpp, parity, recipe, run, trajectory

# Tokens that a server has for a comparison of answers: prompt and answer.
CONTEXT = 4096


@contextlib.contextmanager
def sides(
    client: Any, wanted: Any, tokenizer: Any, episode: list[parity.Message]
) -> Iterator[tuple[Any, list[parity.Side]]]:
    """Every server of a model (ollama.Spec), ready to be asked: llama-server and, with a client, Ollama.

    Ollama has the model as NAME-trial for as long as the `with` lasts, made as trial.settle says (which see for
    `tokenizer` and `episode`): the spec of it is given too, without a client the wanted one.
    """
    from tools import ollama, trial

    with llamacpp.server(wanted.gguf, int(wanted.parameters["num_ctx"])) as url:
        if client is None:
            yield wanted, [parity.llama_server(url)]
            return
        name = f"{wanted.name}-trial"
        try:
            tried = trial.settle(client, replace(wanted, name=name), tokenizer, episode)
            yield tried, [parity.llama_server(url), parity.ollama(client, name, url, wanted.system)]
        finally:
            ollama.remove(client, name)


def tokens(
    this: run.Run, source: Path, seen: list[parity.Side], test_set: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Compare the tokens of a run's training with those of each server; parity.json says the outcome too.

    `source`: the folder with the tokenizer and chat template of training. Where no recipe of ours trained, it is taken
    to have trained as ours do.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    talks = parity.conversations(test_set, tokenizer)
    if this.recipe.exists():
        asrun = recipe.load(this.recipe)
        base_model, entry = Path(asrun["base_model"]), asrun["datasets"][0]
        found = parity.prove(talks, base_model, seen, entry, asrun["sequence_len"], asrun, tokenizer)
    else:
        found = parity.prove(talks, source, seen, tokenizer=tokenizer)
    files.write_json(this.parity, found)
    return found


def answers(folder: Path, adapter: Path | None, gguf: Path, test_set: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare greedy answers of transformers and llama-server: see greedy.check. `gguf`: in 16 bits, of that adapter.

    Raises BadInput for a quantised GGUF, and where memory is too short.
    """
    from transformers import AutoTokenizer

    if not greedy.unquantised(gguf):
        raise BadInput(f"{gguf}: quantised, so its answers differ; give the f16 GGUF, or --no-greedy")
    tokenizer = AutoTokenizer.from_pretrained(adapter or folder)
    talks = parity.conversations(test_set, tokenizer)[: parity.COUNT]
    asked = parity.prompts(talks, parity.transformers(tokenizer), greedy.PROMPTS)
    # One after the other in memory would be slower, not smaller: the server maps its file.
    with llamacpp.server(gguf, CONTEXT) as url:
        return greedy.check(greedy.model(folder, adapter), url, asked, tokenizer)


def of_file(
    gguf: Path, name: str, data: Path, adapter: Path | None, in_ollama: str, with_answers: bool
) -> dict[str, Any]:
    """Check a GGUF that we did not make against the base that it came from: what parity.prove returns, and "greedy".

    `name`: the base, a folder or a hub id, of which its tokenizer alone is needed, unless answers are compared.
    `data`: conversations, one a line. `adapter`: one that is in the GGUF. `in_ollama`: a model's name there.
    """
    from transformers import AutoTokenizer

    from tools import ollama

    folder = base.tokenizer_folder(name)
    if not gguf.is_file():
        raise BadInput(f"{gguf}: no such file")
    tokenizer = AutoTokenizer.from_pretrained(adapter or folder)
    talks = parity.conversations(trajectory.read(data), tokenizer)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(llamacpp.server(linked(gguf), 512))
        seen = [parity.llama_server(url)]
        if in_ollama:
            client = stack.enter_context(ollama.session()).client
            seen.append(parity.ollama(client, in_ollama, url))
        found = parity.prove(talks, adapter or folder, seen, tokenizer=tokenizer)
    if found["equal"] and with_answers:
        found["greedy"] = answers(folder, adapter, linked(gguf), trajectory.read(data))
    return found


def linked(gguf: Path) -> Path:
    """A link to a user's file in our own outputs, where the server can write its log beside it."""
    link = run.outputs() / "parity" / gguf.name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(gguf.resolve())
    return link


def tell(found: Mapping[str, Any], as_json: bool) -> None:
    """Print what was found. Raises Failed, so that the exit status is 1, for a difference."""
    if as_json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    elif found["equal"]:
        refused = f", {found['refused']} that the template refuses left out" if found["refused"] else ""
        seen = ", ".join(found["sides"])
        print(f"training = {seen}: {found['conversations']} conversations{refused}, {found['tokens']} tokens the same")
        if "greedy" in found:
            print(greedy.words(found["greedy"]))
    stop(found)


def stop(found: Mapping[str, Any], so: str = "") -> None:
    """Raise Failed with the first difference, of tokens or of answers, where there is one."""
    if not found["equal"]:
        raise Failed(f"training and serving differ, {so}{parity.words(found['first_difference'])}")
    if not found.get("greedy", found)["equal"]:
        raise Failed(f"the same prompts, other answers: {greedy.words(found['greedy'])}")
