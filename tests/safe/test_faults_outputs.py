"""Every output that a person names, and what can stand in its way: what is there is kept, what fails is one line."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parts.said import said
from tools.core import files, run_folder

pytestmark = pytest.mark.heavy

DATA = run_folder.ROOT / "data" / "test.jsonl"
TOOLS = [sys.executable, "-m", "tools"]
Arguments = Callable[[Path, Path], list[str]]
# Every option that names a file: the command that writes `out`, given `data` to read.
FILES: dict[str, Arguments] = {
    "convert": lambda data, out: ["convert", f"{data}", f"{out}", "--to", "sharegpt"],
    "convert, apart": lambda data, out: ["convert", f"{data}", os.devnull, "--to", "alpaca", "--apart", f"{out}"],
    "lint": lambda data, out: ["lint", f"{data}", "--fail-on", "never", "--fix", f"{out}"],
    "stats": lambda data, out: ["stats", f"{data}", "--html", f"{out}"],
    "episodes": lambda data, out: ["episodes", f"{out}", "--count", "40"],
    "new": lambda data, out: ["new", "qwen7b", "qlora", f"{out}", "--tier", "24gb"],
}
# Every option that names a folder, and a file that it writes there.
FOLDERS: dict[str, tuple[Arguments, str]] = {
    "split": (lambda data, out: ["split", f"{data}", "--out", f"{out}"], "validation.jsonl"),
    "convert": (
        lambda data, out: ["convert", f"{data.parent}", f"{out}", "--to", "llamafactory"],
        "react_test_alpaca.json",
    ),
}
MOUNT = 'mount -t tmpfs -o size=16k tmpfs "$0" && {} exec "$@"'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with data for training and, named test, for testing; the former."""
    (tmp_path / "data").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy2(DATA, tmp_path / "data" / name)
    return tmp_path / "data" / "train.jsonl"


def refused(arguments: list[str], status: int = 2, before: list[str] | None = None) -> str:
    """The one line of a command that must fail so."""
    done = subprocess.run([*(before or []), *TOOLS, *arguments], cwd=run_folder.ROOT, capture_output=True, text=True)
    lines = said(done.stderr)
    assert done.returncode == status and len(lines) == 1, done.stderr
    return lines[0]


def state(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(each): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_a_person_named(name: str, data: Path, tmp_path: Path) -> None:
    command = FILES[name]
    folder, there, link = tmp_path / "folder.yaml", tmp_path / "there.yaml", tmp_path / "link.yaml"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    there.write_text("mine")
    link.symlink_to(there)
    before = state(tmp_path)
    for forced in ([], ["--force"]):
        assert "a folder" in refused([*command(data, folder), *forced])
        assert "there.yaml" in refused([*command(data, there / "below.yaml"), *forced])
        assert "/proc/" in refused([*command(data, Path("/proc/x.yaml")), *forced])
        if name not in ("episodes", "new"):
            assert "read and written at once" in refused([*command(data, data), *forced])
    for path in (there, link):
        assert "is there already; FORCE=1" in refused(command(data, path))
    assert state(tmp_path) == before
    subprocess.run([*TOOLS, *command(data, link), "--force"], cwd=run_folder.ROOT, check=True, capture_output=True)
    assert link.is_symlink() and (name == "convert, apart" or there.read_text() != "mine")
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_a_person_named(name: str, data: Path, tmp_path: Path) -> None:
    command, made = FOLDERS[name]
    out = tmp_path / "out"
    out.mkdir()
    (out / made).write_text("mine")
    (out / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "within").mkdir()
    (tmp_path / "within" / made).mkdir()
    before = state(tmp_path)
    assert "is there already" in refused(command(data, out))
    assert "cannot be written" in refused(command(data, tmp_path / "file"))
    assert "a folder" in refused(command(data, tmp_path / "within"))
    assert "/proc/" in refused(command(data, Path("/proc/x")))
    assert state(tmp_path) == before
    subprocess.run([*TOOLS, *command(data, out), "--force"], cwd=run_folder.ROOT, check=True, capture_output=True)
    assert (out / made).read_text() != "mine" and (out / "thesis.txt").read_text() == "years of work"
    # Never onto what is read, by whatever name.
    if name == "split":
        (tmp_path / "link").symlink_to(data.parent)
        assert "read and written at once" in refused([*command(data, tmp_path / "link"), "--force"])


@pytest.mark.skipif(shutil.which("unshare") is None, reason="mounts are Linux's")
@pytest.mark.parametrize("name", [*FILES, *(f"{each}, a folder" for each in FOLDERS)])
def test_a_full_disk_and_one_that_is_read_only(name: str, data: Path, tmp_path: Path) -> None:
    command = FILES.get(name) or FOLDERS[name.removesuffix(", a folder")][0]
    place = tmp_path / "place"
    place.mkdir()
    apart = tmp_path / "odd.jsonl"
    apart.write_text('{"messages": [{"role": "assistant", "content": "%s"}]}\n' % ("x" * 40_000))
    given, out = (apart if "apart" in name else data), place / "out.yaml"
    own = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    full = [*own, MOUNT.format('head -c 20k /dev/zero > "$0/filler" 2>/dev/null;'), f"{place}"]
    said = refused(command(given, out), 1, full)
    assert "no space left on the disk" in said and str(place) in said
    only_read = [*own, MOUNT.format('mount -o remount,ro "$0" &&'), f"{place}"]
    assert "Read-only file system" in refused(command(given, out), 2, only_read)


def test_the_committed_episodes_are_kept_where_they_were_changed(tmp_path: Path) -> None:
    for name in ("data", "catalog", "tools"):
        shutil.copytree(run_folder.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(run_folder.ROOT / "pyproject.toml", tmp_path)  # what makes it a checkout
    path = tmp_path / "data" / "train.jsonl"
    sound = path.read_bytes()
    path.write_text("mine")
    for forced, status in ((["--force"][:0], 2), (["--force"], 0), ([], 0)):
        done = subprocess.run([*TOOLS, "data", *forced], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert path.read_bytes() == (b"mine" if status else sound)
    assert files.sha256(tmp_path / "data" / "test.jsonl") == files.sha256(DATA)
