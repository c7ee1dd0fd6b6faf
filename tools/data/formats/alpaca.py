"""Alpaca: {"instruction", "input", "output", "system", "history"}, and `extra` for what these cannot hold.

A row an episode: the last exchange, and the earlier ones in `history`; LLaMA-Factory trains every answer in it, Axolotl
knows no history. A row a step: the task as instruction, what has been said since as input, one answer as output; both
read it. No reader of Alpaca leaves an answer untrained, so a row holds no episode in which one is.
"""

from collections.abc import Sequence
from itertools import chain
from typing import cast

import msgspec

from tools import BadInput
from tools.data.formats import (
    KEYS,
    CannotHold,
    Episode,
    Message,
    Read,
    Row,
    Turns,
    columns,
    masks,
    messages_of,
    roles_and_texts,
    text_of,
    with_messages,
)

OWN = ("instruction", "input", "output", "system", "history", "extra")
SHAPE = '{"instruction": "...", "input": "", "output": "...", "history": [["question", "answer"], ...]}'
KEPT_ROLES = ("system", "developer", "user", "assistant")
STEP = "step_of"  # in `extra` of a row a step: [which, of how many]
NOT_KEPT = '"extra" holds "messages" that do not belong to this row; remove it'


class Columns(msgspec.Struct):
    """The columns of a row that a model reads, and what each must be."""

    instruction: str
    output: str
    input: str | None = None
    system: str | None = None
    history: list[tuple[str, str]] | None = None


def read(row: Row) -> Read:
    """The episode of a row. Instruction and input are joined by a newline, as LLaMA-Factory does.

    Raises BadInput when one of the known columns is not what it should be.
    """
    episode, turns = read_row(row)
    if columns.COLUMNS.isdisjoint(episode):
        return episode, turns
    episode = columns.as_turns(with_messages(episode, turns))
    return episode, roles_and_texts(messages_of(episode))


