"""What a quantisation costs, scored by the real llama-perplexity on a small model."""

import struct
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from tools import BadInput, Failed
from tools.core import run_folder, trajectory
from tools.gguf import convert, imatrix, perplexity

pytestmark = pytest.mark.heavy

TEST = run_folder.ROOT / "data" / "test.jsonl"


@pytest.fixture(scope="module")
def tokenizer(small_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(small_base)


@pytest.fixture(scope="module")
def files(small_f16: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quants")
    found = {name: folder / f"{name}.gguf" for name in ("Q8_0", "Q2_K")}
    for name, path in found.items():
        convert.quantize_gguf(small_f16, path, name)
    return found


@pytest.fixture(scope="module")
def found(small_f16: Path, files: dict[str, Path], tokenizer: Any) -> perplexity.Quality:
    return perplexity.score_quants(small_f16, files, trajectory.read(TEST), tokenizer, chunks=2)


def test_smaller_files_are_further_from_f16(found: perplexity.Quality, small_f16: Path, files: dict[str, Path]) -> None:
    f16, q8, q2 = found["models"]
    assert [each["quant"] for each in found["models"]] == ["F16", "Q8_0", "Q2_K"]
    assert f16["bytes"] == small_f16.stat().st_size > q8["bytes"] == files["Q8_0"].stat().st_size > q2["bytes"]
    assert 0 < q8["mean_kld"] < q2["mean_kld"] and q8["max_kld"] < q2["max_kld"]
    assert q8["mean_kld"] < q8["kld_99_9"] <= q8["max_kld"]
    assert q2["same_top_percent"] < q8["same_top_percent"] <= 100
    assert "mean_kld" not in f16 and f16["perplexity"] > 1
    # Of each piece the second half is scored, but for its last token.
    assert (found["chunks"], found["tokens"]) == (2, 2 * 255)


def test_the_perplexity_is_that_of_the_same_model_in_transformers(
    found: perplexity.Quality, small_base: Path, tokenizer: Any
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    _, ids = perplexity.held_out(tokenizer, trajectory.read(TEST), 2 * imatrix.CONTEXT)
    model: Any = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    pieces = torch.tensor(ids[: 2 * imatrix.CONTEXT]).reshape(2, imatrix.CONTEXT)
    half = imatrix.CONTEXT // 2
    with torch.no_grad():
        logits = model(pieces).logits[:, half:-1].flatten(0, 1)
    wanted = torch.nn.functional.cross_entropy(logits, pieces[:, half + 1 :].flatten()).exp().item()
    assert found["models"][0]["perplexity"] == pytest.approx(wanted, rel=0.005)


def test_nothing_is_left_beside_the_models(found: perplexity.Quality, small_f16: Path) -> None:
    assert found and not [item for item in small_f16.parent.iterdir() if item.name.startswith(".")]


def test_control_tokens_spelled_out_are_noticed(tmp_path: Path, tokenizer: Any) -> None:
    ids = tokenizer("<|im_start|>user\nGo.<|im_end|>\n" * 2, add_special_tokens=False).input_ids
    spelled = tokenizer("<|im_start|>user\nGo.<|im_end|>\n" * 2, split_special_tokens=True).input_ids
    for tokens, good in ((ids, True), ([0, *ids], True), (spelled, False)):
        header = struct.pack("<8sIii", b"_logits_", len(ids), 49152, 1)
        (tmp_path / "logits").write_bytes(header + struct.pack(f"<{len(ids)}i", *tokens[: len(ids)]))
        if good:
            perplexity.check_tokens(tmp_path / "logits", ids)
        else:
            with pytest.raises(Failed, match="reads other tokens than training: the first is 0"):
                perplexity.check_tokens(tmp_path / "logits", ids)


def test_too_few_episodes_are_refused_before_any_work(small_f16: Path, tokenizer: Any) -> None:
    with pytest.raises(BadInput, match=r"have \d+ tokens; 1024 are the least to score"):
        perplexity.score_quants(small_f16, {}, [next(trajectory.read(TEST))], tokenizer)


def test_a_file_that_is_no_model_is_named(small_f16: Path, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(Failed, match=r"broken\.gguf"):
        perplexity.score_quants(
            small_f16, {"Q8_0": tmp_path / "broken.gguf"}, trajectory.read(TEST), tokenizer, chunks=2
        )


def test_a_model_that_computes_nan_is_told_in_one_line(nan_f16: Path, tokenizer: Any) -> None:
    with pytest.raises(Failed, match="NaN: its weights are broken"):
        perplexity.score_quants(nan_f16, {}, trajectory.read(TEST), tokenizer, chunks=2)


def test_the_table_has_a_line_for_each(found: perplexity.Quality) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(perplexity.table(found["models"]))
    text = console.export_text()
    assert "…" not in text
    assert all(word in text for word in ("F16", "Q8_0", "Q2_K", "perplexity", "mean KL", "same token", " %"))
