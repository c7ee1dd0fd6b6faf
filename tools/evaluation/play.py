"""Games: an agent, asked through a backend, plays the tasks of a world; each game is saved as it ends."""

import hashlib
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, TypedDict, cast

import orjson

from tools import BadInput, Failed
from tools.core import files, progress, trajectory
from tools.core.trajectory import Message
from tools.evaluation.backends import Chat, Refused, Reply
from tools.worlds.guard import WorldFailed
from tools.worlds.world import Task, World

MakeWorld = Callable[[], World]
# What may be wrong with an answer.
Fault = Literal["nothing happens", "no action", "made-up observation", "cut by length", "loop"]
# How a game ended: won, or why it was lost.
End = Literal[
    "won", Fault, "context full", "steps used up", "ended by the world", "world failed", "server failed", "not over"
]
# Of these the model is not the cause: such a game is played anew when the evaluation goes on.
FAILED = ("world failed", "server failed")
# What the model is told where it named no action, in a world that has no sentence for it.
UNREAD = "No action was read; it is the line `Action: ...`."


@dataclass
class Game:
    """One task as it was played, `attempt` counting from 0 where each is played several times.

    `steps`: answers. `invalid`: those that did nothing. `strict`, `lenient`: those in which each parser read an action.
    `faults`: answers by what was wrong with them. `tokens`: generated; `prompt_tokens`: read for them. `timings`: the
    seconds that each answer took, `seconds` their sum. `world_seconds`: spent in the world. `wall`: seconds since the
    game that ended before it, of all that are played side by side. `error`: what the world or the server said that
    failed. `transcript`: all messages, the system's first; episodes that were shown before the task are left out.
    """

    id: str
    task: str
    goal: str
    attempt: int = 0
    won: bool = False
    end: End = "not over"
    steps: int = 0
    invalid: int = 0
    strict: int = 0
    lenient: int = 0
    faults: dict[Fault, int] = field(default_factory=dict)
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    world_seconds: float = 0.0
    wall: float = 0.0
    error: str = ""
    timings: list[float] = field(default_factory=list)
    transcript: list[Message] = field(default_factory=list)


class Played(TypedDict):
    """A game as eval-*.json has it: the fields of `Game`."""

    id: str
    task: str
    goal: str
    attempt: int
    won: bool
    end: End
    steps: int
    invalid: int
    strict: int
    lenient: int
    faults: dict[Fault, int]
    tokens: int
    prompt_tokens: int
    seconds: float
    world_seconds: float
    wall: float
    error: str
    timings: list[float]
    transcript: list[Message]


class Rules(NamedTuple):
    """How games are played: the parser's name, the answers that a game may have, and those in a row that do nothing.

    `shown`: turns of other episodes that stand between the system's and the task. `added`: text that follows the
    world's own system prompt.
    """

    parse: str = "strict"
    steps: int = 30
    useless: int = 4
    added: str = ""
    shown: Sequence[Message] = ()


def lenient_action(text: str) -> str | None:
    """What an answer does, read as a person would: None when it names nothing.

    The last "Action:" before an observation that the model made up, whatever its case, without Markdown's stars,
    backticks, brackets and quotes around it, in small letters, without a full stop.
    """
    before = MADE_UP.split(text, maxsplit=1)[0]
    found = re.findall(r"^[ \t*_#>-]*action[ \t*_]*:(.*)$", before, re.MULTILINE | re.IGNORECASE)
    return (found[-1].strip(" \t`*_[]()<>\"'.").lower() or None) if found else None


MADE_UP = re.compile(r"^[ \t*_#>-]*observation[ \t*_]*:", re.MULTILINE | re.IGNORECASE)
PARSERS: dict[str, Callable[[str], str | None]] = {"strict": trajectory.action, "lenient": lenient_action}


class Seen(NamedTuple):
    """What a world shows after an action: the observation, whether the task is done, whether the game is over."""

    text: str
    won: bool
    over: bool


