"""Text of what was played: the ReAct paper's transcripts, and ALFWorld's logs.

A transcript (`react`): the task, then `> think: ...` and `OK.`, `> go to desk 1` and what is seen there; episodes stand
apart by an empty line. A log (`alfworld`): the same within `Environment #0:` and `STATUS: OK`, ruled off by #####; or
the lines `Act 1: ...` and `Obs 1: ...` in which the paper's own runs print.
"""

import re
from collections.abc import Iterable, Iterator

from tools import BadInput
from tools.core.chunks import LIMIT, TOO_LONG
from tools.data.formats import KEYS, CannotHold, Episode, Message, messages_of, text_of

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


def episodes(lines: Iterable[str]) -> Iterator[tuple[int, Episode]]:
    """The episodes of a text with the number of the line that each begins in; lines come without their newline.

    Raises BadInput for one that never ends.
    """
    block: list[str] = []
    facts: Episode = {}
    first, acted, size = 1, False, 0
    for number, line in enumerate(without_carriage_returns(lines), 1):
        size += len(line)
        if size > LIMIT:
            raise BadInput(TOO_LONG)
        divides = is_divider(line)
        status = STATUS.fullmatch(line)
        if divides or (acted and not status and begins_another(line, block[-1])):
            if acted:
                yield first, facts | {"messages": played(block)}
                facts = {}
            block, first, acted, size = [], number, False, 0
            if header := ENVIRONMENT.fullmatch(line):
                facts = {"environment": int(header[1])}
        if status:
            facts["status"] = status[1]
        elif not divides:
            acted = acted or bool(TURN.match(line))
            block.append(line)
    if acted:
        yield first, facts | {"messages": played(block)}


def without_carriage_returns(lines: Iterable[str]) -> Iterator[str]:
    """The lines, without the \\r that ends each where the first one has it."""
    windows = False
    for number, line in enumerate(lines):
        windows = windows or (number == 0 and line.endswith("\r"))
        yield line.removesuffix("\r") if windows else line


def is_divider(line: str) -> bool:
    """Whether a line stands between episodes and belongs to none."""
    return line == RULE or bool(ENVIRONMENT.fullmatch(line) or HERE.fullmatch(line))


def begins_another(line: str, before: str) -> bool:
    """Whether a line after an action begins the next episode: by ALFWorld's first words, or as text after a gap."""
    return line.startswith(START) or (before == "" and line != "" and not TURN.match(line))


def played(block: list[str]) -> list[Message]:
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
    messages: list[Message] = [{"role": "user", "content": said[0][1].strip("\n")}]
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


def write(episode: Episode, log: bool, number: int) -> str:
    """The text of an episode; `log`: as ALFWorld's log, `number` in place of an environment's that it lacks.

    Raises CannotHold for what would not be read again as it was.
    """
    holds = {"messages", "environment", "status"} if log else {"messages"}
    messages = messages_of(episode)
    lacking = [key for key in episode if key not in holds]
    lacking += ["system"] if messages[0]["role"] == "system" else []
    if lacking:
        raise CannotHold(f"text has no place for {', '.join(lacking)}; --drop-extra leaves that out")
    lines: list[str] = []
    for place, turn in enumerate(messages, 1):
        text = text_of(turn, place)
        if turn["role"] == "assistant":
            lines += step_lines(text, place)
        else:
            lines.append(text.removeprefix(OBSERVED) if place > 1 else text)
    body = "\n".join(lines)
    text = f"{body}\n\n"
    if log:
        status = f"\nSTATUS: {episode['status']}\n" if "status" in episode else ""
        text = f"\n{RULE}\n\nEnvironment #{episode.get('environment', number)}:\n{body}\n{status}\n{RULE}\n"
    back = [each for _, each in episodes(text.split("\n"))]
    if len(back) != 1 or back[0]["messages"] != messages or (log and back[0].get("status") != episode.get("status")):
        raise CannotHold("as text it would be read again as something else; JSON formats hold it")
    return text


def step_lines(text: str, number: int) -> list[str]:
    """The lines of an answer: its thought, with the reply to it where an action follows, and its action.

    Raises CannotHold for an answer that is neither.
    """
    step = STEP.fullmatch(text)
    if not step or not text:
        raise CannotHold(f"message {number} is not `Thought: ...` and `Action: ...`, all that text can say")
    thought, action = step.groups()
    thinks = [] if thought is None else [f"> {THINK}{thought}"]
    acts = [] if action is None else [f"> {action}"]
    return [*thinks, *([DONE] if thinks and acts else []), *acts]


def without_extra(episode: Episode, log: bool) -> Episode:
    """The episode without what text has no place for: keys, keys of messages, the system turn."""
    holds = {"environment", "status"} if log else set()
    turns = [{key: turn[key] for key in KEYS if key in turn} for turn in messages_of(episode)]
    kept: Episode = {key: value for key, value in episode.items() if key in holds}
    return kept | {"messages": turns[1:] if turns[0]["role"] == "system" else turns}
