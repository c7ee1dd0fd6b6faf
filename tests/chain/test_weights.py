"""No name for a GGUF whose weights are not those of training: as a person meets it, from the command line."""

import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.parts.command import tools_here
from tests.parts.metadata import nans, upside_down, with_metadata, zeros
from tools.core import run_folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_conversions")]
FAULTS = {
    "zeros": ({}, {"blk.1.ffn_down.weight": zeros}, "blk.1.ffn_down.weight differs from training's by 100%"),
    "NaN": ({}, {"blk.0.attn_q.weight": nans}, "blk.0.attn_q.weight has values that are not numbers"),
    "rope": ({"llama.rope.freq_base": 5e5}, {}, "llama.rope.freq_base: 10000.0 in training, 500000.0 in the GGUF"),
    "head": ({}, {"token_embd.weight": upside_down}, "token_embd.weight differs from training's by 1"),
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The outputs folder that all of this file's commands share, where the chain ends in llama-server.

    To Ollama the small base is another one's model: the cache and PATH are without it.
    """
    folder = tmp_path_factory.mktemp("outputs")
    cache = folder.with_name("cache")
    cache.mkdir()
    for item in run_folder.cache().iterdir():
        if not item.name.startswith("ollama"):
            (cache / item.name).symlink_to(item)
    places = [place for place in os.environ["PATH"].split(os.pathsep) if not (Path(place) / "ollama").exists()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REACT_RECIPES_OUTPUTS", str(folder))
        patch.setenv("REACT_RECIPES_CACHE", str(cache))
        patch.setenv("PATH", os.pathsep.join(places))
        yield folder


@pytest.fixture(scope="module")
def gguf(outputs: Path, small_base: Path, small_adapter: Path) -> Path:
    """The GGUF of a base and its adapter, Q8_0, where the command makes it."""
    done = tools_here("gguf", "--adapter", str(small_adapter), "--base", str(small_base))
    assert done.returncode == 0, done.stderr
    return next(outputs.glob("adapters/*/model-q8_0.gguf"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_gets_no_name_and_is_told_why(
    outputs: Path, gguf: Path, small_base: Path, small_adapter: Path, fault: str
) -> None:
    values, tensors, says = FAULTS[fault]
    right = gguf.with_name("right.gguf")
    gguf.rename(right)
    try:
        with_metadata(right, gguf, values, tensors=tensors)
        asked = ("--adapter", str(small_adapter), "--base", str(small_base), "--name", "react-broken", "--force")
        done = tools_here("ollama", *asked)
    finally:
        right.replace(gguf)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and says in line and "so the model gets no name" in line, done.stderr
    assert "Traceback" not in done.stderr
    assert not (gguf.parent / "Modelfile").exists()


def test_the_right_file_gets_its_name_with_what_was_proven(
    outputs: Path, gguf: Path, small_base: Path, small_adapter: Path
) -> None:
    asked = ("--adapter", str(small_adapter), "--base", str(small_base), "--name", "react-right", "--force")
    for proof in ("tokens", "weights"):
        done = tools_here("ollama", *asked, "--proof", proof)
        assert done.returncode == 0, done.stderr
        found = orjson.loads((gguf.parent / "parity.json").read_bytes())
        assert (found["weights"] is None) == (proof == "tokens")
    assert found["weights"]["equal"] and found["weights"]["quant"] == "Q8_0" and found["weights"]["places"] >= 32
    assert "proven before" in tools_here("ollama", *asked).stdout
    assert "proven before" in tools_here("ollama", *asked, "--proof", "tokens").stdout


def test_a_base_that_is_nan_is_told_in_one_line(outputs: Path, nan_base: Path) -> None:
    """Its GGUF is right: what is broken is the model itself."""
    asked = ("--model", str(nan_base), "--quant", "F16")
    assert tools_here("gguf", *asked).returncode == 0
    for command in (("ollama", "--force"), ("parity", "--greedy")):
        done = tools_here(*command, *asked)
        line = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and "answers NaN in place of probabilities" in line, done.stderr
        assert "Traceback" not in done.stderr
