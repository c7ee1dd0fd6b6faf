"""The weights in a GGUF are proven by what they expect next; what is wrong in a file is named."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from tools.core import trajectory
from tools.gguf import convert, find_base
from tools.parity import prove, values

REAL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def real_f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as an f16 GGUF."""
    path = tmp_path_factory.mktemp("real") / "f16.gguf"
    convert.to_gguf(find_base.resolve(REAL), path)
    return path


def weighed(file: Path) -> values.Values:
    """What is found of a GGUF that should have SmolLM2's weights."""
    base = find_base.resolve(REAL)
    return prove.weights(base, None, base, file, trajectory.test_set(), file.with_suffix(".log"))


def rewritten(source: Path, to: Path, tensors: dict[str, Callable[[Any], Any]], keys: dict[str, Any]) -> Path:
    """A copy of a GGUF with some tensors and keys changed."""
    reader = GGUFReader(source)
    writer = GGUFWriter(to, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, keys.get(key, field.contents()), kind, sub)
    for tensor in reader.tensors:
        data = tensors.get(tensor.name, lambda value: value)(numpy.array(tensor.data))
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


FAULTS: dict[str, tuple[dict[str, Callable[[Any], Any]], dict[str, Any], str]] = {
    "a tensor of zeros": ({"blk.4.ffn_down.weight": lambda value: value * 0}, {}, "blk.4.ffn_down.weight is another"),
    "a tensor of NaN": (
        {"blk.7.attn_q.weight": lambda value: value * numpy.float16("nan")},
        {},
        "blk.7.attn_q.weight has values in the GGUF that are no numbers",
    ),
    "another rope": ({}, {"llama.rope.freq_base": 5e6}, "llama.rope.freq_base is 5000000.0 in the GGUF"),
    "another head": ({"token_embd.weight": lambda value: value[::-1].copy()}, {}, "token_embd.weight is another"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_weights_are_found_and_named(real_f16: Path, tmp_path: Path, fault: str) -> None:
    tensors, keys, says = FAULTS[fault]
    found = weighed(rewritten(real_f16, tmp_path / "wrong.gguf", tensors, keys))
    assert not found["equal"] and found["cause"] and says in found["cause"]
    assert says in values.words(found)


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q4_K_M"])
def test_a_right_file_is_within_the_bound_of_its_quantisation(real_f16: Path, tmp_path: Path, quant: str) -> None:
    file = real_f16
    if quant != "F16":
        file = tmp_path / "right.gguf"
        convert.quantize_gguf(real_f16, file, quant)
    found = weighed(file)
    assert found["equal"] and found["quant"] == quant and found["places"] >= 32, found


def test_divergence_is_that_of_the_distributions() -> None:
    mine = torch.log_softmax(torch.arange(8.0), dim=-1)
    likely = {number: float(mine[number]) for number in (7, 6, 5)}
    assert values.apart(mine, likely) == (pytest.approx(0.0, abs=1e-9), True)
    kl, same = values.apart(mine, {6: float(mine[7]), 7: float(mine[6])})
    assert kl == pytest.approx(float(mine[7].exp() - mine[6].exp()), rel=1e-3) and not same
    assert values.apart(mine, {-1: float("nan")}) == (float("inf"), False)


def test_places_are_spread_over_a_conversation() -> None:
    for length in (values.FIRST + values.PLACES + 1, 100, 320, 5000):
        found = values.places(length)
        assert len(set(found)) == values.PLACES and found[0] == values.FIRST
        assert max(found) == min(length, values.LONGEST) - 1


def test_every_quantisation_has_a_bound() -> None:
    known = [quant for bound in values.bounds() for quant in bound.quants]
    assert len(known) == len(set(known)) and set(known) <= set(convert.QUANTS)
    assert [bound.kl for bound in values.bounds()] == sorted(bound.kl for bound in values.bounds())


def test_settings_and_tensors_are_told_in_the_models_order() -> None:
    names = ["output.weight", "blk.10.ffn_up.weight", "token_embd.weight", "blk.2.ffn_up.weight", "output_norm.weight"]
    order = sorted(names, key=values.layer)
    assert order[0] == "token_embd.weight" and order[1:3] == ["blk.2.ffn_up.weight", "blk.10.ffn_up.weight"]
    assert list(islice(order, 3, None)) == ["output.weight", "output_norm.weight"]
