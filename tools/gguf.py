"""Base + adapter -> GGUF -> quantised."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools import BadInput, Failed, base, doctor, llamacpp, run

# The types that llama-quantize makes well without an importance matrix (its --help lists all), best first.
QUANTS = (
    *("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1"),
    *("Q4_0", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
)
# What makes text of a conversation and tokens of text, in a Hugging Face folder.
TOKENIZER_PARTS = (
    *base.TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)
# Runs llama.cpp's converter with keys of our own in the metadata: its --metadata knows a fixed set of keys only.
CONVERTER = """import json, runpy, sys
from gguf import GGUFValueType, GGUFWriter, gguf_writer
metadata, sys.argv = json.loads(sys.argv[1]), sys.argv[2:]
write_header = GGUFWriter.write_header_to_file
def write_ours_too(self, *args, **options):
    for key, value in metadata.items():
        self.kv_data[0][key] = gguf_writer.GGUFValue(value, GGUFValueType.STRING)
    write_header(self, *args, **options)
GGUFWriter.write_header_to_file = write_ours_too
runpy.run_path(sys.argv[0], run_name="__main__")"""


def check_quant(name: str) -> str:
    """The name of a quantisation as llama-quantize spells it. Raises BadInput that names those there are."""
    if name.upper() not in QUANTS:
        raise BadInput(f"{name}: no such quantisation; there are {', '.join(QUANTS)}")
    return name.upper()


def build(base_model: Path, adapter: Path | None, out: Path, quant: str, metadata: dict[str, str], f16: Path) -> None:
    """Merge, convert and quantise into `out`; without an adapter, the base model itself.

    `f16` keeps the unquantised model, so that another `quant` needs no second merge: it is made when it is absent or
    older than the weights; it may be `out` itself when `quant` is F16. `metadata` (keys like "react_recipes.recipe",
    or "general.name") goes into both files. Everything has its name only when it is whole.
    Raises BadInput for an unknown `quant` or folders that cannot be used, Failed when a step fails.
    """
    quant = check_quant(quant)
    base.check(base_model)
    if adapter:
        check_adapter(adapter)
    weights = sum(item.stat().st_size for item in base_model.glob("*.safetensors")) / 2**30
    if not fresh(f16, adapter or base_model):
        run.need_space(f16.parent, 3 * weights)  # merged, f16, quantised
        merged = f16.with_name(f".{f16.name}.merged")
        try:
            if adapter:
                merge(base_model, adapter, merged)
            convert(merged if adapter else base_model, f16, metadata)
        finally:
            run.remove(merged)
    if out != f16:
        run.need_space(out.parent, weights)
        quantize(f16, out, quant)


def fresh(path: Path, source: Path) -> bool:
    """Whether `path` is there and not older than any file in the folder `source`."""
    return path.is_file() and path.stat().st_mtime >= max(item.stat().st_mtime for item in source.iterdir())


def check_adapter(folder: Path) -> None:
    """Raise BadInput unless the folder holds a whole LoRA adapter: adapter_config.json and safetensors, no pickle."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise BadInput(f"{folder}: not an adapter: it has no {name}; `make train` makes one")
    base.check_safetensors(folder / "adapter_model.safetensors")


def convert(folder: Path, out: Path, metadata: dict[str, str] | None = None) -> None:
    """Convert a Hugging Face folder to an f16 GGUF with llama.cpp's converter, `metadata` added as strings.

    Raises Failed with the converter's own words.
    """
    source = llamacpp.source()
    # The converter goes with its own version of the gguf package; nothing may be fetched on the way.
    paths = os.pathsep.join([str(source / "gguf-py"), str(source)])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    with run.whole(out) as partial:
        command = [sys.executable, "-c", CONVERTER, json.dumps(metadata or {}), str(source / "convert_hf_to_gguf.py")]
        command += [str(folder), "--outfile", str(partial), "--outtype", "f16"]
        follow(command, f"{out.name}: converting", environment)


def quantize(f16: Path, out: Path, quant: str) -> None:
    """Quantise an f16 GGUF with llama-quantize; its metadata stays. Raises Failed with llama-quantize's own words."""
    with run.whole(out) as partial:
        command = [str(llamacpp.program("llama-quantize")), str(f16), str(partial), quant, str(doctor.cores())]
        follow(command, f"{out.name}: quantising", dict(os.environ))


