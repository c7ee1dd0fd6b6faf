"""A base model's folder: checked, or downloaded from the hub; the tokens that end its answers."""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import BadInput, Failed
from tools.core import catalog, files, hf_folder, progress, run_folder
from tools.core.hf_folder import check_safetensors
from tools.core.trajectory import Message

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")
# As huggingface_hub's validate_repo_id has it, with an organisation.
HUB_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
HUB_NAME = re.compile(rf"(?=.{{1,96}}\Z)(?!.*(?:--|\.\.)){HUB_PART}/{HUB_PART}")
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*"]


def hub_name(name: str) -> str:
    """A name on the hub, org/name, as it is. Raises BadInput for what cannot be one: the hub is not asked for it."""
    if not HUB_NAME.fullmatch(name):
        raise BadInput(f"{name[:100]!r}: neither a folder nor a model hub's org/name")
    return name


def tokenizer_folder(name: str) -> Path:
    """The folder with the tokenizer and chat template of a base model (a folder or a hub id), weights or not.

    Raises BadInput for anything else and for a folder that cannot be used, Failed when the hub cannot give it.
    """
    if os.path.isdir(name):
        folder = Path(name)
    else:
        folder = from_hub(hub_name(name), [pattern for pattern in HUB_PATTERNS if pattern != "*.safetensors"])
    refuse_code(folder)
    need_tokenizer(folder)
    return folder


def from_hub(name: str, patterns: Sequence[str] = HUB_PATTERNS) -> Path:
    """Download a model from the Hugging Face hub (only what is not there yet): weights as safetensors, never pickle.

    Returns its folder in the hub's own cache. Raises Failed in one line when it cannot be had.
    """
    import httpx
    import huggingface_hub

    try:
        with progress.bar(f"{name}: downloading from the model hub", unit="bytes") as shown:
            counts = counting(shown)
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), tqdm_class=counts))
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Failed(f"{name} cannot be had from the model hub: {first}; give a folder with BASE=path") from error
    model = next((each for each in catalog.models().values() if each.hub == name), None)
    return without_auto_map(folder, model.title) if model and model.auto_map else folder


def counting(shown: progress.Work) -> "type[tqdm[Any]]":
    """A class in place of the hub's progress bars: it draws nothing and tells `shown` how many bytes have come."""
    from tqdm import tqdm

    class Counting(tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)  # huggingface_hub's own
            self.of_bytes = options.get("unit") == "B"
            super().__init__(*arguments, **options | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            if self.of_bytes:
                shown.update(shown.last[1] + (n or 0), self.total)

    return Counting


def without_auto_map(snapshot: Path, title: str) -> Path:
    """A folder of our own in the cache with links to all of a hub's `snapshot`, its settings less their auto_map.

    For models of the catalog that transformers has had a class for since: nothing that is downloaded names code.
    """
    folder = run_folder.cache() / "base" / f"{title.lower()}-{snapshot.name[:12]}"
    there = {path.name: path for path in snapshot.iterdir() if path.is_file()}
    with files.locked(folder):
        if folder.is_dir() and {path.name for path in folder.iterdir() if path.is_file()} - {files.MARK} == set(there):
            return folder
        with files.atomic(folder) as partial:
            partial.mkdir()
            for name, path in there.items():
                if path.match("*config*.json"):
                    settings = hf_folder.settings(path)
                    settings.pop("auto_map", None)
                    files.write_json(partial / name, settings)
                else:
                    (partial / name).symlink_to(path.resolve())
    return folder


def check_folder(folder: Path) -> Path:
    """`folder`, when it can be a base model: config.json, a tokenizer, complete weights as safetensors; no code.

    Raises BadInput that says what is missing or wrong.
    """
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: not a base folder: it has no config.json")
    if (folder / "adapter_config.json").exists():
        raise BadInput(f"{folder}: not a base folder but an adapter (adapter_config.json); ADAPTER= takes it")
    weights = {item.name for item in folder.glob("*.safetensors")}
    if missing := sorted((hf_folder.shards(folder) or set()) - weights):
        raise BadInput(f"{folder}: a base folder without all its weights: {missing[0]} is missing")
    if not weights:
        pickled = hf_folder.pickles(folder)
        why = f"{pickled[0].name} is pickle, which can run code" if pickled else "it has no *.safetensors"
        raise BadInput(f"{folder}: a base folder without weights: {why}; save the model as safetensors")
    refuse_code(folder)
    hf_folder.check_sizes(folder / "config.json")
    need_tokenizer(folder)
    for item in sorted(weights):
        check_safetensors(folder / item)
    return folder


def refuse_code(folder: Path) -> None:
    """Raise BadInput where something in a base's folder is pickle or names code to run, or is too large to be read."""
    if pickled := hf_folder.pickles(folder):
        why = "is pickle, which can run code; remove it: weights are read from *.safetensors alone"
        raise BadInput(f"{folder}: a base folder where {pickled[0].name} {why}")
    hf_folder.check_folder(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's file is in a folder."""
    return any((folder / item).is_file() for item in TOKENIZER_FILES)


def need_tokenizer(folder: Path) -> None:
    """Raise BadInput unless a tokenizer's file is in a base's folder."""
    if not has_tokenizer(folder):
        raise BadInput(f"{folder}: a base folder without a tokenizer: none of {', '.join(TOKENIZER_FILES)}")


def tokens(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> int:
    """How many tokens a conversation is, in the tokenizer's chat template; without a template, its texts alone."""
    import jinja2

    if tokenizer.chat_template:
        with contextlib.suppress(jinja2.TemplateError):  # It refuses turns out of order.
            return len(tokenizer.apply_chat_template(messages, return_dict=False))
    return sum(len(tokenizer.encode(str(turn.get("content")), add_special_tokens=False)) for turn in messages)


def end_texts(*folders: Path) -> list[str]:
    """The texts of all tokens that end an answer, as tokenizer and generation settings in the folders name them.

    A tokenizer names one, eos; generation_config.json may name more, such as the end of a turn beside that of a text.
    A folder that is not there, or holds neither, adds nothing. Raises BadInput for what cannot be such a name.
    """
    texts: list[str] = []
    for folder in folders:
        settings, ids = folder / "tokenizer_config.json", hf_folder.end_ids(folder / "generation_config.json")
        eos = hf_folder.settings(settings).get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        if eos is not None and not isinstance(eos, str):
            raise hf_folder.wrong(settings, "eos_token", eos, "a text")
        tokens = added_tokens(folder / "tokenizer.json") if ids else {}
        texts += [each for each in (eos, *map(tokens.get, ids)) if each]
    return list(dict.fromkeys(texts))


def added_tokens(path: Path) -> dict[int, str]:
    """The added tokens of a tokenizer.json by their ids. Raises BadInput for what cannot be such."""
    found = hf_folder.settings(path).get("added_tokens") or []
    try:
        return {int(each["id"]): str(each["content"]) for each in found}
    except (TypeError, ValueError, KeyError) as error:
        raise hf_folder.wrong(path, "added_tokens", found, "a list of tokens, each with id and content") from error
