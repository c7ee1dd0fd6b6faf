"""llama.cpp's programs: found, started, stopped."""

import contextlib
import ctypes
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tools import BadInput, Failed
from tools.core import files, machine, progress, run_folder
from tools.gguf import llamacpp

pytestmark = pytest.mark.heavy

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
RENDERED = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
# Serves a model until it is told to end, and says where.
SERVE = """import pathlib, sys, time
from tools.gguf import llamacpp
with llamacpp.server(pathlib.Path(sys.argv[1]), context=256) as url:
    print(url, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model under another name, so that the log beside it is this test's own."""
    link = tmp_path_factory.mktemp("model") / "model.gguf"
    link.symlink_to(smollm2_gguf)
    return link


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REACT_RECIPES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "cache"


def servers(gguf: Path) -> list[psutil.Process]:
    """The llama-servers that run on this file."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(gguf) in process.cmdline() and "llama-server" in process.name():
                found.append(process)
    return found


def ends(seconds: float, gguf: Path) -> bool:
    """Whether no llama-server runs on this file within `seconds`."""
    deadline = time.monotonic() + seconds
    while servers(gguf) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not servers(gguf)


def test_the_build_is_found_and_whole() -> None:
    llamacpp.build()  # Nothing to do where it is there.
    for name in llamacpp.PROGRAMS:
        assert b"usage" in subprocess.run([llamacpp.program(name), "--help"], capture_output=True).stdout
    for name in llamacpp.KEPT:
        assert (llamacpp.source() / name).exists()
    assert (llamacpp.source() / "models" / "ggml-vocab-qwen2.gguf").stat().st_size > 10**6


def test_programs_on_path_are_found_and_missing_ones_named(empty_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="llama-server is not there; `make setup` builds it"):
        llamacpp.program("llama-server")
    with pytest.raises(Failed, match="converter"):
        llamacpp.source()
    (tmp_path / "llama-server").touch(mode=0o755)
    assert llamacpp.program("llama-server") == tmp_path / "llama-server"


def test_a_build_for_another_processor_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    here = llamacpp.home()
    assert here.exists()
    monkeypatch.setattr(machine, "features", lambda: frozenset({"sse2", "avx2", "an instruction of its own"}))
    assert llamacpp.home().parent == here.parent and not llamacpp.home().exists()
    assert here.name.startswith(f"{llamacpp.converters().name}-")  # the converter is for any processor


def test_without_a_compiler_the_build_says_what_to_install(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Failed, match=r"needs cmake and c\+\+ to be built: .*install"):
        llamacpp.build()
    assert not empty_cache.exists()


@pytest.fixture
def tiny_source(tmp_path: Path) -> Path:
    """A build as llama.cpp's, of programs and a library of one line each, in a folder as `build` keeps it."""
    source = tmp_path / "work" / "source"
    source.mkdir(parents=True)
    lines = ["cmake_minimum_required(VERSION 3.14)", "project(tiny CXX)", "set(CMAKE_RUNTIME_OUTPUT_DIRECTORY bin)"]
    lines += ["add_library(ggml-base STATIC lib.cpp)"]
    lines += ["set_target_properties(ggml-base PROPERTIES ARCHIVE_OUTPUT_DIRECTORY ggml/src)"]
    lines += ["set_target_properties(ggml-base PROPERTIES POSITION_INDEPENDENT_CODE ON)"]
    for name in llamacpp.PROGRAMS:
        lines += [f"add_executable({name} main.cpp)", f"target_link_libraries({name} ggml-base)"]
    (source / "CMakeLists.txt").write_text("\n".join(lines))
    (source / "main.cpp").write_text("int main() { return 0; }")
    (source / "lib.cpp").write_text('extern "C" int answer() { return 42; }')
    return source


def test_compiling_makes_the_programs(tiny_source: Path) -> None:
    llamacpp.compile_programs(tiny_source.parent)
    for name in llamacpp.PROGRAMS:
        assert subprocess.run([tiny_source.parent / "build" / "bin" / name]).returncode == 0


