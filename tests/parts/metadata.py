"""A GGUF that is another: metadata changed, added or taken out, tensors changed."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType, GGUFWriter

Values = npt.NDArray[np.generic]
KINDS = {
    bool: GGUFValueType.BOOL,
    int: GGUFValueType.UINT32,
    float: GGUFValueType.FLOAT32,
    str: GGUFValueType.STRING,
}


def with_metadata(
    source: Path,
    out: Path,
    values: Mapping[str, bool | int | float | str],
    without: Iterable[str] = (),
    tensors: Mapping[str, Callable[[Values], Values]] | None = None,
) -> Path:
    """Write a copy of a GGUF with other single values, without some keys, some tensors changed; its path."""
    reader = GGUFReader(source)
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in {"general.architecture", *values, *without}:
            writer.add_key_value(
                key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    for key, value in values.items():
        writer.add_key_value(key, value, KINDS[type(value)])
    for tensor in reader.tensors:
        change = (tensors or {}).get(tensor.name, np.asarray)
        writer.add_tensor(tensor.name, np.ascontiguousarray(change(tensor.data)), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def zeros(data: Values) -> Values:
    """A tensor of zeros, of any type."""
    return np.zeros_like(data)


def nans(data: Values) -> Values:
    """A tensor of NaN, of any type: its scales are float16, as are its values."""
    return np.full_like(data.view(np.uint8), 255).view(data.dtype)


def upside_down(data: Values) -> Values:
    """A tensor whose rows are in the wrong order."""
    return data[::-1]
