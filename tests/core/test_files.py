"""Files and folders: whole or not there, one writer at a time, and nothing of a person's lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools import BadInput, Failed
from tools.core import files, run_folder


def script(text: str) -> list[str]:
    """The command of a Python text that has this project's modules."""
    return [
        sys.executable,
        "-c",
        f"import os, signal, sys, time\nfrom pathlib import Path\nfrom tools.core import files\n{text}",
    ]


def names(folder: Path) -> list[str]:
    """What a folder holds, but for the note of what we put there."""
    return sorted(item.name for item in folder.iterdir() if item.name != files.MARK)


def test_a_file_appears_whole(tmp_path: Path) -> None:
    files.write(tmp_path / "a" / "b.txt", b"new")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"new"
    assert names(tmp_path / "a") == ["b.txt"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    files.write(tmp_path / "f", b"old")
    with pytest.raises(KeyboardInterrupt), files.atomic(tmp_path / "f") as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_a_folder_of_ours_replaces_a_folder_of_ours(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with files.atomic(tmp_path / "d") as partial:
            partial.mkdir()
            (partial / name).touch()
    assert names(tmp_path / "d") == ["two"] and names(tmp_path) == ["d"]


def test_a_folder_that_is_not_ours_is_never_removed(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years")
    for make in (Path.mkdir, Path.touch):
        with pytest.raises(BadInput, match="did not make"), files.atomic(theirs) as partial:
            make(partial)
    assert (theirs / "thesis.txt").read_text() == "years" and names(tmp_path) == ["theirs"]


@pytest.mark.parametrize("change", ["added", "edited"])
def test_what_a_person_put_into_a_folder_of_ours_keeps_it(tmp_path: Path, change: str) -> None:
    with files.atomic(tmp_path / "d") as partial:
        partial.mkdir()
        (partial / "config.json").write_text("{}")
    (tmp_path / "d" / ("notes.txt" if change == "added" else "config.json")).write_text("a person's own")
    with pytest.raises(BadInput, match="changed or added"), files.atomic(tmp_path / "d"):
        raise AssertionError("the work began")
    assert "a person's own" in [item.read_text() for item in (tmp_path / "d").iterdir()]


def test_a_file_in_a_folders_place_is_kept(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("theirs")
    with pytest.raises(BadInput, match="Not a directory"), files.atomic(tmp_path / "d") as partial:
        partial.mkdir()
    assert (tmp_path / "d").read_text() == "theirs"


def test_a_killed_writer_leaves_no_final_name_and_the_next_one_ends_well(tmp_path: Path) -> None:
    text = f"""
with files.atomic(Path({str(tmp_path / "f")!r})) as partial:
    partial.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run(script(text), cwd=run_folder.ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "f").exists() and len(list(tmp_path.iterdir())) == 2  # the partial file, the lock
    files.write(tmp_path / "f", b"whole")
    assert names(tmp_path) == ["f"]


def test_a_folder_that_was_about_to_be_replaced_comes_back(tmp_path: Path) -> None:
    with files.atomic(tmp_path / "d") as partial:
        partial.mkdir()
        (partial / "old").touch()
    (tmp_path / "d").rename(tmp_path / ".d.123-0123abcd.old")  # killed between the two renames
    with pytest.raises(KeyboardInterrupt), files.atomic(tmp_path / "d"):
        raise KeyboardInterrupt
    assert names(tmp_path / "d") == ["old"] and names(tmp_path) == ["d"]


def test_of_two_writers_each_file_is_whole_and_the_second_waits_or_stops(tmp_path: Path) -> None:
    path = tmp_path / "f"
    slow = f"""
with files.atomic(Path({str(path)!r})) as partial, partial.open("wb") as file:
    file.write(b"first, "); file.flush(); print(flush=True); time.sleep(1); file.write(b"whole")
"""
    first = subprocess.Popen(script(slow), cwd=run_folder.ROOT, stdout=subprocess.PIPE)
    assert first.stdout and first.stdout.readline()
    with pytest.raises(Failed, match=f"process {first.pid} .* is writing it"), files.atomic(path, wait=False):
        raise AssertionError("the work began")
    second = subprocess.run(
        script(f"files.write(Path({str(path)!r}), b'second')"), cwd=run_folder.ROOT, capture_output=True, text=True
    )
    assert first.wait() == 0 and f"waiting for process {first.pid}" in second.stderr
    assert path.read_bytes() == b"second" and names(tmp_path) == ["f"]


def test_a_lock_is_free_when_its_holder_was_killed(tmp_path: Path) -> None:
    text = f"""
with files.locked(Path({str(tmp_path / "f")!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run(script(text), cwd=run_folder.ROOT)
    start = time.monotonic()
    with files.locked(tmp_path / "f", wait=False) as alone, files.locked(tmp_path / "f", wait=False):
        assert alone and time.monotonic() - start < 5
    assert names(tmp_path) == []


def test_many_writers_of_one_file_leave_one_of_theirs(tmp_path: Path) -> None:
    texts = [
        f"for n in range(30): files.write(Path({str(tmp_path / 'f')!r}), b'{number}' * 10_000)" for number in range(4)
    ]
    writers = [subprocess.Popen(script(text), cwd=run_folder.ROOT, stderr=subprocess.DEVNULL) for text in texts]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert len(set((tmp_path / "f").read_bytes())) == 1 and names(tmp_path) == ["f"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="no space left"), files.atomic(tmp_path / "f"):
        (tmp_path / "full").symlink_to("/dev/full")
        with (tmp_path / "full").open("wb") as file:
            file.write(b"x" * 100_000)


def test_a_persons_file_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("mine")
    with pytest.raises(BadInput, match="FORCE=1"), files.output(path):
        raise AssertionError("the work began")
    assert path.read_text() == "mine"
    with files.output(path, force=True) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


def test_what_is_read_is_not_written(tmp_path: Path) -> None:
    path, link = tmp_path / "mine.json", tmp_path / "link"
    path.write_text("mine")
    link.symlink_to(path)
    for one, other in ((path, path), (path, link), (link, path)):
        with pytest.raises(BadInput, match="read and written"), files.output(one, True, [None, other]):
            raise AssertionError("the work began")
    assert path.read_text() == "mine"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with files.output(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "new"


@pytest.mark.parametrize("name", ["", "folder", "folder/", "file/below", "/proc/x", "x" * 300, "loop"])
def test_where_nothing_can_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    where = name if name.startswith("/") or not name else f"{tmp_path}/{name}"
    with pytest.raises(BadInput) as error, files.output(where, force=True) as partial:
        partial.write_text("x")
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["file", "folder", "loop"]


def test_a_device_is_written_to_at_once() -> None:
    with files.output(os.devnull) as path:
        assert path == Path(os.devnull)
        path.write_text("x")
    with pytest.raises(Failed, match="no space"), files.output("/dev/full") as path:
        path.write_text("x" * 100_000)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 5000, '"x"', "\xff"])
def test_an_object_of_a_strangers_is_read_or_told_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(BadInput, match="a.json:1: not"):
        files.read_object(tmp_path / "a.json")


def test_too_large_an_object_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(500_000_000)
    with pytest.raises(BadInput, match="477 MiB"):
        files.read_object(tmp_path / "tokenizer.json")


def test_a_log_is_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("older")
    (tmp_path / "x.log").chmod(0o644)
    with files.log(tmp_path / "x.log") as file:
        file.write(b"new")
    assert (tmp_path / "x.log").stat().st_mode & 0o777 == 0o600 and (tmp_path / "x.log").read_text() == "new"


def test_too_little_space_is_said_before_the_work(tmp_path: Path) -> None:
    files.need_space(tmp_path / "not" / "yet", 0)
    with pytest.raises(Failed, match="GiB needed"):
        files.need_space(tmp_path, 1e9)


def test_a_folders_hash_depends_on_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    first = files.sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert files.sha256(tmp_path) != first
    assert files.sha256(tmp_path / "b") == files.sha256_of(b"1")


def test_episodes_are_converted_where_there_is_no_fcntl(tmp_path: Path) -> None:
    code = "import sys; sys.modules['fcntl'] = None; from tools.cli import main; main()"
    arguments = ["convert", "data/test.jsonl", str(tmp_path / "out.json"), "--to", "alpaca"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=run_folder.ROOT, check=True)
    assert names(tmp_path) == ["out.json"]
