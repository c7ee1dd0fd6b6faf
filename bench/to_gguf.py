"""From base and adapter to a GGUF: wall time, bytes written and peak memory of ours and of others' chains."""

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.core import files, machine, run_folder  # noqa: E402
from tools.gguf import llamacpp  # noqa: E402

# Qwen2.5's shape, with random weights: 1.5 B, and one to try the bench with.
SIZES: dict[str, dict[str, int]] = {
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "0.1b": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8},
}
MAKE = """import sys, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from tests.parts import models
folder, sizes = Path(sys.argv[1]), eval(sys.argv[2])
torch.set_default_dtype(torch.bfloat16)
models.make("qwen2", folder / "base", tie_word_embeddings=True, num_key_value_heads=2, **sizes)
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
settings = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
get_peft_model(model, LoraConfig(**settings, init_lora_weights=False)).save_pretrained(folder / "adapter")
"""
OURS = """import sys; from pathlib import Path; from tools.gguf import convert
base, adapter, out, quant, f16 = sys.argv[1:]
convert.build_gguf(Path(base), Path(adapter) if adapter else None, Path(out), quant, {}, Path(f16))
"""
PEFT = """import sys; from peft import PeftModel; from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""
AXOLOTL = """base_model: {base}
adapter: lora
lora_model_dir: {adapter}
lora_r: 16
lora_alpha: 32
lora_target_linear: true
bf16: true
datasets: [{{path: data/train.jsonl, type: chat_template}}]
micro_batch_size: 1
gradient_accumulation_steps: 1
learning_rate: 0.0001
output_dir: {out}
"""
FACTORY = """model_name_or_path: {base}
adapter_name_or_path: {adapter}
template: qwen
finetuning_type: lora
export_dir: {out}/merged
export_size: 5
export_device: cpu
export_legacy_format: false
"""
NOTES = """Qwen2.5's shape, random weights, LoRA of rank 16 on all linear layers, {cores} cores, one run each.
Written: the sizes of all files, those that are removed later too. Peak: resident memory of all processes of a step
together. Ours to the best other chain: wall {wall_f16:.2f} to F16 and {wall_q4_k_m:.2f} to Q4_K_M, bytes
{bytes:.2f}; memory to the converter's own: {memory:.2f}. The limits: Q4_K_M takes {wall_to_llama_quantize_alone:.2f}
of the time of llama-quantize alone, and {bytes_to_the_final_file:.2f} of the bytes of the final file."""


@dataclass(frozen=True)
class Cost:
    """What one step took: seconds, bytes of the files that it left or grew, MB resident at most (all its processes)."""

    seconds: float
    written: int
    peak_mb: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.written + other.written, max(self.peak_mb, other.peak_mb))


def cost(command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> Cost:
    """Run one step that writes into `folder`. Raises SystemExit with its last words when it fails."""
    before, peak, done = size(folder), 0, threading.Event()
    with (folder.with_name("log")).open("w") as log:
        start = time.monotonic()
        process = subprocess.Popen(
            [*command], stdout=log, stderr=subprocess.STDOUT, env=os.environ | (environment or {}), cwd=ROOT
        )

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.05):
                peak = max(peak, run_folder.resident_bytes(process.pid))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        status = process.wait()
        seconds = time.monotonic() - start
        done.set()
        watcher.join()
    if status:
        raise SystemExit(f"{command[0]} failed: {Path(log.name).read_text()[-2000:]}")
    return Cost(seconds, size(folder) - before, peak / 1e6)


def size(folder: Path) -> int:
    """Bytes of all files in a folder; links count as nothing."""
    return sum(item.stat().st_size for item in folder.rglob("*") if item.is_file() and not item.is_symlink())


def model(name: str) -> tuple[Path, Path]:
    """Base and adapter of one size, made once into the cache."""
    folder = run_folder.cache() / f"bench-gguf-{name}"
    if not folder.exists():
        with files.atomic(folder) as partial:
            partial.mkdir()
            command = [sys.executable, "-c", MAKE, str(partial), repr(SIZES[name])]
            subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return folder / "base", folder / "adapter"


def ours(base: Path, adapter: Path | None, out: Path, quant: str, f16: Path) -> Cost:
    """One call of convert.build."""
    arguments = [str(base), str(adapter or ""), str(out), quant, str(f16)]
    return cost([sys.executable, "-c", OURS, *arguments], out.parent)


def convert(merged: Path, out: Path) -> Cost:
    """llama.cpp's converter, as it is."""
    source = llamacpp.source()
    command = [sys.executable, str(source / "convert_hf_to_gguf.py"), str(merged), "--outfile", str(out)]
    return cost([*command, "--outtype", "f16"], out.parent)


def quantize(f16: Path, out: Path) -> Cost:
    """llama-quantize, as it is."""
    program = str(llamacpp.program("llama-quantize"))
    return cost([program, str(f16), str(out), "Q4_K_M", str(machine.cores())], out.parent)


def peft_merge(base: Path, adapter: Path, work: Path) -> Cost:
    """merge_and_unload in a script, as its documentation has it."""
    return cost([sys.executable, "-c", PEFT, str(base), str(adapter), str(work / "merged")], work)


def axolotl_merge(base: Path, adapter: Path, work: Path) -> Cost:
    """`axolotl merge-lora`."""
    recipe = work.with_name("axolotl.yaml")
    recipe.write_text(AXOLOTL.format(base=base, adapter=adapter, out=work))
    quiet = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(machine.cores())}
    return cost([str(Path(sys.executable).with_name("axolotl")), "merge-lora", str(recipe)], work, quiet)


