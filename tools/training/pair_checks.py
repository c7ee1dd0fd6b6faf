"""What a recipe makes of preference pairs: tokens that are not those that are served, lengths, updates, kernels."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tools.core.finding import Finding
from tools.core.preference import Pair
from tools.recipes import plan
from tools.recipes.recipe import Recipe
from tools.training.pair_tokens import PairTokens
from tools.training.recipe_checks import few_updates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def served(
    data: str, tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[Pair], tokenised: Sequence[PairTokens]
) -> Iterator[Finding]:
    """The first pair whose tokens are not those of its conversation as it is served, answer and end token.

    White space that a chat template writes behind the end token is not trained; a server never makes it either.
    """
    for number, (pair, made) in enumerate(zip(pairs, tokenised, strict=True), 1):
        trained = made.prompt + made.chosen
        behind = str(tokenizer.decode(made.served[len(trained) :]))
        wrong = made.served[: len(trained)] != trained or behind.strip()
        for key, side in (("chosen", made.chosen), ("rejected", made.rejected)):
            said, wanted = str(tokenizer.decode(side)), f"{pair[key][0]['content']}{tokenizer.eos_token}"
            if wrong or said != wanted:
                what = f"{key} is trained as {said[-60:]!r} after its prompt, and served as {wanted[-60:]!r}"
                fix = (
                    "white space around an answer, or an eos_token that does not end the template's turns, makes it so"
                )
                yield Finding("error", what, f"{data}:{number}", fix)
                return


def updates(recipe: Recipe, tokenised: Sequence[PairTokens], length: int) -> Iterator[Finding]:
    """A run with too few updates. `length`: the recipe's sequence_len; a longer pair is dropped."""
    s = plan.from_recipe(recipe.settings, recipe.tier)
    held = float(recipe.settings.get("val_set_size") or 0)
    kept = sum(each.longest <= length for each in tokenised)
    trained = kept - (held * kept if held < 1 else held)
    rows = s.micro_batch * s.accumulation * plan.replicas(s, recipe.tier)
    total = math.ceil(trained / rows) * float(recipe.settings.get("num_epochs") or 1)
    yield from few_updates(
        recipe, total, f"{trained:.0f} pairs", "more pairs, or a smaller gradient_accumulation_steps"
    )
