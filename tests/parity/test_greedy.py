"""Greedy answers: transformers and llama-server say the same, and a model that differs is told from a near tie."""

import math
from pathlib import Path
from typing import Any

import pytest

from tools import BadInput
from tools.core import run_folder, trajectory
from tools.gguf import convert, find_base, llamacpp
from tools.parity import compare, greedy

pytestmark = pytest.mark.heavy

STEPS = 12


@pytest.fixture(scope="module")
def folder() -> Path:
    return find_base.resolve("smollm2-135m")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    return greedy.model(folder, None)


@pytest.fixture(scope="module")
def f16(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("greedy") / "f16.gguf"
    convert.to_gguf(folder, out)
    return out


@pytest.mark.slow
def test_the_same_answers_and_a_broken_model_told(f16: Path, folder: Path, whole: Any, tokenizer: Any) -> None:
    talks = compare.conversations(trajectory.read(run_folder.ROOT / "data" / "test.jsonl"), tokenizer, 3)[:3]
    asked = compare.prompts(talks, compare.transformers(tokenizer), 3)
    assert len({len(prompt) for prompt in asked}) == 3  # at different turns
    with llamacpp.server(f16, 2048) as url:
        found = greedy.check(whole, url, asked, tokenizer, STEPS)
        assert found["equal"] is True
        assert found["same"] + found["ties"] == 3 and found["same"] >= 2
        assert found["largest_gap"] < greedy.TIE
        # An adapter merged at another strength: one layer's output is scaled.
        broken = greedy.model(folder, None)
        broken.model.layers[5].mlp.down_proj.weight.data *= 3
        found = greedy.check(broken, url, asked, tokenizer, STEPS)
    parted = found["first_divergence"]
    assert found["equal"] is False and parted["near_tie"] is False
    assert parted["transformers"]["id"] != parted["llama-server"]["id"]
    shown = parted["llama-server"]["probability"]
    assert 0 <= shown["transformers"] < shown["llama-server"] <= 1
    assert "not a near tie: prompt" in greedy.words(found) and "probability" in greedy.words(found)


def steps_of(whole: Any, prompt: list[int], count: int) -> list[dict[int, float]]:
    """What a server with the very same logits would say."""
    import torch

    said: list[dict[int, float]] = []
    for _ in range(count):
        read = torch.tensor([[*prompt, *(next(iter(step)) for step in said)]])
        with torch.inference_mode():
            own = torch.log_softmax(whole(input_ids=read).logits[0, -1], dim=-1)
        best = own.topk(2)
        said.append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
    return said


def test_a_near_tie_is_one_on_both_sides_only(whole: Any, tokenizer: Any) -> None:
    prompt = tokenizer("Paris is the capital of")["input_ids"]
    said = steps_of(whole, prompt, 4)
    same = greedy.follow(whole, prompt, said, tokenizer)
    assert (same["same"], same["divergence"]) == (4, None) and same["gap"] < 1e-3
    # The server chooses the second: no tie for transformers, whatever the server says of the two.
    first, second = said[2]
    for theirs in ({second: -0.70, first: -0.71}, {second: -0.01}):
        parted = greedy.follow(whole, prompt, [*said[:2], theirs], tokenizer)["divergence"]
        assert (parted["step"], parted["near_tie"]) == (2, said[2][first] - said[2][second] <= 0.1 and len(theirs) == 2)
    assert parted["transformers"]["probability"]["llama-server"] is None
    assert parted["llama-server"]["probability"]["llama-server"] == round(math.exp(-0.01), 4)


def test_a_quantised_gguf_is_not_for_answers(smollm2_gguf: Path, folder: Path) -> None:
    assert not greedy.unquantised(smollm2_gguf)
    from tools.parity import prove

    with pytest.raises(BadInput, match="quantised, so its answers differ"):
        prove.answers(folder, None, smollm2_gguf, [])
