"""Parquet and Arrow files and data sets of the hub as lines of JSON, and lines of JSON as Parquet; a little at a time.

What is null in a column is absent from the row: Arrow has one set of keys for all rows, and leaves null where a row had
none.
"""

import gc
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tools import BadInput
from tools.core import chunks

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET, ARROW = b"PAR1", (b"ARROW1", b"\xff\xff\xff\xff")  # how such files begin; the second has no magic of its own
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
BLOCK = 2 * 2**20  # bytes of lines that become a row group


def is_table(head: bytes) -> bool:
    """Whether a file is Parquet or Arrow, by its first bytes."""
    return head.startswith((PARQUET, *ARROW))


def pieces(path: Path) -> Iterator[tuple[float, bytes]]:
    """How much of a file's rows were read (0 to 1), and the next of them, a line of JSON each.

    Raises BadInput for a file that is damaged, or holds what JSON cannot.
    """
    import pyarrow as pa

    # The rows of a batch are many small objects without cycles; looking for some takes half of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        for share, batch in batches(path):
            rows = batch.to_pylist()
            if any(has_nulls(column) for column in batch.columns):
                rows = [without_nulls(row) for row in rows]
            yield share, b"".join(orjson.dumps(row, default=refused, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise BadInput(f"damaged, or not what its first bytes say ({str(error)[:120]}); make it again") from error
    except orjson.JSONEncodeError as error:
        raise BadInput("a column holds bytes, such as images; only text can be read") from error
    finally:
        if collecting:
            gc.enable()


def batches(path: Path) -> Iterator[tuple[float, "pa.RecordBatch"]]:
    """How much of a file was read, and the next rows of it: about a chunk's worth."""
    import pyarrow as pa
    from pyarrow import parquet

    pa.set_memory_pool(pa.system_memory_pool())  # its own keeps what was freed
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(PARQUET):
        with parquet.ParquetFile(path, buffer_size=chunks.SIZE, pre_buffer=False) as table:
            groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
            size, count, done = sum(each.total_byte_size for each in groups), table.metadata.num_rows, 0
            # Dictionaries make columns look small: what they hold may be several times as much.
            step = max(1, min(256, chunks.SIZE * count // max(4 * size, 1)))
            for batch in table.iter_batches(batch_size=step, use_threads=False):
                done += batch.num_rows
                yield done / count, batch
        return
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file) if head.startswith(ARROW[0]) else pa.ipc.open_stream(file)
        every = map(reader.get_batch, range(reader.num_record_batches)) if hasattr(reader, "get_batch") else reader
        for batch in every:
            step = max(1, chunks.SIZE * batch.num_rows // max(batch.nbytes, 1))
            for start in range(0, batch.num_rows, step):
                yield file.tell() / file.size(), batch.slice(start, step)


def is_hub_id(path: Path) -> bool:
    """Whether a path that is not there looks like the name of a data set on the hub, owner/name."""
    name = str(path)
    return bool(HUB_ID.fullmatch(name)) and not path.suffix and not path.exists() and not path.parent.exists()


def hub_rows(name: str) -> Iterator[bytes]:
    """The rows of a data set of the hub, of all its splits, as lines of JSON.

    Raises BadInput where it cannot be had.
    """
    import datasets

    try:
        block = b""
        for split in datasets.load_dataset(name, streaming=True).values():
            for row in split:
                block += orjson.dumps(without_nulls(row), default=refused, option=orjson.OPT_APPEND_NEWLINE)
                if len(block) >= chunks.SIZE:
                    yield block
                    block = b""
        yield block
    except Exception as error:  # the network, the hub and each kind of file fail in ways of their own
        why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise BadInput(
            f"{name}: no such file, and not to be had from the hub as a data set; that needs the network ({why})"
        ) from error


def has_nulls(array: "pa.Array") -> bool:
    """Whether anything in a column is null, at any depth."""
    import pyarrow as pa

    if array.null_count:
        return True
    if pa.types.is_struct(array.type) or pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        parts = array.flatten()
        return any(map(has_nulls, parts if isinstance(parts, list) else [parts]))
    return False


def without_nulls(value: object) -> object:
    """A value without the keys of objects that are null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def refused(value: object) -> str:
    """A value that JSON has no type for as text: a date, a number of arbitrary size. Raises TypeError for bytes."""
    if isinstance(value, bytes):
        raise TypeError
    return str(value)


def write(lines: Path, out: Path) -> None:
    """Write lines of JSON as Parquet. Raises BadInput for rows that no one type of each column holds."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())  # its own keeps what was freed
    try:
        try:
            encode(lines, out, None)
        except pa.ArrowInvalid:  # a later row has more keys, or other types, than the first ones
            encode(lines, out, pa.unify_schemas([*schemas(lines)], promote_options="permissive"))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        why = str(error).split("\n")[0][:160]
        raise BadInput(
            f"a column of Parquet has one type, and these rows have several ({why}); see --drop-extra"
        ) from error


def encode(lines: Path, out: Path, schema: "pa.Schema | None") -> None:
    """Write lines of JSON as Parquet, a row group a block; without a schema, in that of the first block."""
    from pyarrow import parquet

    writer: parquet.ParquetWriter | None = None
    try:
        for block in blocks(lines):
            schema = schema or schema_of(block)
            table = parsed(block, schema)
            writer = writer or parquet.ParquetWriter(out, schema)
            writer.write_table(table)
    finally:
        if writer:
            writer.close()


def schemas(lines: Path) -> Iterator["pa.Schema"]:
    """The schema of each block of lines."""
    return map(schema_of, blocks(lines))


def blocks(lines: Path) -> Iterator[bytes]:
    """A file's complete lines, so many bytes of them at a time."""
    with lines.open("rb") as file:
        while block := file.read(BLOCK):
            yield block + file.readline()


def schema_of(block: bytes) -> "pa.Schema":
    """The schema of lines of JSON; a text that looks like a date is a text."""
    import pyarrow as pa

    return pa.schema([field.with_type(as_written(field.type)) for field in parsed(block, None).schema])


def as_written(kind: "pa.DataType") -> "pa.DataType":
    """A type as Arrow finds it in JSON, with text in place of dates."""
    import pyarrow as pa

    if pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(as_written(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([each.with_type(as_written(each.type)) for each in kind])
    return kind


def parsed(block: bytes, schema: "pa.Schema | None") -> "pa.Table":
    """Lines of JSON as a table; with a schema, as that has it. Raises ArrowInvalid where they do not fit."""
    from pyarrow import json as arrow_json

    longest = max(map(len, block.split(b"\n")))
    reading = arrow_json.ReadOptions(block_size=max(chunks.SIZE, longest + 2))
    parsing = arrow_json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="error" if schema is not None else "infer"
    )
    return arrow_json.read_json(io.BytesIO(block), reading, parsing)
