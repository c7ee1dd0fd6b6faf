"""The agent plays through a backend: Ollama, llama-server, or any server that speaks OpenAI's API."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

from tools import Failed
from tools.core import progress, trajectory
from tools.core.trajectory import Message
from tools.worlds.household.world import NOTHING, Room, World

if TYPE_CHECKING:
    from ollama import Client

# Tokens that an answer may have: the longest in the committed episodes has 84.
ANSWER_TOKENS = 96


class Reply(NamedTuple):
    """What a backend answered: its text, the tokens generated, and the seconds it took."""

    text: str
    tokens: int
    seconds: float


Chat = Callable[[list[Message]], Reply]


@dataclass
class Game:
    """One room as it was played. `invalid`: answers that did nothing; `transcript`: all messages, the system's first.

    `tokens`: generated; `seconds`: waited for answers.
    """

    seed: int
    task: str
    goal: str
    won: bool = False
    steps: int = 0
    invalid: int = 0
    tokens: int = 0
    seconds: float = 0.0
    transcript: list[Message] = field(default_factory=list)


class Tally(TypedDict):
    """Rooms won of those played."""

    won: int
    rooms: int


class Summary(Tally):
    """What games came to; `wilson95`: the interval of `rate`; `invalid`: answers that did nothing; see `summary`."""

    rate: float
    wilson95: list[float]
    by_task: dict[str, Tally]
    invalid: int
    mean_steps: float
    tokens_per_second: float
    seconds: float


class Classic(TypedDict):
    """The first prompt that people try, and the answer."""

    prompt: str
    answer: str


class Played(TypedDict):
    """A game as eval-*.json has it: the fields of `Game`."""

    seed: int
    task: str
    goal: str
    won: bool
    steps: int
    invalid: int
    tokens: int
    seconds: float
    transcript: list[Message]


class Evaluation(TypedDict):
    """eval-*.json: what a player ("base" or "tuned") did in one quantisation."""

    player: str
    quant: str
    summary: Summary
    classic: Classic
    games: list[Played]


def ollama_chat(client: "Client", name: str) -> Chat:
    """A chat with a model in Ollama, at temperature 0. It raises Failed when Ollama does not answer."""
    from tools.serving import ollama as server

    def chat(messages: list[Message]) -> Reply:
        start = time.monotonic()
        said = server.chat(client, name, messages, ANSWER_TOKENS, 0.0)
        return Reply(said.text, said.tokens, time.monotonic() - start)

    return chat


def openai_chat(url: str, model: str = "model", key: str = "none") -> Chat:
    """A chat with a server that speaks OpenAI's API under `url`/v1, such as llama-server, at temperature 0.

    An answer that the server refuses because the conversation has outgrown its context is an empty one. Proxies from
    the environment are not used. The chat raises Failed when the server does not answer.
    """
    from openai import BadRequestError, DefaultHttpxClient, OpenAI, OpenAIError

    http = DefaultHttpxClient(trust_env=False, timeout=600)
    client = OpenAI(base_url=f"{url}/v1", api_key=key, http_client=http)

    def chat(messages: list[Message]) -> Reply:
        start = time.monotonic()
        try:
            said = client.chat.completions.create(
                model=model,
                messages=messages,  # type: ignore[arg-type]
                temperature=0,
                max_tokens=ANSWER_TOKENS,
            )
        except BadRequestError as error:
            if "context" not in str(error):
                raise Failed(f"{url}: {error}") from error
            return Reply("", 0, time.monotonic() - start)
        except OpenAIError as error:
            raise Failed(f"{url}: {error}") from error
        tokens = said.usage.completion_tokens if said.usage else 0
        return Reply(said.choices[0].message.content or "", tokens, time.monotonic() - start)

    return chat


def play_room(chat: Chat, room: Room, system: str, steps: int = 30, useless: int = 4) -> Game:
    """Play a room to its end: won, or lost after `steps` answers or `useless` answers in a row that do nothing."""
    world = World(room)
    turns = [{"role": "system", "content": system}, {"role": "user", "content": room.introduction}]
    game = Game(room.seed, room.task, room.goal, transcript=turns)
    idle = 0
    while game.steps < steps and idle < useless:
        reply = chat(turns)
        turns.append({"role": "assistant", "content": reply.text})
        act = trajectory.action(reply.text)
        answer = world.step(act) if act else NOTHING
        idle = idle + 1 if answer == NOTHING else 0
        game.steps += 1
        game.invalid += answer == NOTHING
        game.tokens += reply.tokens
        game.seconds += reply.seconds
        if world.won:
            game.won = True
            break
        turns.append({"role": "user", "content": trajectory.observation(answer)})
    return game


def play_rooms(chat: Chat, rooms: Sequence[Room], system: str, parallel: int = 4, title: str = "play") -> list[Game]:
    """Play all rooms, `parallel` at a time, with a progress bar; the games in the order of the rooms.

    When one game fails or Ctrl-C is pressed, no game makes another move, and the error is raised at once.
    """
    stopped = threading.Event()

    def ask(messages: list[Message]) -> Reply:
        if stopped.is_set():
            raise Failed("stopped")
        return chat(messages)

    pool = ThreadPoolExecutor(parallel)
    try:
        with progress.bar(f"{title}: 0 won", len(rooms), "rooms") as shown:
            games = [pool.submit(play_room, ask, room, system) for room in rooms]
            won = 0
            for done, game in enumerate(as_completed(games), 1):
                won += game.result().won
                shown.update(done, title=f"{title}: {won} won")
        return [game.result() for game in games]
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)


def summary(games: Sequence[Game], wall_seconds: float) -> Summary:
    """What games came to.

    `wall_seconds` is the time that all of them took together; tokens_per_second counts generated tokens over it.
    """
    won = sum(game.won for game in games)
    by_task: dict[str, Tally] = {}
    for task in sorted({game.task for game in games}):
        played = [game.won for game in games if game.task == task]
        by_task[task] = {"won": sum(played), "rooms": len(played)}
    return {
        "won": won,
        "rooms": len(games),
        "rate": won / len(games),
        "wilson95": wilson(won, len(games)),
        "by_task": by_task,
        "invalid": sum(game.invalid for game in games),
        "mean_steps": sum(game.steps for game in games) / len(games),
        "tokens_per_second": sum(game.tokens for game in games) / wall_seconds,
        "seconds": round(wall_seconds, 1),
    }


def wilson(won: int, rooms: int) -> list[float]:
    """The 95 % score interval [low, high] of a success rate; it holds for few rooms and for rates near 0 and 1.

    E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference, Journal of the American
    Statistical Association 22, 209-212.
    """
    z = 1.959964  # The normal distribution's 97.5 % quantile.
    rate = won / rooms
    middle = rate + z**2 / (2 * rooms)
    reach = z * (rate * (1 - rate) / rooms + z**2 / (4 * rooms**2)) ** 0.5
    return [max(0.0, (middle - reach) / (1 + z**2 / rooms)), min(1.0, (middle + reach) / (1 + z**2 / rooms))]


def as_json(game: Game) -> Played:
    """A game as JSON holds it."""
    return cast(Played, asdict(game))
