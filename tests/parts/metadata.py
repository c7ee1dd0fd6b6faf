"""A GGUF with other metadata: values changed, added or taken out."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from gguf import GGUFReader, GGUFValueType, GGUFWriter

KINDS = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, str: GGUFValueType.STRING}


def with_metadata(source: Path, out: Path, values: Mapping[str, bool | int | str], without: Iterable[str] = ()) -> Path:
    """Write a copy of a GGUF with other single values, and without some keys; its path."""
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
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
