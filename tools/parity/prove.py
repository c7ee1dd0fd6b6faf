"""A proof of parity: of a recipe's model before it gets its name, or of a GGUF that we did not make."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired

import jinja2
import orjson

from tools import BadInput, Failed
from tools.core import chat_template, files, progress, run_folder, trajectory
from tools.core.trajectory import Episode, Message
from tools.gguf import adapter_config, base, header, llamacpp
from tools.parity import compare, diagnose, greedy, values, vocabulary
from tools.recipes.recipe import read_recipe

if TYPE_CHECKING:
    from ollama import Client
    from transformers import PreTrainedTokenizerBase

    from tools.serving.ollama import Spec

# Causes in catalog/parity.yaml of which a comparison of the tokenizers says more.
SHOWN_IN_TABLES = {"vocabulary", "spelled_out"}
# Tokens that a server has for a comparison of answers: prompt and answer.
CONTEXT = 4096


class Parity(compare.Compared):
    """parity.json: what was found of the tokenizer, of tokens and, where they were compared, of weights and answers.

    `weights`: None where a person left them out.
    """

    tokenizer: NotRequired[vocabulary.Tables]
    weights: NotRequired[values.Values | None]
    greedy: NotRequired[greedy.Answers]


@contextlib.contextmanager
def sides(
    client: "Client | None", wanted: "Spec", tokenizer: "PreTrainedTokenizerBase", episode: list[Message]
) -> "Iterator[tuple[Spec, list[compare.Side]]]":
    """Every server of a model (ollama.Spec), ready to be asked: llama-server and, with a client, Ollama.

    Ollama has the model as NAME-trial for as long as the `with` lasts. Its spec is given too, or the wanted one without
    a client. `tokenizer`, `episode`: see choose_template.create_with_right_prompts. Raises Failed where a server fails.
    """
    from tools.parity import choose_template
    from tools.serving import ollama

    with llamacpp.server(wanted.gguf, int(wanted.parameters["num_ctx"])) as url:
        if client is None:
            yield wanted, [compare.llama_server_side(url)]
            return
        name = f"{wanted.name}-trial"
        try:
            tried = choose_template.create_with_right_prompts(client, replace(wanted, name=name), tokenizer, episode)
            roles = compare.ROLES if tried.family else None  # its template is ours, in Go
            yield tried, [compare.llama_server_side(url), compare.ollama_side(client, name, url, wanted.system, roles)]
        finally:
            ollama.remove(client, name)


def tokens(
    this: run_folder.Run,
    folder: Path,
    source: Path,
    gguf: Path,
    seen: list[compare.Side],
    test_set: Iterable[Episode],
) -> Parity:
    """Compare the tokenizer and tokens of a run's training with those of each server; parity.json says the outcome too.

    `folder`: the base's. `source`: the folder with the tokenizer and chat template of training. Where no recipe of ours
    trained, it is taken to have trained as ours do.
    """
    tokenizer = chat_template.tokenizer(source)
    talks = compare.conversations(test_set, tokenizer)
    tables = vocabulary.compare_tokenizers(folder, None if source == folder else source, gguf, this.parity)
    if this.recipe.exists():
        asrun = read_recipe(this.recipe).settings
        base_model, entry = Path(asrun["base_model"]), asrun["datasets"][0]
        found = compare.compare_with_training(talks, base_model, seen, entry, asrun["sequence_len"], asrun, tokenizer)
    else:
        beside = {"base_model_config": str(folder)}  # an adapter's folder has a tokenizer, and need have no config.json
        found = compare.compare_with_training(talks, source, seen, recipe=beside, tokenizer=tokenizer)
    both = together(tables, found)
    files.write_json(this.parity, both)
    return both


def together(tables: vocabulary.Tables, found: compare.Compared) -> Parity:
    """What was found of the tokenizer and of conversations.

    Where a conversation can only show that the tokenizer or the template is another one, the tables say how.
    """
    first = found["first_difference"]
    if first is not None and first["side"] == diagnose.LLAMA_SERVER:
        for each in tables["differences"]:
            by_table = first["kind"] in SHOWN_IN_TABLES and each["kind"] != "setting"
            if each["kind"] == "template_missing" or by_table:
                first["kind"], first["cause"], first["fix"] = each["kind"], each["cause"], each["fix"]
                break
    return Parity(**found | {"equal": found["equal"] and tables["equal"]}, tokenizer=tables)


def with_weights(found: Parity, weighed: values.Values) -> Parity:
    """What was found of tokens, and of weights beside it."""
    return Parity(**found | {"equal": found["equal"] and weighed["equal"], "weights": weighed})


def weights(
    folder: Path, adapter: Path | None, source: Path, gguf: Path, test_set: Iterable[Episode], log: Path
) -> values.Values:
    """Compare what training's model and a GGUF expect next on held-out conversations: see values.compare_values.

    `source`: the folder with the tokenizer and chat template of training. Raises BadInput for a folder without a model.
    """
    base.check_folder(folder)
    tokenizer = chat_template.tokenizer(source)
    talks = []
    for episode in test_set:
        with contextlib.suppress(jinja2.TemplateError):  # It refuses turns out of order.
            talks.append(list(tokenizer.apply_chat_template(episode["messages"], return_dict=False)))
        if len(talks) == values.CONVERSATIONS:
            break
    return values.compare_values(folder, adapter, gguf, talks, log)


def answers(
    folder: Path, adapter: Path | None, gguf: Path, test_set: Iterable[Episode], log: Path | None = None
) -> greedy.Answers:
    """Compare greedy answers of transformers and llama-server: see greedy.compare_answers.

    `gguf`: the base with that adapter, in 16 bits. Raises BadInput for a quantised GGUF, and where memory is too short.
    """
    refuse_quantised(gguf)
    tokenizer = chat_template.tokenizer(adapter or folder)
    talks = compare.conversations(test_set, tokenizer)[: compare.COUNT]
    asked = compare.prompts(talks, compare.transformers_side(tokenizer), greedy.PROMPTS)
    # One after the other in memory would be slower, not smaller: the server maps its file.
    with llamacpp.server(gguf, CONTEXT, log=log) as url:
        with progress.step("parity: loading the base and its adapter in transformers"):
            trained = greedy.model(folder, adapter)
        return greedy.compare_answers(trained, url, asked, tokenizer)


def refuse_quantised(gguf: Path) -> None:
    """Raise BadInput for a GGUF whose answers cannot be compared token by token."""
    if not greedy.unquantised(gguf):
        raise BadInput(f"{gguf}: quantised, so its answers differ; give the f16 GGUF, or --no-greedy")


def of_file(gguf: Path, name: str, data: Path, adapter: Path | None, in_ollama: str, with_answers: bool) -> Parity:
    """Compare the tokens of a GGUF that we did not make with its base's and, if asked, its weights and answers.

    `name`: the base, a folder or a hub id, of which its tokenizer alone is needed, unless answers are compared.
    `data`: conversations, one a line. `adapter`: one that is in the GGUF. `in_ollama`: a model's name there. Raises
    BadInput for what of these cannot be used, Failed where a server fails.
    """
    from tools.serving import ollama

    folder = base.tokenizer_folder(name)
    if not gguf.is_file():
        raise BadInput(f"{gguf}: no such file")
    found_header = header.metadata(gguf)
    if with_answers:
        refuse_quantised(gguf)
    if adapter:
        adapter_config.check_adapter(adapter)
    tokenizer = chat_template.tokenizer(adapter or folder)
    chat_template.check_gguf(found_header, str(gguf))  # llama-server tries it too, and has no limits.
    talks = compare.conversations(trajectory.read(data), tokenizer)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(llamacpp.server(gguf, 512, log=log_of(gguf)))
        seen = [compare.llama_server_side(url)]
        if in_ollama:
            client = stack.enter_context(ollama.session()).client
            seen.append(compare.ollama_side(client, in_ollama, url))
        tables = vocabulary.compare_tokenizers(folder, adapter, gguf, log_of(gguf))
        source, beside = adapter or folder, {"base_model_config": str(folder)}
        compared = compare.compare_with_training(talks, source, seen, recipe=beside, tokenizer=tokenizer)
        found = together(tables, compared)
    if found["equal"] and with_answers:
        found = with_weights(found, weights(folder, adapter, source, gguf, trajectory.read(data), log_of(gguf)))
        if found["equal"]:
            found["greedy"] = answers(folder, adapter, gguf, trajectory.read(data), log_of(gguf))
    return found


def log_of(gguf: Path) -> Path:
    """Where the log of a server goes that serves a user's own file: into our outputs, by the file's path."""
    name = files.sha256_of(str(gguf.resolve()).encode())[:8]
    return run_folder.outputs() / "parity" / f"{gguf.stem}-{name}.log"


def print_result(found: Parity, as_json: bool) -> None:
    """Print what was found. Raises Failed, so that the exit status is 1, for a difference."""
    if as_json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    elif found["equal"]:
        refused = f", {found['refused']} that the template refuses left out" if found["refused"] else ""
        seen = ", ".join(found["sides"])
        print(f"training = {seen}: {found['conversations']} conversations{refused}, {found['tokens']} tokens the same")
        if "tokenizer" in found:
            same = found["tokenizer"]
            print(f"the same tokenizer: {same['tokens']:,} tokens, {same['merges']:,} merges, all special tokens")
        if weighed := found.get("weights"):
            print(f"the same weights: {values.words(weighed)}")
        if "greedy" in found:
            print(greedy.words(found["greedy"]))
    raise_if_different(found)


def raise_if_different(found: Parity, so: str = "") -> None:
    """Raise Failed with what differs of the tokenizer, and the first difference of tokens or of answers."""
    told = []
    if "tokenizer" in found and not found["tokenizer"]["equal"]:
        told.append(vocabulary.words(found["tokenizer"]))
    if first := found["first_difference"]:
        told.append(compare.words(first))
    if told:
        raise Failed(f"training and serving differ, {so}{'; '.join(told)}")
    if (weighed := found.get("weights")) and not weighed["equal"]:
        raise Failed(f"the GGUF is not what was trained, {so}{values.words(weighed)}")
    if "greedy" in found and not found["greedy"]["equal"]:
        raise Failed(f"the same prompts, other answers: {greedy.words(found['greedy'])}")
