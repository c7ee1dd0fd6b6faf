"""Find llama.cpp's programs, build them where no Ollama brings them, and start them."""

import contextlib
import functools
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

from tools import BadInput, Failed
from tools.core import files, machine, progress, run_folder
from tools.core.process import Program, following, without_secrets
from tools.core.trajectory import Message
from tools.gguf import bundled, libggml

if TYPE_CHECKING:
    import httpx

FLASH_ATTENTION = "LLAMA_ARG_FLASH_ATTN"  # llama-server's own variable: on, off or auto
PROGRAMS = ("llama-quantize", "llama-server", "llama-imatrix", "llama-perplexity")
# The quantiser alone, as a library that Python can call.
LIBRARY = "libggml-base.so"
# What is kept of the source: the converters, the vocabularies that tests build tokenizers from, the chat templates.
KEPT = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py", "models", "LICENSE")
# llama-perplexity reads a text's control tokens letter by letter: with this they are themselves, as in training.
# The file, what stands there, what stands there instead.
PATCH = (
    "tools/perplexity/perplexity.cpp",
    "common_tokenize(ctx, params.prompt, true)",
    "common_tokenize(ctx, params.prompt, true, true)",
)
# Static, so that a program is one file; no download of a model or a web page, in the build or later.
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DCMAKE_POSITION_INDEPENDENT_CODE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
# Without AMX, of x86 processors with it: gcc to 13.2 leaves the tiles' settings out (measured with 12.2: a general
# protection fault at the first Q8_0 multiplication; ggml-org/llama.cpp 20824, 26954; ollama/ollama 17006, 17249).
WITHOUT_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")


# What the build takes of one core: 8.2 minutes for two of the four programs (2 cores of a Xeon, Ninja, 210 files).
BUILD_MINUTES = 10
# Files that a compiler writes, with those in bin/; one may be cut short that is so many seconds older than the last.
WRITTEN = (".o", ".a", ".so")
LAST = 10.0


class Refused(Failed):
    """A server or a chat template does not take what it was given."""


def home() -> Path:
    """Where our build lies: bin/ with the programs, source/ with the converter. It exists only when it is complete.

    Its name is that of `converters` and the processor: it is compiled with -march=native, and machines of several kinds
    may share a cache.
    """
    return converters().with_name(f"{converters().name}-{machine.processor()}")


def converters() -> Path:
    """Where source/ with the converter lies when nothing is built. It exists only when it is complete.

    Its name tells the version, and by a hash what is kept and built of it and how.
    """
    how = files.sha256_of(repr((PROGRAMS, LIBRARY, KEPT, PATCH, FLAGS, WITHOUT_AMX)).encode())[:8]
    return run_folder.cache() / f"llama.cpp-{run_folder.pinned_version('llama-cpp-python')}-{how}"


def source() -> Path:
    """The folder with convert_hf_to_gguf.py, conversion/, gguf-py/ and models/. Raises Failed where there is none."""
    for folder in (home(), converters()):
        if (folder / "source").exists():
            return folder / "source"
    raise Failed("llama.cpp's converter is not there; `make setup` brings it")


def find(name: str) -> Path | None:
    """The path of a llama.cpp program: of our own build, else of the Ollama on PATH, else on PATH itself, else None."""
    places = [home() / "bin", *([there] if (there := bundled.folder()) else [])]
    own = next((place / name for place in places if (place / name).exists()), None)
    on_path = shutil.which(name)
    return own or (Path(on_path) if on_path else None)


def program(name: str) -> Path:
    """The path of a llama.cpp program, as `find`. Raises Failed where there is none."""
    path = find(name)
    if path is None:
        raise Failed(f"{name} is not there; `make setup` builds it")
    return path


def built(name: str) -> Path:
    """The path of a program that no Ollama brings; llama.cpp is built where it is not there. Raises Failed as `build`.

    These are llama-imatrix and llama-perplexity: a person who asks for neither needs no compiler.
    """
    if find(name) is None:
        build(f"no Ollama brings {name}")
    return program(name)


def library() -> Path | None:
    """The libggml that makes what llama-quantize makes: the one of the same build. None where it cannot be called."""
    beside = program("llama-quantize").parent / LIBRARY
    if beside.parent == home() / "bin":
        return beside
    return None if unfit(beside) else beside


