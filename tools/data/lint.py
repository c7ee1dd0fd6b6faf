"""What is wrong with ReAct episodes, each finding with its file:line; what can be repaired safely is, where asked for.

Near-duplicates are those of near_duplicates.py: shingles of 5 words of all that is said but the system turn, MinHash of
128 permutations, threshold 0.8. Memory does not grow with the episodes' length: about 1 kB is kept of each.
"""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import BinaryIO

import orjson

from tools import BadInput, Failed
from tools.core import catalog, files, progress, quote, trajectory
from tools.core.finding import Finding, Level
from tools.data import near_duplicates, reader
from tools.data.formats import Episode, Message, messages_of
from tools.gguf import base, find_base

Row = tuple[str, Episode | str]  # file:line, and the episode there or why there is none
LEVELS: tuple[Level, ...] = ("error", "warning", "advice")
WORLDS = ("auto", "household", "none")
# What a finding is called, how grave it is, and how to fix it.
KINDS: dict[str, tuple[Level, str]] = {
    "unreadable": ("error", 'one JSON object a line: {"messages": [{"role": "user", "content": "..."}, ...]}'),
    "roles": ("error", "an optional system turn, then user and assistant by turns"),
    "no-text": ("error", 'give the message its "content", or drop the episode'),
    "no-action": (
        "error",
        "end the turn with a line `Action: ...`, the last with that or `Final Answer: ...`; or drop the episode",
    ),
    "no-thought": ("warning", "begin the turn with `Thought: ...`"),
    "observation": ("error", "end the turn after its action (--fix does); what the world says is the user's turn"),
    "action": ("error", "write the action as the environment knows it, or drop the episode"),
    "loop": ("warning", "cut the repetition out, or drop the episode"),
    "cut": ("error", "drop what follows the last complete answer (--fix drops turns after it), or the episode"),
    "unfinished": ("warning", "drop the episode, unless failing is to be learned"),
    "duplicate": ("warning", "drop one of the two (--fix does)"),
    "near-duplicate": ("advice", "drop one of the two; never one in training and one in test (the command split)"),
    "long": ("warning", "a longer sequence_len, or a shorter episode: training drops every longer one"),
    "secret": ("error", "take it out, and withdraw the key where it was issued"),
    "mail": ("warning", "take it out, or put an address at example.com in its place"),
}
# Fields of an episode that say whether it was won.
OUTCOMES = ("success", "won", "reward")
HOUSEHOLD = "Looking quickly around you, you see"
# A cycle of more turns than this is not looked for.
LONGEST_CYCLE = 20
MADE_UP = re.compile(r"^[ \t>*#]*Observation[ \t]*:", re.MULTILINE)
MADE_UP_AFTER = re.compile(r"(?:^|\s)Observation[ \t]*:(?:\s|$)", re.MULTILINE)


@dataclass(frozen=True)
class EpisodeFinding(Finding):
    """One thing found in an episode. `kind`: its name in KINDS."""

    kind: str


@dataclass(frozen=True)
class Limits:
    """What episodes are held against. `world`: household, none, or auto (household where the first turn is ALFWorld's).

    `count`: the tokens of a conversation; with None no episode is over-long.
    """

    world: str = "auto"
    count: Callable[[list[Message]], int] | None = None
    sequence_len: int = 2048


class Private(catalog.Part):
    """catalog/secrets.yaml: shapes of secrets by name, and of mail addresses."""

    secrets: dict[str, str]
    mail: str


@cache
def private_shapes() -> list[tuple[str, str, re.Pattern[str]]]:
    """(kind, name, shape) of what must not stand in training data: catalog/secrets.yaml."""
    known = catalog.content("secrets", Private)
    shapes = [("secret", name, re.compile(shape)) for name, shape in known.secrets.items()]
    return [*shapes, ("mail", "mail address", re.compile(known.mail))]


def content_of(turn: Message) -> str:
    """What a turn says; nothing where it has no text."""
    content = turn.get("content")
    return content if isinstance(content, str) else ""


def answers(messages: list[Message]) -> list[tuple[int, str]]:
    """(number, text) of each assistant turn, counted from 1."""
    return [(number, content_of(turn)) for number, turn in enumerate(messages, 1) if turn.get("role") == "assistant"]


