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

from tests.parts import models
from tests.parts.models import make_llama
from tools import BadInput, Failed
from tools.core import run_folder
from tools.gguf import convert, find_base, merge

pytestmark = pytest.mark.heavy

METADATA = {"react_recipes.recipe": "smollm2-135m-lora", "react_recipes.data": "é" * 200, "general.name": "react tiny"}
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}<|endoftext|>{% endfor %}"


@pytest.fixture(scope="module")
def real() -> Path:
    return find_base.resolve("HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.fixture(scope="module")
def tiny(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tiny") / "base", real)


@pytest.fixture(scope="module")
def adapter(tiny: Path) -> Path:
    """An adapter as Axolotl leaves it: its own tokenizer files beside it, here with another end token and template."""
    folder = models.make_adapter(tiny.with_name("adapter"), tiny)
    shutil.copy2(tiny / "tokenizer.json", folder)
    config = json.loads((tiny / "tokenizer_config.json").read_bytes()) | {"eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def built(tiny: Path, adapter: Path) -> Path:
    """The folder of a run with model-q8_0.gguf, made straight, and then model-f16.gguf in it."""
    folder = tiny.with_name("run")
    for quant in ("q8_0", "f16"):
        convert.build_gguf(tiny, adapter, folder / f"model-{quant}.gguf", quant, METADATA, folder / "model-f16.gguf")
    return folder


def make_f16(base_model: Path, adapter: Path, folder: Path) -> None:
    convert.build_gguf(base_model, adapter, folder / "model.gguf", "F16", {}, folder / "model.gguf")


def read(path: Path) -> dict[str, Any]:
    """A GGUF's metadata but its vocabulary."""
    reader = GGUFReader(path)
    long = {"tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"}
    return {key: field.contents() for key, field in reader.fields.items() if key not in long}


def test_an_unknown_quantisation_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"Q9_9: no such quantisation; there are F32, BF16, F16, Q8_0, .*Q4_K_M"):
        convert.build_gguf(tmp_path, None, tmp_path / "out", "Q9_9", {}, tmp_path / "f16")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_pickle_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"adapter_model\.bin is pickle, which can run code"):
        convert.build_gguf(tiny, tmp_path, tmp_path / "out.gguf", "Q8_0", {}, tmp_path / "f16.gguf")


def test_merged_logits_are_those_of_base_and_adapter(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merge.merge_to_folder(tiny, adapter, tmp_path / "merged")
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
    merge.merge_to_folder(tiny, bare, tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "merged" / name).read_bytes() == (tiny / name).read_bytes()
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "merged" / name).read_bytes())["eos_token_id"] == 2


def test_one_pass_is_a_merge_and_a_conversion_byte_for_byte(tiny: Path, adapter: Path, built: Path) -> None:
    merged = tiny.with_name("merged") / tiny.name
    merge.merge_to_folder(tiny, adapter, merged)
    convert.to_gguf(merged, merged / "model.gguf", METADATA)
    assert (merged / "model.gguf").read_bytes() == (built / "model-f16.gguf").read_bytes()


def test_where_the_f16_is_it_is_quantised_to_the_same_bytes(tiny: Path, adapter: Path, built: Path) -> None:
    before, again = (built / "model-f16.gguf").stat().st_mtime_ns, tiny.with_name("again.gguf")
    convert.build_gguf(tiny, adapter, again, "Q8_0", METADATA, built / "model-f16.gguf")
    convert.build_gguf(tiny, adapter, built / "model-f16.gguf", "F16", METADATA, built / "model-f16.gguf")
    assert again.read_bytes() == (built / "model-q8_0.gguf").read_bytes()
    assert (built / "model-f16.gguf").stat().st_mtime_ns == before


def test_a_newer_adapter_is_merged_anew(tiny: Path, adapter: Path, built: Path) -> None:
    f16 = built / "model-f16.gguf"
    assert convert.fresh(f16, adapter)
    later = f16.stat().st_mtime + 10
    os.utime(adapter / "adapter_model.safetensors", (later, later))
    assert not convert.fresh(f16, adapter)
    os.utime(adapter / "adapter_model.safetensors", (0, 0))


@pytest.mark.parametrize(
    ("hidden", "layers", "shapes"), [(128, 2, r"\[4, 128\] in .* \[4, 256\] for"), (64, 1, "layers.1.*alone")]
)
def test_an_adapter_of_another_model_is_one_line(
    tiny: Path, adapter: Path, tmp_path: Path, hidden: int, layers: int, shapes: str
) -> None:
    other = make_llama(tmp_path / "other", tiny, hidden, layers)
    for make in (
        lambda: merge.merge_to_folder(other, adapter, tmp_path / "merged"),
        lambda: make_f16(other, adapter, tmp_path),
    ):
        with pytest.raises(Failed, match=f"does not fit .*{shapes}") as error:
            make()
        assert "\n" not in str(error.value)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["other"]