@functools.cache
def unfit(library: Path) -> str | None:
    """Why a libggml that we did not build, with a llama-quantize beside it, cannot be called; None where it can."""
    if not library.exists():
        return "there is none"
    told = subprocess.run([library.with_name("llama-quantize"), "--help"], capture_output=True, check=False)
    if b"--dry-run" not in told.stdout + told.stderr:
        return "the llama-quantize beside it does not tell its types (--dry-run)"
    return libggml.unfit(library, source() / "gguf-py")


def described() -> str | None:
    """Which llama.cpp is used and why, for a person and for run.json; None where there is none."""
    if (path := find("llama-quantize")) is None:
        return None
    if path.parent == home() / "bin":
        return f"our build, of llama-cpp-python {run_folder.pinned_version('llama-cpp-python')}"
    if path.parent != bundled.folder():
        return "the one on PATH"
    theirs = f"Ollama's own, {bundled.version(path.parent)}"
    if not converters().exists():
        return f"{theirs}; `make setup` brings its converter"
    if why := unfit(path.parent / LIBRARY):
        return f"{theirs}; its llama-quantize quantises, since its {LIBRARY} cannot be called: {why}"
    return f"{theirs}; its {LIBRARY} quantises"


def set_up() -> None:
    """Have llama.cpp here: of the Ollama on PATH, if it brings one that runs; else our own build.

    Of Ollama's the converter alone is missing, which is unpacked: seconds, and no compiler. Raises Failed as `build`.
    """
    there = bundled.folder()
    if home().exists() or (there and converters().exists()):
        return
    if there is None:
        build("no Ollama here brings it")
    elif bundled.version(there) is None:
        build(f"Ollama's own, in {there}, does not run")
    else:
        with files.locked(converters()):
            if not converters().exists():
                with files.atomic(converters()) as partial:
                    unpack(partial, KEPT)
        print(f"llama.cpp: {described()}; nothing is compiled", file=sys.stderr)


def build(why: str = "it is not there") -> None:
    """Build PROGRAMS and LIBRARY from the pinned source into `home()`; nothing to do when they are there.

    `why`, and how long it takes, goes to stderr. An interrupted build goes on where it stopped. Raises Failed when a
    compiler or CMake is missing, or it fails.
    """
    if home().exists():
        return
    missing = [name for name, found in (("cmake", machine.cmake()), ("c++", machine.compiler())) if not found]
    if missing:
        raise Failed(
            f"llama.cpp needs {' and '.join(missing)} to be built: {machine.install(*missing)}; or install Ollama 0.30 "
            "or later, which brings llama-server and llama-quantize: https://ollama.com/download"
        )
    files.need_space(run_folder.cache(), 1.5)
    with files.locked(home()):
        if home().exists():  # Another process built it while this one waited.
            return
        cores = machine.cores()
        took = f"about {max(1, round(BUILD_MINUTES / cores))} min on {cores} cores"
        print(f"llama.cpp: {why}; it is built from source, once, which takes {took}", file=sys.stderr)
        work = home().with_name(f"{home().name}.build")
        if not (work / "source").exists():
            unpack(work)
        compile_programs(work)
        link_library(work)
        with files.atomic(home()) as partial:
            (partial / "bin").mkdir(parents=True)
            (partial / "source").mkdir()
            for name in (*PROGRAMS, LIBRARY):
                shutil.copy2(work / "build" / "bin" / name, partial / "bin" / name)
            for name in KEPT:
                kept = work / "source" / name
                (shutil.copytree if kept.is_dir() else shutil.copy2)(kept, partial / "source" / name)
        files.remove(work)


def unpack(work: Path, only: Sequence[str] = ()) -> None:
    """Download the pinned source distribution and leave its llama.cpp, with PATCH, in `work`/source. Raises Failed.

    `only`: these files and folders of it, where it is not to be compiled.
    """
    with (
        progress.step("llama.cpp: downloading and unpacking the source"),
        files.atomic(work / "source") as partial,
    ):
        archive = run_folder.download("llama-cpp-python", work / "download")
        with tarfile.open(archive) as tar:
            inside = f"{archive.name.removesuffix('.tar.gz')}/vendor/llama.cpp/"
            for member in tar:
                name = member.name.removeprefix(inside)
                if name != member.name and (not only or name.partition("/")[0] in only):
                    member.name = name
                    tar.extract(member, partial, filter="data")
        if not only:
            patch(partial)
    files.remove(work / "download")


