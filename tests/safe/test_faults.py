"""kill -9 of commands at several moments: nothing half under a final name, no process left, the next run ends well."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import faults
from tests.parts.said import said
from tools.core import files, run_folder

pytestmark = pytest.mark.heavy

QUICK = ("convert", "convert-gz", "convert-set", "lint", "split", "episodes", "new")
SLOW = ("train", "gguf", "quality")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> faults.Place:
    """A work folder with data."""
    return faults.Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def with_model(place: faults.Place, small_base: Path) -> faults.Place:
    """The same with a small base and its recipe."""
    place.make_model(small_base)
    return place


def commands(names: tuple[str, ...]) -> list[faults.Command]:
    """These commands of the benchmark."""
    return [each for each in faults.commands() if each.name in names]


@pytest.mark.parametrize("command", commands(QUICK), ids=lambda command: command.name)
def test_a_killed_command_leaves_nothing_half_and_ends_well_when_run_again(
    place: faults.Place, command: faults.Command
) -> None:
    count = faults.kill(place, command, 2, random.Random(command.name))
    assert (count.killed, count.ended_well, count.half_files, count.processes_left) == (2, count.runs, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands(SLOW), ids=lambda command: command.name)
def test_a_killed_stage_goes_on_and_ends_well(with_model: faults.Place, command: faults.Command) -> None:
    count = faults.kill(with_model, command, 1, random.Random(command.name))
    assert (count.killed, count.ended_well, count.half_files, count.processes_left) == (1, 1, 0, 0)


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """Data that take seconds to convert."""
    lines = (run_folder.ROOT / "data" / "train.jsonl").read_bytes()
    (tmp_path / "large.jsonl").write_bytes(lines * 300)
    yield tmp_path / "large.jsonl"
    shutil.rmtree(tmp_path)


def test_of_two_conversions_to_one_file_the_second_stops_and_the_first_is_whole(large: Path) -> None:
    out = large.with_name("out.json")
    line = [sys.executable, "-m", "tools", "convert", str(large), str(out), "--to", "sharegpt"]
    first = subprocess.Popen(line, cwd=run_folder.ROOT, stdout=subprocess.PIPE)
    while not list(out.parent.glob(".out.json.*.partial")):
        assert first.poll() is None
    second = subprocess.run(line, cwd=run_folder.ROOT, capture_output=True, text=True)
    assert second.returncode == 1 and f"process {first.pid} (python -m tools convert " in second.stderr
    assert len(said(second.stderr)) == 1
    assert first.wait() == 0 and faults.unsound(out) == ""
    alone = large.with_name("alone.json")
    subprocess.run([*line[:5], str(alone), *line[6:]], cwd=run_folder.ROOT, check=True, stdout=subprocess.PIPE)
    assert files.sha256(out) == files.sha256(alone)


@pytest.mark.slow
def test_of_two_that_make_one_gguf_the_second_waits_and_takes_what_the_first_made(
    small_base: Path, small_adapter: Path, tmp_path: Path
) -> None:
    line = [sys.executable, "-m", "tools", "gguf", "--adapter", str(small_adapter), "--base", str(small_base)]
    environment = os.environ | {"REACT_RECIPES_OUTPUTS": str(tmp_path)}
    first = subprocess.Popen(line, cwd=run_folder.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("adapters/*/.gguf.lock")):
        assert first.poll() is None
    second = subprocess.run(line, cwd=run_folder.ROOT, env=environment, capture_output=True, text=True)
    assert first.communicate() and first.returncode == 0
    assert second.returncode == 0 and f"waiting for process {first.pid}" in second.stderr
    assert "already made of this adapter" in second.stdout
    made = [path for path in tmp_path.glob("adapters/*/*.gguf") if faults.unsound(path) == ""]
    assert {path.name for path in made} == {"model-q8_0.gguf", "base-q8_0.gguf"}