def made_up(answer: str) -> int | None:
    """Where an answer begins to tell what the world says; None when it does not."""
    found = MADE_UP.search(answer)
    action = answer.find("Action:")
    later = MADE_UP_AFTER.search(answer, action) if action >= 0 else None
    places = [each.start() for each in (found, later) if each]
    return min(places) if places else None


def is_household(episode: Episode, world: str) -> bool:
    """Whether an episode is played in the household: as `world` says, else by ALFWorld's words in its first turn."""
    first = next((content_of(turn) for turn in messages_of(episode) if turn.get("role") == "user"), "")
    return world == "household" or (world == "auto" and HOUSEHOLD in first)


def look_at_episode(episode: Episode, limits: Limits) -> Iterator[tuple[str, str]]:
    """(kind, what) of all that is wrong with one episode by itself."""
    messages = messages_of(episode)
    if why := trajectory.order(messages):
        yield "roles", why
    for number, turn in enumerate(messages, 1):
        if not content_of(turn).strip():
            yield "no-text", f"message {number} ({turn.get('role')}) has no text"
    for number in trajectory.without_action(messages):
        if content_of(messages[number - 1]).strip():
            yield "no-action", f"message {number} has no Action"
    thinks = not is_tool_chat(messages)
    for number, answer in answers(messages):
        yield from look_at_answer(number, answer, thinks)
    household = is_household(episode, limits.world)
    if household:
        yield from look_at_actions(messages)
    if loop := find_loop(messages):
        yield "loop", loop
    yield from look_at_end(episode, household)
    yield from look_for_private(messages)
    if limits.count and (tokens := limits.count(messages)) > limits.sequence_len:
        yield "long", f"{tokens} tokens and the sequence holds {limits.sequence_len}"


def is_tool_chat(messages: list[Message]) -> bool:
    """Whether an episode is a chat with calls of tools, which nobody thinks aloud in: inputs of actions, no Thought."""
    said = [answer for _, answer in answers(messages)]
    return any("Action Input:" in answer for answer in said) and not any(map(trajectory.THOUGHT.search, said))


def look_at_answer(number: int, answer: str, thinks: bool) -> Iterator[tuple[str, str]]:
    """No word of the world's in one assistant turn, and before its action, where one `thinks`, a thought."""
    before, action, _ = answer.partition("Action:")
    if thinks and action and not re.search(r"\bThought:\s*\S|</think>", before):
        yield "no-thought", f"message {number} has no Thought before its action"
    if (start := made_up(answer)) is not None:
        yield "observation", f"message {number} makes up its own Observation: {quoted(answer[start:].strip())}"


def look_at_actions(messages: list[Message]) -> Iterator[tuple[str, str]]:
    """Actions that no room of the household admits."""
    from tools.worlds.household import grammar

    for number, answer in answers(messages):
        action = trajectory.action(answer)
        if action and (why := grammar.refusal(action)):
            yield "action", f"message {number} does {quoted(action)}, which is never admitted: {why}"


