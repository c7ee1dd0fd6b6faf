"""An Ollama that brings llama.cpp is enough: found as its installer lays it out, tried, and nothing is compiled."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.parts.converters import Converters
from tests.serving.test_ollama import spec_of
from tools import Failed
from tools.core import machine, run_folder
from tools.gguf import bundled, convert, libggml, llamacpp
from tools.serving import ollama

pytestmark = pytest.mark.heavy

# The real one, while a test has its own.
CACHE = run_folder.cache()

# A libggml that calls all types NAME, and does WHAT in place of quantising to q8_0.
LIBRARY = """#include <cstdlib>
#include <cstring>
extern "C" {
const char * ggml_type_name(int) { return "NAME"; }
long ggml_blck_size(int) { return 32; }
size_t ggml_type_size(int) { return 34; }
bool ggml_validate_row_data(int, const void *, size_t) { return true; }
size_t ggml_quantize_chunk(int, const float *, void * made, long, long rows, long width, const float *) { WHAT; }
}
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an Ollama as its installer lays it out, alone on PATH: bin/ollama, lib/ollama with llama.cpp.

    No compiler is on PATH, and the cache is empty but for the converter.
    """
    llamacpp.build()
    built, source = llamacpp.home() / "bin", llamacpp.source()
    llamacpp.unfit.cache_clear()
    folder = tmp_path / "usr"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib" / "ollama").mkdir(parents=True)
    (folder / "bin" / "ollama").touch(mode=0o755)
    for name in (*bundled.PROGRAMS, llamacpp.LIBRARY):
        (folder / "lib" / "ollama" / name).symlink_to(built / name)
    monkeypatch.setenv("PATH", str(folder / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("REACT_RECIPES_CACHE", str(tmp_path / "cache"))
    llamacpp.converters().mkdir(parents=True)
    (llamacpp.converters() / "source").symlink_to(source)
    return folder


@pytest.mark.slow
def test_a_fresh_cache_is_set_up_without_a_compiler(theirs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(llamacpp.converters())
    llamacpp.set_up()
    assert "llama.cpp: Ollama's own, " in (said := capfd.readouterr().err) and "nothing is compiled" in said
    assert not llamacpp.home().exists()
    assert {item.name for item in llamacpp.source().iterdir()} >= set(llamacpp.KEPT)
    llamacpp.set_up()
    assert not capfd.readouterr().err


def test_it_is_found_and_told(theirs: Path) -> None:
    place = theirs / "lib" / "ollama"
    assert [llamacpp.find(name) for name in bundled.PROGRAMS] == [place / name for name in bundled.PROGRAMS]
    assert llamacpp.library() == place / llamacpp.LIBRARY
    assert llamacpp.described() == f"Ollama's own, {bundled.version(place)}; its libggml-base.so quantises"
    with pytest.raises(Failed, match=r"needs cmake and c\+\+ to be built: .*or install Ollama 0.30 or later"):
        llamacpp.built("llama-perplexity")  # no Ollama has it


def test_a_link_to_its_program_and_a_folder_below_it_are_followed(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "ollama").symlink_to(theirs / "bin" / "ollama")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert bundled.folder() == theirs / "lib" / "ollama"
    (theirs / "lib").rename(theirs / "bin" / "lib")
    assert bundled.folder() == theirs / "bin" / "lib" / "ollama"


@pytest.mark.parametrize("missing", bundled.PROGRAMS)
def test_an_older_ollama_that_has_not_both_programs_is_not_enough(theirs: Path, missing: str) -> None:
    (theirs / "lib" / "ollama" / missing).unlink()
    assert llamacpp.find("llama-server") is None
    assert llamacpp.described() is None
    with pytest.raises(Failed, match="needs cmake"):
        llamacpp.set_up()


def test_a_llama_server_that_does_not_run_is_not_taken(theirs: Path) -> None:
    shutil.rmtree(llamacpp.converters())
    server = theirs / "lib" / "ollama" / "llama-server"
    server.unlink()
    server.write_text("#!/bin/sh\nexit 1\n")
    server.chmod(0o755)
    with pytest.raises(Failed, match="needs cmake"):
        llamacpp.set_up()
    assert not llamacpp.converters().exists()


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K_M", "Q6_K"])
def test_its_quantisers_make_the_bytes_of_our_build(
    quant: str, converters: Converters, small_base: Path, small_f16: Path, theirs: Path, tmp_path: Path
) -> None:
    """Straight by its library, by its llama-quantize from f16, and straight by ours.

    Here its library is ours. One that was compiled as Ollama compiles it (shared, for any x86-64) of the same source
    gave the same bytes for all 22 types that need no importance matrix: -march=native is for libggml-cpu alone, and
    libggml-base quantises.
    """
    straight, two_steps, ours = (tmp_path / f"{name}.gguf" for name in ("straight", "two-steps", "ours"))
    assert str(theirs) in convert.request(small_base, straight, {}, None, quant, tmp_path)["library"]
    assert converters.ours(small_base, straight, None, quant) == ""
    convert.quantize_gguf(small_f16, two_steps, quant)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REACT_RECIPES_CACHE", str(CACHE))
        assert llamacpp.library() == llamacpp.home() / "bin" / llamacpp.LIBRARY
        assert converters.ours(small_base, ours, None, quant) == ""
    assert straight.read_bytes() == two_steps.read_bytes() == ours.read_bytes()


def test_without_its_library_an_f16_file_is_made_first_and_it_is_said(
    small_base: Path, small_f16: Path, theirs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (theirs / "lib" / "ollama" / llamacpp.LIBRARY).unlink()
    convert.to_gguf(small_base, tmp_path / "small.gguf", quant="Q8_0")
    version = bundled.version(theirs / "lib" / "ollama")
    assert capfd.readouterr().err.splitlines()[0] == (
        f"small.gguf: an f16 file first (Ollama's own, {version}; its llama-quantize quantises, since its "
        "libggml-base.so cannot be called: there is none)"
    )
    convert.quantize_gguf(small_f16, tmp_path / "same.gguf", "Q8_0")
    assert (tmp_path / "small.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()
    assert sorted(item.name for item in tmp_path.glob("*")) == ["cache", "same.gguf", "small.gguf", "usr"]


@pytest.mark.parametrize(
    ("name", "does", "why"),
    [
        ("q6_K", "return 1", "its type 8 is q6_K, and not Q8_0 as ours"),
        ("q8_0", "abort()", "it ends by signal 6"),
        ("q8_0", "memset(made, 0, rows * width / 32 * 34); return 1", "what it makes of Q8_0 is not what ours reads"),
    ],
)
def test_a_library_of_another_version_is_found_out(tmp_path: Path, name: str, does: str, why: str) -> None:
    compiler = machine.compiler()
    assert compiler
    (tmp_path / "other.cpp").write_text(LIBRARY.replace("NAME", name).replace("WHAT", does))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "other.so", tmp_path / "other.cpp"], check=True)
    assert libggml.unfit(tmp_path / "other.so", llamacpp.source() / "gguf-py") == why


def test_what_is_no_libggml_is_found_out(tmp_path: Path) -> None:
    package = llamacpp.source() / "gguf-py"
    assert libggml.unfit(llamacpp.home() / "bin" / llamacpp.LIBRARY, package) is None
    (tmp_path / "text.so").write_text("no library")
    assert "cannot be loaded" in str(libggml.unfit(tmp_path / "text.so", package))
    assert "has no ggml_quantize_chunk" in str(libggml.unfit(Path("libm.so.6"), package))


def test_it_serves_a_model_by_itself_and_behind_ollama(
    theirs: Path, smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with llamacpp.server(smollm2_gguf, context=256, log=tmp_path / "log") as url:
        assert llamacpp.tokenize(url, "<|im_start|>") == [1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REACT_RECIPES_CACHE", str(CACHE))
        if not (own := ollama.home() / "bin" / "ollama").exists():
            pytest.skip("Ollama is not in the cache")
    shutil.copy2(own, theirs / "bin" / "ollama")
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{llamacpp.free_port()}")
    assert ollama.install() == theirs / "bin" / "ollama"
    with ollama.session() as here:
        spec = spec_of(smollm2_gguf)
        ollama.create(here.client, spec)
        said = ollama.chat(here.client, spec.name, [{"role": "user", "content": "Hi"}], 4, 0.0)
        assert said.tokens == 4
        log = (tmp_path / "outputs" / "ollama" / "serve.log").read_text()
        assert str(theirs / "lib" / "ollama" / "llama-server") in log
