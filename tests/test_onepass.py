"""One pass against peft's merge and the untouched converter: every architecture, every bit of every tensor.

Also the quantiser: the file that is made straight is llama-quantize's own, byte for byte. All conversions are children
of one process, which has the converter's imports behind it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from tests import models
from tools import gguf, llamacpp, run

pytestmark = pytest.mark.slow

# Reads jobs, one a line, each in a child: {"ours": what onepass.py is asked} or {"argv": the converter's own}; with
# "bare", without the vocabulary, which takes most of the time.
PROGRAM = """import json, os, runpy, sys
import bitsandbytes, conversion.llama, conversion.qwen, conversion.gemma, conversion.phi, transformers
from transformers import AutoTokenizer
from tools import onepass
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        if job["bare"]:
            for each in (conversion.llama.LlamaModel, conversion.qwen.Qwen2Model, conversion.qwen.Qwen3Model,
                         conversion.gemma.Gemma2Model, conversion.gemma.Gemma3Model, conversion.phi.Phi3MiniModel):
                each.set_vocab = lambda self: None
        sys.argv = ["", json.dumps(job["ours"])] if "ours" in job else job["argv"]
        onepass.main() if "ours" in job else runpy.run_path(sys.argv[0], run_name="__main__")
        sys.stdout.flush()
        os._exit(0)
    print(json.dumps({"status": os.waitpid(child, 0)[1]}), flush=True)
"""
# A base, changes of its configuration, and the adapter on it, by the arguments of peft's LoraConfig.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2": ("qwen2", {"tie_word_embeddings": True}, {"use_rslora": True}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False}, {"use_dora": True}),
    "llama": ("llama", {}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.k_proj": 40}}),
    "mistral": ("mistral", {}, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "gemma2": ("gemma2", {}, {}),
    "gemma3": ("gemma3", {}, {"target_modules": ["embed_tokens", "o_proj"]}),
    "phi3": ("phi3", {}, {"target_modules": ["qkv_proj", "gate_up_proj", "down_proj", "o_proj"]}),
    "tied, both saved": ("mistral", {"tie_word_embeddings": True}, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "resized": ("mistral", {"tie_word_embeddings": True}, {"resized": 64}),
    "resized, not tied": ("mistral", {}, {"resized": 128}),
    "in shards": ("mistral", {"shards": "2MB"}, {}),
    "4 bits": ("mistral", {"bits": 4}, {}),
}


class Converters:
    """Runs conversions, ours and the untouched converter's, without paying for their imports each time."""

    def __init__(self, log: Path) -> None:
        source = llamacpp.source()
        paths = os.pathsep.join([str(source / "gguf-py"), str(source), str(run.ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
        self.log, self.script = log, str(source / "convert_hf_to_gguf.py")
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=environment,
        )

    def do(self, job: dict[str, Any]) -> str:
        """Do one job; what it said when it failed, else nothing."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{json.dumps(job)}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"status"'):
                status = json.loads(line)["status"]
                return self.log.read_text().strip().splitlines()[-1] if status else ""
        return self.log.read_text()

    def theirs(self, folder: Path, out: Path, kind: str, bare: bool) -> None:
        """Convert a folder as llama.cpp does."""
        argv = [self.script, str(folder), "--outfile", str(out), "--outtype", kind]
        assert self.do({"argv": argv, "bare": bare}) == ""

    def ours(self, folder: Path, out: Path, adapter: Path | None, quant: str, bare: bool = False) -> str:
        """Convert a folder and its adapter as gguf.py asks for it."""
        work = out.with_name(f"{out.name}.parts")
        run.remove(work)
        return self.do({"ours": gguf.request(folder, out, {}, adapter, quant, work), "bare": bare})


@pytest.fixture(scope="module")
def converters(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Converters(tmp_path_factory.mktemp("log") / "log")
    yield made
    made.process.kill()
    made.process.wait()


def make_adapter(folder: Path, base: Path, resized: int = 0, **options: Any) -> Path:
    """A random adapter as peft saves it; `resized`: the tokens that were added before training."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if resized:
        model.resize_token_embeddings(model.config.vocab_size + resized, mean_resizing=False)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    tuned: Any = get_peft_model(model, LoraConfig(**settings | options))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(str(folder), save_embedding_layers=bool(resized) or "auto")
    return folder


def stored_in_4_bits(base: Path, folder: Path, wide: Path) -> None:
    """The base as bitsandbytes stores it, and as 16 bits of the same values."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=how, dtype=torch.bfloat16, device_map="cpu"
    )
    model.save_pretrained(folder)
    model.dequantize().save_pretrained(wide)
    for each in (folder, wide):
        AutoTokenizer.from_pretrained(base).save_pretrained(each)


def assert_equal(one: Path, other: Path) -> None:
    """The same metadata and, bit for bit, the same tensors."""
    mine, theirs = GGUFReader(one), GGUFReader(other)
    assert [tensor.name for tensor in mine.tensors] == [tensor.name for tensor in theirs.tensors]
    for left, right in zip(mine.tensors, theirs.tensors, strict=True):
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
    adapter = make_adapter(tmp_path / "adapter", wide, **options)
    gguf.merge(wide, adapter, tmp_path / "merged" / "base")
    for type_, bare in (("f32", True), ("f16", False)):
        converters.theirs(tmp_path / "merged" / "base", tmp_path / "theirs.gguf", type_, bare)
        assert converters.ours(base, tmp_path / "ours.gguf", adapter, type_.upper(), bare) == ""
        assert_equal(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.fixture(scope="module")
def wide_rows(converters: Converters, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base whose rows K-quants divide, its adapter, and the f16 of both."""
    folder = tmp_path_factory.mktemp("wide")
    changes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    base = models.make("mistral", folder / "base", **changes, tie_word_embeddings=True)
    make_adapter(folder / "adapter", base)
    assert converters.ours(base, folder / "f16.gguf", folder / "adapter", "F16") == ""
    return folder


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS", "Q5_1"])
def test_what_is_quantised_straight_is_llama_quantizes_file(
    quant: str, converters: Converters, wide_rows: Path
) -> None:
    straight, two_steps = wide_rows / "straight.gguf", wide_rows / "two-steps.gguf"
    assert converters.ours(wide_rows / "base", straight, wide_rows / "adapter", quant) == ""
    gguf.quantize(wide_rows / "f16.gguf", two_steps, quant)
    assert straight.read_bytes() == two_steps.read_bytes()


def test_rows_that_k_quants_do_not_divide_fall_back_as_llama_quantizes(converters: Converters, tmp_path: Path) -> None:
    base = models.make("phi3", tmp_path / "base")
    assert converters.ours(base, tmp_path / "f16.gguf", None, "F16") == ""
    assert converters.ours(base, tmp_path / "straight.gguf", None, "Q4_K_M") == ""
    gguf.quantize(tmp_path / "f16.gguf", tmp_path / "two-steps.gguf", "Q4_K_M")
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
    assert said == "error: a weight is not a finite number: the adapter or its base is broken"
