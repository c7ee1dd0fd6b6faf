"""What a recipe makes of its data: updates, lengths, tokens that nobody trains, the loss mask, repeats."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tools.core import hf_folder, run_folder, trajectory
from tools.core.finding import Finding
from tools.core.trajectory import Episode
from tools.recipes import schema
from tools.recipes.recipe import Recipe
from tools.training.recipe_checks import limits
from tools.training.tokens import IGNORED, Tokenised

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Characters of a token, where the tokenizer is not here: English has about four.
CHARACTERS = 4


def repeated(recipe: Recipe, episodes: list[Episode]) -> Iterator[Finding]:
    """Episodes that stand twice in the training data, and those that the test set has too."""
    data = recipe.dataset["path"]
    seen: dict[bytes, int] = {}
    twice = []
    for number, episode in enumerate(episodes, 1):
        text = orjson.dumps(episode["messages"])
        if text in seen:
            twice.append((number, seen[text]))
        seen.setdefault(text, number)
    if twice:
        number, first = twice[0]
        yield Finding(
            "warning",
            f"{len(twice)} episodes stand twice; this one is line {first} too",
            f"{data}:{number}",
            "remove one of each",
        )
    if recipe.data.resolve() != trajectory.TEST_DATA:
        known = (seen.get(orjson.dumps(each["messages"])) for each in trajectory.read(trajectory.TEST_DATA))
        leaked = [number for number in known if number]
        if leaked:
            yield Finding(
                "error",
                f"{len(leaked)} episodes are in the test set too",
                f"{data}:{leaked[0]}",
                f"remove them, here or in {trajectory.TEST_DATA.relative_to(run_folder.ROOT)}",
            )


def too_long(recipe: Recipe, data: str, tokenised: list[Tokenised], length: int) -> Iterator[Finding]:
    """Episodes longer than the sequence: an error when most are, since training drops them."""
    long = [number for number, (ids, _) in enumerate(tokenised, 1) if len(ids) > length]
    if not long:
        return
    longest = max(len(ids) for ids, _ in tokenised)
    share = f"{len(long) / len(tokenised):.0%} of the episodes are dropped"
    what = f"{len(tokenised[long[0] - 1][0])} tokens and sequence_len is {length}: {share}"
    fix = f"sequence_len: {-(-longest // 256) * 256} ({recipe.at('sequence_len')}), or shorter episodes"
    yield Finding("error" if len(long) * 2 > len(tokenised) else "warning", what, f"{data}:{long[0]}", fix)


def mask(
    data: str, tokenizer: "PreTrainedTokenizerBase", episodes: list[Episode], tokenised: list[Tokenised]
) -> Iterator[Finding]:
    """A loss mask that is not the assistant's turns and the token that ends each: a template and an eos at odds."""
    for number, (episode, (ids, labels)) in enumerate(zip(episodes, tokenised, strict=True), 1):
        said = [turn["content"] for turn in episode["messages"] if turn["role"] == "assistant"]
        trained = [tokenizer.decode(span) for span in spans(ids, labels)]
        if trained != [f"{text}{tokenizer.eos_token}" for text in said]:
            pairs = itertools.zip_longest(trained, said, fillvalue="")
            seen, wanted = next(pair for pair in pairs if pair[0] != f"{pair[1]}{tokenizer.eos_token}")
            shown = f"{seen[-60:]!r}, and not {(wanted + tokenizer.eos_token)[-60:]!r}"
            what = f"trained is not what the assistant says and its end token: {shown}"
            fix = "roles_to_train: [assistant], train_on_eos: turn, an eos_token that ends the template's turns"
            yield Finding("error", what, f"{data}:{number}", fix)
            return


def spans(ids: list[int], labels: list[int]) -> list[list[int]]:
    """The runs of trained tokens of one episode, in order."""
    found: list[list[int]] = []
    for position, label in enumerate(labels):
        if label == IGNORED:
            continue
        if position == 0 or labels[position - 1] == IGNORED:
            found.append([])
        found[-1].append(ids[position])
    return found
