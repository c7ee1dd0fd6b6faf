"""Text of what was played: the ReAct paper's transcripts, and ALFWorld's logs.

A transcript (`react`): the task, then `> think: ...` and `OK.`, `> go to desk 1` and what is seen there; episodes stand
apart by an empty line. A log (`alfworld`): the same within `Environment #0:` and `STATUS: OK`, ruled off by #####; or
the lines `Act 1: ...` and `Obs 1: ...` in which the paper's own runs print.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from tools import BadInput
from tools.core.chunks import LIMIT, TOO_LONG
from tools.data.formats import CannotHold, text_of

START = "You are in the middle of a room"
TURN = re.compile(r"(?:Act \d+: (?:> )?|> ?)(?=\S)(.*)", re.DOTALL)
SEEN = re.compile(r"Obs \d+: (.*)", re.DOTALL)
THINK = "think: "
DONE = "OK."
HERE = re.compile(r"Here is the task[:.]?")
ENVIRONMENT = re.compile(r"Environment #(\d+):\s*(.*)")
STATUS = re.compile(r"STATUS: (\w+)")
RULE = "#####"
STEP = re.compile(r"(?:Thought: (.*?))?(?:(?:^|\n)Action: ([^\n]*))?", re.DOTALL)
OBSERVED = "Observation: "


def episodes(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The episodes of a text with the number of the line that each begins in; lines come without their newline.

    Raises BadInput for one that never ends.
    """
    block: list[str] = []
    facts: dict[str, Any] = {}
    first, acted, number, size, windows = 1, False, 0, 0, False
    for number, line in enumerate(lines, 1):
        windows = windows or (number == 1 and line.endswith("\r"))
        line = line.removesuffix("\r") if windows else line
        size += len(line)
        if size > LIMIT:
            raise BadInput(TOO_LONG)
        header, status = ENVIRONMENT.fullmatch(line), STATUS.fullmatch(line)
        ends = acted and block[-1] == "" and line and not TURN.match(line) and not status
        if ends or line == RULE or header or HERE.fullmatch(line) or (acted and line.startswith(START)):
            if acted:
                yield first, facts | {"messages": played(block)}
                facts = {}
            block, first, acted, size = [], number, False, 0
            if header:
                facts = {"environment": int(header[1])}
            if line == RULE or header or HERE.fullmatch(line):
                continue
        if status:
            facts["status"] = status[1]
            continue
        acted = acted or bool(TURN.match(line))
        block.append(line)
    if acted:
        yield first, facts | {"messages": played(block)}


def played(block: list[str]) -> list[dict[str, Any]]:
    """The turns of one episode's lines: what is seen, what is thought and done."""
    said: list[tuple[str, str]] = [("", "")]  # what is done, and what is seen after it; first nothing and the task
    for line in block:
        if turn := TURN.fullmatch(line):
            said.append((turn[1], ""))
        else:
            found = SEEN.fullmatch(line)
            done, before = said[-1]
            text = found[1] if found else line
            said[-1] = (done, f"{before}\n{text}" if before else text)
    messages = [{"role": "user", "content": said[0][1].strip("\n")}]
    thought: str | None = None
    for place, (done, seen) in enumerate(said[1:], 1):
        seen, last = seen.rstrip("\n"), place == len(said) - 1
        if done.startswith(THINK):
            # A thought may have several lines: they stand before the answer to it.
            more, _, rest = seen.rpartition("\n")
            words = done.removeprefix(THINK) + (f"\n{more}" if rest == DONE and more else "")
            thought = words if thought is None else f"{thought}\n{words}"
            if rest == DONE and not last:
                continue
            text = f"Thought: {thought}"
            seen = "" if rest == DONE else seen
        else:
            text = (f"Thought: {thought}\n" if thought is not None else "") + f"Action: {done}"
        thought = None
        messages.append({"role": "assistant", "content": text})
        if seen or not last:
            messages.append({"role": "user", "content": OBSERVED + seen})
    return messages


def write(episode: dict[str, Any], log: bool, number: int) -> str:
    """The text of an episode; `log`: as ALFWorld's log, `number` in place of an environment's that it lacks.

    Raises CannotHold for what would not be read again as it was.
    """
    holds = {"messages", "environment", "status"} if log else {"messages"}
    messages = episode["messages"]
    lacking = [key for key in episode if key not in holds]
    lacking += ["system"] if messages[0]["role"] == "system" else []
    if lacking:
        raise CannotHold(f"text has no place for {', '.join(lacking)}; --drop-extra leaves that out")
    lines = []
    for place, turn in enumerate(messages):
        text = text_of(turn, place + 1)
        if turn["role"] == "assistant":
            step = STEP.fullmatch(text)
            if not step or not text:
                raise CannotHold(f"message {place + 1} is not `Thought: ...` and `Action: ...`, all that text can say")
            lines += [] if step[1] is None else [f"> {THINK}{step[1]}", *([DONE] if step[2] is not None else [])]
            lines += [] if step[2] is None else [f"> {step[2]}"]
        else:
            lines.append(text.removeprefix(OBSERVED) if place else text)
    body = "\n".join(lines)
    text = f"{body}\n\n"
    if log:
        status = f"\nSTATUS: {episode['status']}\n" if "status" in episode else ""
        text = f"\n{RULE}\n\nEnvironment #{episode.get('environment', number)}:\n{body}\n{status}\n{RULE}\n"
    back = [each for _, each in episodes(text.split("\n"))]
    if len(back) != 1 or back[0]["messages"] != messages or (log and back[0].get("status") != episode.get("status")):
        raise CannotHold("as text it would be read again as something else; JSON formats hold it")
    return text


def without_extra(episode: dict[str, Any], log: bool) -> dict[str, Any]:
    """The episode without what text has no place for: keys, keys of messages, the system turn."""
    holds = {"environment", "status"} if log else set()
    turns = [{key: turn[key] for key in ("role", "content") if key in turn} for turn in episode["messages"]]
    kept = {key: value for key, value in episode.items() if key in holds}
    return kept | {"messages": turns[1:] if turns[0]["role"] == "system" else turns}