def test_a_build_says_off_a_terminal_how_far_it_is(
    tiny_source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("FIRST", "EVERY"):
        monkeypatch.setattr(progress, name, 0.01)
    llamacpp.compile_programs(tiny_source.parent)
    said = capfd.readouterr().err
    assert "llama.cpp: configuring, " in said
    assert re.search(r"^llama.cpp: building, \d+ (of \d+ files|%), .* s", said, re.M)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a matter of x86 processors")
def test_it_is_compiled_without_amx_and_with_the_users_own_flags(
    tiny_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXXFLAGS", "-march=sapphirerapids -DMINE")
    (tiny_source / "lib.cpp").write_text(
        "#if defined __AMX_INT8__ || !defined __AVX512F__ || !defined MINE\n#error\n#endif"
    )
    llamacpp.compile_programs(tiny_source.parent)


def test_a_failed_build_tells_its_first_error_and_goes_on_later(tiny_source: Path) -> None:
    (tiny_source / "main.cpp").write_text("int main() { return nothing; }")
    with pytest.raises(Failed, match=r"error: .nothing. was not declared.*build\.log"):
        llamacpp.compile_programs(tiny_source.parent)
    (tiny_source / "main.cpp").write_text("int main() { return 0; }")
    llamacpp.compile_programs(tiny_source.parent)


def test_a_lock_lets_one_in_at_a_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def second() -> None:
        with files.locked(tmp_path / "thing"):
            order.append("second")

    with files.locked(tmp_path / "thing"):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.3)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert "waiting for process" in capfd.readouterr().err


def test_server_tokenizes_and_renders_then_stops(model: Path) -> None:
    with llamacpp.server(model, context=256, parallel=2) as url:
        assert len(servers(model)) == 1
        props = httpx.get(f"{url}/props", trust_env=False).json()
        assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (2, 256)
        assert llamacpp.apply_template(url, MESSAGES) == RENDERED
        special = llamacpp.tokenize(url, RENDERED)
        # Ids 1 and 2 are <|im_start|> and <|im_end|>; as plain text they are spelled out.
        assert (special[0], special.count(1), special.count(2)) == (1, 3, 2)
        assert not {1, 2} & set(llamacpp.tokenize(url, RENDERED, special=False))
        with pytest.raises(Failed, match="Missing 'role'"):
            llamacpp.apply_template(url, [{"content": "a message without a role"}])
    assert not servers(model)
    assert model.with_suffix(".log").stat().st_size > 0
    with pytest.raises(Failed, match="no answer"):
        llamacpp.tokenize(url, "x")


@pytest.mark.skipif(sys.platform == "darwin", reason="Metal is there on every Mac")
@pytest.mark.parametrize(("gpu", "asked", "told"), [(None, None, "off"), ("a GPU", None, None), (None, "on", "on")])
def test_flash_attention_is_for_gpus(
    model: Path, monkeypatch: pytest.MonkeyPatch, gpu: str | None, asked: str | None, told: str | None
) -> None:
    monkeypatch.setattr(machine, "gpu", lambda: gpu)
    monkeypatch.delenv(llamacpp.FLASH_ATTENTION, raising=False)
    if asked:
        monkeypatch.setenv(llamacpp.FLASH_ATTENTION, asked)
    with llamacpp.server(model, context=256):
        (server,) = servers(model)
        assert server.environ().get(llamacpp.FLASH_ATTENTION) == told


def test_server_stops_when_its_user_fails(model: Path) -> None:
    with pytest.raises(ZeroDivisionError), llamacpp.server(model, context=256):
        raise ZeroDivisionError
    assert not servers(model)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_server_stops_when_its_process_is_interrupted_or_killed(model: Path, kind: signal.Signals) -> None:
    if kind != signal.SIGINT and sys.platform != "linux":
        pytest.skip("only Linux ends a child with its parent")
    command = [sys.executable, "-c", SERVE, str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=run_folder.ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"http")
        assert servers(model)
        process.send_signal(kind)
        assert process.wait(15) != 0
    assert ends(10, model)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_in_use_is_one_clear_line(model: Path, taken_port: int) -> None:
    with (
        pytest.raises(BadInput, match=f"^port {taken_port} is in use by another program"),
        llamacpp.server(model, context=256, port=taken_port),
    ):
        pass
    assert llamacpp.free_port() != taken_port


def test_a_file_that_is_no_model_fails_with_the_servers_own_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    with pytest.raises(BadInput, match="no such file"), llamacpp.server(broken, context=256):
        pass
    broken.write_bytes(os.urandom(4096))
    with pytest.raises(Failed, match=r"invalid magic.*broken\.log"), llamacpp.server(broken, context=256):
        pass


def test_build_makes_a_whole_home_and_leaves_nothing_beside(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The source lies there already, as after an interrupted build; a first try fails, and leaves no home."""
    monkeypatch.setenv("REACT_RECIPES_CACHE", str(tmp_path / "cache"))
    work = llamacpp.home().with_name(f"{llamacpp.home().name}.build")
    for name in llamacpp.KEPT:
        (tiny_source / name).touch()
    work.parent.mkdir()
    tiny_source.parent.rename(work)
    (work / "source" / "main.cpp").write_text("int main() { return nothing; }")
    with pytest.raises(Failed, match="could not be built"):
        llamacpp.build()
    assert re.search(r"built from source, once, which takes about \d+ min on \d+ cores", capfd.readouterr().err)
    assert not llamacpp.home().exists()
    (work / "source" / "main.cpp").write_text("int main() { return 0; }")
    llamacpp.build()
    assert subprocess.run([llamacpp.program("llama-server")]).returncode == 0
    assert ctypes.CDLL(str(llamacpp.home() / "bin" / llamacpp.LIBRARY)).answer() == 42
    assert {item.name for item in llamacpp.source().iterdir()} == set(llamacpp.KEPT)
    assert [item.name for item in (tmp_path / "cache").iterdir()] == [llamacpp.home().name]


@pytest.mark.slow
def test_the_pinned_source_is_unpacked_whole(tmp_path: Path) -> None:
    llamacpp.unpack(tmp_path / "work")
    assert [item.name for item in (tmp_path / "work").iterdir()] == ["source"]
    for name in (*llamacpp.KEPT, "CMakeLists.txt", "ggml", "src", "common", "tools/server", "tools/quantize"):
        assert (tmp_path / "work" / "source" / name).exists()
    assert (llamacpp.source() / "conversion" / "base.py").read_bytes() == (
        tmp_path / "work" / "source" / "conversion" / "base.py"
    ).read_bytes()
