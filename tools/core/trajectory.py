"""One ReAct episode as messages: read from files, checked, its actions and observations; the committed test set."""

import codecs
import glob
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import orjson

from tools import BadInput
from tools.core import chunks, progress, run_folder

TRAIN_DATA = run_folder.ROOT / "data" / "train.jsonl"
TEST_DATA = run_folder.ROOT / "data" / "test.jsonl"
T = TypeVar("T")
FINAL = re.compile(r"\bFinal Answer:\s*\S")
THOUGHT = re.compile(r"^\s*Thought:", re.MULTILINE)
# One turn: its role and its content.
Message = dict[str, str]
# What one line of a file holds: "messages", and beside them whatever its owner put there.
Episode = dict[str, Any]


def action(text: str) -> str | None:
    """What an answer does: the rest of the line after its first "Action:"; None when it names nothing."""
    found = re.search(r"\bAction:(.*)", text)
    return (found[1].strip() or None) if found else None


def gives_answer(text: str) -> bool:
    """Whether an assistant's turn ends the work: by `Final Answer:`, or in plain words, neither Thought nor Action."""
    if FINAL.search(text):
        return action(text) is None
    return "Action:" not in text and not THOUGHT.search(text)


def without_action(messages: Sequence[Mapping[str, object]]) -> Iterator[int]:
    """The number, from 1, of each assistant's turn that should act and does not.

    It need not where it gives the answer and no Observation follows; one turn at least acts or says `Final Answer:`.
    """
    said = [
        (n, str(turn.get("content") or "")) for n, turn in enumerate(messages, 1) if turn.get("role") == "assistant"
    ]
    missing = [
        number
        for number, text in said
        if action(text) is None and (not gives_answer(text) or any(map(is_observation, messages[number : number + 1])))
    ]
    if said and not any(action(text) or FINAL.search(text) for _, text in said):
        missing = missing or [said[0][0]]
    yield from missing


def is_observation(turn: Mapping[str, object]) -> bool:
    """Whether a turn tells what an action did."""
    return turn.get("role") == "user" and str(turn.get("content")).startswith(observation("").rstrip())


def trained(turn: Mapping[str, object]) -> bool:
    """Whether a turn is trained: as its `train` says (Axolotl's message_field_training), else where it is an answer."""
    said = turn.get("train")
    return turn.get("role") == "assistant" if said is None else bool(said)


def flag_fault(messages: Sequence[Mapping[str, object]]) -> str | None:
    """Which turn says in another way than `train` whether it is trained, the first one; None when none does."""
    for number, turn in enumerate(messages, 1):
        if turn.get("train") not in (None, True, False):
            return f"message {number} has train {turn['train']!r}; it must be true or false"
        for key in ("weight", "loss"):
            if turn.get(key) is not None and turn[key] != trained(turn):
                how = f"message {number} has {key} {turn[key]!r}"
                return f'{how}, and training reads "train"; `convert --to messages` writes that'
    return None


def observation(text: str) -> str:
    """What the world answers, as the user's turn says it."""
    return f"Observation: {text}"


def paths(arguments: Iterable[str]) -> list[str]:
    """The files that arguments name, where one may name several: DATA="a.jsonl 'my b.jsonl'" is one argument.

    An argument that is a path, or the glob of files, is taken as one, spaces and all; else it is split into words as a
    shell would, if one of them is there. Raises BadInput for an empty one.
    """
    named: list[str] = []
    for each in arguments:
        if not each.strip():
            raise BadInput("a file without a name; name the episodes to read (DATA= or IN=)")
        try:
            words = [each] if matching(each) else shlex.split(each)
        except ValueError:  # a quote that is not closed
            words = []
        if not any(map(matching, words)):
            words = [each]
        named += [name for word in words for name in matching(word) or [word]]
    return named


