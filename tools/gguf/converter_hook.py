"""llama.cpp's converter, with an adapter added to each tensor as it passes and each tensor quantised as it is written.

Run by gguf.py in a process of its own, since the converter goes with its own version of the gguf package.
"""

import errno
import json
import math
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import BadInput, Failed
from tools.core import hf_folder
from tools.gguf import adapter_tensors, convert, lora, quantize, tuned_folder
from tools.gguf.adapter_tensors import AdapterTensors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from conversion.base import LazyTorchTensor, ModelBase
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.lazy import LazyNumpyTensor

    from tools.gguf.convert import Request

    # How the converter has a tensor of the model: a function that gives a lazy one, which has its shape and dtype.
    Source = Callable[[], LazyTorchTensor]

# What the converter writes by itself; every other type is made of its f16.
OWN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
# The largest number that such a file holds; other types are made of float16.
LARGEST = {"F32": math.inf, "F16": lora.FLOAT16, "BF16": math.inf}

NO_HEAD = (
    "lm_head.weight is not the embedding's after this training, and llama.cpp keeps no head of its own for this "
    "architecture"
)


def main() -> None:
    """Convert as the JSON object in the first argument says; see convert.Request. On failure one line, status 1."""
    asked: Request = json.loads(sys.argv[1])
    quant = asked["quant"]
    # transformers imports it wherever it is installed, for assisted generation: 2.7 s by -X importtime.
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    refuse_code()
    try:
        folder, needed = Path(asked["base"]), set[str]()
        if asked["adapter"]:
            base, folder = folder, Path(asked["work"]) / folder.name  # llama.cpp takes a model's name from its folder
            adapter = Path(asked["adapter"])
            if asked["vocabulary"]:
                tuned_folder.assemble_tokenizer(base, adapter, folder)
            else:
                tuned_folder.assemble(base, adapter, folder)
                needed = hook_tensors(base, adapter, LARGEST.get(quant, LARGEST["F16"]))
        else:
            needed = hook_tensors(folder, None, math.inf)
        hook_writer(asked, needed)
        sys.argv = [asked["converter"], str(folder), "--outfile", asked["out"], "--outtype", OWN.get(quant, "f16")]
        sys.argv += ["--vocab-only"] if asked["vocabulary"] else []
        runpy.run_path(asked["converter"], run_name="__main__")
    except (BadInput, Failed) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        # numpy says only how much it could not write.
        full = error.errno in (errno.ENOSPC, errno.EFBIG) or "requested and" in str(error)
        sys.exit(f"error: {'no space left on the disk; free some and run the same command again' if full else error}")


def refuse_code() -> None:
    """Have transformers raise Failed in place of running code of a model's own: llama.cpp trusts some architectures.

    To be called before its automatic classes are imported, which take these functions by their names.
    """
    from transformers import dynamic_module_utils

    def refuse(*_: object, **__: object) -> None:
        raise Failed("the base names code of its own, which is never run here")

    utils: Any = dynamic_module_utils
    utils.get_class_from_dynamic_module = utils.get_class_in_module = refuse


def hook_tensors(base: Path, adapter: Path | None, largest: float) -> set[str]:
    """Let the converter find each tensor of the base as it is after training, and 4-bit ones as 16-bit ones.

    `largest`: the number that the file can hold. Nothing is computed before the converter writes the tensor. Returns
    what the file must have, once the converter has looked for its tensors: the head, where it is not the embedding.
    Raises BadInput for an adapter or a base that cannot be read, Unsupported for an adapter that cannot be added.
    """
    from conversion.base import LazyTorchTensor, ModelBase

    own_head: set[str] = set()
    index = ModelBase.index_tensors
    plan: lora.Plan = {}
    if adapter:
        plan, _ = lora.fit(lora.plan(adapter), lora.shapes(base), adapter)
        tensors = adapter_tensors.of_adapter(adapter)
        for remark in lora.remarks(plan, tensors):
            print(f"{convert.NOTE}{adapter}: {remark}")

    def index_tensors(self: "ModelBase", *arguments: Any, **options: Any) -> "dict[str, Source]":
        found = index(self, *arguments, **options)
        widen(found, self.hparams, LazyTorchTensor)
        if adapter:
            change(found, plan, tensors, largest, LazyTorchTensor, self.filter_tensors)
        if lora.HEAD in plan or (lora.HEAD in found and self.hparams.get("tie_word_embeddings") is False):
            own_head.add(lora.HEAD)
        return found

    ModelBase.index_tensors = index_tensors
    return own_head