def play_game(chat: Chat, world: World, task: Task, rules: Rules = Rules(), attempt: int = 0) -> Game:  # noqa: B008
    """Play a task to its end: won, or lost for one of the reasons of `End`.

    A world that fails (WorldFailed) or a server that refuses ends this game alone; other failures are raised.
    """
    game = Game(task.id, task.kind, task.goal, attempt)
    try:
        play_on(chat, world, task, rules, game)
    except WorldFailed as error:
        game.end, game.error = "world failed", str(error)
    except Refused as error:
        game.end, game.error = "server failed", str(error)
    game.won = game.end == "won"
    game.faults = dict(sorted(game.faults.items()))
    game.seconds = sum(game.timings)
    return game


def play_on(chat: Chat, world: World, task: Task, rules: Rules, game: Game) -> None:
    """The turns of `play_game`, told to `game` one by one."""
    start = time.monotonic()
    first, nothing = world.reset(task), world.nothing
    game.world_seconds += time.monotonic() - start
    told = [{"role": "system", "content": "\n\n".join(filter(None, [world.system_prompt, rules.added]))}]
    game.transcript += [*told, {"role": "user", "content": first}]
    seen: set[tuple[str, str]] = set()
    faults: list[Fault | None] = []
    idle = 0
    while game.steps < rules.steps and idle < rules.useless:
        reply = chat([*told, *rules.shown, *game.transcript[1:]], seed_of(game))
        if reply.ended == "context":
            game.end = "context full"
            return
        game.transcript.append({"role": "assistant", "content": reply.text})
        count(game, reply)
        action = PARSERS[rules.parse](reply.text)
        saw = Seen(nothing or UNREAD, False, False)
        if action is not None:
            start = time.monotonic()
            saw = Seen(world.step(action), world.won, world.done)
            game.world_seconds += time.monotonic() - start
        useless = action is None or (bool(nothing) and saw.text == nothing)
        idle = idle + 1 if useless else 0
        game.invalid += useless
        again = (action or "", saw.text) in seen
        seen.add((action or "", saw.text))
        faults.append(fault_of(reply, action, useless, again))
        if fault := faults[-1]:
            game.faults[fault] = game.faults.get(fault, 0) + 1
        if saw.won or saw.over:
            game.end = "won" if saw.won else "ended by the world"
            return
        game.transcript.append({"role": "user", "content": trajectory.observation(saw.text)})
    game.end = cause(faults[-rules.useless :], idle >= rules.useless)


def count(game: Game, reply: Reply) -> None:
    """Add an answer to a game's figures."""
    game.steps += 1
    game.tokens += reply.tokens
    game.prompt_tokens += reply.prompt_tokens
    game.timings.append(round(reply.seconds, 4))
    game.strict += trajectory.action(reply.text) is not None
    game.lenient += lenient_action(reply.text) is not None


def fault_of(reply: Reply, action: str | None, useless: bool, again: bool) -> Fault | None:
    """What is wrong with an answer, the first that holds; `again`: its action gave the same observation before."""
    if action is None:
        return "cut by length" if reply.ended == "length" else "no action"
    if MADE_UP.search(reply.text):
        return "made-up observation"
    if useless:
        return "nothing happens"
    return "loop" if again else None


def cause(last: Sequence[Fault | None], stuck: bool) -> End:
    """Why a game was lost, by its last answers: their commonest fault.

    Unless they were `stuck`, none of them doing anything, half of them must have it; else the steps were used up.
    """
    faults = Counter(each for each in last if each)
    if not faults:
        return "steps used up"
    fault, times = faults.most_common(1)[0]
    return fault if stuck or 2 * times >= len(last) else "steps used up"


def seed_of(game: Game) -> int:
    """The seed of a game's next answer, by task, attempt and step alone: neither order nor neighbours change it."""
    about = f"{game.id} {game.attempt} {game.steps}"
    return int.from_bytes(hashlib.sha256(about.encode()).digest()[:4], "big") >> 1


