"""Greedy answers: transformers and llama-server say the same, and a model that differs is told from a near tie."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tools import BadInput, Failed
from tools.core import run_folder, trajectory
from tools.gguf import convert, find_base, llamacpp
from tools.parity import compare, greedy

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("quick_conversions")]

STEPS = 12


@pytest.fixture(scope="module")
def folder() -> Path:
    return find_base.resolve("smollm2-135m")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Any:
    return greedy.model(folder, None)


@pytest.fixture(scope="module")
def f16(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("greedy") / "f16.gguf"
    convert.to_gguf(folder, out)
    return out


@pytest.mark.slow
def test_the_same_answers_and_a_broken_model_told(f16: Path, folder: Path, trained: Any, tokenizer: Any) -> None:
    talks = compare.conversations(trajectory.read(run_folder.ROOT / "data" / "test.jsonl"), tokenizer, 3)[:3]
    asked = compare.prompts(talks, compare.transformers_side(tokenizer), 3)
    assert len({len(prompt) for prompt in asked}) == 3  # at different turns
    with llamacpp.server(f16, 2048) as url:
        found = greedy.compare_answers(trained, url, asked, tokenizer, STEPS)
        assert found["equal"] is True
        assert found["same"] + found["ties"] == 3 and found["same"] >= 2
        assert found["largest_gap"] < greedy.TIE
        # An adapter merged at another strength: one layer's output is scaled.
        broken = greedy.model(folder, None)
        broken.model.layers[5].mlp.down_proj.weight.data *= 3
        found = greedy.compare_answers(broken, url, asked, tokenizer, STEPS)
    parted = found["first_divergence"]
    assert parted
    assert found["equal"] is False and parted["near_tie"] is False
    assert parted["transformers"]["id"] != parted["llama-server"]["id"]
    shown = parted["llama-server"]["probability"]
    assert shown["transformers"] is not None and shown["llama-server"] is not None
    assert 0 <= shown["transformers"] < shown["llama-server"] <= 1
    assert "not a near tie: prompt" in greedy.words(found) and "probability" in greedy.words(found)


def steps_of(trained: Any, prompt: list[int], count: int) -> list[dict[int, float]]:
    """What a server with the very same logits would say."""
    import torch

    said: list[dict[int, float]] = []
    for _ in range(count):
        read = torch.tensor([[*prompt, *(next(iter(step)) for step in said)]])
        with torch.inference_mode():
            own = torch.log_softmax(trained(input_ids=read).logits[0, -1], dim=-1)
        best = own.topk(2)
        said.append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
    return said


def test_a_near_tie_is_one_on_both_sides_only(trained: Any, tokenizer: Any) -> None:
    prompt = tokenizer("Paris is the capital of")["input_ids"]
    said = steps_of(trained, prompt, 4)
    same = greedy.compare_answer(trained, prompt, said, tokenizer)
    assert (same["same"], same["divergence"]) == (4, None) and same["gap"] < 1e-3
    # The server chooses the second: no tie for transformers, whatever the server says of the two.
    first, second = said[2]
    for theirs in ({second: -0.70, first: -0.71}, {second: -0.01}):
        parted = greedy.compare_answer(trained, prompt, [*said[:2], theirs], tokenizer)["divergence"]
        assert parted
        assert (parted["step"], parted["near_tie"]) == (2, said[2][first] - said[2][second] <= 0.1 and len(theirs) == 2)
    assert parted and parted["transformers"]["probability"]["llama-server"] is None
    assert parted["llama-server"]["probability"]["llama-server"] == round(math.exp(-0.01), 4)


def test_a_model_that_answers_nan_is_told_in_one_line(
    nan_base: Path, nan_f16: Path, small_base: Path, tokenizer: Any
) -> None:
    prompt, good = tokenizer("Paris is the capital of")["input_ids"], greedy.model(small_base, None)
    with llamacpp.server(nan_f16, 256) as url, pytest.raises(Failed, match="^the GGUF answers NaN"):
        greedy.compare_answers(good, url, [prompt], tokenizer, STEPS)
    with pytest.raises(Failed, match="^the base with its adapter, in transformers, answers NaN"):
        greedy.compare_answer(greedy.model(nan_base, None), prompt, steps_of(good, prompt, 2), tokenizer)


def test_one_token_whose_probability_is_nan_is_told_in_one_line(small_base: Path, tmp_path: Path) -> None:
    """A row of the embedding that broke: the others have probabilities until the model is asked for all of them."""
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(small_base, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.embed_tokens.weight"][7000] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    convert.to_gguf(broken, tmp_path / "f16.gguf")
    with llamacpp.server(tmp_path / "f16.gguf", 256) as url, pytest.raises(Failed, match="^the GGUF answers NaN"):
        greedy.answer(url, [1, 2, 3, 40], 4)


def test_a_quantised_gguf_is_not_for_answers(smollm2_gguf: Path, folder: Path) -> None:
    assert not greedy.unquantised(smollm2_gguf)
    from tools.parity import prove

    with pytest.raises(BadInput, match="quantised, so its answers differ"):
        prove.answers(folder, None, smollm2_gguf, [])