def change(
    found: "dict[str, Source]",
    plan: lora.Plan,
    tensors: AdapterTensors,
    largest: float,
    lazy: "type[LazyTorchTensor]",
    keep: Callable[[tuple[str, None]], tuple[str, None] | None],
) -> None:
    """Put the adapter's changes on the converter's tensors, by name.

    `largest`: the number that the file can hold. `keep`: the converter's own filter: the name that it gives to a
    tensor, None for one that it leaves out of the file. Raises Failed where it leaves out one that was trained.
    """
    embedding = found.get(lora.EMBEDDING)
    for target, steps in plan.items():
        kept = keep((target, None))
        name = kept[0] if kept else ""  # some architectures' tensors are renamed on the way
        if name in found:
            before = found[name]
        elif name == lora.HEAD and embedding:  # trained apart from the embedding whose weights it shared
            before = embedding
        else:
            lost = f"{target} was trained, and llama.cpp keeps no such tensor for this architecture"
            raise Failed(NO_HEAD if target == lora.HEAD else lost)
        found[name] = changed(target, before, steps, tensors, largest, lazy)


def changed(
    target: str,
    before: "Source",
    steps: list[lora.Change],
    tensors: AdapterTensors,
    largest: float,
    lazy: "type[LazyTorchTensor]",
) -> "Source":
    """One tensor after its changes, not computed yet. `largest`: the number that the file can hold; see `change`."""

    def after() -> "LazyTorchTensor":
        base = before()
        shape = tuple(base.shape)
        for step in steps:
            if isinstance(step, lora.Saved):  # an embedding may have been resized
                shape = tensors.shapes[step.name]
        meta = lazy.meta_with_dtype_and_shape(base.dtype, shape)
        return lazy(meta=meta, args=(base,), func=compute)

    def compute(weight: "torch.Tensor") -> "torch.Tensor":
        result = lora.changed(weight, steps, tensors.read)
        lora.check_values(target, result, largest)
        return result

    return after


def widen(found: "dict[str, Source]", hparams: hf_folder.Settings, lazy: "type[LazyTorchTensor]") -> None:
    """Put 16-bit tensors in the place of those that bitsandbytes stored in 4 bits; none of it is computed yet.

    `hparams`: the converter's copy of config.json, which then says nothing of 4 bits any more.
    """
    packed = [match for name in found if (match := lora.FOUR_BIT.fullmatch(name))]
    if not packed:
        return
    hparams.pop("quantization_config", None)
    for match in packed:
        name = match[1]
        parts = {key: found.pop(key) for key in list(found) if key == name or key.startswith(f"{name}.")}
        found[name] = widened(name, parts, lazy)


def widened(name: str, parts: "dict[str, Source]", lazy: "type[LazyTorchTensor]") -> "Source":
    """One 4-bit tensor as it was before, not computed yet. `parts`: what is stored of it, by name.

    Raises BadInput where bitsandbytes' note on it cannot be read.
    """
    import torch

    note = next(key for key in parts if lora.FOUR_BIT.fullmatch(key))
    packed = lora.four_bit(lazy.to_eager(parts[note]()))

    def dequantise(stored: "list[torch.Tensor]") -> "torch.Tensor":
        from bitsandbytes.functional import QuantState, dequantize_4bit

        tensors = dict(zip(parts, stored, strict=True))
        data = tensors.pop(name)
        state = QuantState.from_dict(
            {key.removeprefix(f"{name}."): each for key, each in tensors.items()}, torch.device("cpu")
        )
        return dequantize_4bit(data, state)

    def after() -> "LazyTorchTensor":
        meta = lazy.meta_with_dtype_and_shape(getattr(torch, packed.dtype), packed.shape)
        return lazy(meta=meta, args=([each() for each in parts.values()],), func=dequantise)

    return after


def hook_writer(asked: "Request", needed: set[str]) -> None:
    """Let the converter write keys of ours (its --metadata knows a fixed set only), on all cores, and quantised.

    `needed`: as `hook_tensors` returns it. Raises, as it writes, Failed for a file without that, BadInput and Failed as
    quantize.quantise_as_written.
    """
    import gguf

    writer: Any = gguf.GGUFWriter
    quants: Any = gguf.quants
    write_header, convert = writer.write_header_to_file, quants.quantize

    def converted(data: "LazyNumpyTensor", kind: "GGMLQuantizationType") -> "quantize.Half | npt.NDArray[np.generic]":
        if kind == gguf.GGMLQuantizationType.F16 and data.dtype == "float32":  # type: ignore[attr-defined]
            return quantize.Half(data, asked["threads"])
        return convert(data, kind)

    def write_ours_too(self: "GGUFWriter", path: Path) -> None:
        if needed and not asked["vocabulary"] and not any("output.weight" in each for each in self.tensors):
            raise Failed(NO_HEAD)
        for key, value in asked["metadata"].items():
            self.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value, gguf.GGUFValueType.STRING)
        if asked["quant"] not in OWN:
            writer.write_header_to_file = write_header
            work = Path(asked["work"])
            work.mkdir(parents=True, exist_ok=True)
            program, library = Path(asked["program"]), Path(asked["library"])
            quantize.quantise_as_written(self, asked["quant"], program, library, work / "probe.gguf")
        write_header(self, path)

    quants.quantize = converted
    writer.write_header_to_file = write_ours_too


if __name__ == "__main__":
    main()
