"""The adapter alone as a GGUF, to be used over a base that is there already: seconds and megabytes."""

import json
import os
import sys
from pathlib import Path

from tools import BadInput, Failed
from tools.core import files
from tools.core.process import without_secrets
from tools.gguf import adapter_config, adapter_tensors, convert, llamacpp, lora, merge

# Runs a converter of llama.cpp's with keys of our own in the metadata (its --metadata knows a fixed set of keys only),
# and without the code of a model's own: llama.cpp trusts that of some architectures.
CONVERTER = """import json, runpy, sys
from gguf import GGUFValueType, GGUFWriter, gguf_writer
from transformers import dynamic_module_utils
def refuse(*args, **options):
    sys.exit("error: the base names code of its own, which is never run here")
dynamic_module_utils.get_class_from_dynamic_module = dynamic_module_utils.get_class_in_module = refuse
metadata, sys.argv = json.loads(sys.argv[1]), sys.argv[2:]
write_header = GGUFWriter.write_header_to_file
def write_ours_too(self, *args, **options):
    for key, value in metadata.items():
        self.kv_data[0][key] = gguf_writer.GGUFValue(value, GGUFValueType.STRING)
    write_header(self, *args, **options)
GGUFWriter.write_header_to_file = write_ours_too
runpy.run_path(sys.argv[0], run_name="__main__")"""


def adapter_to_gguf(adapter: Path, base_model: Path, out: Path, metadata: dict[str, str] | None = None) -> None:
    """Convert a LoRA adapter to an f16 GGUF with llama.cpp's converter, `metadata` added as strings.

    Of the base its configuration and the shapes of its weights are read, nothing else. Raises BadInput for an adapter
    that such a file cannot hold or that is none, Failed when it does not fit the base or the converter fails.
    """
    pairs = low_rank(adapter, base_model)
    source = llamacpp.source()
    # The converter goes with its own version of the gguf package; nothing may be fetched on the way.
    paths = os.pathsep.join([str(source / "gguf-py"), str(source)])
    environment = without_secrets() | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CONVERTER, json.dumps(metadata or {}), str(source / "convert_lora_to_gguf.py")]
    with files.scratch(out) as folder, files.atomic(out) as partial:
        prepare(adapter, pairs, folder)
        command += [str(folder), "--base", str(base_model), "--outfile", str(partial), "--outtype", "f16"]
        convert.follow(command, f"{out.name}: converting", environment)


def low_rank(adapter: Path, base_model: Path) -> dict[str, lora.LowRank]:
    """The adapter's pair of matrices for each tensor of its base that it changes, by name.

    Raises BadInput when it is more than pairs for linear layers, Failed when it does not fit the base.
    """
    try:
        plan, differences = lora.fit(lora.plan(adapter), lora.shapes(base_model), adapter)
    except adapter_config.Unsupported as why:
        raise cannot_hold(adapter, f"this kind: {why}") from why
    if differences:
        raise Failed(merge.misfit(adapter, base_model, differences))
    pairs = {}
    for target, steps in plan.items():
        for step in steps:
            if target in (lora.EMBEDDING, lora.HEAD) or not isinstance(step, lora.LowRank) or step.embedding:
                raise cannot_hold(adapter, f"what was trained of {target}")
            if step.magnitude:
                raise cannot_hold(adapter, "DoRA")
            pairs[target] = step
    return pairs


def cannot_hold(adapter: Path, what: str) -> BadInput:
    """The refusal of an adapter that a LoRA GGUF would hold only in part."""
    return BadInput(f"{adapter}: a LoRA GGUF cannot hold {what}; without ADAPTER_ONLY=1 it is merged")


def prepare(adapter: Path, pairs: dict[str, lora.LowRank], folder: Path) -> None:
    """Write the adapter into `folder` as the converter understands it: the base's names, one alpha, alpha / rank.

    What rsLoRA and an alpha_pattern say otherwise goes into the second matrix of each pair. Raises BadInput for values
    that a float16 file cannot hold.
    """
    from safetensors.torch import save_file

    read = adapter_tensors.of_adapter(adapter).read
    alpha = files.read_object(adapter / "adapter_config.json").get("lora_alpha", 8)  # peft's own
    tensors = {}
    for target, pair in pairs.items():
        a, b = read(pair.a), read(pair.b)
        if pair.scale != alpha / len(a):
            b = b.float() * (pair.scale * len(a) / alpha)
        module = f"{adapter_tensors.PREFIX}{target.removesuffix('.weight')}"
        for name, tensor in ((f"{module}.lora_A.weight", a), (f"{module}.lora_B.weight", b)):
            lora.check_values(name, tensor, lora.FLOAT16)
            tensors[name] = tensor
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