def test_the_converter_is_quoted_when_it_fails(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    config = json.loads((broken / "config.json").read_bytes()) | {"architectures": ["NoSuchModelForCausalLM"]}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(Failed, match=r"model\.gguf: converting failed: .*NoSuchModelForCausalLM.*not supported"):
        convert.to_gguf(broken, tmp_path / "model.gguf")
    with pytest.raises(Failed, match=r"model\.gguf: quantising failed: .*(magic|failed to load)"):
        convert.quantize_gguf(broken / "config.json", tmp_path / "model.gguf", "Q8_0")
    assert [item.name for item in tmp_path.iterdir()] == ["broken"]


def test_an_adapter_that_only_peft_can_merge_is_merged_by_it(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import IA3Config, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "ia3" in name:
            parameter.data.mul_(1.5)
    tuned.save_pretrained(str(tmp_path / "adapter"))
    convert.to_gguf(tiny, tmp_path / "model.gguf", METADATA, tmp_path / "adapter", "F32")
    assert "its kind is IA3: peft merges it first" in capsys.readouterr().err
    weight = next(t for t in GGUFReader(tmp_path / "model.gguf").tensors if t.name == "blk.0.ffn_down.weight").data
    before = model.model.layers[0].mlp.down_proj.base_layer.weight.detach()
    assert torch.equal(torch.tensor(weight), (before * 1.5).to(torch.bfloat16).float())
    assert sorted(item.name for item in tmp_path.iterdir()) == ["adapter", "model.gguf"]


def test_how_a_base_is_stored_is_told_or_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_bytes())
    for how, line in (
        ({"quant_method": "gptq", "bits": 4}, "stored as gptq; an adapter is added to the 16-bit base"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "stored as bitsandbytes"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": how}))
        with pytest.raises(BadInput, match=line):
            convert.four_bits(tmp_path, adapter)
        assert not convert.four_bits(tmp_path, None)
    stored = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config | stored))
    assert convert.four_bits(tmp_path, adapter) and not convert.four_bits(tiny, adapter)


# What each fault does to a copy of the base or the adapter, or to the process that works; and the line that tells it.
FAULTS = {
    "a truncated shard": (BadInput, r"model\.safetensors: not a whole safetensors file"),
    "a missing shard": (BadInput, r"without all its weights: model-00002-of-00002\.safetensors is missing"),
    "a truncated adapter": (BadInput, r"adapter_model\.safetensors: not a whole safetensors file"),
    "pickle": (BadInput, r"pytorch_model\.bin is pickle, which can run code"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_folder_is_one_line_before_any_work(tiny: Path, adapter: Path, tmp_path: Path, fault: str) -> None:
    base_model, tuned = shutil.copytree(tiny, tmp_path / "base"), shutil.copytree(adapter, tmp_path / "adapter")
    weights = base_model / "model.safetensors"
    if fault == "a truncated shard":
        os.truncate(weights, weights.stat().st_size - 1)
    elif fault == "a missing shard":
        weights.rename(base_model / "model-00001-of-00002.safetensors")
        index = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (base_model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    elif fault == "a truncated adapter":
        os.truncate(tuned / "adapter_model.safetensors", 100)
    else:
        weights.rename(base_model / "pytorch_model.bin")
    kind, line = FAULTS[fault]
    with pytest.raises(kind, match=line) as error:
        convert.build_gguf(base_model, tuned, tmp_path / "run" / "out.gguf", "Q8_0", {}, tmp_path / "run" / "f16.gguf")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


CODE = """import sys; from pathlib import Path; from tools import Failed; from tools.gguf import convert
b, a, out, f16 = map(Path, sys.argv[1:])
try:
    convert.build_gguf(b, a, out, 'Q8_0', {}, f16)
except Failed as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("straight", [True, False])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tiny: Path, adapter: Path, built: Path, tmp_path: Path, straight: bool
) -> None:
    """A limit on the size of a file stands for the disk: the converter's, and llama-quantize's."""
    f16 = tmp_path / "none.gguf" if straight else built / "model-f16.gguf"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({2**22},) * 2)\n"
    arguments = [str(item) for item in (tiny, adapter, tmp_path / "out.gguf", f16)]
    done = subprocess.run(
        [sys.executable, "-c", limit + CODE, *arguments],
        cwd=run_folder.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith(
        "failed: no space left on the disk; free some and run the same command again"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv to give root's rights up")
def test_a_folder_that_cannot_be_written_to_is_one_line(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o555)
    arguments = [str(item) for item in (tiny, adapter, folder / "out.gguf", folder / "f16.gguf")]
    lowly = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []
    command = [*lowly, sys.executable, "-c", CODE, *arguments]
    done = subprocess.run(command, cwd=run_folder.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"{folder}: cannot be written to; give its owner the right, or choose another folder"
    assert list(folder.iterdir()) == []


def test_kill_9_leaves_nothing_and_the_next_run_ends_well(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    """Killed while the converter writes: no final name, no program left; then all is well."""
    folder = tmp_path / "run"
    f16, out = folder / "model-f16.gguf", folder / "model-q8_0.gguf"
    arguments = [str(item) for item in (tiny, adapter, out, f16)]
    victim = subprocess.Popen([sys.executable, "-c", CODE, *arguments], cwd=run_folder.ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while not list(folder.glob(f".{out.name}.*.partial")):
            assert victim.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not f16.exists() and not out.exists()
    subprocess.run([sys.executable, "-c", CODE, *arguments], cwd=run_folder.ROOT, check=True)
    assert [item.name for item in folder.iterdir()] == [out.name]
    assert len(GGUFReader(out).tensors) == 20
