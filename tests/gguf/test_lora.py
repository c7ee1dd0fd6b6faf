"""The arithmetic of adapters, held against peft's own merge, bit for bit."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.parts import models
from tools import BadInput
from tools.gguf import adapter_config, adapter_tensors, lora, merge

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
    "tokens of the embedding and others of the head": {
        "trainable_token_indices": {"embed_tokens": [3, 17], "lm_head": [5, 17]}
    },
    "tokens of the head": {"trainable_token_indices": {"lm_head": [5, 17]}},
    "singular vectors": {"init_lora_weights": "mica"},
    "biases": {"bias": "all"},
    "the embedding saved alone": {"modules_to_save": ["embed_tokens"]},
    "the head saved alone": {"modules_to_save": ["lm_head"]},
    "one layer saved": {"modules_to_save": ["layers.1.mlp.down_proj"], "target_modules": ["down_proj", "q_proj"]},
}


def make_base(
    folder: Path, tied: bool = False, rows: int = WORDS, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> Path:
    """A random llama of two layers, in two shards; without a tokenizer."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(vocab_size=rows, num_key_value_heads=2, tie_word_embeddings=tied, **sizes, attention_bias=True)
    model: Any = LlamaForCausalLM(config)
    model.to(dtype).save_pretrained(folder, max_shard_size="20KB")
    return folder


def load(folder: Path) -> Any:
    """A base as peft merges it: in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def by_peft(base: Path, adapter: Path, resized: int = 0, untied: bool = False) -> dict[str, torch.Tensor]:
    """All tensors after peft's own merge, each rounded to the base's type.

    `untied`: the head has weights of its own, as each of the two has while it is trained by itself.
    """
    model = load(base)
    if untied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    if resized:
        model.resize_token_embeddings(resized, mean_resizing=False)
    merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return {name: value.detach().to(torch.bfloat16) for name, value in merged.named_parameters(remove_duplicate=False)}


def by_us(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """All tensors after ours."""
    before: dict[str, torch.Tensor] = {}
    for path in base.glob("*.safetensors"):
        before |= load_file(path)
    plan, lines = lora.fit(lora.plan(adapter), lora.shapes(base), adapter)
    assert lines == []
    read = adapter_tensors.of_adapter(adapter).read
    after = {name: lora.changed(before.get(name, before[lora.EMBEDDING]), steps, read) for name, steps in plan.items()}
    return before | after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_is_that_of_pefts_merge(kind: str, tied: bool, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied)
    adapter = models.make_adapter(tmp_path / "adapter", base, **KINDS[kind])
    untied = tied and any(word in kind for word in ("embedding", "head"))
    wanted, got = by_peft(base, adapter, untied=untied), by_us(base, adapter)
    before = load(base).state_dict()
    assert any(not torch.equal(value, before[name].to(torch.bfloat16)) for name, value in wanted.items())
    assert (lora.HEAD in got) == (not tied or untied or kind == "modules to save")
    for name in wanted.keys() | got.keys():
        assert torch.equal(got.get(name, got[lora.EMBEDDING]), wanted[name]), name


def logits(model: Any) -> torch.Tensor:
    """What a model says to some tokens."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(1, 40)[None]).logits
    return found


