"""A run's folder: a name appears only when what it names is whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools import BadInput, Failed, run


def test_a_file_appears_whole(tmp_path: Path) -> None:
    run.write(tmp_path / "a" / "b.txt", b"new")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"new"
    assert [item.name for item in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    run.write(tmp_path / "f", b"old")
    with pytest.raises(KeyboardInterrupt), run.whole(tmp_path / "f") as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "f").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with run.whole(tmp_path / "d") as partial:
            partial.mkdir()
            (partial / name).touch()
    assert [item.name for item in (tmp_path / "d").iterdir()] == ["two"]


def test_a_killed_writer_leaves_no_final_name_and_the_next_one_ends_well(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from tools import run
with run.whole(Path({str(tmp_path / "f")!r})) as partial:
    partial.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=run.ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "f").exists()
    run.write(tmp_path / "f", b"whole")
    assert [item.name for item in tmp_path.iterdir()] == ["f"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="no space left"), run.whole(tmp_path / "f"):
        (tmp_path / "full").symlink_to("/dev/full")
        with (tmp_path / "full").open("wb") as file:
            file.write(b"x" * 100_000)


def test_too_little_space_is_said_before_the_work(tmp_path: Path) -> None:
    run.need_space(tmp_path / "not" / "yet", 0)
    with pytest.raises(Failed, match="GiB needed"):
        run.need_space(tmp_path, 1e9)


def test_a_folders_hash_depends_on_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    first = run.sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert run.sha256(tmp_path) != first
    assert run.sha256(tmp_path / "b") == run.sha256_of(b"1")


def test_a_stage_is_kept_with_time_and_memory_only_when_it_succeeds(tmp_path: Path) -> None:
    this = run.Run(tmp_path)
    with this.stage("train", {"data": "abc"}) as notes:
        notes["tokens"] = 5
    kept = this.provenance()["train"]
    assert kept["tokens"] == 5 and kept["seconds"] >= 0 and kept["peak_gib"] > 0
    assert this.done("train", {"data": "abc"}) and not this.done("train", {"data": "abd"})
    with pytest.raises(BadInput), this.stage("gguf", {}):
        raise BadInput("no")
    assert "gguf" not in this.provenance()


def test_a_tied_process_ends_with_its_parent() -> None:
    script = """
import subprocess, sys
from tools import run
child = subprocess.Popen(run.tied(["sleep", "60"]))
print(child.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=run.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        subprocess.run(["sleep", "0.05"])
    pytest.fail("the child is still there")
