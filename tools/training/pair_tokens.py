"""The tokens that training makes of preference pairs: Axolotl's texts, TRL's tokens, and one begin token."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tools import BadInput
from tools.core import progress
from tools.core.preference import Pair
from tools.training import tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PairTokens(NamedTuple):
    """The token ids of a pair as it is trained; `served`: those of its prompt with the chosen answer in a server."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    served: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two conversations."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def tokenise(
    base: Path, entry: Mapping[str, object], pairs: Sequence[Pair], settings: Mapping[str, object]
) -> list[PairTokens]:
    """The tokens of each pair: Axolotl's own prompt strategy writes the texts, `ids` makes the tokens as in training.

    `base`: the base model's folder. `entry`, `settings`: the recipe's `datasets:` entry, and all its keys. Raises
    BadInput for an entry whose `type:` Axolotl does not know.
    """
    os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
    with progress.step("loading Axolotl"):
        from axolotl.loaders import load_tokenizer
        from axolotl.prompt_strategies.dpo import load
        from axolotl.utils.chat_templates import get_chat_template_from_config

    cfg = tokens.config(base, entry, settings)
    strategy = load(str(entry.get("type")), cfg, dataset_idx=0)
    if not isinstance(strategy, tuple):
        raise BadInput(f"type: {entry.get('type')}: no way to read pairs of turns; type: chat_template.default is one")
    texts: Callable[..., dict[str, str]] = strategy[0]
    tokenizer = load_tokenizer(cfg)
    template = get_chat_template_from_config(cfg=cfg, ds_cfg=cfg.datasets[0], tokenizer=tokenizer)
    return [of_pair(pair, texts(dict(pair), tokenizer=tokenizer), tokenizer, template) for pair in pairs]


def of_pair(pair: Pair, texts: Mapping[str, str], tokenizer: "PreTrainedTokenizerBase", template: str) -> PairTokens:
    """The tokens of one pair, of whose parts Axolotl made these `texts`."""
    prompt = ids(tokenizer, texts["prompt"])
    sides = (ids(tokenizer, texts["prompt"] + texts[key])[len(prompt) :] for key in ("chosen", "rejected"))
    whole = tokenizer.apply_chat_template([*pair["prompt"], *pair["chosen"]], chat_template=template, tokenize=False)
    return PairTokens(prompt, *sides, served=ids(tokenizer, str(whole)))


def ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The tokens of a text that a chat template wrote, whose special tokens are all in it."""
    return list(tokenizer(text=text, add_special_tokens=False)["input_ids"])


def add_no_begin_token() -> None:
    """Have TRL's DPOTrainer make the tokens of a text as `ids` does, in this process.

    It lets the tokenizer add a begin token before the one that the chat template wrote, so Llama 3, Mistral, Gemma and
    Phi would be trained on two. Axolotl 0.19 takes the second out in a method (core/trainers/dpo/trainer.py, _tokenize)
    that TRL 1.9 does not call: it calls the function of its module (trainer/dpo_trainer.py, _prepare_dataset).
    """
    from trl.trainer import dpo_trainer

    conversation = dpo_trainer._tokenize

    def tokenise_once(processing_class: "PreTrainedTokenizerBase", input: Any, **rest: Any) -> Mapping[str, list[int]]:
        if isinstance(input, str):
            return {"input_ids": ids(processing_class, input)}
        made: Mapping[str, list[int]] = conversation(processing_class, input, **rest)
        return made

    dpo_trainer._tokenize = tokenise_once