@pytest.mark.parametrize("added", [0, 8])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["lm_head"], "use_dora": True},
        {"trainable_token_indices": [3, 17]},
        {"trainable_token_indices": {"embed_tokens": [3, 17], "lm_head": [5, 17]}},
        {"trainable_token_indices": {"lm_head": [5, 17]}},
        {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
        {},
    ],
)
def test_embedding_and_head_are_those_that_were_trained(
    tmp_path: Path, tied: bool, added: int, options: dict[str, Any]
) -> None:
    base = make_base(tmp_path / "base", tied, dtype=torch.float32)
    trained = models.make_peft(base, added, **options)
    trained.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=bool(added) or "auto")
    if added and not tied and "target_modules" in options:  # peft saves the new rows of one of the two
        with pytest.raises(BadInput, match="its embedding has .* rows and its head"):
            lora.rows_after(lora.plan(tmp_path / "adapter"), lora.shapes(base), tmp_path / "adapter")
        return
    tensors = by_us(base, tmp_path / "adapter")
    model = load(make_base(tmp_path / "again", tied=lora.HEAD not in tensors, rows=WORDS + added))
    assert not model.load_state_dict(tensors, strict=lora.HEAD in tensors).unexpected_keys
    assert torch.allclose(logits(model), logits(trained), atol=1e-5)
    merge.merged_model(base, tmp_path / "adapter").save_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(load(tmp_path / "merged")), logits(trained), atol=1e-5)


@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["lm_head", "embed_tokens"], ["lm_head"]])
def test_an_adapter_on_a_matrix_that_stays_tied_is_of_both(tmp_path: Path, targets: list[str]) -> None:
    """peft's own merge adds it twice, to the embedding and to the head, which are one."""
    base = make_base(tmp_path / "base", tied=True, dtype=torch.float32)
    trained = models.make_peft(base, target_modules=targets, ensure_weight_tying=True)
    trained.save_pretrained(str(tmp_path / "adapter"))
    tensors, model = by_us(base, tmp_path / "adapter"), load(base)
    assert lora.HEAD not in tensors
    model.load_state_dict(tensors, strict=False)
    assert torch.allclose(logits(model), logits(trained), atol=1e-5)
    with pytest.raises(BadInput, match="is not merged right by peft"):
        merge.merged_model(base, tmp_path / "adapter")


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_were_trained_and_not_saved_are_counted(tmp_path: Path, bias: str) -> None:
    base = make_base(tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base, bias=bias)
    if bias == "all":
        lora.fit(lora.plan(adapter), lora.shapes(base), adapter)
        edited(adapter, {}, lambda _, each: each, keep=lambda name: "bias" not in name)
    with pytest.raises(BadInput, match=rf"8 biases were trained \(bias: {bias}\) .* first model.layers.0.self_attn.k_"):
        lora.fit(lora.plan(adapter), lora.shapes(base), adapter)


def test_a_bias_of_lora_that_the_base_has_no_place_for_is_one_line(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base, target_modules=["up_proj"], lora_bias=True)
    with pytest.raises(BadInput, match="cannot be merged into its base: .*has no bias"):
        merge.merged_model(base, adapter)


RENAMED = {
    "the adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "another name": lambda name: name.replace(".weight", ".mine.weight"),
    "torch.compile": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "DDP": lambda name: f"module.{name}",
    "FSDP": lambda name: name.replace(".self_attn.", "._fsdp_wrapped_module.self_attn._checkpoint_wrapped_module."),
    "no prefix": lambda name: name.removeprefix("base_model.model."),
    "no model": lambda name: name.replace("base_model.model.model.", "base_model.model."),
    "twice": lambda name: f"base_model.model.{name}",
}


@pytest.mark.parametrize("kind", RENAMED)
def test_tensors_by_other_names_are_found_and_that_is_said(tmp_path: Path, kind: str) -> None:
    base = make_base(tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base)
    wanted = by_us(base, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({RENAMED[kind](name): each for name, each in tensors.items()}, adapter / "adapter_model.safetensors")
    got = by_us(base, adapter)
    assert wanted.keys() == got.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)
    plan, _ = lora.fit(lora.plan(adapter), lora.shapes(base), adapter)
    (said,) = lora.remarks(plan, adapter_tensors.of_adapter(adapter))
    assert "tensors are taken by the names that" in said
    merged = merge.merged_model(base, adapter).state_dict()
    assert all(torch.equal(merged[name], wanted[name]) for name in wanted)


