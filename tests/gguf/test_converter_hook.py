"""One pass against peft's merge and the untouched converter: every architecture, every bit of every tensor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from tests.parts import models
from tests.parts.converters import Converters
from tools.gguf import merge

pytestmark = pytest.mark.slow

# The layers of the language part alone, as Unsloth names them.
LANGUAGE = r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|v_proj|q_proj|o_proj|gate_proj|down_proj).*?)"
# A base, changes of its configuration, and the adapter on it, by the arguments of peft's LoraConfig.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2": ("qwen2", {"tie_word_embeddings": True}, {"use_rslora": True}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False}, {"use_dora": True}),
    "llama": ("llama", {}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.k_proj": 40}}),
    "mistral": ("mistral", {}, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "gemma2": ("gemma2", {}, {}),
    "gemma3": ("gemma3", {}, {"target_modules": ["embed_tokens", "o_proj"]}),
    "tied, one of the two": ("mistral", {"tie_word_embeddings": True}, {"target_modules": ["embed_tokens", "o_proj"]}),
    "phi3": ("phi3", {}, {"target_modules": ["qkv_proj", "gate_up_proj", "down_proj", "o_proj"]}),
    "phi4": ("phi4", {}, {}),
    "phi4-mini": ("phi4-mini", {"tie_word_embeddings": True}, {"use_rslora": True}),
    "tied, both saved": ("mistral", {"tie_word_embeddings": True}, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "resized": ("mistral", {"tie_word_embeddings": True}, {"resized": 64}),
    "resized, not tied": ("mistral", {}, {"resized": 128}),
    "in shards": ("mistral", {"shards": "2MB"}, {}),
    "4 bits": ("mistral", {"bits": 4}, {}),
    "4 bits, a model that sees": ("gemma3-vl", {"bits": 4}, {"target_modules": LANGUAGE}),
    "gemma3 that sees": ("gemma3-vl", {}, {"target_modules": LANGUAGE, "use_dora": True}),
    "qwen2.5 that sees": ("qwen2.5-vl", {"tie_word_embeddings": False}, {"target_modules": ["q_proj", "k_proj"]}),
    "qwen2.5 that sees, tied": ("qwen2.5-vl", {"tie_word_embeddings": True}, {"target_modules": LANGUAGE}),
}


def stored_in_4_bits(base: Path, folder: Path, wide: Path) -> None:
    """The base as bitsandbytes stores it, and as 16 bits of the same values."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    kind = merge.model_class(AutoConfig.from_pretrained(base))
    model: Any = kind.from_pretrained(base, quantization_config=how, dtype=torch.bfloat16, device_map="cpu")
    model.save_pretrained(folder)
    plain: Any = kind.from_pretrained(base, dtype=torch.bfloat16)
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            packed: Any = module.weight
            plain.get_submodule(name).weight.data = dequantize_4bit(packed.data, packed.quant_state)
    plain.save_pretrained(wide)
    for each in (folder, wide):
        AutoTokenizer.from_pretrained(base).save_pretrained(each)


def assert_equal(one: Path, other: Path) -> None:
    """The same metadata and, bit for bit, the same tensors."""
    mine, theirs = GGUFReader(one), GGUFReader(other)
    by_name = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in mine.tensors} == by_name.keys()
    for left in mine.tensors:
        right = by_name[left.name]
        assert left.tensor_type == right.tensor_type and np.array_equal(
            np.asarray(left.data).view(np.uint8), np.asarray(right.data).view(np.uint8)
        ), left.name
    assert mine.fields.keys() == theirs.fields.keys()
    for key in mine.fields:
        if not key.startswith("GGUF."):
            assert mine.fields[key].contents() == theirs.fields[key].contents(), key


@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_that_of_a_merge_and_a_conversion(case: str, converters: Converters, tmp_path: Path) -> None:
    kind, changes, options = CASES[case]
    changes = dict(changes)
    shards, bits = changes.pop("shards", None), changes.pop("bits", None)
    base = models.make(kind, tmp_path / "base", **changes)
    if shards:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base)
        (base / "model.safetensors").unlink()
        model.save_pretrained(base, max_shard_size=shards)
        assert len(list(base.glob("*.safetensors"))) > 1
    wide = base
    if bits:
        wide = tmp_path / "wide" / "base"
        stored_in_4_bits(base, tmp_path / "4bit" / "base", wide)
        base = tmp_path / "4bit" / "base"
    adapter = models.make_adapter(tmp_path / "adapter", wide, **options)
    merge.merge_to_folder(wide, adapter, tmp_path / "merged" / "base")
    # The vocabulary takes longest: it is compared once for each architecture, and where tokens were added to it.
    with_vocabulary = "resized" in options or case == next(each for each in CASES if CASES[each][0] == kind)
    for type_, bare in (("f32", True), ("f16", not with_vocabulary)):
        converters.theirs(tmp_path / "merged" / "base", tmp_path / "theirs.gguf", type_, bare)
        assert converters.ours(base, tmp_path / "ours.gguf", adapter, type_.upper(), bare) == ""
        assert_equal(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_a_head_of_its_own_where_llama_cpp_keeps_none_is_refused(converters: Converters, tmp_path: Path) -> None:
    base = models.make("gemma2", tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base, target_modules=["embed_tokens", "o_proj"])
    said = converters.ours(base, tmp_path / "ours.gguf", adapter, "F16", False)
    assert "lm_head.weight is not the embedding's after this training, and llama.cpp keeps no head" in said
