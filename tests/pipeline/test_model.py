"""What a finished run can be asked for, on the folder of a run whose model is small."""

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
from gguf import GGUFReader

from tools import BadInput
from tools.core import files, run_folder
from tools.gguf import llamacpp
from tools.pipeline.model import make_adapter_gguf, make_gguf, merge_adapter, score_quality
from tools.pipeline.serving import write_exports
from tools.pipeline.trained import tuned
from tools.recipes import recipe

pytestmark = pytest.mark.heavy

NAME = "cpu/smollm2-135m-lora"


@pytest.fixture(scope="module")
def this(small_base: Path, small_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> run_folder.Run:
    """A run's folder as training leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        this = recipe.open_recipe(NAME).run
    shutil.copytree(small_adapter, this.adapter)
    files.write(this.recipe, recipe.find(NAME).read_bytes())
    inputs = {"recipe": "ab" * 32, "data": "cd" * 32, "base": "ef" * 32}
    files.write_json(this.folder / "run.json", {"train": {"inputs": inputs}})
    return this


@pytest.fixture(autouse=True)
def outputs(this: run_folder.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(this.folder.parent.parent))


def test_quality_makes_what_is_missing_and_scores_it_once(
    this: run_folder.Run, small_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        score_quality(tuned(NAME, str(small_base)), "q4_k_m", guided=False, chunks=2, held_out="")
        found = orjson.loads(this.quality.read_bytes())
        assert [(each["quant"], each["imatrix"]) for each in found["models"]] == [("F16", False), ("Q4_K_M", False)]
        assert "Q4_K_M" in capsys.readouterr().out
        first = (this.quality.stat().st_mtime_ns, this.gguf("Q4_K_M").stat().st_mtime_ns)
    assert first == (this.quality.stat().st_mtime_ns, this.gguf("Q4_K_M").stat().st_mtime_ns)


def test_a_guided_quantisation_takes_the_place_of_the_plain_one(
    this: run_folder.Run, small_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.gguf import imatrix

    made = imatrix.make_imatrix

    def shorter(f16: Path, data: Path, tokenizer: Any, out: Path) -> None:
        made(f16, data, tokenizer, out, chunks=2)

    monkeypatch.setattr(imatrix, "make_imatrix", shorter)
    make_gguf(tuned(NAME, str(small_base)), "Q4_K_M", guided=True)
    assert this.imatrix().exists() and this.imatrix("base").exists()
    keys = GGUFReader(this.gguf("Q4_K_M")).fields
    assert keys["quantize.imatrix.dataset"].contents() == "train.jsonl"
    assert keys["react_recipes.data_sha256"].contents() == "cd" * 32
    assert this.provenance()["gguf-q4_k_m"]["llama.cpp"] == llamacpp.described()


def test_merged_and_alone(this: run_folder.Run, small_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert merge_adapter(tuned(NAME, str(small_base))) == this.merged
        assert make_adapter_gguf(tuned(NAME, str(small_base))) == this.adapter_gguf
    said = capsys.readouterr().out
    assert "already merged" in said and " MB, made in " in said
    assert GGUFReader(this.adapter_gguf).fields["react_recipes.recipe"].contents() == "smollm2-135m-lora"


def test_export_prints_a_command_for_each_place(
    this: run_folder.Run, small_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_gguf(tuned(NAME, str(small_base)), "Q8_0")
    write_exports(tuned(NAME, str(small_base)), "Q8_0", "", ["vllm  lmstudio"])
    said = capsys.readouterr().out
    assert "vllm serve" in said and "lms import" in said
    assert sorted(item.name for item in (this.folder / "export").iterdir()) == ["lmstudio", "vllm"]


def test_without_an_adapter_each_says_what_makes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    for ask in (
        lambda: merge_adapter(tuned(NAME)),
        lambda: make_adapter_gguf(tuned(NAME)),
        lambda: write_exports(tuned(NAME), "Q8_0", "", []),
        lambda: score_quality(tuned(NAME), "Q8_0", False, 2, ""),
    ):
        with pytest.raises(BadInput, match="no adapter; make train RECIPE="):
            ask()
