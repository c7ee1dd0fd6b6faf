"""Base + adapter -> one Hugging Face folder, on a random model of two layers with a real tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parts import models
from tools.gguf import adapter_tensors, convert, lora, merge

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def test_large_models_come_in_several_files_that_load_as_one(
    small_base: Path, small_adapter: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    merge.merge_to_folder(small_base, small_adapter, tmp_path / "one")
    merge.merge_to_folder(small_base, small_adapter, tmp_path / "several", shard="2MB")
    index = json.loads((tmp_path / "several" / "model.safetensors.index.json").read_bytes())
    assert len(set(index["weight_map"].values())) == len(list((tmp_path / "several").glob("*.safetensors"))) > 1
    one, several = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "several"))
    assert one.keys() == several.keys() and all((one[name] == several[name]).all() for name in one)


def test_the_bases_licence_goes_with_it(small_base: Path, small_adapter: Path, tmp_path: Path) -> None:
    licensed = tmp_path / "base"
    shutil.copytree(small_base, licensed)
    (licensed / "LICENSE").write_text("Apache License 2.0")
    merge.merge_to_folder(licensed, small_adapter, tmp_path / "merged")
    assert (tmp_path / "merged" / "LICENSE").read_text() == "Apache License 2.0"


def make_experts(folder: Path, dtype: torch.dtype) -> Path:
    """A random Qwen3 MoE of two layers with four experts each, which on disk have a tensor each; no tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    parts = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **sizes, **parts))
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS[1:], "use_rslora": True},
        {"target_modules": ["gate_proj", "up_proj", "down_proj"]},  # peft makes the experts' parameters of it
    ],
)
def test_experts_are_merged_to_the_model_that_was_trained(tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(1, 40)[None]
    base = make_experts(tmp_path / "base", torch.float32)
    trained = models.make_peft(base, **options)
    trained.save_pretrained(str(tmp_path / "adapter"))
    assert convert.unsupported(base, tmp_path / "adapter") == "it has target_parameters"
    merge.merged_model(base, tmp_path / "adapter").save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        wanted = trained.eval()(ids).logits
        plain, merged = (AutoModelForCausalLM.from_pretrained(tmp_path / name)(ids) for name in ("base", "merged"))
    assert (merged.logits - wanted).abs().max() < 1e-5 < 0.01 * (plain.logits - wanted).abs().max()

    base = make_experts(tmp_path / "16 bits", torch.bfloat16)
    wide: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    by_peft: Any = PeftModel.from_pretrained(wide, str(tmp_path / "adapter")).merge_and_unload()
    ours = merge.merged_model(base, tmp_path / "adapter").state_dict()
    for name, value in by_peft.state_dict().items():
        assert torch.equal(ours[name], value.to(torch.bfloat16)), name


def test_an_adapter_of_single_experts_is_added_to_each(tmp_path: Path) -> None:
    """As transformers 4 and peft saved it: every expert's matrices under its own number."""
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    base = make_experts(tmp_path / "base", torch.float32)
    adapter = models.make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    tensors, before = {}, load_file(base / "model.safetensors")
    for name, weight in before.items():
        if ".experts." in name:
            for part, shape in (("A", (4, weight.shape[1])), ("B", (weight.shape[0], 4))):
                tensors[f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight"] = torch.randn(shape)
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    config["target_modules"] = ["gate_proj", "up_proj", "down_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    plan, _ = lora.fit(lora.plan(adapter), lora.shapes(base), adapter)
    read = adapter_tensors.of_adapter(adapter).read
    after = before | {name: lora.changed(before[name], steps, read) for name, steps in plan.items()}
    shutil.copytree(base, tmp_path / "merged")
    save_file(after, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    plain, merged = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("base", "merged"))
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(plain, str(adapter)).eval()(ids).logits
        assert (merged(ids).logits - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["RandLora", "Vera", "VBLoRA"])
def test_adapters_whose_layers_share_tensors_are_merged_to_what_peft_computes(
    small_base: Path, tmp_path: Path, kind: str
) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)

    sizes = {"num_vectors": 16, "vector_length": 16} if kind == "VBLoRA" else {"r": 4}
    tuned: Any = peft.get_peft_model(base(), getattr(peft, f"{kind}Config")(target_modules=["q_proj"], **sizes))
    torch.manual_seed(0)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    read = merge.with_adapter(small_base, tmp_path / "adapter", torch.float32)
    merged: Any = merge.merged_by_peft(read, tmp_path / "adapter")
    ids = torch.arange(1, 17)[None]
    with torch.no_grad():
        trained, before = (model(input_ids=ids).logits for model in (tuned.eval(), base()))
        apart = (merged(input_ids=ids).logits - trained).abs().max()
    assert apart < (trained - before).abs().max() / 100
