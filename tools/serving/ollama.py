"""Find, install and start Ollama; Modelfile, create, remove, chat."""

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from tools import BadInput, Failed
from tools.core import files, machine, progress, quote, run_folder, templates
from tools.core.process import following
from tools.core.trajectory import Message
from tools.gguf import llamacpp

if TYPE_CHECKING:
    import httpx
    from ollama import Client

VERSION = "0.34.2"
# Every model of ours is called so: what a user's own Ollama holds besides is never touched.
PREFIX = "react-"
# Conversations that an Ollama of ours answers at a time.
PARALLEL = 4
# Seconds that a program has to say whether it is Ollama.
ANSWER_SECONDS = 5.0
TEMPLATES = templates.TEMPLATES / "ollama"


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
    num_ctx, temperature and what else Ollama samples by. `stop`: texts that end an answer. `quantize`: a type that
    Ollama itself makes of an f16 GGUF. `adapter`: a LoRA GGUF over it. `base`: a model in Ollama in place of `gguf`.
    `sampling_source`: who advises the temperature and the like; empty where nobody does. `context_reason`: why num_ctx
    is what it is.
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
    quantize: str | None = None
    adapter: Path | None = None
    base: str = ""
    sampling_source: str = ""
    context_reason: str = ""

    def template(self) -> str | None:
        """The chat template in Go's syntax. Raises BadInput for a family that has none."""
        if self.family is None:
            return None
        path = TEMPLATES / f"{self.family}.gotmpl"
        if not path.exists():
            known = ", ".join(sorted(item.stem for item in TEMPLATES.glob("*.gotmpl")))
            raise BadInput(f"{self.family}: no such chat family for Ollama; there is {known}")
        text = path.read_text()
        # Go has no function that strips white space: this part says how.
        return (TEMPLATES / "parts" / "trim.gotmpl").read_text().rstrip() + text if '"trim"' in text else text


class Answer(NamedTuple):
    """What a model said: tokens generated, seconds spent on them, and why it ended ("stop" or "length")."""

    text: str
    tokens: int
    seconds: float
    done_reason: str


def home() -> Path:
    """Where the Ollama that we install lies: bin/ollama, and lib/ollama/ with links to our llama.cpp programs.

    It is for one processor, as they are (see llamacpp.home).
    """
    return run_folder.cache() / f"ollama-{VERSION}-{machine.processor()}"


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
        with files.locked(home()):
            found = find() or compile_ollama()
    if found is not None and found.is_relative_to(home()):
        link_programs(home() / "lib" / "ollama")
    return found


def compile_ollama() -> Path | None:
    """Build the pinned version into `home()`; None, and a line that says why, when that cannot be."""
    if shutil.which("go") is None:
        print("Ollama is not installed and there is no Go to build it: llama-server takes its place.", file=sys.stderr)
        return None
    try:
        with (
            progress.bar("Ollama: building with Go", unit="modules downloaded") as shown,
            files.atomic(home()) as partial,
        ):
            (partial / "lib" / "ollama").mkdir(parents=True)
            go_install(partial.resolve() / "bin", lambda line: shown.advance(line.startswith("go: downloading")))
    except Failed as error:
        print(f"{error}: llama-server takes its place.", file=sys.stderr)
        return None
    return home() / "bin" / "ollama"


def go_install(folder: Path, show: Callable[[str], None]) -> None:
    """`go install` the pinned Ollama into `folder`; `show` gets each line of its output. Raises Failed."""
    package = "github.com/ollama/ollama"
    # Without the flag its own version reads 0.0.0.
    flag = f"-ldflags=-X={package}/version.Version={VERSION}"
    command = ["go", "install", flag, f"{package}@v{VERSION}"]
    line = "it wrote nothing"
    with following(command, env=os.environ | {"GOBIN": str(folder)}) as (process, lines):
        for line in lines:
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
    store = own_store()
    url = f"http://127.0.0.1:{llamacpp.free_port()}"
    environment = {
        "OLLAMA_HOST": url,
        "OLLAMA_MODELS": str(store / "models"),
        "OLLAMA_NUM_PARALLEL": str(PARALLEL),
        # An empty one is its own choice.
        "OLLAMA_FLASH_ATTENTION": os.environ.get("OLLAMA_FLASH_ATTENTION", "" if llamacpp.accelerated() else "0"),
        "OLLAMA_KEEP_ALIVE": "-1",  # Until it is stopped: a model is loaded once.
        "OLLAMA_NO_CLOUD": "1",
        "GIN_MODE": "release",  # A shorter log.
        "HOME": str(store),  # It makes a key pair in ~/.ollama, which is the user's.
    }
    with contextlib.ExitStack() as stack:
        # At its start Ollama removes files that no model of its store names: not while another one receives one.
        with files.locked(store):
            start = llamacpp.started([str(program), "serve"], f"{url}/api/version", store / "serve.log", environment)
            stack.enter_context(start)
        yield Session(connect(url), url, own=True)


