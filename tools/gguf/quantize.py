"""The tensors of a GGUF quantised as they are written, byte for byte as llama-quantize would make of the f16 file.

Runs in the converter's process: see converter_hook.py.
"""

import copy
import ctypes
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools import BadInput, Failed
from tools.core import files

# Elements that one thread takes at a time: large enough that Python's own share does not show.
CHUNK = 2**20


class Half:
    """A tensor of the converter's on its way into a file, as f16: rounded and written a few rows at a time."""

    dtype = np.dtype(np.float16)

    def __init__(self, source: Any, threads: int) -> None:
        """`source`: the converter's lazy float32 array."""
        self.source, self.shape, self.threads = source, source.shape, threads
        self.nbytes = 2 * int(np.prod(self.shape))

    def rows(self) -> np.ndarray[Any, Any]:
        """The float32 values, computed now, as a matrix."""
        value: np.ndarray[Any, Any] = type(self.source).to_eager(self.source)
        return value.reshape(-1, value.shape[-1])

    def tofile(self, file: Any) -> None:
        """Write all of it: the converter's own rounding, on all cores."""
        for part in spread(halved, self.rows(), self.threads):
            part.tofile(file)


class Quantised:
    """A tensor that is quantised by libggml from the values that an f16 file would hold, while it is written."""

    dtype = np.dtype(np.uint8)

    def __init__(self, half: Half, library: ctypes.CDLL, kind: Any, nbytes: int) -> None:
        self.half, self.library, self.kind, self.nbytes = half, library, kind, nbytes

    def tofile(self, file: Any) -> None:
        """Write all of it. Raises Failed for values that have no quantised form (not finite)."""
        rows = self.half.rows()
        row_size = self.nbytes // len(rows)

        def quantise(part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            values = widened(halved(part))
            made = np.empty((len(part), row_size), dtype=np.uint8)
            count, width = values.shape
            # The call releases Python's lock.
            self.library.ggml_quantize_chunk(
                ctypes.c_int(int(self.kind)),
                ctypes.c_void_p(values.ctypes.data),
                ctypes.c_void_p(made.ctypes.data),
                ctypes.c_int64(0),
                ctypes.c_int64(count),
                ctypes.c_int64(width),
                None,
            )
            if not self.library.ggml_validate_row_data(
                ctypes.c_int(int(self.kind)), ctypes.c_void_p(made.ctypes.data), ctypes.c_size_t(made.nbytes)
            ):
                raise Failed("a weight is not a finite number: the adapter or its base is broken")
            return made

        for part in spread(quantise, rows, self.half.threads):
            part.tofile(file)


def halved(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 values as f16: numpy's rounding, by torch, which takes a quarter of its time (two cores with AVX-512)."""
    return torch.from_numpy(rows).half().numpy()


def widened(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """f16 values as float32."""
    return torch.from_numpy(rows).float().numpy()


def spread(work: Any, rows: np.ndarray[Any, Any], threads: int) -> Iterator[np.ndarray[Any, Any]]:
    """`work` on a few rows at a time, on `threads` threads; the results in order, each as soon as it is there."""
    step = max(1, CHUNK // rows.shape[1])
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, (rows[start : start + step] for start in range(0, len(rows), step)))


def load(library: Path) -> ctypes.CDLL:
    """libggml's quantiser. Raises Failed where it cannot be loaded."""
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        raise Failed(f"{library}: cannot be loaded: {error}") from error
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_validate_row_data.restype = ctypes.c_bool
    return loaded


def straight(writer: Any, quant: str, program: Path, library: Path, hollow: Path) -> None:
    """Turn what a GGUFWriter is about to write, an f16 model, into what llama-quantize would make of that file.

    Types and order of the tensors are llama-quantize's own, from a dry run on `hollow`, a file of the same header and
    shapes that holds nothing else and is removed. Raises BadInput for a type that needs an importance matrix.
    """
    import gguf

    tensors, loaded = writer.tensors[0], load(library)
    chosen = types(writer, quant, program, hollow)
    ordered = {}
    for name, kind_name in chosen.items():
        info, kind = tensors[name], gguf.GGMLQuantizationType[kind_name.upper()]
        if kind != info.dtype:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            info.nbytes = int(np.prod(info.shape)) // block * size
            info.dtype, info.tensor = kind, Quantised(info.tensor, loaded, kind, info.nbytes)
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


def types(writer: Any, quant: str, program: Path, hollow: Path) -> dict[str, str]:
    """By name, in the order of its file, the type that llama-quantize gives each tensor."""
    import gguf

    try:
        probe = copy.copy(writer)
        probe.write_header_to_file(hollow)
        probe.write_kv_data_to_file()
        probe.write_ti_data_to_file()
        place = probe.fout[0].tell()
        probe.close()
        pad = gguf.GGUFWriter.ggml_pad
        sizes = (pad(info.nbytes, writer.data_alignment) for info in writer.tensors[0].values())
        os.truncate(hollow, pad(place, writer.data_alignment) + sum(sizes))
        command = [str(program), "--dry-run", str(hollow), quant]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    finally:
        files.remove(hollow)
    if "will require an imatrix" in done.stdout + done.stderr:
        raise BadInput(f"{quant} needs an importance matrix")
    found = {}
    for name, kind, better in re.findall(
        r"^\[ *\d+/ *\d+\] (\S+) .*?type = *(\w+), .*?size = [^(\n]*(?:\((\w+)\))?", done.stdout + done.stderr, re.M
    ):
        found[name] = better or kind
    if done.returncode or found.keys() != writer.tensors[0].keys():
        last = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()][-1:]
        raise Failed(f"llama-quantize cannot tell the types of {quant}: {''.join(last)}")
    return found