def patch(source: Path) -> None:
    """Apply PATCH to a source tree. Raises Failed where it does not fit."""
    file, old, new = PATCH
    text = (source / file).read_text()
    if old not in text:
        raise Failed(f"llama.cpp's {file} is another one than was expected: it has no {old}")
    (source / file).write_text(text.replace(old, new))


def compile_programs(work: Path) -> None:
    """Compile `work`/source in `work`/build, with a progress bar. Raises Failed with the first error's line."""
    tree, log = work / "build", work / "build.log"
    # A tree that was begun goes on as it was begun, whatever is on PATH by now.
    fresh = not (tree / "CMakeCache.txt").exists()
    generator = ["-G", "Ninja"] if fresh and shutil.which("ninja") else []
    if not fresh:
        remove_half_written(tree)
    # A compiler process takes up to 1 GiB: fewer at a time where memory is short.
    jobs = max(1, min(machine.cores(), int(psutil.virtual_memory().available / 2**30)))
    configure = ["cmake", "-S", str(work / "source"), "-B", str(tree), *generator, *FLAGS]
    compile_all = ["cmake", "--build", str(tree), "--parallel", str(jobs), "--target", *PROGRAMS]
    flags = compiler_flags()
    with files.log(log) as file:
        for command in (configure, compile_all):
            follow(command, file, flags)
            file.flush()
    if not all((tree / "bin" / name).exists() for name in PROGRAMS):
        raise Failed(f"llama.cpp's build ended without its programs; {log} has all of its output")


def remove_half_written(tree: Path) -> None:
    """Remove what compilers were writing when a build was killed: make takes a cut file for a finished one.

    They all end within seconds of each other: what was written last, and what was written up to LAST seconds before.
    """
    written = (item for item in tree.rglob("*") if item.suffix in WRITTEN or item.parent.name == "bin")
    times = {item: item.stat().st_mtime for item in written if item.is_file()}
    for item, time_of in times.items():
        if time_of > max(times.values()) - LAST:
            item.unlink()


def compiler_flags() -> dict[str, str]:
    """CFLAGS and CXXFLAGS, for CMake: the user's, and WITHOUT_AMX where the compiler knows these options."""
    command = [str(machine.compiler()), *WITHOUT_AMX, "-x", "c++", "-fsyntax-only", os.devnull]
    known = subprocess.run(command, capture_output=True).returncode == 0
    ours = WITHOUT_AMX if known else ()
    return {name: " ".join([os.environ.get(name, ""), *ours]).strip() for name in ("CFLAGS", "CXXFLAGS")}


def link_library(work: Path) -> None:
    """Make LIBRARY, beside the programs, of the static archive that went into them. Raises Failed."""
    archive = str(work / "build" / "ggml" / "src" / "libggml-base.a")
    everything = ["-Wl,--whole-archive", archive, "-Wl,--no-whole-archive", "-fopenmp", "-pthread"]
    if sys.platform == "darwin":
        everything = [f"-Wl,-force_load,{archive}"]
    with files.log(work / "link.log") as log:
        follow([str(machine.compiler()), "-shared", "-o", str(work / "build" / "bin" / LIBRARY), *everything], log)


def follow(command: list[str], log: IO[bytes], environment: dict[str, str] | None = None) -> None:
    """Run one command of the build, its output into `log`, its [k/n] or [k%] on a progress bar. Raises Failed.

    `environment`: what it gets beside ours.
    """
    errors: list[str] = []
    what = "building" if "--build" in command else "configuring" if command[0] == "cmake" else "linking"
    told = os.environ | (environment or {})
    with progress.bar(f"llama.cpp: {what}") as shown, following(command, log, env=told) as (process, lines):
        for line in lines:
            if step := re.match(r"\[\s*(\d+)(?:/(\d+)|%)\]", line):
                shown.update(int(step[1]), int(step[2] or 100), unit="files" if step[2] else "%")
            elif re.search(r"\berror\b", line, re.IGNORECASE):
                errors.append(line.strip())
    if process.returncode:
        first = errors[0] if errors else f"exit status {process.returncode}"
        raise Failed(f"llama.cpp could not be built: {first} (all of it: {log.name})")


