"""What an agent is asked through: Ollama, llama-server, or any server that speaks OpenAI's API; in_process.py has one
more, transformers."""

import threading
import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from tools import Failed
from tools.core import progress
from tools.core.trajectory import Message

if TYPE_CHECKING:
    from ollama import Client

# Tokens that an answer may have: the longest in the committed episodes has 84. A model that was not trained on their
# form says more before it acts.
ANSWER_TOKENS = 96
PROMPTED_TOKENS = 256
# Seconds that a server may be busy or away before the games stop.
PATIENCE = 120.0
LONGEST_PAUSE = 30.0


class Reply(NamedTuple):
    """What a backend answered: its text, the tokens generated, and the seconds it took.

    `ended`: why it ended: "stop", "length" (the tokens that it may have were used up), or "context" (the conversation
    has outgrown what the model remembers, and there is no answer). `prompt_tokens`: read, where the server counts them.
    `read`, `written`: the very tokens, the end token too, of a model in this process.
    """

    text: str
    tokens: int
    seconds: float
    ended: str = "stop"
    prompt_tokens: int = 0
    read: Sequence[int] = ()
    written: Sequence[int] = ()


# The messages so far, and the seed of what is drawn at a temperature above 0. It raises Failed when the server does not
# answer, Refused when it does not take this conversation.
Chat = Callable[[list[Message], int], Reply]


class Sampling(NamedTuple):
    """How an answer is drawn: its temperature, and the tokens that it may have."""

    temperature: float = 0.0
    tokens: int = ANSWER_TOKENS


class Refused(Failed):
    """The server is well and does not take this one conversation."""


class Away(Failed):
    """The server is busy or does not answer. `after`: the seconds for which it asks to be left alone, if it does."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


def ollama_chat(client: "Client", name: str, sampling: Sampling = Sampling(), patience: float = PATIENCE) -> Chat:  # noqa: B008
    """A chat with a model in Ollama; see `patiently` for a server that goes away."""
    import httpx
    import ollama

    from tools.serving import ollama as server

    def ask(messages: list[Message], seed: int) -> Reply:
        start = time.monotonic()
        try:
            said = server.chat(client, name, messages, sampling.tokens, sampling.temperature, seed=seed)
        except Failed as error:
            cause = error.__cause__
            busy = isinstance(cause, ollama.ResponseError) and (cause.status_code == 429 or cause.status_code >= 500)
            if busy or isinstance(cause, (httpx.TransportError, ConnectionError)):
                raise Away(str(error)) from error
            raise
        return Reply(said.text, said.tokens, time.monotonic() - start, said.done_reason or "stop")

    return patiently(ask, patience)


def openai_chat(
    url: str,
    model: str = "model",
    key: str = "none",
    sampling: Sampling = Sampling(),  # noqa: B008
    patience: float = PATIENCE,
) -> Chat:
    """A chat with a server that speaks OpenAI's API under `url`, which ends in /v1 or gets it; llama-server is one.

    Proxies from the environment are not used for this machine. See `patiently` for a server that goes away.
    """
    from openai import APIConnectionError, APIStatusError, BadRequestError, DefaultHttpxClient, OpenAI, OpenAIError

    http = DefaultHttpxClient(trust_env=not here(url), timeout=600)
    client = OpenAI(base_url=root(url), api_key=key, http_client=http, max_retries=0)

    def ask(messages: list[Message], seed: int) -> Reply:
        start = time.monotonic()
        try:
            said = client.chat.completions.create(
                model=model,
                messages=messages,  # type: ignore[arg-type]
                temperature=sampling.temperature,
                max_tokens=sampling.tokens,
                seed=seed,
            )
        except BadRequestError as error:
            if "context" in str(error):
                return Reply("", 0, time.monotonic() - start, "context")
            raise Refused(f"{url}: {one_line(error)}") from error
        except APIStatusError as error:
            if error.status_code == 429 or error.status_code >= 500:
                raise Away(f"{url}: {one_line(error)}", retry_after(error.response.headers)) from error
            raise Failed(f"{url}: {one_line(error)}") from error
        except APIConnectionError as error:
            raise Away(f"{url}: {one_line(error)}") from error
        except (OpenAIError, ValueError) as error:
            raise Failed(f"{url}: {one_line(error)}") from error
        seconds = time.monotonic() - start
        try:  # the library takes any JSON for an answer, and a page of HTML for a text
            first, used = said.choices[0], said.usage
            read, tokens = (used.prompt_tokens, used.completion_tokens) if used else (0, 0)
            return Reply(first.message.content or "", tokens, seconds, first.finish_reason or "stop", read)
        except (AttributeError, IndexError, TypeError) as error:
            raise Refused(f"{url}: this is no answer of OpenAI's API: {str(said)[:100]!r}") from error

    return patiently(ask, patience)


def root(url: str) -> str:
    """The address under which a server has OpenAI's API: /v1 ends it."""
    bare = url.rstrip("/")
    return bare if bare.endswith("/v1") else f"{bare}/v1"


def here(url: str) -> bool:
    """Whether an address is this machine's, for which no proxy is asked."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def one_line(error: Exception) -> str:
    """What an error says, cut to a line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def retry_after(headers: "object") -> float | None:
    """The seconds that a server asks to wait by Retry-After, a number or a date (RFC 9110, 10.2.3); None without it."""
    said = getattr(headers, "get", lambda _: None)("retry-after")
    if not said:
        return None
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(str(said)).timestamp() - time.time())
    except ValueError:
        return None


def patiently(ask: Chat, patience: float) -> Chat:
    """A chat that asks again where the server is busy (429, 5xx) or away, for `patience` seconds in all.

    It waits as long as Retry-After says, else 1, 2, 4 ... seconds; one line on stderr says so, whichever of the games
    meets it first. Raises Failed when that does not help.
    """
    waiting = threading.Event()

    def chat(messages: list[Message], seed: int) -> Reply:
        pause, left = 1.0, patience
        while True:
            try:
                reply = ask(messages, seed)
            except Away as away:
                wait = pause if away.after is None else away.after
                if wait > left:
                    asked = f", and asks to wait {wait:.0f} s" if away.after is not None else ""
                    raise Failed(f"{away}{asked}") from away
                if not waiting.is_set():
                    waiting.set()
                    progress.say(f"{away}: waiting for it, {patience:.0f} s at most")
                time.sleep(wait)
                pause, left = min(LONGEST_PAUSE, 2 * pause), left - wait
            else:
                waiting.clear()
                return reply

    return chat


def only_model(url: str, key: str) -> str:
    """The name of the one model that a server has under `url`. Raises Failed for none or several, which it names."""
    import httpx

    address = f"{root(url)}/models"
    try:
        got = httpx.get(address, headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=not here(url))
        names = [str(each["id"]) for each in got.raise_for_status().json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise Failed(f"{address}: no list of models ({one_line(error)}); NAME= says which to play") from error
    if len(names) != 1:
        raise Failed(f"{address}: {len(names)} models ({', '.join(names[:8])}); NAME= says which to play")
    return names[0]
