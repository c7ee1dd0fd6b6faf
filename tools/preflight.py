"""All that can go wrong with a recipe and its data, found before training starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import BadInput, recipe, run, trajectory

if TYPE_CHECKING:
    from rich.text import Text

IGNORED = -100  # the label of a token without loss


@dataclass(frozen=True)
class Findings:
    """What the check measured: episodes, tokens in all and trained, the longest episode, and the first one's mask."""

    episodes: int
    tokens: int
    trained: int
    longest: int
    sequence_len: int
    preview: "Text"


def check(path: Path, base: Path) -> Findings:
    """Check a recipe and its data with the parts that train: Axolotl's schema, its tokenising, its loss mask.

    Raises BadInput for data that is not a ReAct episode (file:line), a recipe that Axolotl refuses, an episode longer
    than sequence_len, and a mask that trains anything but the assistant's turns and the token that ends each.
    """
    from transformers import AutoTokenizer

    settings, entry = recipe.load(path), recipe.dataset(path)
    data = run.ROOT / entry["path"]
    episodes = read(path)
    recipe.validate(path)
    length = int(settings.get("sequence_len", 512))
    tokenised = trajectory.tokenise(base, entry, episodes, length, settings)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for number, (episode, (ids, labels)) in enumerate(zip(episodes, tokenised, strict=True), 1):
        if len(ids) > length:
            raise BadInput(
                f"{data}:{number}: {len(ids)} tokens and sequence_len is {length}; raise it, or shorten the episode"
            )
        said = [turn["content"] for turn in episode["messages"] if turn["role"] == "assistant"]
        trained = [tokenizer.decode(span) for span in spans(ids, labels)]
        if trained != [f"{text}{tokenizer.eos_token}" for text in said]:
            raise BadInput(f"{data}:{number}: trained is not what the assistant says and its end token: {trained[:1]}")
    return Findings(
        episodes=len(episodes),
        tokens=sum(len(ids) for ids, _ in tokenised),
        trained=sum(label != IGNORED for _, labels in tokenised for label in labels),
        longest=max(len(ids) for ids, _ in tokenised),
        sequence_len=length,
        preview=preview(tokenizer, *tokenised[0]),
    )


def read(path: Path) -> list[dict[str, Any]]:
    """The episodes that a recipe trains on. Raises BadInput, with file:line, when one is not a ReAct episode."""
    return list(trajectory.read(run.ROOT / recipe.dataset(path)["path"]))


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


def preview(tokenizer: Any, ids: list[int], labels: list[int]) -> "Text":
    """One episode as the model sees it: trained tokens bold green, all others dim."""
    from rich.text import Text

    text = Text()
    for token, label in zip(ids, labels, strict=True):
        text.append(tokenizer.decode([token]), style="dim" if label == IGNORED else "bold green")
    return text