def follow(command: list[str], title: str, environment: dict[str, str]) -> None:
    """Run a program with its own progress on a bar: "45%|" of the converter, "[ 12/ 272]" of llama-quantize.

    It ends when this process does, even by kill -9. Raises Failed with the last line that speaks of an error.
    """
    from rich.console import Console
    from rich.progress import Progress

    lines: list[str] = []
    with (
        Progress(console=Console(stderr=True)) as progress,
        subprocess.Popen(
            run.tied(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",  # llama-quantize cuts a long value in the middle of a letter
            env=environment,
        ) as process,
    ):
        task = progress.add_task(title, total=None)
        assert process.stdout
        for line in process.stdout:  # a progress bar's carriage return ends a line as well
            if step := re.match(r"\[ *(\d+)/ *(\d+)\]", line) or re.search(r"(\d+)()%\|", line):
                progress.update(task, completed=int(step[1]), total=int(step[2] or 100))
            elif line.strip():
                lines.append(line.strip())
    if process.returncode:
        # The last words of llama-quantize only repeat its arguments: the reason stands before them.
        errors = [line for line in lines if re.search("error|failed(?! to quantize model from)", line, re.I)]
        reason = (errors or lines or [f"exit status {process.returncode}"])[-1]
        raise Failed(f"{title} failed: {reason}")


def merge(base_model: Path, adapter: Path, out: Path) -> None:
    """Merge a LoRA adapter into its base, in float32, rounded once to bfloat16, as a Hugging Face folder `out`.

    Tokenizer, end token and chat template are those of training, which lie beside the adapter; the base's only where
    there are none. Raises BadInput for an adapter that cannot be read, Failed when it does not fit the base.
    """
    check_adapter(adapter)
    from rich.console import Console

    with Console(stderr=True).status("merging the adapter into its base"), run.whole(out) as partial:
        import torch
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32, use_safetensors=True)
        rows = model.get_input_embeddings().weight.shape[0]
        tensors = load_file(adapter / "adapter_model.safetensors")
        try:
            tuned = get_peft_model(model, PeftConfig.from_pretrained(str(adapter)))
        except ValueError as error:  # none of the modules that it names is in the base
            raise Failed(f"{adapter} does not fit {base_model}: {str(error).splitlines()[0]}") from error
        if differences := misfits(tuned, tensors):
            raise Failed(f"{adapter} does not fit {base_model}: {differences[0]} ({len(differences)} such tensors)")
        set_peft_model_state_dict(tuned, tensors)
        tuned.merge_and_unload().to(torch.bfloat16).save_pretrained(partial)
        copy_tokenizer(base_model, adapter, partial, rows)


def misfits(tuned: Any, tensors: dict[str, Any]) -> list[str]:
    """How an adapter's tensors differ, in name and shape, from those that its base would take; a line each."""
    from peft import get_peft_model_state_dict

    # Without False, peft asks the model hub whether the vocabulary was resized.
    wanted = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    lines = [f"{name} is in the adapter alone" for name in sorted(tensors.keys() - wanted.keys())]
    lines += [f"{name} is not in the adapter" for name in sorted(wanted.keys() - tensors.keys())]
    for name in sorted(tensors.keys() & wanted.keys()):
        mine, theirs = list(tensors[name].shape), list(wanted[name].shape)
        if mine != theirs:
            lines.append(f"{name} is {mine} in the adapter and {theirs} for this base")
    return lines


def copy_tokenizer(base_model: Path, adapter: Path, out: Path, rows: int) -> None:
    """Bring tokenizer, chat template, end token and generation settings of training into a merged folder `out`.

    `rows`: of the model's embedding. Raises Failed when the tokenizer has more tokens than that.
    """
    from transformers import AutoTokenizer

    trained = any((adapter / name).is_file() for name in base.TOKENIZER_FILES)
    source = adapter if trained else base_model
    for name in TOKENIZER_PARTS:
        if (source / name).is_dir():
            shutil.copytree(source / name, out / name)
        elif (source / name).is_file():
            shutil.copy2(source / name, out / name)
    tokenizer = AutoTokenizer.from_pretrained(out)
    if len(tokenizer) > rows:
        raise Failed(f"{source}: its tokenizer has {len(tokenizer)} tokens and the base an embedding of {rows}")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    ids = {name: number for name, number in ids.items() if number is not None}
    generation = adapter / "generation_config.json"
    if generation.is_file():
        shutil.copy2(generation, out)
    for path in [out / "config.json", *([] if generation.is_file() else [out / "generation_config.json"])]:
        settings = json.loads(path.read_text()) if path.is_file() else {}
        ends = settings.get("eos_token_id")
        settings |= ids
        if isinstance(ends, list):  # some models end a turn and a text with different tokens
            settings["eos_token_id"] = list(dict.fromkeys([ids["eos_token_id"], *ends]))
        run.write_json(path, settings)
