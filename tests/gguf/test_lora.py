"""The arithmetic of adapters, held against peft's own merge, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.parts import models
from tools import BadInput
from tools.gguf import lora

WORDS = 96
# What adapters can be, by the arguments of peft's LoraConfig.
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7}, "alpha_pattern": {"v_proj": 3}},
    "some layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "modules to save": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "a norm to save": {"modules_to_save": ["norm", "input_layernorm"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "dora embedding": {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "use_dora": True},
    "head": {"target_modules": ["lm_head", "o_proj"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [3, 17, 90]}},
    "biases": {"bias": "all"},
}


def make_base(folder: Path, tied: bool = False, rows: int = WORDS, **options: Any) -> Path:
    """A random llama of two layers, in bfloat16, in two shards; without a tokenizer."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(vocab_size=rows, num_key_value_heads=2, tie_word_embeddings=tied, **sizes, attention_bias=True)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    return folder


def load(folder: Path) -> Any:
    """A base as peft merges it: in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def by_peft(base: Path, adapter: Path, resized: int = 0) -> dict[str, torch.Tensor]:
    """All tensors after peft's own merge, each rounded to the base's type."""
    model = load(base)
    if resized:
        model.resize_token_embeddings(resized, mean_resizing=False)
    merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return {name: value.detach().to(torch.bfloat16) for name, value in merged.named_parameters(remove_duplicate=False)}


def by_us(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """All tensors after ours."""
    tensors: dict[str, torch.Tensor] = {}
    for path in base.glob("*.safetensors"):
        tensors |= load_file(path)
    plan, lines = lora.fit(lora.plan(adapter), lora.shapes(base), adapter)
    assert lines == []
    trained = load_file(adapter / "adapter_model.safetensors")
    for name, steps in plan.items():
        before = tensors.get(name, tensors[lora.EMBEDDING])
        tensors[name] = lora.changed(before, steps, trained.__getitem__)
    return tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_is_that_of_pefts_merge(kind: str, tied: bool, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied)
    adapter = models.make_adapter(tmp_path / "adapter", base, **KINDS[kind])
    if tied and kind == "dora embedding":
        with pytest.raises(lora.Unsupported, match="DoRA on a head that its base ties"):
            by_us(base, adapter)
        return
    wanted, got = by_peft(base, adapter), by_us(base, adapter)
    before = load(base).state_dict()
    assert any(not torch.equal(value, before[name].to(torch.bfloat16)) for name, value in wanted.items())
    for name in wanted.keys() | got.keys():
        assert torch.equal(got.get(name, got[lora.EMBEDDING]), wanted[name]), name


@pytest.mark.parametrize("tied", [False, True])
def test_a_resized_embedding_comes_with_the_adapter(tied: bool, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied)
    adapter = models.make_adapter(tmp_path / "adapter", base, resized=8)
    wanted, got = by_peft(base, adapter, WORDS + 8), by_us(base, adapter)
    for name, value in wanted.items():
        assert torch.equal(got.get(name, got[lora.EMBEDDING]), value), name
    shapes = lora.shapes(base)
    assert lora.rows_after(lora.fit(lora.plan(adapter), shapes, adapter)[0], shapes, adapter) == WORDS + 8


def test_an_adapter_of_another_base_is_told_by_both_shapes(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    other = {name: tuple(2 * size for size in shape) for name, shape in lora.shapes(base).items()}
    lines = lora.fit(lora.plan(adapter), other, adapter)[1]
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert lines[0] == f"{name} is [4, 32] in the adapter and [4, 64] for this base"
    short = {name: shape for name, shape in lora.shapes(base).items() if "layers.1" not in name}
    assert (
        "layers.1.self_attn.q_proj.lora_A.weight is in the adapter alone"
        in lora.fit(lora.plan(adapter), short, adapter)[1][0]
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peft_type": "IA3"}, "its kind is IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4, which changes the base"),
        ({"fan_in_fan_out": True}, "it has fan_in_fan_out"),
        ({"lora_bias": True, "target_parameters": ["experts.up"]}, "it has lora_bias, target_parameters"),
        ({"something_new": 1}, "it has something_new"),
    ],
)
def test_other_kinds_are_named(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1} | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(lora.Unsupported, match=why):
        lora.plan(tmp_path)


def test_what_is_no_whole_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"it has no adapter_config\.json"):
        lora.check_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"adapter_model\.bin is pickle, which can run code"):
        lora.check_adapter(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(8, 8)}, weights)
    with pytest.raises(BadInput, match=r"adapter_config\.json:1: not a JSON object"):
        lora.check_adapter(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(BadInput, match=r"adapter_model\.safetensors: not a whole safetensors file"):
        lora.check_adapter(tmp_path)


def test_a_rank_that_is_not_the_files_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base)
    config = json.loads((adapter / "adapter_config.json").read_bytes()) | {"r": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="has rank 4, and 8 in adapter_config.json"):
        lora.plan(adapter)


def test_a_tower_of_images_does_not_hide_the_text_model() -> None:
    disk, memory = "language_model.model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"
    assert lora.text_name(disk) == lora.text_name(memory) == "model.layers.0.mlp.up_proj"
