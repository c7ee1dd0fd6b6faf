"""The tokens that training makes of preference pairs: Axolotl's texts, TRL's tokens, and one begin token."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tools import BadInput
from tools.core import progress
from tools.core.preference import SIDES, Pair
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
    """The tokens of each pair: Axolotl's prompt strategy writes the texts, `ids` makes the tokens, both as in training.

    `base`: the base model's folder. `entry`, `settings`: the recipe's `datasets:` entry, and all its keys. Raises
    BadInput for an entry whose `type:` Axolotl does not know.
    """
    os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
    with progress.step("loading Axolotl"):
        from axolotl.loaders import load_tokenizer
        from axolotl.prompt_strategies.dpo import load
        from axolotl.utils.chat_templates import get_chat_template_from_config

    train_as_served()
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
    chosen, rejected = (ids(tokenizer, texts["prompt"] + texts[key])[len(prompt) :] for key in SIDES)
    whole = tokenizer.apply_chat_template([*pair["prompt"], *pair["chosen"]], chat_template=template, tokenize=False)
    return PairTokens(prompt, chosen, rejected, ids(tokenizer, str(whole)))


def ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The tokens of a text that a chat template wrote, whose special tokens are all in it."""
    return list(tokenizer(text=text, add_special_tokens=False)["input_ids"])


@cache
def train_as_served() -> None:
    """Have Axolotl and TRL make the texts and tokens of pairs as they are served, in this process.

    Axolotl 0.19 cuts an answer out of another conversation where its text begins (prompt_strategies/dpo/
    chat_template.py), and so loses the space that Mistral's template writes before it: here an answer is what its own
    conversation has after the prompt. TRL lets the tokenizer add a begin token before the one that the chat template
    wrote: Llama 3, Mistral and Gemma would be trained on two. Axolotl takes the second out in a method
    (core/trainers/dpo/trainer.py, _tokenize) that TRL 1.9 does not call: it calls the function of its module
    (trainer/dpo_trainer.py, _prepare_dataset).
    """
    from axolotl.prompt_strategies.dpo import chat_template
    from axolotl.utils.chat_templates import get_chat_template_from_config
    from trl.trainer import dpo_trainer

    strategy, conversation = chat_template.default, dpo_trainer._tokenize

    def exact(cfg: Any, dataset_idx: int = 0, **rest: Any) -> tuple[Callable[..., dict[str, str]], dict[str, Any]]:
        texts, how = strategy(cfg, dataset_idx, **rest)

        def whole(sample: Pair, tokenizer: Any = None) -> dict[str, str]:
            made: dict[str, str] = texts(sample, tokenizer=tokenizer)
            template = get_chat_template_from_config(cfg, cfg.datasets[dataset_idx], tokenizer)
            for key in SIDES:
                talk = [*sample["prompt"], *sample[key]]
                text = str(tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False))
                if text.startswith(made["prompt"]):
                    made[key] = text.removeprefix(made["prompt"]).rstrip()
            return made

        return whole, how

    def once(processing_class: Any, input: Any, **rest: Any) -> dict[str, list[Any]]:
        if isinstance(input, str):
            return {"input_ids": ids(processing_class, input)}
        return conversation(processing_class, input, **rest)

    chat_template.default = exact
    dpo_trainer._tokenize = once
