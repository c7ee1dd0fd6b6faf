"""An OpenEnv server as a world to play: a text goes in, a text comes out.

Servers of openenv-core 0.2 and later keep a game for each WebSocket; those of 0.1 hold one game and speak plain HTTP.
"""

import asyncio
import threading
import time
import weakref
from collections.abc import Coroutine, Iterator, Mapping
from queue import Empty, SimpleQueue
from urllib.parse import parse_qsl, urlsplit

import httpx
import orjson

from tools import BadInput
from tools.worlds.guard import WorldFailed
from tools.worlds.world import Task

SYSTEM = "Act in the environment that the user describes. Each turn: one Thought, one Action."
SECONDS = 60.0
# How long to wait for a server that has no place for a game before another is closed.
PLACE_SECONDS = 10.0
TASKS = 1000
FIRST_SEED = {"train": 0, "seen": 1_000_000, "unseen": 2_000_000}
# The action's field in OpenEnv's own text environments: echo_env and textarena_env.
USUAL = "message"


class OpenEnv:
    """A server's environment, one game at a time.

    `address`: http://HOST:PORT, and in its query the fields of the texts where they are not plain to see:
    ?action=FIELD&observation=FIELD. A game is won when it is done with a reward above 0. Raises BadInput for an address
    without an OpenEnv server or whose action is no text.
    """

    nothing = ""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        fields = dict(parse_qsl(parts.query))
        if unknown := set(fields) - {"action", "observation"}:
            raise BadInput(f"{address}: {', '.join(sorted(unknown))}: after the ? stand only action= and observation=")
        self.address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.action, self.observation = fields.get("action", ""), fields.get("observation", "")
        self.http = httpx.Client(trust_env=False, timeout=SECONDS)
        if self._get("/health") is None:
            raise BadInput(f"{self.address}: no OpenEnv server: it has no /health")
        schema, about = self._get("/schema"), self._get("/metadata") or {}
        self.sessions = schema is not None
        self.action = self.action or (_text_field(self.address, schema) if schema else USUAL)
        self.kind = str(about.get("name") or "openenv")
        self.system_prompt = " ".join(filter(None, [SYSTEM, str(about.get("description") or "")]))
        self.session: _Session | None = None
        self.won = self.done = False

    def tasks(self, split: str) -> Iterator[Task]:
        """1,000 seeds of a split; a server that takes no seed decides itself what a game is."""
        if split not in FIRST_SEED:
            raise BadInput(f"{split}: the splits of an OpenEnv server are {', '.join(FIRST_SEED)}")
        for seed in range(FIRST_SEED[split], FIRST_SEED[split] + TASKS):
            yield Task(f"seed-{seed}", self.kind, "")

    def reset(self, task: Task) -> str:
        """Start a game with the task's seed."""
        self.won = self.done = False
        seed = {"seed": int(task.id.removeprefix("seed-"))}
        if not self.sessions:
            return self._told(self._post("/reset", seed))
        until = time.monotonic() + PLACE_SECONDS
        while True:
            if self.session is None or self.session.loop.is_closed():
                self.session = _Session(self.address)
                weakref.finalize(self, self.session.close)
            try:
                return self._told(self.session.ask("reset", seed))
            except _Full as full:
                self.session = None
                if time.monotonic() > until:
                    raise WorldFailed(f"{self.address}: {full}") from full
                time.sleep(0.1)

    def step(self, action: str) -> str:
        """Send an action; what is observed then."""
        if not self.sessions:
            body = {"action": {self.action: action}, "timeout_s": int(SECONDS)}
            return self._told(self._post("/step", body))
        assert self.session, "reset starts a game"
        return self._told(self.session.ask("step", {self.action: action}))

    def _get(self, path: str) -> dict[str, object] | None:
        """The JSON object of a path; None where the server has no such path. Raises BadInput when none answers."""
        try:
            answer = self.http.get(self.address + path)
            found = answer.json() if answer.is_success else None
        except httpx.HTTPError as error:
            raise BadInput(f"{self.address}: no server answers: {error}; start it, or mend the address") from error
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _post(self, path: str, body: Mapping[str, object]) -> Mapping[str, object]:
        try:
            answer = self.http.post(self.address + path, json=body)
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as error:
            hint = f"; is {self.action} the action's field? ?action=FIELD names another" if path == "/step" else ""
            raise WorldFailed(f"{self.address}{path}: status {error.response.status_code}{hint}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise WorldFailed(f"{self.address}{path}: {type(error).__name__}: {error}") from error

    def _told(self, answer: Mapping[str, object]) -> str:
        """The observation's text; `won` and `done` are kept."""
        seen, reward = answer.get("observation"), answer.get("reward")
        self.done = bool(answer.get("done"))
        self.won = self.done and isinstance(reward, int | float) and reward > 0
        if not isinstance(seen, Mapping):
            raise WorldFailed(f"{self.address}: an answer without an observation")
        texts = [name for name, value in seen.items() if isinstance(value, str)]
        name = self.observation or (texts[0] if len(texts) == 1 else "")
        if name not in texts:
            has = f"its texts are {', '.join(texts)}" if texts else f"it has no text among {', '.join(seen)}"
            raise WorldFailed(f"{self.address}: which field is the observation? {has}; ?observation=FIELD names it")
        return str(seen[name])


def _text_field(address: str, schema: Mapping[str, object]) -> str:
    """The action's only text, or only text that must be given. Raises BadInput when there is no such one."""
    action = schema.get("action")
    action = action if isinstance(action, Mapping) else {}
    fields = {name: field for name, field in action.get("properties", {}).items() if name != "metadata"}
    texts = [name for name, field in fields.items() if field.get("type") == "string"]
    needed = [name for name in texts if name in action.get("required", [])]
    for found in (texts, needed):
        if len(found) == 1:
            return found[0]
    known = ", ".join(fields) or "it has none"
    raise BadInput(f"{address}: which field of its action is the text? {known}; ?action=FIELD names it")


class _Full(Exception):
    """The server has no place for one more game."""


class _Session:
    """A WebSocket to a server, read in a thread of its own: it must answer pings while the model thinks."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.answers: SimpleQueue[Mapping[str, object]] = SimpleQueue()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self._work, daemon=True).start()
        self._answer()

    def _work(self) -> None:
        self.loop.run_until_complete(self._read())
        self.loop.close()

    async def _read(self) -> None:
        """Put all that the server says in `answers`, and how it ended last."""
        try:
            import aiohttp

            async with aiohttp.ClientSession() as http, http.ws_connect(f"{self.address}/ws", max_msg_size=0) as socket:
                self.socket = socket
                self.answers.put({"type": "open"})
                async for message in socket:
                    self.answers.put(orjson.loads(message.data))
            said = "the server closed the game"
        except Exception as error:  # whoever asks is told of it
            said = f"{type(error).__name__}: {error}"
        self.answers.put({"type": "closed", "data": {"message": said}})

    def ask(self, kind: str, data: Mapping[str, object]) -> Mapping[str, object]:
        """Send a message; the answer's data. Raises _Full, or WorldFailed for an error."""
        text = orjson.dumps({"type": kind, "data": data}).decode()
        self._do(self.socket.send_str(text))
        return self._answer()

    def _answer(self) -> Mapping[str, object]:
        try:
            said = self.answers.get(timeout=SECONDS)
        except Empty:
            raise WorldFailed(f"{self.address}: no answer within {SECONDS:g} s") from None
        if said.get("type") == "closed":
            self.answers.put(said)  # for whoever asks again
        data = said.get("data")
        data = data if isinstance(data, Mapping) else {}
        if data.get("code") == "CAPACITY_REACHED":
            raise _Full(str(data.get("message")))
        if said.get("type") in ("error", "closed"):
            raise WorldFailed(f"{self.address}: {data.get('message')}")
        return data

    def close(self) -> None:
        """End the game; the server has a place for another then."""
        self._do(self.socket.close())

    def _do(self, what: Coroutine[object, object, object]) -> None:
        """Do something in the loop, unless it has ended."""
        try:
            asyncio.run_coroutine_threadsafe(what, self.loop)
        except RuntimeError:
            what.close()
