"""The weights in a GGUF are proven by what they expect next; what is wrong in a file is named."""

import math
from pathlib import Path

import pytest
import torch

from tests.parts.metadata import nans, upside_down, with_metadata, zeros
from tools import BadInput, Failed
from tools.core import trajectory
from tools.gguf import convert, find_base
from tools.parity import prove, values

pytestmark = pytest.mark.usefixtures("quick_conversions")
REAL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# What is done to a file, and what is said of it.
FAULTS = {
    "zeros": (
        "blk.1.ffn_down.weight",
        zeros,
        "blk.1.ffn_down.weight differs from training's by 100%.*, it is all zeros",
    ),
    "NaN": ("blk.1.attn_q.weight", nans, r"blk.1.attn_q.weight has values that are not numbers \(NaN or infinite\)"),
    "another head": ("token_embd.weight", upside_down, "token_embd.weight differs from training's by 1..% of its norm"),
}


@pytest.fixture(scope="module")
def real_f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as an f16 GGUF."""
    path = tmp_path_factory.mktemp("real") / "f16.gguf"
    convert.to_gguf(find_base.resolve(REAL), path)
    return path


def weighed(base: Path, file: Path, adapter: Path | None = None) -> values.Values:
    """What is found of a GGUF that should have the weights of a base, and of its adapter."""
    return prove.weights(base, adapter, base, file, trajectory.test_set(), file.with_suffix(".log"))


def quantised(f16: Path, quant: str) -> Path:
    """An f16 GGUF in another quantisation, beside it."""
    out = f16.with_name(f"{quant}.gguf")
    if quant == "F16":
        return f16
    if not out.exists():
        convert.quantize_gguf(f16, out, quant)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["F16", "Q4_K_M"])
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_weights_are_found_and_named(real_f16: Path, tmp_path: Path, fault: str, quant: str) -> None:
    tensor, change, says = FAULTS[fault]
    right = quantised(real_f16, quant)
    wrong = with_metadata(right, tmp_path / "wrong.gguf", {}, tensors={tensor: change})
    found = {"conversations": 1} | {"weights": weighed(find_base.resolve(REAL), wrong)}
    with pytest.raises(Failed, match=f"^the GGUF is not what was trained, so it has no name: {says}; at \\d+ places"):
        prove.raise_if_different(found | {"first_difference": None}, "so it has no name: ")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q4_K_M", "Q2_K"])
def test_a_right_file_is_within_the_bound_of_its_quantisation(real_f16: Path, quant: str) -> None:
    found = weighed(find_base.resolve(REAL), quantised(real_f16, quant))
    assert found["equal"] and found["quant"] == quant and found["places"] >= 32, found


@pytest.mark.heavy
@pytest.mark.parametrize("quant", ["F16", "Q4_K_M"])
def test_a_small_random_model_is_proven_too(small_base: Path, small_adapter: Path, tmp_path: Path, quant: str) -> None:
    """Nearly all tokens are about as likely to it, so that a divergence is small: the likeliest token tells."""
    file = tmp_path / "tuned.gguf"
    convert.to_gguf(small_base, file, adapter=small_adapter, quant=quant)
    assert weighed(small_base, file, small_adapter)["equal"]
    wrong = with_metadata(file, tmp_path / "wrong.gguf", {}, tensors={"token_embd.weight": upside_down})
    found = weighed(small_base, wrong, small_adapter)
    assert not found["equal"] and found["agree"] < 0.3 and "token_embd.weight" in str(found["cause"])


@pytest.mark.heavy
def test_the_base_is_not_what_was_trained(small_base: Path, small_adapter: Path, small_f16: Path) -> None:
    found = weighed(small_base, small_f16, small_adapter)
    assert not found["equal"] and "blk.0." in str(found["cause"])


@pytest.mark.heavy
def test_zeros_are_no_fault_where_training_has_them(small_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    base.mkdir()
    for item in small_base.iterdir():
        (base / item.name).symlink_to(item)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"].zero_()
    (base / "model.safetensors").unlink()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    convert.to_gguf(base, tmp_path / "f16.gguf")
    assert weighed(base, tmp_path / "f16.gguf")["equal"]


@pytest.mark.heavy
def test_a_model_that_was_trained_to_nan_is_told_in_one_line(nan_base: Path, nan_f16: Path) -> None:
    with pytest.raises(Failed, match="^the base with its adapter, in transformers, answers NaN .*train again$"):
        weighed(nan_base, nan_f16)


def test_divergence_is_that_of_the_distributions() -> None:
    mine = torch.log_softmax(torch.arange(8.0), dim=-1)
    likely = {number: float(mine[number]) for number in (7, 6, 5)}
    assert values.apart(mine, likely) == (pytest.approx(0.0, abs=1e-9), True)
    kl, same = values.apart(mine, {6: float(mine[7]), 7: float(mine[6])})
    assert kl == pytest.approx(float(mine[7].exp() - mine[6].exp()), rel=1e-3) and not same
    assert values.apart(mine, {-1: math.nan}) == (math.inf, False)


def test_two_tokens_about_as_likely_count_as_one() -> None:
    mine = torch.log_softmax(torch.tensor([2.0, 1.95, 1.0]), dim=-1)
    assert values.apart(mine, {1: -1.0, 0: -1.1})[1]
    assert not values.apart(mine, {2: -1.0, 0: -1.1})[1]


def test_places_are_spread_over_a_conversation() -> None:
    for length in (values.FIRST + values.PLACES + 1, 100, values.LONGEST, 5000):
        found = values.places(length)
        assert len(set(found)) == values.PLACES and found[0] == values.FIRST
        assert max(found) == min(length, values.LONGEST) - 1


def test_conversations_that_are_too_short_prove_nothing(small_base: Path, small_f16: Path) -> None:
    with pytest.raises(BadInput, match="no conversation has more than 48 tokens"):
        values.compare_values(small_base, None, small_f16, [[1, 2, 3]], small_f16.with_suffix(".log"))


def test_every_quantisation_has_a_bound() -> None:
    known = [quant for bound in values.bounds() for quant in bound.quants]
    assert sorted(known) == sorted(convert.QUANTS)
    for one, next_ in zip(values.bounds(), values.bounds()[1:], strict=False):
        assert one.kl < next_.kl and one.agree > next_.agree and one.tensor < next_.tensor


def test_tensors_are_told_in_the_models_order() -> None:
    names = ["output.weight", "blk.10.ffn_up.weight", "token_embd.weight", "blk.2.ffn_up.weight"]
    order = sorted(names, key=values.layer)
    assert order == ["token_embd.weight", "blk.2.ffn_up.weight", "blk.10.ffn_up.weight", "output.weight"]
