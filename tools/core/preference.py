"""Preference pairs as training reads them: what was said before, the answer that was chosen, the one that was not."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from tools import BadInput
from tools.core import trajectory
from tools.core.trajectory import Episode

# What one line of a file holds: "prompt", "chosen" and "rejected", each a list of turns, and what its owner put there.
Pair = dict[str, Any]
SHAPE = '{"prompt": [turns], "chosen": [an answer], "rejected": [an answer]}'
SIDES = ("chosen", "rejected")
# Columns by which TRL 1.9 takes a row for data of another kind (data_utils.py, is_conversational; DPOTrainer.__init__).
FOREIGN = ("messages", "completion", "image", "images")


def read(path: Path) -> Iterator[Pair]:
    """The pairs of a JSONL file, one after the other.

    Raises BadInput, with file:line, for what cannot be read, holds nothing, or is not a pair of two different answers.
    """
    if not path.exists():
        raise BadInput(f"{path}: no preference pairs there; DATA= names a file of {SHAPE}")
    for where, line in trajectory.lines(path):
        row = parse(line, where)
        if why := fault(row):
            raise BadInput(f"{where}: {why}")
        yield dict(row)


def parse(line: bytes, where: str) -> Any:
    """The JSON of one line. Raises BadInput that begins with `where` for what is none."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{where}: not JSON ({error}); each line must be one complete JSON object") from error


def fault(row: object) -> str | None:
    """Why a value is not a preference pair that can be trained, and how to fix it; None when it is one.

    The prompt is turns in order that end with the user's. A side is one answer: of several turns Axolotl takes the last
    alone, without a word (0.19, prompt_strategies/dpo/chat_template.py).
    """
    if not isinstance(row, Mapping):
        return f"no JSON object; a preference pair is {SHAPE}"
    if "messages" in row and not set(SIDES) & set(row):
        return f"an episode, and rl: dpo learns from preference pairs: {SHAPE}"
    if foreign := next((key for key in FOREIGN if key in row), ""):
        return f'"{foreign}" beside a pair: TRL would take it for data of another kind; leave it out'
    for key in ("prompt", *SIDES):
        turns = row.get(key)
        if not isinstance(turns, list) or not turns:
            return f'"{key}" is no list of turns; a pair is {SHAPE}, and `convert --to messages` writes pairs so'
        for number, turn in enumerate(turns, 1):
            if not isinstance(turn, Mapping) or turn.get("role") not in ("system", "user", "assistant"):
                return f"{key}, turn {number} has no known role; it must be system, user or assistant"
            if not isinstance(turn.get("content"), str) or not turn["content"].strip():
                return f'{key}, turn {number} ({turn["role"]}) has no text; give it as "content"'
    if why := trajectory.order(row["prompt"]):
        return f"prompt: {why}"
    if row["prompt"][-1]["role"] != "user":
        return "the prompt must end with the user's turn; an answer that it ends with belongs to both sides"
    for key in SIDES:
        if len(row[key]) > 1:
            return (
                f"{key} has {len(row[key])} turns, and only its last would be trained; make a pair where the two part"
            )
        if row[key][0]["role"] != "assistant":
            return f"{key} is the {row[key][0]['role']}'s turn and must be the assistant's"
    if row["chosen"][0]["content"] == row["rejected"][0]["content"]:
        return "chosen and rejected are the same, so there is nothing to prefer; drop the pair"
    return None


def conversations(path: Path) -> Iterator[Episode]:
    """What a training learned from as conversations: its episodes, or each pair's prompt with the chosen answer.

    Raises BadInput, with file:line, for what is neither.
    """
    for where, line in trajectory.lines(path):
        row = parse(line, where)
        if isinstance(row, dict) and "chosen" in row and fault(row) is None:
            yield {"messages": [*row["prompt"], *row["chosen"]]}
        else:
            yield trajectory.parse(line, where)
