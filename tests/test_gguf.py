"""Base + adapter -> GGUF, on a random model of two layers with a real tokenizer."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from tools import BadInput, Failed, base, gguf, run

METADATA = {"react_recipes.recipe": "smollm2-135m-lora", "react_recipes.data": "é" * 200, "general.name": "react tiny"}
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}<|endoftext|>{% endfor %}"


def make_base(folder: Path, tokenizer: Path, hidden: int = 64, layers: int = 2) -> Path:
    """A random llama with the tokenizer of another base."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(hidden)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy2(tokenizer / name, folder)
    return folder


def make_adapter(folder: Path, base_model: Path) -> Path:
    """A LoRA adapter that changes the model well above rounding; as peft saves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def real() -> Path:
    return base.resolve("HuggingFaceTB/SmolLM2-135M-Instruct", gguf.convert)


@pytest.fixture(scope="module")
def tiny(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tiny") / "base", real)


@pytest.fixture(scope="module")
def adapter(tiny: Path) -> Path:
    """An adapter as Axolotl leaves it: its own tokenizer files beside it, here with another end token and template."""
    folder = make_adapter(tiny.with_name("adapter"), tiny)
    shutil.copy2(tiny / "tokenizer.json", folder)
    config = json.loads((tiny / "tokenizer_config.json").read_bytes()) | {"eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def built(tiny: Path, adapter: Path) -> Path:
    """The folder of a run with model-f16.gguf and model-q8_0.gguf in it."""
    folder = tiny.with_name("run")
    gguf.build(tiny, adapter, folder / "model-q8_0.gguf", "q8_0", METADATA, folder / "model-f16.gguf")
    return folder


def read(path: Path) -> dict[str, Any]:
    """A GGUF's metadata but its vocabulary."""
    reader = GGUFReader(path)
    long = {"tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"}
    return {key: field.contents() for key, field in reader.fields.items() if key not in long}


def test_an_unknown_quantisation_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"Q9_9: no such quantisation; there are F16, Q8_0, .*Q4_K_M"):
        gguf.build(tmp_path, None, tmp_path / "out", "Q9_9", {}, tmp_path / "f16")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_pickle_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"not an adapter: it has no adapter_model\.safetensors"):
        gguf.build(tiny, tmp_path, tmp_path / "out.gguf", "Q8_0", {}, tmp_path / "f16.gguf")


def test_merged_logits_are_those_of_base_and_adapter(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    gguf.merge(tiny, adapter, tmp_path / "merged")
    ids = torch.arange(40).reshape(2, 20) * 31 % 49152
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        before, after = plain(ids).logits, merged(ids).logits
        wanted = PeftModel.from_pretrained(plain, str(adapter))(ids).logits
    # Each weight is rounded once, to 8 bits: under a hundredth of what the adapter changes.
    assert (after - wanted).abs().max() < 0.02 * (before - wanted).abs().max()
    assert not list((tmp_path / "merged").glob("*.bin"))


def test_the_file_has_the_tokenizer_of_training_and_where_it_is_from(built: Path) -> None:
    for name in ("model-f16.gguf", "model-q8_0.gguf"):
        keys = read(built / name)
        assert {key: keys[key] for key in METADATA} == METADATA
        assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.chat_template"]) == (0, TEMPLATE)
        assert keys["tokenizer.ggml.pre"] == "smollm"
    assert sorted(item.name for item in built.iterdir()) == ["model-f16.gguf", "model-q8_0.gguf"]


def test_without_an_adapter_tokenizer_the_base_gives_it(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    bare = tmp_path / "adapter"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy2(adapter / name, bare)
    gguf.merge(tiny, bare, tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "merged" / name).read_bytes() == (tiny / name).read_bytes()
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "merged" / name).read_bytes())["eos_token_id"] == 2


def test_another_quantisation_needs_no_second_merge(tiny: Path, adapter: Path, built: Path) -> None:
    before = (built / "model-f16.gguf").stat().st_mtime_ns
    gguf.build(tiny, adapter, built / "model-q4_k_m.gguf", "Q4_K_M", METADATA, built / "model-f16.gguf")
    gguf.build(tiny, adapter, built / "model-f16.gguf", "F16", METADATA, built / "model-f16.gguf")
    assert (built / "model-f16.gguf").stat().st_mtime_ns == before
    sizes = [(built / f"model-{quant}.gguf").stat().st_size for quant in ("f16", "q8_0", "q4_k_m")]
    assert sizes == sorted(sizes, reverse=True)
    (built / "model-q4_k_m.gguf").unlink()


def test_a_newer_adapter_is_merged_anew(tiny: Path, adapter: Path, built: Path) -> None:
    f16 = built / "model-f16.gguf"
    assert gguf.fresh(f16, adapter)
    later = f16.stat().st_mtime + 10
    os.utime(adapter / "adapter_model.safetensors", (later, later))
    assert not gguf.fresh(f16, adapter)
    os.utime(adapter / "adapter_model.safetensors", (0, 0))


@pytest.mark.parametrize(
    ("hidden", "layers", "shapes"), [(128, 2, r"\[4, 128\] in .* \[4, 256\] for"), (64, 1, "layers.1.*alone")]
)
def test_an_adapter_of_another_model_is_one_line(
    tiny: Path, adapter: Path, tmp_path: Path, hidden: int, layers: int, shapes: str
) -> None:
    other = make_base(tmp_path / "other", tiny, hidden, layers)
    with pytest.raises(Failed, match=f"does not fit .*{shapes}") as error:
        gguf.merge(other, adapter, tmp_path / "merged")
    assert "\n" not in str(error.value)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["other"]


def test_the_converter_is_quoted_when_it_fails(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    config = json.loads((broken / "config.json").read_bytes()) | {"architectures": ["NoSuchModelForCausalLM"]}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(Failed, match=r"model\.gguf: converting failed: .*NoSuchModelForCausalLM.*not supported"):
        gguf.convert(broken, tmp_path / "model.gguf")
    with pytest.raises(Failed, match=r"model\.gguf: quantising failed: .*(magic|failed to load)"):
        gguf.quantize(broken / "config.json", tmp_path / "model.gguf", "Q8_0")
    assert [item.name for item in tmp_path.iterdir()] == ["broken"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["..model-f16.gguf.merged.partial", ".model-f16.gguf.partial"])
def test_kill_9_leaves_nothing_and_the_next_run_ends_well(real: Path, tmp_path: Path, moment: str) -> None:
    """Killed while it merges, and while the converter writes: no final name, no program left; then all is well."""
    tuned, folder = make_adapter(tmp_path / "adapter", real), tmp_path / "run"
    f16, out = folder / "model-f16.gguf", folder / "model-q8_0.gguf"
    arguments = [str(real), str(tuned), str(out), str(f16)]
    code = (
        "import sys; from pathlib import Path; from tools import gguf; b, a, out, f16 = map(Path, sys.argv[1:]);"
        "gguf.build(b, a, out, 'Q8_0', {}, f16)"
    )
    victim = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=run.ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while not (folder / moment).exists():
            assert victim.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not f16.exists() and not out.exists()
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=run.ROOT, check=True)
    assert sorted(item.name for item in folder.iterdir()) == ["model-f16.gguf", "model-q8_0.gguf"]
    assert len(GGUFReader(out).tensors) == 272
