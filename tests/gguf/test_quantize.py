"""What is quantised while it is written is llama-quantize's own file, byte for byte."""

from pathlib import Path

import pytest

from tests.parts import models
from tests.parts.converters import Converters
from tools.gguf import convert

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wide_rows(converters: Converters, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base whose rows K-quants divide, its adapter, and the f16 of both."""
    folder = tmp_path_factory.mktemp("wide")
    changes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    base = models.make("mistral", folder / "base", **changes, tie_word_embeddings=True)
    models.make_adapter(folder / "adapter", base)
    assert converters.ours(base, folder / "f16.gguf", folder / "adapter", "F16") == ""
    return folder


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS", "Q5_1"])
def test_what_is_quantised_straight_is_llama_quantizes_file(
    quant: str, converters: Converters, wide_rows: Path
) -> None:
    straight, two_steps = wide_rows / "straight.gguf", wide_rows / "two-steps.gguf"
    assert converters.ours(wide_rows / "base", straight, wide_rows / "adapter", quant) == ""
    convert.quantize_gguf(wide_rows / "f16.gguf", two_steps, quant)
    assert straight.read_bytes() == two_steps.read_bytes()


def test_rows_that_k_quants_do_not_divide_fall_back_as_llama_quantizes(converters: Converters, tmp_path: Path) -> None:
    base = models.make("phi3", tmp_path / "base")
    assert converters.ours(base, tmp_path / "f16.gguf", None, "F16") == ""
    assert converters.ours(base, tmp_path / "straight.gguf", None, "Q4_K_M") == ""
    convert.quantize_gguf(tmp_path / "f16.gguf", tmp_path / "two-steps.gguf", "Q4_K_M")
    assert (tmp_path / "straight.gguf").read_bytes() == (tmp_path / "two-steps.gguf").read_bytes()


def test_a_type_that_needs_an_importance_matrix_says_so(converters: Converters, wide_rows: Path) -> None:
    said = converters.ours(wide_rows / "base", wide_rows / "out.gguf", wide_rows / "adapter", "IQ2_XS")
    assert said == "error: IQ2_XS needs an importance matrix"


def test_weights_that_are_not_finite_stop_the_quantiser(converters: Converters, wide_rows: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = wide_rows / "broken"
    broken.mkdir()
    tensors = load_file(wide_rows / "adapter" / "adapter_model.safetensors")
    name = next(name for name in tensors if "down_proj.lora_B" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, broken / "adapter_model.safetensors")
    (broken / "adapter_config.json").write_bytes((wide_rows / "adapter" / "adapter_config.json").read_bytes())
    said = converters.ours(wide_rows / "base", wide_rows / "out.gguf", broken, "Q8_0")
    assert (
        said.startswith("error: model.layers.")
        and "down_proj.weight: values of the adapter or its base are not" in said
    )
