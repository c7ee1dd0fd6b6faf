"""A model of a person's choice in the catalog, from its config.json, and its recipes."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tools import BadInput
from tools.core import catalog, files, hf_folder
from tools.core.catalog import Model
from tools.recipes import plan, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the catalog says of a model besides its sizes, and the count of its parameters.
FIELDS = ("title", "hub", "licence", "gated", "family", "eos", "strips", "context", "window", "architecture")


def add_model(hub: str, key: str = "", dry_run: bool = False) -> None:
    """Append a model to catalog/models.yaml from its config.json (a folder's, or the hub's), and render its recipes.

    `dry_run`: say what would be written, and write nothing. Raises BadInput for a model that is there already, of an
    architecture that the catalog does not know, or with code of its own; Failed when the hub cannot give it.
    """
    if known := catalog.model_of(hub):
        raise BadInput(f"{hub}: in the catalog already, as {known.key}")
    key = key or re.sub(r"[^a-z0-9.]+", "-", Path(hub).name.lower().removesuffix("-instruct")).strip("-")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", key) or key in catalog.models():
        raise BadInput(f"{key}: taken, or no name for a recipe; --key gives another")
    folder = model_folder(hub)
    made = catalog.described(files.read_object(folder / "config.json"), key, hub)
    made = made.model_copy(update=tokens_of(folder))
    entry = entry_of(made)
    print(f"{entry}\n" + "\n".join(recipes_of(made)))
    if dry_run:
        print("nothing is written; without DRY_RUN=1 both are")
        return
    render.refuse_edited(render.generated())  # before the catalog changes
    path = catalog.CATALOG / "models.yaml"
    text = path.read_text(encoding="utf-8").rstrip()
    files.write(path, f"{text}\n\n# Its sizes were read in its config.json.\n{entry}".encode())
    catalog.models.cache_clear()
    plan.chosen.cache_clear()
    counts = render.write()
    print(f"{key}: in {path.name}, and {counts['written']} files written in recipes/")
    print(f"check its licence and gated in {path.name}; to undo this, take the entry out again, then make recipes")


def entry_of(model: Model) -> str:
    """A model as catalog/models.yaml has it."""
    said = model.model_dump(exclude_defaults=True)
    entry = {field: said[field] for field in (*FIELDS, "parameters") if field in said}
    entry |= {"sizes": model.sizes.model_dump(exclude={"key"})}
    if "strips" in entry:
        entry["strips"] = list(entry["strips"])
    return yaml.safe_dump({model.key: entry}, sort_keys=False, default_flow_style=None, width=110)


def recipes_of(model: Model) -> Iterator[str]:
    """The recipes that a model gets, a line a method, with their tiers."""
    for method in catalog.methods().values():
        tiers = [key for key, tier in catalog.tiers().items() if plan.search(model, method, tier)]
        if tiers:
            yield f"{render.name(model, method)}: {len(tiers)} recipes, for {', '.join(tiers)}"


def tokens_of(folder: Path) -> dict[str, str | tuple[str, ...]]:
    """Of a model's tokenizer, as the catalog has it: its end token, and what else of its chat template strips.

    Raises BadInput where there is no tokenizer, or nothing names an end token.
    """
    from jinja2 import TemplateError

    from tools.core import chat_template
    from tools.gguf import base

    tokenizer = chat_template.tokenizer(str(folder))
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    written = str(tokenizer.bos_token)
    for talk in (turns, turns[1:]):  # Some models have no template, some of these no system message.
        with contextlib.suppress(TemplateError, ValueError):
            written += str(tokenizer.apply_chat_template(talk, tokenize=False))
    ends = [*base.end_texts(folder), *named_in_config(folder, tokenizer)]
    eos = end_of_turn(written, ends)
    if not eos:
        raise BadInput(f"{folder}: neither its tokenizer nor its config.json names an end token")
    taking = [each.content for each in tokenizer.added_tokens_decoder.values() if each.lstrip or each.rstrip]
    strips = tuple(token for token in taking if token in written and token != eos)
    return {"eos": eos, "strips": strips}


def named_in_config(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The end tokens that a model's config.json names by their ids."""
    found = tokenizer.convert_ids_to_tokens(hf_folder.end_ids(folder / "config.json"))
    return [each for each in found if isinstance(each, str)]


def end_of_turn(written: str, ends: Sequence[str]) -> str:
    """Of the tokens that end a text, the one that the chat template writes after an answer, else the first.

    A tokenizer's own eos_token may end a text and not a turn: Phi-4-mini's and Gemma's do.
    """
    after = written.rpartition("x")[2]
    there = [each for each in ends if each in after]
    return min(there, key=after.index) if there else next(iter(ends), "")


def model_folder(hub: str) -> Path:
    """The folder with the config.json and the tokenizer of a folder or of a model on the hub.

    Raises BadInput when it has no config.json, or code of its own; Failed when the hub cannot give it.
    """
    from tools.gguf import base

    folder = Path(hub) if os.path.isdir(hub) else base.tokenizer_folder(hub)
    if not (folder / "config.json").is_file():
        raise BadInput(f"{hub}: has no config.json")
    base.refuse_code(folder)
    return folder
