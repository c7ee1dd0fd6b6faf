"""Preference pairs: a prompt, the answer that was chosen, and the one that was rejected.

TRL's conversational way, {"prompt": [...], "chosen": [...], "rejected": [...]}, is written as messages; the prompt may
stand in both answers instead. LLaMA-Factory's ways are ShareGPT, {"conversations", "chosen": {"from", "value"},
"rejected"}, and Alpaca, {"instruction", "input", "chosen", "rejected"}.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from tools import BadInput
from tools.data.formats import CannotHold, Message, Row, alpaca, calls, sharegpt, variants

SIDES = ("chosen", "rejected")
ALPACA = ("instruction", "input", "system", "history")


@dataclass(frozen=True)
class Pair:
    """What was said before, and two ways to go on; `rest`: what else the row holds."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    rest: Row


def is_pair(row: Row) -> bool:
    """Whether a row is a preference pair."""
    return "chosen" in row and "rejected" in row and "messages" not in row


def read(row: Row, roles: Mapping[str, str]) -> Pair:
    """The pair of a row, in any of the three ways. Raises BadInput for what is none."""
    chosen, rejected = (side(row[key], roles) for key in SIDES)
    used = [*SIDES, "prompt"]
    if isinstance(row.get("conversations"), list):
        used += ["conversations", "system"]
        prompt = spoken(row["conversations"], roles)
        if row.get("system") and prompt[0]["role"] != "system":
            prompt.insert(0, {"role": "system", "content": row["system"]})
    elif isinstance(row.get("prompt"), list):
        prompt = spoken(row["prompt"], roles)
    elif "instruction" in row or "prompt" in row:
        used += ALPACA
        columns = {key: row[key] for key in ALPACA if key in row}
        _, turns = alpaca.read({"instruction": row.get("prompt")} | columns | {"output": ""})
        assert turns
        prompt = as_messages(*turns)[:-1]
    else:
        prompt = []
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    if common and prompt and prompt[-1] != chosen[common - 1]:
        raise BadInput("the prompt is not what chosen and rejected begin with; keep one of the two")
    prompt, chosen, rejected = chosen[:common] or prompt, chosen[common:], rejected[common:]
    if not prompt or prompt[-1]["role"] != "user" or any(each[0]["role"] != "assistant" for each in (chosen, rejected)):
        raise BadInput("a pair needs a prompt that ends with the user's turn, and answers of the assistant's")
    return Pair(prompt, chosen, rejected, {key: value for key, value in row.items() if key not in used})


def spoken(turns: object, roles: Mapping[str, str]) -> list[Message]:
    """The messages of a list of turns, calls of tools as text. Raises BadInput for what is none."""
    if not isinstance(turns, list):
        raise BadInput("no turns; drop the row")
    name, made = variants.turns_of(turns, roles)
    if name == "sharegpt":
        episode, plain = sharegpt.read({"conversations": made})
        return cast("list[Message]", episode["messages"]) if plain is None else as_messages(*plain)
    messages = calls.to_text(made)
    calls.refuse_several(messages)
    return messages


def as_messages(said_by: list[str], texts: list[str]) -> list[Message]:
    """Messages of these roles and texts."""
    return [{"role": role, "content": text} for role, text in zip(said_by, texts, strict=True)]


def side(value: object, roles: Mapping[str, str]) -> list[Message]:
    """The messages of an answer: a text, one turn, or a list of turns. Raises BadInput for what is none."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return spoken([value] if isinstance(value, dict) else value, roles)


def write(pair: Pair, to: str, drop: bool) -> Row:
    """The row of a pair; `drop`: without what else it holds. Raises CannotHold where the format has no place for it."""
    rest = {} if drop else pair.rest
    if to == "messages":
        return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} | rest
    if to not in ("sharegpt", "alpaca"):
        raise CannotHold("a preference pair; messages, sharegpt and alpaca hold one")
    if len(pair.chosen) > 1 or len(pair.rejected) > 1:
        raise CannotHold("an answer of several turns; a pair has one on each side, except as messages (TRL)")
    chosen, rejected = pair.chosen[0], pair.rejected[0]
    if to == "sharegpt":
        prompt, *sides = ([sharegpt.tagged(turn, 1) for turn in each] for each in (pair.prompt, [chosen], [rejected]))
        return {"conversations": prompt, "chosen": sides[0][0], "rejected": sides[1][0]} | rest
    row = alpaca.write({"messages": [*pair.prompt, chosen]}, False, None)
    made = {"instruction": row["instruction"], "input": "", "chosen": row["output"], "rejected": rejected["content"]}
    return made | {"system": row["system"], "history": row["history"]} | rest