def factory_merge(base: Path, adapter: Path, work: Path) -> Cost:
    """`llamafactory-cli export`."""
    recipe = work.with_name("factory.yaml")
    recipe.write_text(FACTORY.format(base=base, adapter=adapter, out=work))
    program = run_folder.cache() / "llamafactory-0.9.5" / "bin" / "llamafactory-cli"
    return cost([str(program), "export", str(recipe)], work, {"HF_HUB_OFFLINE": "1"})


def peers() -> dict[str, Callable[[Path, Path, Path], Cost]]:
    """The merges of others that are on this machine."""
    found: dict[str, Callable[[Path, Path, Path], Cost]] = {"peft": peft_merge, "axolotl": axolotl_merge}
    if (run_folder.cache() / "llamafactory-0.9.5" / "bin" / "llamafactory-cli").exists():
        found["llamafactory"] = factory_merge
    return found


def measure(base: Path, adapter: Path) -> dict[str, Cost]:
    """The cost of each chain, by its name; the files of one are gone before the next begins."""
    found: dict[str, Cost] = {}

    def in_folder(work: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory(dir=run_folder.cache()) as folder:
            (Path(folder) / "work").mkdir()
            work(Path(folder) / "work")

    def converter_alone(work: Path) -> None:
        found["converter alone, no adapter"] = convert(base, work / "f16.gguf")

    def one_pass(work: Path) -> None:
        found["ours to F16"] = ours(base, adapter, work / "f16.gguf", "F16", work / "f16.gguf")
        found["llama-quantize alone"] = quantize(work / "f16.gguf", work / "q4.gguf")
        found["ours to Q4_K_M by an F16"] = found["ours to F16"] + found["llama-quantize alone"]

    def straight(quant: str) -> Callable[[Path], None]:
        def work(folder: Path) -> None:
            found[f"ours to {quant}"] = ours(base, adapter, folder / "out.gguf", quant, folder / "f16.gguf")

        return work

    def peer(name: str, merge: Callable[[Path, Path, Path], Cost]) -> Callable[[Path], None]:
        def work(folder: Path) -> None:
            merged = merge(base, adapter, folder)
            found[f"{name} to F16"] = merged + convert(folder / "merged", folder / "f16.gguf")
            found[f"{name} to Q4_K_M"] = found[f"{name} to F16"] + quantize(folder / "f16.gguf", folder / "q4.gguf")

        return work

    steps = [converter_alone, one_pass, straight("Q8_0"), straight("Q4_K_M")]
    steps += [peer(name, merge) for name, merge in peers().items()]
    for step in steps:
        in_folder(step)
        print(list(found.items())[-1], file=sys.stderr, flush=True)
    return found


def ratios(found: dict[str, Cost]) -> dict[str, float]:
    """Ours to the best of the others, up to each kind of file; memory to the converter's own."""
    best = {
        kind: [found[f"{name} to {kind}"] for name in peers() if f"{name} to {kind}" in found]
        for kind in ("F16", "Q4_K_M")
    }
    q4 = found["ours to Q4_K_M"]
    return {
        "wall_f16": found["ours to F16"].seconds / min(each.seconds for each in best["F16"]),
        "wall_q4_k_m": q4.seconds / min(each.seconds for each in best["Q4_K_M"]),
        "bytes": q4.written / min(each.written for each in best["Q4_K_M"]),
        "memory": max(found[name].peak_mb for name in ("ours to F16", "ours to Q4_K_M", "ours to Q8_0"))
        / found["converter alone, no adapter"].peak_mb,
        "wall_to_llama_quantize_alone": q4.seconds / found["llama-quantize alone"].seconds,
        "bytes_to_the_final_file": q4.written / found["llama-quantize alone"].written,
    }


def as_json(name: str, found: dict[str, Cost]) -> dict[str, Any]:
    """What bench/results/gguf.json holds."""
    rows = [
        f"| {chain} | {each.seconds:.1f} | {each.written / 1e9:.2f} | {each.peak_mb:.0f} |"
        for chain, each in found.items()
    ]
    share = ratios(found)
    return {
        "title": f"Base and adapter to GGUF, {name.upper()} parameters",
        "command": "python bench/to_gguf.py",
        "versions": {each: importlib.metadata.version(each) for each in ("torch", "transformers", "peft", "axolotl")}
        | {"llama.cpp of llama-cpp-python": llamacpp.home().name.split("-")[1]},
        "table": ["| chain | s | GB written | peak MB |", "|---|---|---|---|", *rows],
        "notes": NOTES.format(cores=machine.cores(), **share),
        "chains": {
            chain: {"seconds": round(each.seconds, 2), "bytes_written": each.written, "peak_mb": round(each.peak_mb)}
            for chain, each in found.items()
        },
        "ratios": {key: round(value, 3) for key, value in share.items()},
    }


def main() -> None:
    """Measure; the real size's figures go to bench/results/gguf.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="1.5b")
    name = parser.parse_args().size
    base, adapter = model(name)
    for path in base.glob("*.safetensors"):  # every chain finds it in memory
        path.read_bytes()
    made = as_json(name, measure(base, adapter))
    if name == "1.5b":
        files.write_json(ROOT / "bench" / "results" / "gguf.json", made)
    print("\n".join([*made["table"], made["notes"]]))


if __name__ == "__main__":
    main()
