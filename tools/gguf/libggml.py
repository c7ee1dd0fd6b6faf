"""libggml's quantiser, called as a library; whether one that we did not build is the one that we know how to call.

    python -m tools.gguf.libggml LIBRARY

says in one line why it is not, and nothing where it is. It is asked in a process of its own, with the gguf package of
our llama.cpp: libggml ends a process that calls it wrongly.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tools import Failed
from tools.core import process

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

# The types that are quantised without an importance matrix in files of llama-quantize's.
TYPES = (
    *("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K"),
    *("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "TQ2_0", "TQ1_0", "MXFP4"),
)
# Of these only number and size are looked at: their tables take seconds to make.
SLOW = ("IQ3_S", "IQ3_XXS", "IQ2_S")
# A type of b bits a weight leaves an error of about 1 to 2.6 times 2^-b, in units of the weights' own spread (measured
# on normally distributed ones, libggml 0.25.3). Bytes that mean something else leave one of 1 or more.
ERROR = 4.0


def load(library: Path) -> ctypes.CDLL:
    """libggml's quantiser. Raises Failed where it cannot be loaded or is another library."""
    try:
        loaded = ctypes.CDLL(str(library))
        loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
        loaded.ggml_validate_row_data.restype = ctypes.c_bool
        loaded.ggml_type_name.restype = ctypes.c_char_p
        loaded.ggml_blck_size.restype = ctypes.c_int64
        loaded.ggml_type_size.restype = ctypes.c_size_t
    except OSError as error:
        raise Failed(f"{library}: cannot be loaded: {error}") from error
    except AttributeError as error:
        raise Failed(f"{library}: has no {str(error).rpartition(': ')[2].removeprefix('undefined symbol ')}") from error
    return loaded


def quantised(
    library: ctypes.CDLL, kind: "GGMLQuantizationType", values: npt.NDArray[np.float32], row_size: int
) -> npt.NDArray[np.uint8]:
    """Rows of values (count, width) as (count, row_size) bytes. Raises Failed for values that are not finite."""
    count, width = values.shape
    made = np.empty((count, row_size), dtype=np.uint8)
    # The call releases Python's lock.
    library.ggml_quantize_chunk(
        ctypes.c_int(int(kind)),
        ctypes.c_void_p(values.ctypes.data),
        ctypes.c_void_p(made.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(count),
        ctypes.c_int64(width),
        None,
    )
    if not library.ggml_validate_row_data(
        ctypes.c_int(int(kind)), ctypes.c_void_p(made.ctypes.data), ctypes.c_size_t(made.nbytes)
    ):
        raise Failed("a weight is not a finite number: the adapter or its base is broken")
    return made


def unfit(library: Path, gguf_package: Path) -> str | None:
    """Why a library is not the quantiser that we know how to call; None where it is.

    `gguf_package`: the folder that holds the gguf package of our llama.cpp.
    """
    paths = os.pathsep.join([str(gguf_package), str(Path(__file__).parents[2])])
    told = process.without_secrets() | {"PYTHONPATH": paths, "GGML_NO_BACKTRACE": "1"}
    done = process.finished([sys.executable, "-m", "tools.gguf.libggml", str(library)], env=told)
    if done.returncode == 0:
        return None
    last = next((line for line in reversed((done.stdout + done.stderr).splitlines()) if line.strip()), "")
    return last.removeprefix("error: ") or f"it ends by signal {-done.returncode}"


def check(library: Path) -> None:
    """Raise Failed unless a library knows TYPES by our numbers and sizes, and what it makes of values means them."""
    # gguf imports it wherever it is installed, for tokenizers: most of the time that this takes, by -X importtime.
    sys.modules["mistral_common"] = None  # type: ignore[assignment]
    import gguf

    loaded = load(library)
    values = np.random.default_rng(0).standard_normal((2, 256), dtype=np.float32)
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        theirs = (loaded.ggml_type_name(kind) or b"").decode(errors="replace")
        if theirs.upper() != name or (loaded.ggml_blck_size(kind), loaded.ggml_type_size(kind)) != (block, size):
            raise Failed(f"its type {kind.value} is {theirs or 'none'}, and not {name} as ours")
        if name in SLOW:
            continue
        made = quantised(loaded, kind, values, values.shape[1] // block * size)
        error = float(np.sqrt(np.mean((gguf.dequantize(made, kind) - values) ** 2)))
        if not error < ERROR * 2 ** (-8 * size / block):
            raise Failed(f"what it makes of {name} is not what ours reads")


if __name__ == "__main__":
    try:
        check(Path(sys.argv[1]))
    except Failed as error:
        sys.exit(f"error: {error}")