class Log:
    """A JSONL file of games as they end: first a line that says of what evaluation they are, then one a game.

    It is taken up where an evaluation of the same was stopped; a line that a kill left unfinished is cut off.
    """

    def __init__(self, path: Path, about: object) -> None:
        self.path, head = path, orjson.dumps(about) + b"\n"
        self.games: dict[tuple[str, int], Game] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
        if whole and whole[0] + b"\n" == head:
            for number, line in enumerate(whole[1:], 2):
                game = read_game(line, f"{path}:{number}")
                if game.end not in FAILED:
                    self.games[game.id, game.attempt] = game
        elif whole:
            progress.say(f"{path}: games of another model, of other tasks or rules; they are replaced")
        # Written anew, so that a game that failed is in it once.
        files.write(path, head + b"".join(map(line_of, self.games.values())))
        self.file: BinaryIO = path.open("ab")

    def add(self, game: Game) -> None:
        """Save a game."""
        with files.one_line(self.path):
            self.file.write(line_of(game))
            self.file.flush()
        self.games[game.id, game.attempt] = game

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def line_of(game: Game) -> bytes:
    """A game as a line of JSON."""
    return orjson.dumps(game) + b"\n"


def read_game(line: bytes, where: str) -> Game:
    """The game of a line. Raises BadInput, which begins with `where`, for what is none."""
    try:
        return Game(**orjson.loads(line))
    except (orjson.JSONDecodeError, TypeError) as error:
        raise BadInput(f"{where}: no game ({error}); remove the file, and the games are played anew") from error


def play_games(
    chat: Chat,
    make: MakeWorld,
    tasks: Sequence[Task],
    rules: Rules = Rules(),  # noqa: B008
    repeat: int = 1,
    parallel: int = 4,
    title: str = "play",
    log: Log | None = None,
) -> list[Game]:
    """Play all tasks, each `repeat` times, `parallel` at a time, with a progress bar; the games in the tasks' order.

    `make`: makes a world (see worlds/load.py), one for each of those that play side by side. `log`: where games are
    saved as they end, and those found that need not be played again.

    When the server fails or Ctrl-C is pressed, no game makes another move, and the error is raised at once. Raises
    Failed as well when the world or the server failed in every game.
    """
    wanted = [(task, attempt) for task in tasks for attempt in range(repeat)]
    games = {key: game for key, game in log.games.items()} if log else {}
    open_: queue.SimpleQueue[tuple[Task, int]] = queue.SimpleQueue()
    missing = [(task, attempt) for task, attempt in wanted if (task.id, attempt) not in games]
    for each in missing:
        open_.put(each)
    ended: queue.SimpleQueue[Game | BaseException] = queue.SimpleQueue()
    stopped = threading.Event()

    def ask(messages: list[Message], seed: int) -> Reply:
        if stopped.is_set():
            raise Failed("stopped")
        return chat(messages, seed)

    def work() -> None:
        try:
            world = make()
            while not stopped.is_set():
                task, attempt = open_.get_nowait()
                ended.put(play_game(ask, world, task, rules, attempt))
        except queue.Empty:
            return
        except BaseException as error:
            ended.put(error)

    # Daemons: what waits for a server when Ctrl-C is pressed holds up nothing.
    for _ in range(min(parallel, len(missing))):
        threading.Thread(target=work, daemon=True).start()
    won, before = sum(game.won for game in games.values()), time.monotonic()
    try:
        with progress.bar(f"{title}: {won} won", len(wanted), "games") as shown:
            shown.update(len(games))
            for _ in missing:
                game = ended.get()
                if isinstance(game, BaseException):
                    kept = f"; {len(games)} of {len(wanted)} games are kept, and the same command plays the others"
                    if log and isinstance(game, Failed):
                        raise Failed(f"{game}{kept}") from game
                    raise game
                now = time.monotonic()
                game.wall, before = round(now - before, 3), now
                if log:
                    log.add(game)
                games[game.id, game.attempt] = game
                won += game.won
                shown.update(len(games), title=f"{title}: {won} won")
    finally:
        stopped.set()
    found = [games[task.id, attempt] for task, attempt in wanted]
    tell_failures(found)
    return found


def tell_failures(games: Sequence[Game]) -> None:
    """Say on stderr in which games the world or the server failed. Raises Failed when it was all of them."""
    failed = [game for game in games if game.end in FAILED]
    if not failed:
        return
    first = f"{failed[0].id}: {failed[0].error}"
    if len(failed) == len(games):
        raise Failed(f"every game failed, the first by {failed[0].end}, {first}")
    progress.say(f"{len(failed)} of {len(games)} games failed, the first by {failed[0].end}, {first}")


def as_json(game: Game) -> Played:
    """A game as JSON holds it."""
    return cast(Played, asdict(game))
