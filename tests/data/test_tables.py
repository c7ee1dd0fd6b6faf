"""Parquet in and out, folders that `datasets` saved, data sets of the hub."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.data.test_convert import DATA, LINES, command, large, to
from tests.parts.said import said
from tools import BadInput
from tools.core import chunks
from tools.data import formats
from tools.data.formats import tables

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def lines(path: Path, *rows: object) -> Path:
    """A file of these rows."""
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


@pytest.mark.parametrize("target", formats.JSON)
def test_episodes_go_to_parquet_and_back_the_same_bytes(tmp_path: Path, target: str) -> None:
    counts = to(tmp_path / "there.parquet", DATA, target=target)
    assert counts.written == 48 and parquet.read_metadata(tmp_path / "there.parquet").num_rows == 48
    to(tmp_path / "back.jsonl", tmp_path / "there.parquet")
    assert (tmp_path / "back.jsonl").read_bytes() == DATA.read_bytes()
    assert {item.name for item in tmp_path.iterdir()} == {"there.parquet", "back.jsonl"}


def test_a_large_file_goes_to_parquet_and_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = large(tmp_path)
    monkeypatch.setattr(tables, "BLOCK", 2**21)
    to(tmp_path / "there.parquet", path)
    assert parquet.read_metadata(tmp_path / "there.parquet").num_row_groups > 3
    monkeypatch.setattr("tools.data.convert.LARGE", 2**10)  # several processes convert what was read
    to(tmp_path / "back.jsonl", tmp_path / "there.parquet")
    assert (tmp_path / "back.jsonl").read_bytes() == path.read_bytes()


def test_keys_that_only_later_rows_have_are_columns_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK", 1)  # a row group a row
    rows: list[dict[str, Any]] = [{"messages": TURNS}, {"messages": [TURNS[0] | {"name": "x"}, TURNS[1]], "score": 1}]
    rows.append({"messages": TURNS, "score": 1.5, "date": "2024-01-01"})
    to(tmp_path / "there.parquet", lines(tmp_path / "in.jsonl", *rows))
    to(tmp_path / "back.jsonl", tmp_path / "there.parquet")
    assert [orjson.loads(line) for line in (tmp_path / "back.jsonl").open("rb")] == rows


def test_what_arrow_leaves_null_is_absent(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi", "name": None, "tool_calls": None}, TURNS[1]], "id": None}]
    parquet.write_table(
        pa.Table.from_pylist([*rows, {"messages": [TURNS[0] | {"name": "x"}], "id": 4}]), tmp_path / "in.parquet"
    )
    to(tmp_path / "out.jsonl", tmp_path / "in.parquet")
    found = [orjson.loads(line) for line in (tmp_path / "out.jsonl").open("rb")]
    assert found == [{"messages": TURNS}, {"messages": [TURNS[0] | {"name": "x"}], "id": 4}]


def test_rows_that_no_column_holds_are_refused_in_one_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "in.jsonl", {"id": 17, "messages": TURNS}, {"id": "18", "messages": TURNS})
    with pytest.raises(BadInput, match="out.parquet: a column of Parquet has one type.*/id.*--drop-extra") as error:
        to(tmp_path / "out.parquet", path)
    assert "\n" not in str(error.value) and [item.name for item in tmp_path.iterdir()] == ["in.jsonl"]
    with pytest.raises(BadInput, match="Parquet holds messages, sharegpt, agentinstruct, alpaca, not react"):
        to(tmp_path / "out.parquet", DATA, target="react", drop=True)


def test_a_bad_row_of_parquet_has_its_number(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, {"conversations": []}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    with pytest.raises(BadInput, match="in.parquet:2: no turns"):
        to(tmp_path / "out.jsonl", tmp_path / "in.parquet")


def test_damaged_files_bytes_and_pipes_are_refused_in_one_line(tmp_path: Path) -> None:
    to(tmp_path / "good.parquet", DATA)
    data = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-40])
    with pytest.raises(BadInput, match="cut.parquet:1: damaged"):
        to(tmp_path / "out.jsonl", tmp_path / "cut.parquet")
    parquet.write_table(pa.table({"messages": [TURNS], "image": [b"\xff"]}), tmp_path / "image.parquet")
    with pytest.raises(BadInput, match="image.parquet:1: a column holds bytes"):
        to(tmp_path / "out.jsonl", tmp_path / "image.parquet")
    done = command("-", "-", "--to", "messages", input=data)
    assert done.returncode == 2 and b"stdin:1: Parquet and Arrow cannot be read from a pipe" in done.stderr


def test_a_folder_that_datasets_saved_is_read(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list([orjson.loads(line) for line in LINES]).save_to_disk(str(tmp_path / "saved"))
    to(tmp_path / "out.jsonl", tmp_path / "saved")
    assert (tmp_path / "out.jsonl").read_bytes() == DATA.read_bytes()


def test_a_data_set_of_the_hub_is_refused_in_one_line_where_there_is_no_network(tmp_path: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = command("no-such-owner/agent-data", tmp_path / "out.jsonl", "--to", "messages", env=environment)
    (line,) = said(done.stderr.decode())
    assert done.returncode == 2 and "no-such-owner/agent-data: no such file, and not to be had from the hub" in line


MEASURE = """
import sys
from tools.data import convert
from tools.data.formats.worker import Task
convert.convert_files([sys.argv[1]], sys.argv[2], Task("sharegpt"))
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(LINES) * 400)
    assert path.stat().st_size > 60 * chunks.SIZE / 2
    found = []
    for source, target in ((path, "there.parquet"), (tmp_path / "there.parquet", "back.jsonl")):
        line = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / target)]
        found.append(int(subprocess.run(line, capture_output=True, text=True, check=True).stdout))
    assert max(found) < 150_000
