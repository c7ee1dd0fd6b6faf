"""The tensors of a GGUF quantised as they are written, byte for byte as llama-quantize would make of the f16 file.

Runs in the converter's process: see converter_hook.py.
"""

import copy
import ctypes
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from tools import BadInput, Failed
from tools.core import files
from tools.gguf import libggml

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.lazy import LazyNumpyTensor

Made = TypeVar("Made", bound=np.generic)
# Elements that one thread takes at a time: large enough that Python's own share does not show.
CHUNK = 2**20
# A line of llama-quantize's dry run: "[ 3/ 272] NAME - [...], type = f16, size = ... MiB -> ... MiB (q6_K)". The type
# in brackets is the one that the tensor gets; without it, it keeps its own.
DRY_RUN = re.compile(r"^\[ *\d+/ *\d+\] (\S+) .*?type = *(\w+), .*?size = [^(\n]*(?:\((\w+)\))?", re.M)


class Half:
    """A tensor of the converter's on its way into a file, as f16: rounded and written a few rows at a time."""

    dtype = np.dtype(np.float16)

    def __init__(self, source: "LazyNumpyTensor", threads: int) -> None:
        """`source`: the converter's lazy float32 array, of any shape."""
        self.source, self.shape, self.threads = source, source.shape, threads
        self.nbytes = 2 * int(np.prod(self.shape))

    def rows(self) -> npt.NDArray[np.float32]:
        """The float32 values, computed now, as a matrix: (all dimensions but the last, the last)."""
        value: npt.NDArray[np.float32] = type(self.source).to_eager(self.source)
        return value.reshape(-1, value.shape[-1])

    def tofile(self, file: IO[bytes]) -> None:
        """Write all of it: the converter's own rounding, on all cores."""
        for part in spread(halved, self.rows(), self.threads):
            part.tofile(file)


class Quantised:
    """A tensor that is quantised by libggml from the values that an f16 file would hold, while it is written."""

    dtype = np.dtype(np.uint8)

    def __init__(self, half: Half, library: ctypes.CDLL, kind: "GGMLQuantizationType", nbytes: int) -> None:
        self.half, self.library, self.kind, self.nbytes = half, library, kind, nbytes

    def tofile(self, file: IO[bytes]) -> None:
        """Write all of it. Raises Failed for values that have no quantised form (not finite)."""
        rows = self.half.rows()
        row_size = self.nbytes // len(rows)
        for part in spread(lambda some: self.quantised(some, row_size), rows, self.half.threads):
            part.tofile(file)

    def quantised(self, rows: npt.NDArray[np.float32], row_size: int) -> npt.NDArray[np.uint8]:
        """Some rows (count, width) as (count, row_size) bytes. Raises Failed as `tofile`."""
        return libggml.quantised(self.library, self.kind, widened(halved(rows)), row_size)


def halved(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """float32 values as f16: numpy's rounding, by torch, which takes a quarter of its time (two cores with AVX-512)."""
    made: npt.NDArray[np.float16] = torch.from_numpy(rows).half().numpy()
    return made


def widened(rows: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """f16 values as float32."""
    made: npt.NDArray[np.float32] = torch.from_numpy(rows).float().numpy()
    return made


def spread(
    work: Callable[[npt.NDArray[np.float32]], npt.NDArray[Made]], rows: npt.NDArray[np.float32], threads: int
) -> Iterator[npt.NDArray[Made]]:
    """`work` on a few rows at a time, on `threads` threads; the results in order, each as soon as it is there."""
    step = max(1, CHUNK // rows.shape[1])
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, (rows[start : start + step] for start in range(0, len(rows), step)))


def quantise_as_written(writer: "GGUFWriter", quant: str, program: Path, library: Path, probe: Path) -> None:
    """Turn what a GGUFWriter is about to write, an f16 model, into what llama-quantize would make of that file.

    `program`: llama-quantize, which tells the types and the order of the tensors. `library`: libggml, which quantises.
    `probe`: a name for the file that llama-quantize is asked about, see tensor_types. Raises BadInput for a type that
    needs an importance matrix, Failed where one of the two cannot be used.
    """
    import gguf

    tensors, loaded = writer.tensors[0], libggml.load(library)
    ordered = {}
    for name, kind_name in tensor_types(writer, quant, program, probe).items():
        info, kind = tensors[name], gguf.GGMLQuantizationType[kind_name.upper()]
        if kind != info.dtype:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            info.nbytes = int(np.prod(info.shape)) // block * size
            half: Half = info.tensor  # type: ignore[assignment]  # converter_hook put it there
            info.dtype, info.tensor = kind, Quantised(half, loaded, kind, info.nbytes)  # type: ignore[assignment]
        ordered[name] = info
    writer.tensors[0] = ordered
    keys = writer.kv_data[0]
    # llama-quantize sets these two anew, at the end.
    for key, value in (
        (gguf.Keys.General.QUANTIZATION_VERSION, gguf.GGML_QUANT_VERSION),
        (gguf.Keys.General.FILE_TYPE, gguf.LlamaFileType[f"MOSTLY_{quant}"]),
    ):
        keys.pop(key, None)
        keys[key] = type(next(iter(keys.values())))(int(value), gguf.GGUFValueType.UINT32)


def tensor_types(writer: "GGUFWriter", quant: str, program: Path, probe: Path) -> dict[str, str]:
    """By tensor, in the order of its file, the type that llama-quantize gives it, as its dry run on `probe` says.

    Raises BadInput for a quantisation that needs an importance matrix, Failed where the dry run fails or does not name
    each tensor.
    """
    try:
        write_without_weights(writer, probe)
        command = [str(program), "--dry-run", str(probe), quant]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    finally:
        files.remove(probe)
    output = done.stdout + done.stderr
    if "will require an imatrix" in output:
        raise BadInput(f"{quant} needs an importance matrix")
    found = {name: new or own for name, own, new in DRY_RUN.findall(output)}
    if done.returncode or found.keys() != writer.tensors[0].keys():
        last = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()][-1:]
        raise Failed(f"llama-quantize cannot tell the types of {quant}: {''.join(last)}")
    return found


def write_without_weights(writer: "GGUFWriter", path: Path) -> None:
    """Write the GGUF that a writer is about to write as a sparse file: its header and its full size, no weights."""
    once = copy.copy(writer)  # a GGUFWriter writes each part once
    once.write_header_to_file(path)
    once.write_kv_data_to_file()
    once.write_ti_data_to_file()
    assert once.fout
    header = once.fout[0].tell()
    once.close()
    sizes = [header, *(info.nbytes for info in writer.tensors[0].values())]
    os.truncate(path, sum(once.ggml_pad(size, once.data_alignment) for size in sizes))