@contextlib.contextmanager
def server(
    gguf: Path, context: int, parallel: int = 1, port: int | None = None, log: Path | None = None
) -> Iterator[str]:
    """Serve a model with llama-server on 127.0.0.1 and yield its base URL; it is stopped at the end, come what may.

    `context` is in tokens, for each of `parallel` conversations at a time. `port`: None takes a free one. `log`: by
    default beside the model (model.log). Raises BadInput when there is no such file or the port is taken, Failed when
    the server does not start.
    """
    if not gguf.is_file():
        raise BadInput(f"{gguf}: no such file; `make gguf` makes it")
    url = f"http://127.0.0.1:{free_port(port)}"
    command = [
        str(program("llama-server")),
        "--model",
        str(gguf),
        "--host",
        "127.0.0.1",
        "--port",
        url.rpartition(":")[2],
    ]
    # llama-server divides its context among the slots.
    command += ["--ctx-size", str(context * parallel), "--parallel", str(parallel), "--threads", str(machine.cores())]
    command += ["--jinja", "--offline"]
    settings = {} if accelerated() or FLASH_ATTENTION in os.environ else {FLASH_ATTENTION: "off"}
    with started(command, f"{url}/health", log or gguf.with_suffix(".log"), settings):
        yield url


def accelerated() -> bool:
    """Whether a model may run on a GPU here. On a CPU llama.cpp's flash attention is the slower one by far: games of
    SmolLM2-135M took about twice as long with it on 2 cores (bench/play.py).
    """
    return sys.platform == "darwin" or machine.gpu() is not None


def free_port(port: int | None = None) -> int:
    """`port` itself, or any free one, on 127.0.0.1. Raises BadInput when another program holds it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port or 0))
        except OSError as error:
            raise BadInput(f"port {port} is in use by another program; choose another one") from error
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(command: list[str], url: str, log: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """Start a server, wait until `url` answers 200, and stop it and its children at the end, come what may.

    It is told none of our secrets: servers write their environment into logs. Raises Failed, with the log's first
    error, when it ends or does not answer within 10 minutes.
    """
    import httpx

    with files.log(log) as file:
        told = without_secrets() | (environment or {})
        process = Program(command, stdout=file, stderr=subprocess.STDOUT, env=told)
    name, loads = Path(command[0]).name, "--model" in command
    what = f"loading {Path(command[command.index('--model') + 1]).name}" if loads else "starting"
    try:
        deadline = time.monotonic() + 600
        with progress.step(f"{name}: {what}"):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(url, trust_env=False, timeout=5).status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"{name} did not start: {first_error(log)} (all of it: {log})")
                time.sleep(0.1)
        yield
    finally:
        process.stop()


def first_error(log: Path) -> str:
    """The first line of a log that speaks of an error (what follows it is its consequence), else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b|failed|invalid|couldn't", line, re.IGNORECASE)]
    line = errors[0] if errors else lines[-1] if lines else "it wrote nothing"
    return re.sub(r"^[\d.]+ [A-Z] ", "", line)  # llama-server's time and level.


def tokenize(url: str, text: str, special: bool = True) -> list[int]:
    """The token ids that llama-server makes of `text`.

    `special`: as it reads a prompt, so that control tokens written out count as such, and a model that wants a
    beginning-of-sequence token gets it; else as plain text.
    """
    body = {"content": text, "parse_special": special, "add_special": special}
    return [int(token) for token in post(f"{url}/tokenize", body)["tokens"]]


def apply_template(url: str, messages: list[Message]) -> str:
    """The prompt that llama-server renders of messages (role, content), by the template in the model's file."""
    return str(post(f"{url}/apply-template", {"messages": messages})["prompt"])


@functools.cache
def connection() -> "httpx.Client":
    """The client for our servers: one for all requests, since to make one costs more than most answers."""
    import httpx

    return httpx.Client(timeout=600, trust_env=False)


def post(url: str, body: Mapping[str, object]) -> dict[str, Any]:
    """The JSON answer to a JSON request. Raises Refused with the server's own message, Failed when it is gone."""
    import httpx

    try:
        answer = connection().post(url, json=body)
    except httpx.HTTPError as error:
        raise Failed(f"{url}: no answer ({error})") from error
    if answer.status_code != 200:
        raise Refused(f"{url}: {answer.status_code} {answer.text.strip()[:300]}")
    value: dict[str, Any] = answer.json()
    return value