def read_row(row: Row) -> Read:
    """The episode of a row with its other columns as they are. Raises BadInput as `read`."""
    try:
        known = msgspec.convert(row, Columns)
    except msgspec.ValidationError as error:
        raise BadInput(f"{error}; a row is {SHAPE}") from error
    question = f"{known.instruction}\n{known.input}" if known.instruction and known.input else known.instruction
    texts = [*chain.from_iterable(known.history or ()), question or known.input or "", known.output]
    roles = ["user", "assistant"] * (len(texts) // 2)
    if known.system:
        roles, texts = ["system", *roles], [known.system, *texts]
    others = {key: value for key, value in row.items() if key not in OWN}
    extra = row.get("extra")
    if not isinstance(extra, dict):
        return others | ({} if extra is None else {"extra": extra}) | {"messages": None}, (roles, texts)
    kept = extra.get("messages", [])
    if kept == []:
        return others | placed(None, extra), (roles, texts)
    messages = restored([{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)], kept)
    return others | placed(messages, extra), roles_and_texts(messages)


def restored(messages: list[Message], kept: object) -> list[Message]:
    """The messages again, from their roles and texts and what `kept_of` kept of them.

    Raises BadInput where that was kept of other messages.
    """
    if not isinstance(kept, list) or len(kept) > len(messages):
        raise BadInput(NOT_KEPT)
    for number, each in enumerate(kept):
        if each is not None:
            if not isinstance(each, dict) or each.get("role", "user") not in KEPT_ROLES:
                raise BadInput(NOT_KEPT)
            text = {"content": messages[number]["content"]}
            messages[number] = masks.with_train(each | text if "role" in each else messages[number] | each, number + 1)
    return messages


def placed(messages: list[Message] | None, extra: Row) -> Episode:
    """The episode again: what `extra` kept, and its messages where they stood."""
    episode: Episode = {key: messages if key == "messages" else value for key, value in extra.items() if key != STEP}
    return episode if "messages" in episode else episode | {"messages": messages}


def kept_of(episode: Episode, turns: Turns | None) -> Row:
    """What an Alpaca row cannot hold: the episode without its turns' roles and texts; empty when there is no more.

    `messages` stands in it where it must: to keep other keys of messages, or its place when that is not the last.
    """
    kept: list[Message | None] = []
    for turn in [] if turns else messages_of(episode):
        keys = tuple(turn)
        if keys == KEYS:
            kept.append(None)
        elif keys[:2] == KEYS:
            kept.append({key: turn[key] for key in keys[2:]})
        else:
            kept.append(turn | {"content": None})
    while kept and kept[-1] is None:
        kept.pop()
    if kept or next(reversed(episode)) != "messages":
        return {key: kept if key == "messages" else value for key, value in episode.items()}
    return {key: value for key, value in episode.items() if key != "messages"}


def exchanges(episode: Episode, turns: Turns | None) -> tuple[str, list[tuple[str, str]]]:
    """The system turn's text and the exchanges (question, answer). Raises CannotHold when turns are out of order."""
    roles = turns[0] if turns else [turn["role"] for turn in messages_of(episode)]
    system = roles[0] == "system"
    pairs = len(roles) // 2
    if not pairs or roles != ["system"] * system + ["user", "assistant"] * pairs:
        before = roles[system:-1]
        if roles[-1] == "user" and before == ["user", "assistant"] * (len(before) // 2):
            raise CannotHold("last turn is the user's; --trim (TRIM=1) cuts it")
        raise CannotHold("turns out of order: a row holds a system turn, then user and assistant by turns")
    texts = turns[1] if turns else [text_of(turn, number) for number, turn in enumerate(messages_of(episode), 1)]
    if system and not texts[0]:
        raise CannotHold("an empty system turn, which a row cannot tell from none")
    return texts[0] if system else "", list(zip(texts[system::2], texts[system + 1 :: 2], strict=True))


def write(episode: Episode, extra: bool, turns: Turns | None) -> Row:
    """The row of an episode; `extra`: with what other columns cannot hold. Raises CannotHold for turns out of order."""
    system, pairs = exchanges(episode, turns)
    (question, answer), history = pairs[-1], pairs[:-1]
    row: Row = {"instruction": question, "input": "", "output": answer, "system": system, "history": history}
    if extra and (kept := kept_of(episode, turns)):
        row["extra"] = kept
    return row


def write_steps(episode: Episode, extra: bool, turns: Turns | None) -> list[Row]:
    """The rows of an episode, one a step; raises CannotHold as `write` does, and for a key of ours."""
    if STEP in episode:
        raise CannotHold(f'a key "{STEP}" of its own, which tells where a step stands')
    system, pairs = exchanges(episode, turns)
    task, since = pairs[0][0], ""
    rows: list[Row] = []
    kept = kept_of(episode, turns) if extra else {}
    for number, (question, answer) in enumerate(pairs, 1):
        if number > 1:
            since = f"{since}\n{question}" if since else question
        row: Row = {"instruction": task, "input": since, "output": answer, "system": system, "history": []}
        if extra:
            row["extra"] = {STEP: [number, len(pairs)]} | kept
        rows.append(row)
        since = f"{since}\n{answer}" if number > 1 else answer
    return rows


class Place(msgspec.Struct):
    """Where a step stands in its episode: its number, from 1, and how many there are."""

    step_of: tuple[int, int]


class Step(Columns, kw_only=True):
    """A row a step, as `write_steps` makes it."""

    extra: Place


class BadStep(BadInput):
    """Rows that do not make an episode; `place`: which of them, from 0, shows it."""

    def __init__(self, place: int, why: str) -> None:
        super().__init__(why)
        self.place = place


def is_step(row: object) -> bool:
    """Whether a row is one step of an episode, written so by `write_steps`."""
    extra = row.get("extra") if isinstance(row, dict) else None
    return isinstance(extra, dict) and STEP in extra


def as_step(row: object) -> Step | None:
    """A row as the step that it is; None for one that is none, or whose columns are not what they should be."""
    try:
        return msgspec.convert(row, Step)
    except msgspec.ValidationError:
        return None


def joined(rows: Sequence[object]) -> Row:
    """The row of an episode, from the rows of its steps. Raises BadStep where one is missing or was changed."""
    steps: list[Step] = []
    for number, row in enumerate(rows, 1):
        step = as_step(row)
        if step is None or step.extra.step_of[0] != number:
            raise BadStep(number - 1, f"step {number} of an episode should stand here; keep the rows of one together")
        steps.append(step)
    if len(steps) != steps[-1].extra.step_of[1]:
        why = f"an episode ends at step {len(steps)}, before its last; keep the rows of one together"
        raise BadStep(len(steps) - 1, why)
    return cast("Row", rows[0]) | last_exchange_and_history(steps)


def last_exchange_and_history(steps: list[Step]) -> Row:
    """What differs between an episode's first step and its row. Raises BadStep where a step's input does not go on.

    A step's input is all that was said since the task: the earlier answers and observations, then its own observation.
    """
    history: list[tuple[str, str]] = []
    said, asked = "", steps[0].instruction
    for number, step in enumerate(steps, 1):
        if number > 1:
            head, now = f"{said}\n" if said else "", step.input or ""
            if not now.startswith(head):
                raise BadStep(number - 1, f"step {number} of an episode does not go on from the one before it")
            said, asked = now, now[len(head) :]
        history.append((asked, step.output))
        said = f"{said}\n{step.output}" if number > 1 else step.output
    question, answer = history.pop()
    return {"instruction": question, "input": "", "output": answer, "history": history}
