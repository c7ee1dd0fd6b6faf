"""Alpaca: {"instruction", "input", "output", "system", "history"}, and `extra` for what these cannot hold.

A row an episode: the last exchange, and the earlier ones in `history`; LLaMA-Factory trains every answer in it, Axolotl
knows no history. A row a step: the task as instruction, what has been said since as input, one answer as output; both
read it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from tools import BadInput
from tools.data.formats import KEYS, CannotHold, Ordinary, ordinary, text_of

OWN = ("instruction", "input", "output", "system", "history", "extra")
STEP = "step_of"  # in `extra` of a row a step: [which, of how many]


def read(row: dict[str, Any]) -> tuple[dict[str, Any], Ordinary]:
    """The episode of a row, and its roles and texts when there is no more in its messages, which are left None.

    Instruction and input are joined by a newline, as LLaMA-Factory does.

    Raises BadInput when one of the known columns is not what it should be.
    """
    for key in ("instruction", "output"):
        if type(row.get(key)) is not str:
            raise BadInput(f'no "{key}"; a row is {{"instruction": "...", "input": "", "output": "..."}}')
    asked, system, history = row.get("input") or "", row.get("system") or "", row.get("history") or []
    if type(asked) is not str or type(system) is not str:
        raise BadInput('"input" and "system" must be text')
    pairs = [pair for pair in history if type(pair) is list and len(pair) == 2] if type(history) is list else []
    if len(pairs) != len(history) or not all(type(text) is str for pair in pairs for text in pair):
        raise BadInput('"history" must be a list of [question, answer]')
    question = f"{row['instruction']}\n{asked}" if asked and row["instruction"] else row["instruction"] or asked
    texts = [text for pair in pairs for text in pair] + [question, row["output"]]
    roles = ["user", "assistant"] * (len(texts) // 2)
    if system:
        roles, texts = ["system", *roles], [system, *texts]
    others = {key: value for key, value in row.items() if key not in OWN}
    extra = row.get("extra")
    if type(extra) is not dict:
        return others | ({} if extra is None else {"extra": extra}) | {"messages": None}, (roles, texts)
    if extra.get("messages", []) == []:
        return others | placed(None, extra), (roles, texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    episode = others | placed(restored(messages, extra["messages"]), extra)
    return episode, ordinary(episode["messages"])


def restored(messages: list[dict[str, Any]], kept: Any) -> list[dict[str, Any]]:
    """The messages again, from their roles and texts and what `kept_of` kept of them."""
    if (
        type(kept) is not list
        or len(kept) > len(messages)
        or not all(each is None or type(each) is dict for each in kept)
    ):
        raise BadInput('"extra" holds "messages" that do not belong to this row; remove it')
    for number, each in enumerate(kept):
        if each is not None:
            text = {"content": messages[number]["content"]}
            messages[number] = each | text if "role" in each else messages[number] | each
    return messages


def placed(messages: list[dict[str, Any]] | None, extra: dict[str, Any]) -> dict[str, Any]:
    """The episode again: what `extra` kept, and its messages where they stood."""
    episode = {key: messages if key == "messages" else value for key, value in extra.items() if key != STEP}
    return episode if "messages" in episode else episode | {"messages": messages}


def kept_of(episode: dict[str, Any], plain: Ordinary) -> dict[str, Any]:
    """What an Alpaca row cannot hold: the episode without its turns' roles and texts; empty when there is no more.

    `messages` stands in it where it must: to keep other keys of messages, or its place when that is not the last.
    """
    kept: list[dict[str, Any] | None] = []
    for turn in [] if plain else episode["messages"]:
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


def exchanges(episode: dict[str, Any], plain: Ordinary) -> tuple[str, list[tuple[str, str]]]:
    """The system turn's text and the exchanges (question, answer). Raises CannotHold when turns are out of order."""
    turns = episode["messages"]
    roles = plain[0] if plain else [turn["role"] for turn in turns]
    system = roles[0] == "system"
    pairs = len(roles) // 2
    if not pairs or roles != ["system"] * system + ["user", "assistant"] * pairs:
        raise CannotHold("turns out of order: a row holds a system turn, then user and assistant by turns")
    texts = plain[1] if plain else [text_of(turn, number) for number, turn in enumerate(turns, 1)]
    if system and not texts[0]:
        raise CannotHold("an empty system turn, which a row cannot tell from none")
    return texts[0] if system else "", list(zip(texts[system::2], texts[system + 1 :: 2], strict=True))


def write(episode: dict[str, Any], extra: bool, plain: Ordinary) -> dict[str, Any]:
    """The row of an episode; `extra`: with what other columns cannot hold. Raises CannotHold for turns out of order."""
    system, pairs = exchanges(episode, plain)
    (question, answer), history = pairs[-1], pairs[:-1]
    row: dict[str, Any] = {"instruction": question, "input": "", "output": answer, "system": system, "history": history}
    if extra and (kept := kept_of(episode, plain)):
        row["extra"] = kept
    return row


def write_steps(episode: dict[str, Any], extra: bool, plain: Ordinary) -> list[dict[str, Any]]:
    """The rows of an episode, one a step; raises CannotHold as `write` does, and for a key of ours."""
    if STEP in episode:
        raise CannotHold(f'a key "{STEP}" of its own, which tells where a step stands')
    system, pairs = exchanges(episode, plain)
    task, since, rows = pairs[0][0], "", []
    kept = kept_of(episode, plain) if extra else {}
    for number, (question, answer) in enumerate(pairs, 1):
        if number > 1:
            since = f"{since}\n{question}" if since else question
        row: dict[str, Any] = {"instruction": task, "input": since, "output": answer, "system": system, "history": []}
        if extra:
            row["extra"] = {STEP: [number, len(pairs)]} | kept
        rows.append(row)
        since = f"{since}\n{answer}" if number > 1 else answer
    return rows


def is_step(row: Any) -> bool:
    """Whether a row is one step of an episode, written so by `write_steps`."""
    extra = row.get("extra") if isinstance(row, dict) else None
    return isinstance(extra, dict) and STEP in extra


def joined(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of steps, joined again to a row an episode. Raises BadInput where one is missing or was changed."""
    steps: list[dict[str, Any]] = []
    for row in rows:
        which = row["extra"][STEP] if is_step(row) else None
        if which is None and not steps:
            yield row
            continue
        if not isinstance(which, list) or len(which) != 2 or which[0] != len(steps) + 1 or not is_text(row):
            raise BadInput(f"step {len(steps) + 1} of an episode should stand here; keep the rows of one together")
        steps.append(row)
        if len(steps) == which[1]:
            yield one(steps)
            steps = []
    if steps:
        raise BadInput(f"an episode ends at step {len(steps)}, before its last; keep the rows of one together")


def is_text(row: dict[str, Any]) -> bool:
    """Whether the three columns of a step are text."""
    return all(type(row.get(key)) is str for key in OWN[:3])


def one(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the episode whose steps these are."""
    history, question, said = [], steps[0]["instruction"], ""
    for number, row in enumerate(steps, 1):
        if number > 1:
            head = f"{said}\n" if said else ""
            if not row["input"].startswith(head):
                raise BadInput(f"step {number} of an episode does not go on from the one before it")
            question, said = row["input"][len(head) :], row["input"]
        history.append([question, row["output"]])
        said = f"{said}\n{row['output']}" if number > 1 else row["output"]
    question, answer = history.pop()
    return steps[0] | {"instruction": question, "input": "", "output": answer, "history": history}