def own_store() -> Path:
    """The folder of the Ollama that we start: its models, its log."""
    return run_folder.outputs().resolve() / "ollama"


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
    """The URL of an OLLAMA_HOST setting, read as Ollama reads it: scheme, host and port may each be left out.

    Raises BadInput for what is no address.
    """
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
        value = httpx.get(url, timeout=ANSWER_SECONDS, trust_env=False).json()
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
    default one of its own (SmolLM2's) is matched by giving that text as `system`. A system prompt that the format
    cannot carry (an ideographic space is enough) is left out, and a comment says so. Raises BadInput for any other such
    text, see quote.modelfile_value.
    """
    facts = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    # Ollama takes FROM as a pattern of names.
    file = re.sub(r"([*?\[\\])", r"\\\1", spec.gguf.name)
    why = quote.not_in_modelfile(spec.system or "")
    facts |= {
        "left_out": (why, files.sha256_of((spec.system or "").encode(errors="surrogatepass"))[:16]) if why else None
    }
    facts |= {"source": spec.base or f"./{file}", "template": spec.template()}
    facts |= {"adapter": f"./{spec.adapter.name}" if spec.adapter else ""}
    return templates.template("ollama/Modelfile.j2").render(facts)


def holder(client: "Client", spec: Spec) -> str | None:
    """What stands in the way under the model's name, in words; None where it may be written.

    It may where the name is free or its model is of the same recipe, as `make gguf` notes it in the file, or of the
    same file.
    """
    with failures(client, spec.name):
        if not there(client, spec.name):
            return None
        shown = client.show(spec.name)
    recipe = (shown.modelinfo or {}).get("react_recipes.recipe")
    if recipe == spec.recipe or files.sha256(spec.gguf) in (shown.modelfile or ""):
        return None
    return f"a model of the recipe {recipe}" if recipe else "a model of no recipe of ours"


def free(client: "Client", spec: Spec) -> None:
    """Raise BadInput unless the model may be written under its name; see `holder`."""
    ours(spec.name)
    if other := holder(client, spec):
        raise BadInput(
            f"{spec.name} is in Ollama, {other}: choose another NAME=, or make ollama FORCE=1 takes its place"
        )


def there(client: "Client", name: str) -> bool:
    """Whether Ollama has a model of this name; it takes capitals for small letters, as for a file's name."""
    wanted = name if ":" in name else f"{name}:latest"
    return any((each.model or "").lower() == wanted.lower() for each in client.list().models)


def create(client: "Client", spec: Spec, force: bool = False) -> None:
    """Give Ollama the model under its name; an older one of that name only where `holder` lets it, or by `force`.

    Through its API, since an Ollama on another machine cannot read our files; a GGUF that it has is not sent again.
    Raises BadInput when the name is not one of ours (react-...) or taken, or there is no GGUF, Failed when Ollama
    refuses or has another file than ours in the end.
    """
    ours(spec.name)
    parts = [*([] if spec.base else [spec.gguf]), *([spec.adapter] if spec.adapter else [])]
    for file in parts:
        if not file.is_file():
            raise BadInput(f"{file}: no such file; `make gguf` makes it")
    if not force:
        free(client, spec)
    with files.locked(own_store()), failures(client, spec.name):
        digests = {file.name: send(client, file) for file in parts}
        digest = digests[parts[-1].name]  # an older Ollama writes a base anew that gets an adapter
        unload(client, digest)
        adapters = {spec.adapter.name: digests.pop(spec.adapter.name)} if spec.adapter else None
        steps = client.create(
            model=spec.name,
            from_=spec.base or None,
            files=digests or None,
            adapters=adapters,
            template=spec.template(),
            system=spec.system,
            license=spec.license,
            parameters={**spec.parameters, **({"stop": spec.stop} if spec.stop else {})},
            quantize=spec.quantize,
            stream=True,
        )
        with progress.step(f"Ollama: creating {spec.name}") as shown:
            for step in steps:
                part = f" {step.completed / step.total:.0%}" if step.completed and step.total else ""
                shown.update(title=f"Ollama: creating {spec.name}: {step.status}{part}")
        if not spec.quantize and not made_of(client, spec.name, digest):
            sent = parts[-1].name
            raise Failed(f"{spec.name} in Ollama is not made of {sent} ({digest}); run the same command again")
        client.generate(spec.name, keep_alive=0)  # One that was removed may run on, with the same file.


def made_of(client: "Client", name: str, digest: str) -> bool:
    """Whether Ollama has a model of this name that is made of the file with this digest (sha256:...)."""
    import ollama

    with contextlib.suppress(ollama.ResponseError):  # One that was removed may still be running.
        return digest.replace(":", "-") in (client.show(name).modelfile or "")
    return False


def unload(client: "Client", digest: str) -> None:
    """End the programs that serve the file with this digest, and wait until they have.

    Ollama (0.34) lets one serve any other model of the same file too, with the template that it was started with.
    """
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        running = (each.model or "" for each in client.ps().models)
        if not (same := [each for each in running if made_of(client, each, digest)]):
            return
        for each in same:
            client.generate(each, keep_alive=0)
        time.sleep(0.1)


def send(client: "Client", path: Path) -> str:
    """Put a file into Ollama's store unless it is there; its digest. A progress bar for each of its two readings."""
    hashed, size = hashlib.sha256(), path.stat().st_size
    with progress.bar(f"{path.name}: hashing", size, "bytes") as shown:
        for piece in pieces(path, shown):
            hashed.update(piece)
    digest = f"sha256:{hashed.hexdigest()}"
    if http(client).head(f"/api/blobs/{digest}").status_code != 200:
        with progress.bar(f"{path.name}: to Ollama", size, "bytes") as shown:
            upload(client, digest, pieces(path, shown), size)
    return digest


def pieces(path: Path, shown: progress.Work) -> Iterator[bytes]:
    """The bytes of a file, piece by piece; `shown` tells how many went by."""
    with path.open("rb") as file:
        while piece := file.read(2**20):
            yield piece
            shown.advance(len(piece))


def upload(client: "Client", digest: str, pieces: Iterator[bytes], size: int) -> None:
    """Send the bytes of one file, `size` in all. Raises Failed unless Ollama finds the digest in them and has them."""
    blob, length = f"/api/blobs/{digest}", {"Content-Length": str(size)}
    answer = http(client).post(blob, content=pieces, headers=length, timeout=None)
    if "digest mismatch" in answer.text:
        raise Failed("what reached Ollama is not the file that was read before; does something write to it? Try again")
    answer.raise_for_status()
    http(client).head(blob).raise_for_status()


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


def render(client: "Client", name: str, messages: list[Message], think: bool | None = None) -> str:
    """The prompt that Ollama makes of messages (role, content), uncut, whatever num_ctx is. Raises Failed.

    `think`: the switch of models that have one; None leaves it to Ollama.
    """
    body = {"model": name, "messages": messages, "stream": False, "truncate": False, "_debug_render_only": True}
    body |= {} if think is None else {"think": think}
    with failures(client, name):
        answer = http(client).post("/api/chat", json=body)
        answer.raise_for_status()
        shown = answer.json().get("_debug_info")
    if shown is None:
        raise Failed("this Ollama is too old to show the prompts it renders; update it: https://ollama.com/download")
    return str(shown["rendered_template"])


def stops(client: "Client", name: str) -> tuple[str, ...]:
    """The texts that end an answer by the model's parameters, in Ollama. Raises Failed."""
    with failures(client, name):
        lines = (client.show(name).parameters or "").splitlines()
    return tuple(shlex.split(line)[1] for line in lines if line.split()[:1] == ["stop"])


def chat(
    client: "Client",
    name: str,
    messages: list[Message],
    max_tokens: int,
    temperature: float,
    token_alone: bool = False,
    seed: int = 0,
) -> Answer:
    """One answer of a model to messages (role, content). Raises Failed with Ollama's own message.

    `token_alone`: the end token ends it, and no stop text: a model that spells the end token out goes on. `seed`: of
    what is drawn at a temperature above 0.
    """
    options: dict[str, Any] = {"num_predict": max_tokens, "temperature": temperature, "seed": seed}
    options |= {"stop": []} if token_alone else {}
    with failures(client, name):
        said = client.chat(name, messages, options=options)
    seconds = (said.eval_duration or 0) / 1e9
    return Answer(said.message.content or "", said.eval_count or 0, seconds, said.done_reason or "")


def ours(name: str) -> None:
    """Raises BadInput unless a model's name is one that we may write and remove: no path, and not too long a name."""
    if not re.fullmatch(rf"{PREFIX}[a-zA-Z0-9][\w.-]{{,60}}(:[a-zA-Z0-9][\w.-]{{,60}})?", name, re.ASCII):
        allowed = "letters, digits, dots and dashes"
        raise BadInput(
            f"{name!r}: a model of this project is called {PREFIX}something ({allowed}); no other is touched"
        )


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
        fix = "; `make setup` builds llama-quantize, which does" if "quantization is only" in error.error else ""
        raise Failed(f"Ollama, {name}: {error.error}{fix}") from error
    except httpx.HTTPStatusError as error:
        raise Failed(f"Ollama, {name}: {error.response.text.strip()[:300]}") from error
    except (httpx.HTTPError, ConnectionError) as error:
        where = f"Ollama at {http(client).base_url} does not answer"
        raise Failed(f"{where}: {error or type(error).__name__}; start it, and run the same command again") from error