def matching(name: str) -> list[str]:
    """What is there of this name: itself, else the files that it is a glob of, sorted; empty where nothing is."""
    name = os.path.expanduser(name)
    if os.path.lexists(name):
        return [name]
    return [each for each in sorted(glob.glob(name, recursive=True)) if not os.path.isdir(each)]


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The episodes of a messages JSONL file, one after the other: {"messages": [{"role", "content"}, ...], ...}.

    Roles and contents are text; beside messages an episode may carry anything.

    Raises BadInput, with file:line, for what cannot be read, holds nothing, or is not a ReAct episode.
    """
    for where, line in lines(path):
        yield parse(line, where)


def check_beginning(path: Path, count: int = 8) -> None:
    """Raise BadInput, with file:line, unless a file begins with so many episodes; a few milliseconds, however large."""
    for _ in islice(read(path), count):
        pass


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(file:line, its bytes) of every line.

    Raises BadInput for a file that cannot be read, that is empty, or a line that is longer than any episode.
    """
    line, number = b"", 0
    try:
        with path.open("rb") as file:
            while line := file.readline(chunks.LIMIT + 1):
                number += 1
                if number == 1:  # Windows writes one; Axolotl's reader passes over it too.
                    line = line.removeprefix(codecs.BOM_UTF8)
                if len(line) > chunks.LIMIT:
                    raise BadInput(f"{path}:{number}: {chunks.TOO_LONG}")
                yield f"{path}:{number}", line
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a JSONL file, one episode a line") from error
    if not number:
        raise BadInput(f"{path}:1: the file is empty; it must hold one episode a line")


def rows(paths: Iterable[Path]) -> Iterator[tuple[str, dict[str, object] | str]]:
    """(file:line, episode) of every line of messages JSONL files, or (file:line, why it is none) and on to the next.

    An episode here is an object whose "messages" are a list of objects, in whatever order and state: see `fault`.
    Raises BadInput for a file that cannot be read, and for one that holds nothing.
    """
    for path in paths:
        for where, line in lines(path):
            yield where, row(line)


def followed(rows: Iterable[T], what: str) -> Iterator[T]:
    """The same rows, while stderr shows how many went by."""
    with progress.bar(what, unit="episodes") as shown:
        for number, each in enumerate(rows, 1):
            yield each
            shown.update(number)


def row(line: bytes) -> dict[str, object] | str:
    """The object of one line that has messages, or why it is none."""
    try:
        episode = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not JSON ({error})"
    messages = episode.get("messages") if isinstance(episode, dict) else None
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        return 'no "messages" that are a list of objects'
    return dict(episode)


def parse(line: bytes, where: str) -> dict[str, Any]:
    """The episode of one line. Raises BadInput that begins with `where` when it is none."""
    try:
        episode = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{where}: not JSON ({error}); each line must be one complete JSON object") from error
    if why := fault(episode) or flag_fault(episode["messages"]):
        raise BadInput(f"{where}: {why}")
    return dict(episode)


def fault(episode: object) -> str | None:
    """Why a value is not a ReAct episode, and how to fix it; None when it is one.

    It is one when an optional system turn is followed by user and assistant turns by turns, from the user's first to
    the assistant's last, and each assistant turn has an action, or gives the answer: see `without_action`.
    """
    messages = episode.get("messages") if isinstance(episode, dict) else None
    if isinstance(episode, dict) and messages is None and "chosen" in episode and "rejected" in episode:
        return "a preference pair, and this takes episodes; a recipe of the method dpo learns from pairs"
    if not isinstance(messages, list) or not messages:
        return 'no "messages"; an episode is {"messages": [{"role": "user", "content": "..."}, ...]}'
    for number, turn in enumerate(messages, 1):
        known = isinstance(turn, dict) and turn.get("role") in {"system", "user", "assistant"}
        if not known:
            return f"message {number} has no known role; it must be system, user or assistant"
        if not isinstance(turn.get("content"), str) or not turn["content"].strip():
            return f'message {number} ({turn["role"]}) has no text; give it as "content"'
    if why := order(messages):
        return why
    for number in without_action(messages):
        return f"an episode with no Action: message {number} needs a line `Action: ...`, or `Final Answer: ...` to end"
    if messages[-1]["role"] != "assistant":
        return "the last message must be the assistant's; drop what follows it"
    return None


def order(messages: Sequence[Mapping[str, object]]) -> str | None:
    """Which message is out of order, the first one; None when user and assistant take turns after a system turn."""
    first = 1 if messages and messages[0].get("role") == "system" else 0
    for number, turn in enumerate(messages[first:], first + 1):
        wanted = "assistant" if (number - first) % 2 == 0 else "user"
        if turn.get("role") != wanted:
            return f"message {number} is the {turn.get('role')}'s and must be the {wanted}'s; the two take turns"
    return None


def system_prompt(data: Path = TEST_DATA) -> str | None:
    """The system prompt of a file of episodes, by its first one; None where it has none. Games use the test set's.

    Raises BadInput as `read`.
    """
    first = next(read(data))["messages"][0]
    return str(first["content"]) if first["role"] == "system" else None


def test_set() -> Iterator[dict[str, Any]]:
    """The committed test conversations."""
    return read(TEST_DATA)
