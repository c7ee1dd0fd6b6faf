"""The tokens and the loss mask that training makes of conversations: Axolotl's own."""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tools.core import chat_template, progress

if TYPE_CHECKING:
    from axolotl.utils.dict import DictDefault

# The label of a token without loss.
IGNORED = -100
# Token ids and labels of one episode.
Tokenised = tuple[list[int], list[int]]
# A recipe's keys outside `datasets:` that decide which tokens come out.
TOKEN_KEYS = (
    "added_tokens_overrides",
    "base_model_config",
    "chat_template",
    "chat_template_jinja",
    "chat_template_kwargs",
    "default_system_message",
    "eot_tokens",
    "special_tokens",
    "tokenizer_legacy",
    "tokenizer_type",
    "tokenizer_use_fast",
    "tokens",
    "train_on_inputs",
)


def config(
    base: Path, entry: Mapping[str, object], settings: Mapping[str, object], sequence_len: int = 512
) -> "DictDefault":
    """A recipe as Axolotl reads it to make tokens: `settings` of TOKEN_KEYS alone, one dataset with `entry`.

    `base`: the base model's folder. Loads Axolotl.
    """
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    chat_template.install_in_axolotl()
    # It logs the errors that it raises, too.
    logging.getLogger("axolotl.prompt_strategies").setLevel(logging.CRITICAL)
    known = {key: value for key, value in settings.items() if key in TOKEN_KEYS}
    known |= {"base_model": str(base), "tokenizer_config": str(base), "sequence_len": sequence_len}
    known |= {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-4}
    known |= {"datasets": [dict(entry)], "dataset_keep_in_memory": True}
    cfg = validate_config(DictDefault(known))
    cfg.dataset_num_proc = None  # Started for a few conversations, more processes cost time.
    return cfg


def tokenise(
    base: Path,
    entry: Mapping[str, object],
    conversations: Sequence[Mapping[str, object]],
    sequence_len: int,
    settings: Mapping[str, object] | None = None,
) -> list[Tokenised]:
    """The token ids that Axolotl trains on, and their labels (IGNORED: no loss), a pair for each conversation.

    Axolotl itself makes them: its tokenizer loading, its JSON loading, its prompt strategy, short of dropping what is
    too long. `base`: the base model's folder. `entry`: the recipe's `datasets:` entry, its path aside. `settings`: the
    whole recipe's, when its other keys (TOKEN_KEYS) matter. Importing Axolotl takes 10 to 20 s.
    """
    os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
    with progress.step("loading Axolotl"):
        import datasets
        from axolotl.loaders import load_tokenizer
        from axolotl.utils.data.sft import _load_and_process_single_dataset

    datasets.disable_progress_bars()
    title = f"making the tokens of {len(conversations):,} conversations"
    with progress.step(title), tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "conversations.jsonl"
        data.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in conversations))
        cfg = config(base, {**entry, "path": str(data)}, settings or {}, sequence_len)
        # The library keeps a copy of all it ever loaded, unless its cache goes with the folder.
        kept, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, Path(folder) / "cache"
        try:
            made, _ = _load_and_process_single_dataset(cfg.datasets[0], cfg, load_tokenizer(cfg), "train", seed=0)
            return list(zip(made["input_ids"], made["labels"], strict=True))
        finally:
            datasets.config.HF_DATASETS_CACHE = kept


def save_tokenizer(base: Path, entry: Mapping[str, object], settings: Mapping[str, object], folder: Path) -> None:
    """Save the tokenizer and chat template that Axolotl trains a recipe with into `folder`; see `tokenise`."""
    from axolotl.loaders import load_tokenizer

    load_tokenizer(config(base, entry, settings, int(str(settings["sequence_len"])))).save_pretrained(folder)
