"""Find, install and start Ollama; Modelfile, create, remove, chat."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from tools import BadInput, Failed, llamacpp, run

if TYPE_CHECKING:
    import httpx
    from ollama import Client

VERSION = "0.34.2"
# Every model of ours is called so: what a user's own Ollama holds besides is never touched.
PREFIX = "react-"
# Conversations that an Ollama of ours answers at a time.
PARALLEL = 4
# Seconds that a program has to say whether it is Ollama.
PATIENCE = 5.0
TEMPLATES = run.ROOT / "templates" / "ollama"


class NoOllama(Failed):
    """Neither a running Ollama nor its program was found."""


@dataclass(frozen=True)
class Session:
    """An Ollama that answers. `own`: we started it and stop it; else it is the user's."""

    client: "Client"
    url: str
    own: bool


@dataclass(frozen=True)
class Spec:
    """All that Ollama is told of a model; the Modelfile and the API call are made of the same one.

    `family`: the file templates/ollama/FAMILY.gotmpl; None leaves it to the template in the GGUF. `parameters`:
    num_ctx, temperature and what else Ollama samples by. `stop`: texts that end an answer.
    """

    name: str
    gguf: Path
    recipe: str
    recipe_hash: str
    license: str
    parameters: dict[str, float]
    family: str | None = "chatml"
    system: str | None = None
    stop: list[str] = field(default_factory=list)

    def template(self) -> str | None:
        """The chat template in Go's syntax. Raises BadInput for a family that has none."""
        if self.family is None:
            return None
        path = TEMPLATES / f"{self.family}.gotmpl"
        if not path.exists():
            known = ", ".join(sorted(item.stem for item in TEMPLATES.glob("*.gotmpl")))
            raise BadInput(f"{self.family}: no such chat family for Ollama; there is {known}")
        return path.read_text()


class Answer(NamedTuple):
    """What a model said: tokens generated, seconds spent on them, and why it ended ("stop" or "length")."""

    text: str
    tokens: int
    seconds: float
    done_reason: str


def home() -> Path:
    """Where the Ollama that we install lies: bin/ollama, and lib/ollama/ with links to our llama.cpp programs."""
    return run.cache() / f"ollama-{VERSION}"


def find() -> Path | None:
    """The path of Ollama's program: the one on PATH, else the one that we installed, else None."""
    on_path = shutil.which("ollama")
    own = home() / "bin" / "ollama"
    return Path(on_path) if on_path else own if own.exists() else None


def install() -> Path | None:
    """Install Ollama with Go where the user has none; the path of its program.

    None, and a line on the screen that says why, when there is no Go or it fails: all else works without Ollama.
    """
    if (found := find()) is None:
        with run.locked(home()):
            found = find() or compile_ollama()
    if found is not None and found.is_relative_to(home()):
        link_programs(home() / "lib" / "ollama")
    return found


