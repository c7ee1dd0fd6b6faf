"""The adapter alone as a GGUF: the same sums as peft's, over a base that is there."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from tests.parts.models import make_llama
from tools import BadInput, Failed
from tools.core import run_folder
from tools.gguf import convert, imatrix, llamacpp, merge
from tools.gguf.adapter import adapter_to_gguf
from tools.pipeline.serving import without_adapters
from tools.serving import ollama

pytestmark = pytest.mark.heavy

METADATA = {"react_recipes.recipe": "smollm2-135m-lora"}
# Names of the same tensor, where llama.cpp does not change the order of its rows.
SAME = {"v_proj": "attn_v", "o_proj": "attn_output", "down_proj": "ffn_down"}


def changed(adapter: Path, to: Path, **changes: Any) -> Path:
    """The adapter with other settings."""
    shutil.copytree(adapter, to)
    config = json.loads((to / "adapter_config.json").read_bytes()) | changes
    (to / "adapter_config.json").write_text(json.dumps(config))
    return to


@pytest.fixture(scope="module")
def made(small_base: Path, small_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "adapter.gguf"
    adapter_to_gguf(small_adapter, small_base, path, METADATA)
    return path


def products(path: Path) -> dict[str, Any]:
    """alpha / rank B A of each pair of a LoRA GGUF, as llama.cpp sums it up."""
    import torch

    reader = GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {each.name: torch.tensor(each.data.astype("float32")) for each in reader.tensors}
    pairs = {name.removesuffix(".weight.lora_a") for name in tensors if name.endswith("lora_a")}
    found = {}
    for name in pairs:
        a, b = tensors[f"{name}.weight.lora_a"], tensors[f"{name}.weight.lora_b"]
        found[name] = alpha / len(a) * (b @ a)
    return found


def test_it_says_what_it_is_and_is_small(made: Path, small_f16: Path) -> None:
    reader = GGUFReader(made)
    keys = {key: field.contents() for key, field in reader.fields.items()}
    assert keys["general.type"] == "adapter" and keys["adapter.type"] == "lora"
    assert keys["general.architecture"] == "llama" and keys["react_recipes.recipe"] == "smollm2-135m-lora"
    assert len(reader.tensors) == 2 * 2 * 7  # two layers of seven linear ones, two matrices each
    assert made.stat().st_size < 0.01 * small_f16.stat().st_size
    assert [item.name for item in made.parent.iterdir()] == ["adapter.gguf"]


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True, "alpha_pattern": {"v_proj": 24, "1.mlp.down_proj": 2}}])
def test_each_product_is_pefts(small_base: Path, small_adapter: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = changed(small_adapter, tmp_path / "adapter", **changes)
    adapter_to_gguf(adapter, small_base, tmp_path / "adapter.gguf")
    base: Any = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    tuned, found, compared = PeftModel.from_pretrained(base, str(adapter)), products(tmp_path / "adapter.gguf"), 0
    for name, module in tuned.named_modules():
        part = name.rpartition(".")[2]
        if part in SAME and hasattr(module, "get_delta_weight"):
            wanted = module.get_delta_weight("default").detach()
            mine = found[f"blk.{re.findall(r'[0-9]+', name)[0]}.{SAME[part]}"]
            assert (mine - wanted).abs().max() < 0.005 * wanted.abs().max()
            compared += 1
    assert compared == 6


def test_base_and_adapter_are_the_merged_model(
    small_base: Path, small_adapter: Path, small_f16: Path, made: Path, tmp_path: Path
) -> None:
    merge.merge_to_folder(small_base, small_adapter, tmp_path / "merged")
    convert.to_gguf(tmp_path / "merged", tmp_path / "merged.gguf")
    (tmp_path / "text").write_text((run_folder.ROOT / "data" / "README.md").read_text() * 3)
    score = []
    for options in ([str(small_f16)], [str(tmp_path / "merged.gguf")], [str(small_f16), "--lora", str(made)]):
        command = [str(llamacpp.built("llama-perplexity")), "--file", "text", "--chunks", "2", "--model", *options]
        said = re.search(r"PPL = (\S+)", imatrix.measure(command, "scoring", 2, tmp_path))
        assert said
        score.append(math.log(float(said[1])))
    plain, merged, together = score
    assert abs(together - merged) < 0.02 * abs(merged - plain)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"use_dora": True, "target_modules": ["v_proj"]}, "DoRA"),
        ({"modules_to_save": ["norm"], "target_modules": ["v_proj"]}, r"what was trained of model\..*norm\.weight"),
        ({"trainable_token_indices": [1, 2], "target_modules": ["v_proj"]}, r"what was trained of .*embed_tokens"),
        ({"target_modules": ["embed_tokens"]}, r"what was trained of .*embed_tokens\.weight"),
        ({"target_modules": ["lm_head"]}, r"what was trained of (lm_head|model\.embed_tokens)\.weight"),
        ({"target_modules": ["v_proj"], "init_lora_weights": "pissa"}, "this kind: init_lora_weights is pissa"),
    ],
)
def test_what_it_cannot_hold_is_refused(small_base: Path, tmp_path: Path, options: dict[str, Any], why: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(small_base)
    model.config.tie_word_embeddings = False  # else peft says that two are trained
    get_peft_model(model, LoraConfig(r=2, **options)).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(BadInput, match=rf"a LoRA GGUF cannot hold {why}.*; without ADAPTER_ONLY=1 it is merged"):
        adapter_to_gguf(tmp_path / "adapter", small_base, tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


@pytest.mark.parametrize(
    ("hidden", "layers", "why"), [(128, 2, r"\[4, 512\] in .* \[4, 256\] for"), (256, 1, "layers.1.*alone")]
)
def test_an_adapter_of_another_model_is_one_line(
    small_base: Path, small_adapter: Path, tmp_path: Path, hidden: int, layers: int, why: str
) -> None:
    other = make_llama(tmp_path / "other", small_base, hidden, layers)
    with pytest.raises(Failed, match=f"does not fit .*{why}") as error:
        adapter_to_gguf(small_adapter, other, tmp_path / "adapter.gguf")
    assert "\n" not in str(error.value) and not (tmp_path / "adapter.gguf").exists()


def test_an_ollama_without_adapters_says_how_it_is_served(
    small_f16: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ollama.install() is None:
        pytest.skip("neither Ollama nor Go is installed")
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{llamacpp.free_port()}")
    plain = ollama.Spec("react-adapter", small_f16, "smollm2-135m-lora", "0123", "Apache-2.0", {"num_ctx": 512})
    wanted = replace(plain, adapter=made)
    text = ollama.modelfile(wanted)
    assert "FROM ./base-f16.gguf\nADAPTER ./adapter.gguf\n" in text
    assert "FROM smollm2:135m\nADAPTER" in ollama.modelfile(replace(wanted, base="smollm2:135m"))
    with ollama.session() as session, pytest.raises(Failed) as refused, without_adapters(wanted):
        ollama.create(session.client, wanted)
    assert "without ADAPTER_ONLY=1 the adapter is merged" in str(refused.value)
    assert f"llama-server --model {small_f16} --lora {made} --jinja --ctx-size 512" in str(refused.value)