def edited(
    adapter: Path,
    config: Mapping[str, object],
    change: Callable[[str, torch.Tensor], torch.Tensor],
    keep: Callable[[str], bool] = lambda _: True,
) -> Path:
    """An adapter with other keys in its configuration, its tensors changed, and those alone that are to be kept."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | dict(config)))
    tensors = load_file(adapter / "adapter_model.safetensors")
    changed = {name: change(name, each) for name, each in tensors.items() if keep(name)}
    save_file(changed, adapter / "adapter_model.safetensors")
    return adapter


@pytest.mark.parametrize("nothing", ["B", "alpha"])
def test_an_adapter_that_changes_nothing_says_so(tmp_path: Path, nothing: str) -> None:
    base = make_base(tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base)
    plan, _ = lora.fit(lora.plan(adapter), lora.shapes(base), adapter)
    assert list(lora.remarks(plan, adapter_tensors.of_adapter(adapter))) == []
    edited(
        adapter,
        {"lora_alpha": 0} if nothing == "alpha" else {},
        lambda name, each: each * 0 if nothing == "B" and "lora_B" in name else each,
    )
    plan, _ = lora.fit(lora.plan(adapter), lora.shapes(base), adapter)
    (said,) = lora.remarks(plan, adapter_tensors.of_adapter(adapter))
    assert "it changes nothing" in said


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "not numbers"),
        (float("inf"), "not numbers"),
        (1e7, "beyond float16, which ends at 65504: QUANT=BF16"),
    ],
)
def test_values_that_the_file_cannot_hold_are_refused_with_their_tensor(value: float, says: str) -> None:
    weight = torch.zeros(4, 4, dtype=torch.bfloat16)
    lora.check_values("a.weight", weight, lora.FLOAT16)
    weight[1, 2] = value
    with pytest.raises(BadInput, match=f"^a.weight: .*{says}"):
        lora.check_values("a.weight", weight, lora.FLOAT16)


@pytest.mark.parametrize(
    ("options", "lost"),
    [
        ({}, "layers.1."),
        ({"target_modules": ["q_proj", "down_proj"]}, "layers.0.mlp"),
        ({"target_modules": r".*\.(q|v)_proj"}, "layers.1.self_attn.v_proj"),
        ({"layers_to_transform": [0, 1], "target_modules": ["q_proj", "up_proj"]}, "layers.1."),
    ],
)
def test_layers_that_the_file_lacks_are_counted(tmp_path: Path, options: dict[str, Any], lost: str) -> None:
    base = make_base(tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base, **options)
    lora.fit(lora.plan(adapter), lora.shapes(base), adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    kept = {name: each for name, each in tensors.items() if lost not in name}
    save_file(kept, adapter / "adapter_model.safetensors")
    count = (len(tensors) - len(kept)) // 2
    with pytest.raises(BadInput, match=rf"{count} of the layers .* not in the adapter's file, first model\.{lost}"):
        lora.fit(lora.plan(adapter), lora.shapes(base), adapter)


@pytest.mark.parametrize(
    "options",
    [
        {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
        {"layers_to_transform": 0, "target_modules": ["q_proj", "up_proj"]},
        {"exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": r"model\.layers\.1\..*_proj"},
        {"target_modules": ["layers.1.mlp.up_proj", "layers.0.self_attn.k_proj"]},
    ],
)
def test_layers_without_an_adapter_by_intention_are_not_missed(tmp_path: Path, options: dict[str, Any]) -> None:
    base = make_base(tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base, **options)
    assert lora.fit(lora.plan(adapter), lora.shapes(base), adapter)[1] == []


def test_every_key_of_pefts_lora_is_known_by_what_it_does() -> None:
    known = (adapter_config.UNDERSTOOD, adapter_config.BY_PEFT, adapter_config.NOT_MERGED)
    assert {each.name for each in dataclasses.fields(LoraConfig)} == set().union(*known)
    assert sum(map(len, known)) == len(set().union(*known))


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
        ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa, which changes the base"),
        ({"fan_in_fan_out": True}, "it has fan_in_fan_out"),
        ({"lora_bias": True, "target_parameters": ["experts.up"]}, "it has lora_bias, target_parameters"),
    ],
)
def test_other_kinds_are_named(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(adapter_config.Unsupported, match=why):
        lora.plan(configured(tmp_path, changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4: its training changed the base"),
        ({"init_lora_weights": "corda"}, "residual"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "residual"),
        ({"use_newlora": True, "newlora_block": 8}, "newlora_block, use_newlora: a newer peft"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens: .* is not merged"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication: .* is not merged"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_its_key(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"adapter_config\.json: {why}|adapter_config\.json: .*{why}"):
        lora.plan(configured(tmp_path, changes))


def configured(tmp_path: Path, changes: dict[str, Any]) -> Path:
    """An adapter of one matrix, with other keys in its configuration."""
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1} | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def test_what_is_no_whole_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"it has no adapter_config\.json"):
        adapter_config.check_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"adapter_model\.bin is pickle, which can run code"):
        adapter_config.check_adapter(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(8, 8)}, weights)
    with pytest.raises(BadInput, match=r"adapter_config\.json:1: not a JSON object"):
        adapter_config.check_adapter(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(BadInput, match=r"adapter_model\.safetensors: not a whole safetensors file"):
        adapter_config.check_adapter(tmp_path)


@pytest.mark.parametrize(
    "kind", [{"peft_type": "OFT", "r": 0}, {"peft_type": "ADALORA", "rank_pattern": {"q_proj.lora_E": [True, False]}}]
)
def test_keys_of_lora_are_not_held_against_other_kinds(tmp_path: Path, kind: dict[str, Any]) -> None:
    with pytest.raises(adapter_config.Unsupported, match=f"its kind is {kind['peft_type']}"):
        lora.plan(configured(tmp_path, kind))
    with pytest.raises(BadInput, match=r"adapter_config\.json: (r|rank_pattern) is .* what peft has there"):
        lora.plan(configured(tmp_path, kind | {"peft_type": "LORA"}))


def test_tensors_that_were_not_gathered_are_told(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base)
    edited(adapter, {}, lambda _, each: each.new_zeros(0))
    with pytest.raises(BadInput, match=r"lora_A\.weight is empty, as DeepSpeed ZeRO-3 leaves it"):
        lora.plan(adapter)
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model-00001-of-00002.safetensors")
    with pytest.raises(BadInput, match=r"adapter_model-00001-of-00002\.safetensors: peft reads one"):
        adapter_config.check_adapter(adapter)


def test_a_rank_that_is_not_the_files_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = models.make_adapter(tmp_path / "adapter", base)
    config = json.loads((adapter / "adapter_config.json").read_bytes()) | {"r": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="has rank 4, and 8 in adapter_config.json"):
        lora.plan(adapter)


def test_a_tower_of_images_does_not_hide_the_text_model() -> None:
    disk, memory = "language_model.model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"
    assert adapter_config.text_name(disk) == adapter_config.text_name(memory) == "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "adapter", ["model.layers.0.q", "model.language_model.layers.0.q", "language_model.model.layers.0.q"]
)
@pytest.mark.parametrize(
    "base", ["model.layers.0.q", "model.language_model.layers.0.q", "language_model.model.layers.0.q"]
)
def test_the_text_part_of_a_model_that_sees_is_found_by_any_of_its_names(adapter: str, base: str) -> None:
    there = {adapter_config.text_name(f"{base}.weight"): (1, 1), "visual.blocks.0.attn.qkv.weight": (1, 1)}
    assert lora.name_in(there, adapter_config.text_name(f"{adapter}.weight")) == "model.layers.0.q.weight"
    assert lora.name_in(there, "model.visual.blocks.0.attn.qkv.weight") == "visual.blocks.0.attn.qkv.weight"
    assert lora.name_in(there, "model.vision_tower.blocks.0.qkv.weight") == ""