def compile_ollama() -> Path | None:
    """Build the pinned version into `home()`, whole; None, and a line that says why, when that cannot be."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False)
    if shutil.which("go") is None:
        console.print("Ollama is not installed and there is no Go to build it: llama-server takes its place.")
        return None
    try:
        with console.status("Ollama: building with Go") as status, run.whole(home()) as partial:
            (partial / "lib" / "ollama").mkdir(parents=True)
            go_install(partial.resolve() / "bin", lambda line: status.update(escape(f"Ollama: {line[:100]}")))
    except Failed as error:
        console.print(f"{error}: llama-server takes its place.", markup=False)
        return None
    return home() / "bin" / "ollama"


def go_install(folder: Path, show: Callable[[str], None]) -> None:
    """`go install` the pinned Ollama into `folder`; `show` gets each line of its output. Raises Failed."""
    package = "github.com/ollama/ollama"
    # Without the flag its own version reads 0.0.0.
    flag = f"-ldflags=-X={package}/version.Version={VERSION}"
    command = run.tied(["go", "install", flag, f"{package}@v{VERSION}"])
    line = "it wrote nothing"
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "GOBIN": str(folder)}
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            show(line.strip())
    if process.returncode:
        raise Failed(f"Ollama could not be built ({line.strip()})")


def link_programs(folder: Path) -> None:
    """Point Ollama, which runs llama-server and llama-quantize from `folder`, to ours. Raises Failed without them."""
    for name in llamacpp.PROGRAMS:
        link, target = folder / name, llamacpp.program(name).resolve()
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """An Ollama that answers, for as long as the `with` lasts.

    The user's own, at OLLAMA_HOST or 127.0.0.1:11434, is used and left as it was found. Else one is started with a
    free port and a store of its own (outputs()/ollama, with serve.log), and stopped at the end, Ctrl-C and kill
    included. Raises BadInput when OLLAMA_HOST names something else, NoOllama when there is no program to start.
    """
    if url := users_own():
        yield Session(connect(url), url, own=False)
        return
    if (program := find()) is None:
        raise NoOllama(
            "no Ollama is running or installed; get it from https://ollama.com/download, or use llama-server"
        )
    if program.is_relative_to(home()):
        link_programs(home() / "lib" / "ollama")
    store = run.outputs().resolve() / "ollama"
    url = f"http://127.0.0.1:{llamacpp.free_port()}"
    environment = {
        "OLLAMA_HOST": url,
        "OLLAMA_MODELS": str(store / "models"),
        "OLLAMA_NUM_PARALLEL": str(PARALLEL),
        "OLLAMA_KEEP_ALIVE": "-1",  # Until it is stopped: a model is loaded once.
        "OLLAMA_NO_CLOUD": "1",
        "GIN_MODE": "release",  # A shorter log.
        "HOME": str(store),  # It makes a key pair in ~/.ollama, which is the user's.
    }
    with llamacpp.started([str(program), "serve"], f"{url}/api/version", store / "serve.log", environment):
        yield Session(connect(url), url, own=True)


def users_own() -> str | None:
    """The URL of an Ollama that already runs, None when there is none.

    Raises BadInput when OLLAMA_HOST is set and something else answers there, or names another machine which does not.
    """
    setting = os.environ.get("OLLAMA_HOST", "").strip()
    url = address(setting)
    try:
        if "version" in answer_of(f"{url}/api/version"):
            return url
    except ConnectionError as error:
        if setting and urlsplit(url).hostname not in {"127.0.0.1", "localhost", "::1"}:
            raise BadInput(f"OLLAMA_HOST={setting}: nothing answers there ({error})") from error
        return None
    if setting:
        raise BadInput(f"OLLAMA_HOST={setting}: the port is in use by another program, which is not Ollama")
    return None


def address(host: str) -> str:
    """The URL of an OLLAMA_HOST setting, read as Ollama reads it: scheme, host and port may each be left out."""
    scheme, _, rest = host.rpartition("://")
    parts = urlsplit(f"//{rest.rstrip('/')}")
    try:
        port = parts.port or {"": 11434, "http": 80, "https": 443}[scheme]
    except (ValueError, KeyError) as error:
        raise BadInput(f"OLLAMA_HOST={host}: that is not a host and a port") from error
    name = parts.hostname or "127.0.0.1"
    # What a server binds to, "every address", is not where a client connects.
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    return f"{scheme or 'http'}://{f'[{name}]' if ':' in name else name}:{port}"


def answer_of(url: str) -> dict[str, Any]:
    """The JSON object at a URL, {} for any other answer. Raises ConnectionError when nothing listens there."""
    import httpx

    try:
        value = httpx.get(url, timeout=PATIENCE, trust_env=False).json()
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ConnectionError(str(error)) from error
    except (httpx.HTTPError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def connect(url: str) -> "Client":
    """A client for the Ollama at `url`; proxies from the environment are not for it."""
    from ollama import Client

    return Client(url, trust_env=False, timeout=600)


def modelfile(spec: Spec) -> str:
    """The Modelfile that says the same as `create` does. It belongs beside the GGUF: FROM names the file alone.

    When a conversation begins without a system message, Ollama puts SYSTEM before it; a chat template that adds a
    default one of its own (SmolLM2's) is matched by giving that text as `system`. Raises BadInput when a text holds
    three quotes, which the format cannot carry.
    """
    import jinja2

    for text in (spec.system, spec.license, spec.template(), *spec.stop):
        if text and '"""' in text:
            raise BadInput(f"a Modelfile cannot hold three quotes: {text[:80]!r}")
    loader = jinja2.FileSystemLoader(TEMPLATES)
    layout = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    facts = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    return layout.get_template("Modelfile.j2").render(facts | {"gguf": spec.gguf.name, "template": spec.template()})


def create(client: "Client", spec: Spec) -> None:
    """Give Ollama the model under its name, in place of an older one of that name.

    Through its API, since an Ollama on another machine cannot read our files; a GGUF that it has is not sent again.
    Raises BadInput when the name is not one of ours (react-...) or there is no GGUF, Failed when Ollama refuses.
    """
    from rich.console import Console

    ours(spec.name)
    if not spec.gguf.is_file():
        raise BadInput(f"{spec.gguf}: no such file; `make gguf` makes it")
    with failures(client, spec.name):
        digest = send(client, spec.gguf)
        steps = client.create(
            model=spec.name,
            files={spec.gguf.name: digest},
            template=spec.template(),
            system=spec.system,
            license=spec.license,
            parameters={**spec.parameters, **({"stop": spec.stop} if spec.stop else {})},
            stream=True,
        )
        with Console(stderr=True).status(f"Ollama: creating {spec.name}") as status:
            for step in steps:
                status.update(f"Ollama: {step.status}")


def send(client: "Client", path: Path) -> str:
    """Put a file into Ollama's store unless it is there; its digest. A progress bar for each of its two readings."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    hashed = hashlib.sha256()
    with progress.open(path, "rb", description=f"{path.name}: hashing", console=console, transient=True) as file:
        for piece in iter(lambda: file.read(2**20), b""):
            hashed.update(piece)
    digest = f"sha256:{hashed.hexdigest()}"
    if http(client).head(f"/api/blobs/{digest}").status_code != 200:
        with progress.open(path, "rb", description=f"{path.name}: to Ollama", console=console, transient=True) as file:
            size = {"Content-Length": str(path.stat().st_size)}
            pieces = iter(lambda: file.read(2**20), b"")
            http(client).post(f"/api/blobs/{digest}", content=pieces, headers=size, timeout=None).raise_for_status()
    return digest


def remove(client: "Client", name: str) -> bool:
    """Remove a model of ours; False when there was none. Raises BadInput for a name that is not ours (react-...)."""
    import ollama

    ours(name)
    try:
        with failures(client, name):
            client.delete(name)
    except Failed as error:
        if isinstance(error.__cause__, ollama.ResponseError) and error.__cause__.status_code == 404:
            return False
        raise
    return True


def render(client: "Client", name: str, messages: list[dict[str, str]]) -> str:
    """The prompt that Ollama makes of messages (role, content), whole, whatever num_ctx is. Raises Failed."""
    body = {"model": name, "messages": messages, "stream": False, "truncate": False, "_debug_render_only": True}
    with failures(client, name):
        answer = http(client).post("/api/chat", json=body)
        answer.raise_for_status()
        shown = answer.json().get("_debug_info")
    if shown is None:
        raise Failed("this Ollama is too old to show the prompts it renders; update it: https://ollama.com/download")
    return str(shown["rendered_template"])


def chat(client: "Client", name: str, messages: list[dict[str, str]], max_tokens: int, temperature: float) -> Answer:
    """One answer of a model to messages (role, content). Raises Failed with Ollama's own message."""
    options = {"num_predict": max_tokens, "temperature": temperature}
    with failures(client, name):
        said = client.chat(name, messages, options=options)
    seconds = (said.eval_duration or 0) / 1e9
    return Answer(said.message.content or "", said.eval_count or 0, seconds, said.done_reason or "")


def ours(name: str) -> None:
    """Raises BadInput unless a model's name is one that we may write and remove."""
    if not re.fullmatch(rf"{PREFIX}[\w.-]+(:[\w.-]+)?", name):
        raise BadInput(f"{name}: a model of this project is called {PREFIX}something; no other is touched")


def http(client: "Client") -> "httpx.Client":
    """The client's own connection, for what its library has no name for."""
    return client._client


@contextlib.contextmanager
def failures(client: "Client", name: str) -> Iterator[None]:
    """Turn Ollama's refusals and a lost connection into Failed, with one line."""
    import httpx
    import ollama

    try:
        yield
    except ollama.ResponseError as error:
        raise Failed(f"Ollama, {name}: {error.error}") from error
    except httpx.HTTPStatusError as error:
        raise Failed(f"Ollama, {name}: {error.response.text.strip()[:300]}") from error
    except (httpx.HTTPError, ConnectionError) as error:
        raise Failed(f"Ollama at {http(client).base_url} does not answer: {error}") from error