def find_loop(messages: list[Message]) -> str | None:
    """The first run of actions that comes twice in a row with the same observations, in words."""
    steps: list[tuple[str, str]] = []
    places: list[int] = []
    for number, answer in answers(messages):
        follows: Message = messages[number] if number < len(messages) else {}
        if trajectory.action(answer) and follows.get("role") == "user":
            # With its input: the same tool asked something else is another step.
            action = " ".join(answer.partition("Action:")[2].split())
            steps.append((action, content_of(follows)))
            places.append(number)
    for size in range(1, min(LONGEST_CYCLE, len(steps) // 2) + 1):
        for start in range(len(steps) - 2 * size + 1):
            middle = start + size
            if steps[start] == steps[middle] and steps[start:middle] == steps[middle : middle + size]:
                done = quoted(", ".join(action for action, _ in steps[start:middle]))
                return f"message {places[middle]} goes round: {done} again, and the same answer"
    return None


def look_at_end(episode: Episode, household: bool) -> Iterator[tuple[str, str]]:
    """An episode cut short: by its last turn, or by what it says of its outcome."""
    messages = messages_of(episode)
    last: Message = messages[-1] if messages else {}
    if last.get("role") != "assistant":
        yield "cut", f"ends with the {last.get('role')}'s turn" if last else "has no turns"
        return
    action = trajectory.action(content_of(last))
    if action is None:
        if household or not trajectory.gives_answer(content_of(last)):
            yield "cut", "ends before its last action"
    elif any(action.count(left) > action.count(right) for left, right in ("[]", "()", "{}")):
        yield "cut", f"ends in the midst of an action: {quoted(action)}"
    failed = [key for key in OUTCOMES if key in episode and not episode[key]]
    if failed:
        yield (
            "unfinished",
            f'says itself that it was not won: "{failed[0]}" is {orjson.dumps(episode[failed[0]]).decode()}',
        )
    elif household and action:
        from tools.worlds.household import grammar

        goal = next((content_of(turn) for turn in messages if "Your task is to:" in content_of(turn)), "")
        if goal and not grammar.finishes(goal.rpartition("Your task is to:")[2], action):
            yield "unfinished", f"its last action is {quoted(action)}, which does not fulfil the task"


def look_for_private(messages: list[Message]) -> Iterator[tuple[str, str]]:
    """Keys and mail addresses, by the shape of the first of each kind; their text is not repeated."""
    said = [content_of(turn) for turn in messages]
    everything = "\n".join(said)
    for kind, name, shape in private_shapes():
        if shape.search(everything):
            number, found = next((n, found) for n, each in enumerate(said, 1) if (found := shape.search(each)))
            yield kind, f"message {number} holds what looks like a {name}: {found[0][:4]}..."


def quoted(words: str) -> str:
    """Words of the data on one short line."""
    line = quote.visible(" ".join(words.split()))
    return f"`{line[:60]}{'...' if len(line) > 60 else ''}`"


def digest(episode: Episode) -> bytes:
    """What two episodes with the same messages share, 16 bytes."""
    return hashlib.blake2b(orjson.dumps(episode["messages"]), digest_size=16).digest()


def conversation(episode: Episode) -> str:
    """All that is said in an episode but for its system turn."""
    return "\n".join(content_of(turn) for turn in messages_of(episode) if turn.get("role") != "system")


def examine(rows: Iterable[Row], limits: Limits, counts: Counter[str]) -> Iterator[EpisodeFinding]:
    """All findings of these rows in order, then the near-duplicates by their places.

    `counts` gets the number of findings of each kind and level, "episodes", and "with errors": episodes that have any.
    """

    def found(kind: str, what: str, where: str) -> EpisodeFinding:
        level, fix = KINDS[kind]
        counts.update([kind, level])
        return EpisodeFinding(level, what, where, fix, kind)

    seen: dict[bytes, str] = {}
    signatures, places = array("I"), []
    for where, episode in rows:
        if isinstance(episode, str):
            yield found("unreadable", episode, where)
            continue
        counts["episodes"] += 1
        errors = counts["error"]
        for kind, what in look_at_episode(episode, limits):
            yield found(kind, what, where)
        counts["with errors"] += counts["error"] > errors
        first = seen.setdefault(digest(episode), where)
        if first is not where:
            yield found("duplicate", f"the same messages as {first}", where)
        elif said := conversation(episode):
            signatures.frombytes(near_duplicates.signature(said))
            places.append(where)
    with progress.step("lint: looking for near-duplicates"):
        pairs = sorted(near_duplicates.pairs(signatures), key=lambda pair: (pair[1], pair[0]))
    for earlier, later, share in pairs:
        yield found("near-duplicate", f"{share:.0%} as {places[earlier]}", places[later])


def repaired(episode: Episode) -> tuple[Episode, Counter[str]]:
    """An episode with what can be repaired safely, and what was done.

    Safe is what leaves every complete step as it was: an answer is cut where it makes up an Observation, if its action
    comes before that (the action done stays the same), and turns after the last answer are dropped.
    """
    done: Counter[str] = Counter()
    messages = []
    for turn in messages_of(episode):
        start = made_up(content_of(turn)) if turn.get("role") == "assistant" else None
        if start is not None and trajectory.action(content_of(turn)[:start]):
            turn = turn | {"content": content_of(turn)[:start].rstrip()}
            done["made-up observations cut off"] += 1
        messages.append(turn)
    while messages and messages[-1].get("role") != "assistant":
        messages.pop()
        done["turns after the last answer dropped"] += 1
    return episode | {"messages": messages}, done


def write_repaired(rows: Iterable[Row], out: BinaryIO, did: Counter[str], counts: Counter[str]) -> Iterator[Row]:
    """These rows repaired, each written to `out` as it passes.

    Left out are the second of two episodes with the same messages, and those without an answer. What cannot be read is
    passed on and not written. `did` gets what was done, `counts` how many episodes were "written" and "repaired".
    """
    seen: set[bytes] = set()
    for where, episode in rows:
        if isinstance(episode, str):
            did["unreadable lines left out"] += 1
            yield where, episode
            continue
        better, done = repaired(episode)
        key = digest(better)
        if not better["messages"]:
            did["episodes without an answer left out"] += 1
        elif key in seen:
            did["exact duplicates left out"] += 1
        else:
            did.update(done)
            out.write(orjson.dumps(better, option=orjson.OPT_APPEND_NEWLINE))
            counts.update(written=1, repaired=bool(done))
            yield where, better
        seen.add(key)


def lint_files(
    paths: Sequence[str],
    world: str,
    base_name: str,
    sequence_len: int,
    fail_on: str,
    fix: str,
    as_json: bool,
    force: bool = False,
) -> None:
    """Print all findings of these files, a line each, and their sum; with `fix`, write the episodes to that file.

    There they are repaired where that is safe (`repaired`), and the findings are those that are left: an episode that
    still has an error is in the file too. `force`: replace what is there under that name. `base_name`: whose tokenizer
    counts (see base.tokenizer); with "" no episode is over-long. Raises Failed when a finding reaches the level
    `fail_on`, BadInput for a file that cannot be read or an option that is none.
    """
    for option, value, known in (("fail-on", fail_on, (*LEVELS, "never")), ("world", world, WORLDS)):
        if value not in known:
            raise BadInput(f"--{option} {value}: one of {', '.join(known)}")
    count = None
    if base_name:
        count = partial(base.tokens, find_base.tokenizer(base_name))
    limits = Limits(world, count, sequence_len)
    counts: Counter[str] = Counter()
    did: Counter[str] = Counter()
    rows = trajectory.followed(reader.rows(paths), "lint")
    if fix:
        with files.output(fix, force, paths) as beside, beside.open("wb") as out:
            print_findings(examine(write_repaired(rows, out, did, counts), limits, counts), as_json)
    else:
        print_findings(examine(rows, limits, counts), as_json)
    print_sum(counts, did, fix, as_json)
    reached = LEVELS[: LEVELS.index(fail_on) + 1] if fail_on in LEVELS else ()
    if any(counts[level] for level in reached):
        named = ", ".join(f"{counts[level]} of level {level}" for level in reached)
        left = f"; {fix} is written, with {counts['with errors']} episodes that have errors" if fix else ""
        raise Failed(f"{counts['episodes']} episodes looked at: {named}{left}")


def print_findings(findings: Iterable[EpisodeFinding], as_json: bool) -> None:
    """Print findings as they come, a line each."""
    for each in findings:
        if as_json:
            print(orjson.dumps(asdict(each)).decode())
        else:
            print(quote.visible(f"{each.where}: {each.level}: {each.kind}: {each.what}"))


def print_sum(counts: Counter[str], did: Counter[str], fix: str, as_json: bool) -> None:
    """Print how many findings there are of each kind and how each is fixed, and what `fix` holds."""
    from rich.console import Console
    from rich.table import Table

    found = {
        kind: counts[kind] for level in LEVELS for kind, known in KINDS.items() if known[0] == level and counts[kind]
    }
    if as_json:
        levels: dict[str, int] = {level: counts[level] for level in LEVELS}
        total: dict[str, object] = {"episodes": counts["episodes"], **levels, "kinds": found}
        if fix:
            written = {key: counts[key] for key in ("written", "repaired", "with errors")}
            total["fix"] = {"file": fix, **written, **did}
        print(orjson.dumps(total).decode())
        return
    if found:
        table = Table("level", "kind", "count", "how to fix")
        for kind, count in found.items():
            table.add_row(KINDS[kind][0], kind, f"{count}", KINDS[kind][1])
        Console().print(table)
    print(f"{counts['episodes']} episodes, {', '.join(f'{counts[level]} of level {level}' for level in LEVELS)}")
    if fix:
        what = ", ".join(f"{count} {name}" for name, count in did.items()) or "nothing to repair"
        print(
            quote.visible(f"{fix}: {counts['written']} episodes written, {counts['repaired']} of them repaired; {what}")
        )
        if counts["with errors"]:
            print(
                quote.visible(
                    f"{fix}: {counts['with errors']} of its episodes still have errors, named above; "
                    "fix them or take them out before training"
                )
            )
