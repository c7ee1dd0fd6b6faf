"""Files and folders that are whole or not there: atomic writes, one writer at a time, and what a person has is kept."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tools import BadInput, Failed
from tools.core import progress

if TYPE_CHECKING:
    from filelock import BaseFileLock

# In each folder that we make: the names and sizes of what we put there. Only such a folder is ever replaced.
MARK = ".react-recipes"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# File systems without flock (Lustre's default, some of FUSE): the work goes on without a lock, and says so.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# The longest name of a hidden file beside `path` is 255 bytes (NAME_MAX): so much of the path's own name goes into it.
KEPT_OF_NAME = 120
# The largest JSON file that is read: tokenizer.json of Gemma 3, with 262,144 tokens, has 33 MB.
LARGEST_JSON = 128 * 2**20
# Bytes from which on hashing, or waiting for the disk, is said: a second or more.
LARGE = 2**28


@contextlib.contextmanager
def atomic(path: Path, wait: bool = True) -> Iterator[Path]:
    """Yield a name beside `path` to write a file or folder under; on success it is fsynced and renamed to `path`.

    On any error, Ctrl-C included, what was written is removed and an older `path` stays as it was; what a killed
    process left behind is removed at the next call. One process at a time writes `path`, see `locked` for `wait`.
    Raises Failed when the disk is full, BadInput when `path` cannot be written, or when it is a folder and we did not
    make all that is in it.
    """
    with locked(path, wait) as alone, one_line(path):
        refuse_folder(path)
        if alone:
            clear(path)
        partial = unique(path, "partial")
        try:
            yield partial
            if partial.is_dir():
                mark(partial)
            with said(partial, f"{path.name}: waiting until the disk has it"):
                flush(partial)
            refuse_folder(path)
            put(partial, path)
        finally:
            remove(partial)


@contextlib.contextmanager
def output(name: str | Path, force: bool = False, inputs: Iterable[str | Path | None] = ()) -> Iterator[Path]:
    """Yield a path to write a file under that a person named; it has its name when it is whole, as in `atomic`.

    What is there already is kept, unless `force`; a link is followed; a pipe or a device is written to at once.
    Raises BadInput as `check_output`, Failed when another process writes it or the disk is full.
    """
    inputs = list(inputs)
    name = os.path.expanduser(name)  # no shell has, where make passes the text on
    check_output(name, force, inputs)
    path = Path(os.path.realpath(name))
    if os.path.exists(path) and not os.path.isfile(path):
        with one_line(path):
            yield path
        return
    with atomic(path, wait=False) as partial:
        check_output(name, force, inputs)  # Another process may have made it before the lock was ours.
        yield partial


def check_output(name: str | Path, force: bool = False, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise BadInput unless a file may be written under the `name` that a person gave.

    It may not where a folder is there, where one of `inputs` is that file, or where something is there and not `force`.
    """
    name = os.path.expanduser(name)
    if not str(name):
        raise BadInput("the file to write has no name; give it one (OUT=)")
    if str(name).endswith(os.sep) or os.path.isdir(name):
        raise BadInput(f"{name}: a folder; name a file in it")
    if os.path.islink(os.path.realpath(name)):
        raise BadInput(f"{name}: a link that leads to itself; name another file")
    for each in inputs:
        if each is not None and os.path.exists(name) and os.path.exists(each) and os.path.samefile(name, each):
            raise BadInput(f"{name}: read and written at once; name another file to write")
    if os.path.isfile(name) and not force:
        raise BadInput(f"{name}: is there already; FORCE=1 (--force) replaces it, or name another file")


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of the name `path`: one process at a time makes what it names.

    The lock is a file beside `path` that says who has it; the kernel frees it when that process ends, however it ends.
    While another process holds it, wait and say so; without `wait`, raise Failed. Yields whether the lock is held:
    not so on a file system without locks, which is said. A thread that holds it already goes on.
    Raises BadInput where nothing can be written.
    """
    from filelock import FileLock  # only here: who writes nothing starts sooner without

    file = beside(path, "lock")
    with one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # One a path and thread. Never a lock by a file's mere existence: it would outlive a process that was killed.
        lock = FileLock(os.path.abspath(file), mode=0o644, is_singleton=True, fallback_to_soft=False)
        if lock.is_locked:
            yield True
            return
        held = acquire(lock, path, wait)
    if not held:
        yield False
        return
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            command = " ".join(["python -m tools", *sys.argv[1:]])[:300]
            who = f"{os.getpid()} {socket.gethostname()} {time.strftime('%H:%M')} {command}\n"
            file.write_bytes(who.encode(errors="replace"))
        yield True
    finally:
        # Removed before it is freed: who waits for it finds another file in its place and tries again.
        with contextlib.suppress(OSError):
            file.unlink()
        lock.release()


def acquire(lock: "BaseFileLock", path: Path, wait: bool) -> bool:
    """Take the lock of `path`; False on a file system without locks. Raises Failed, see `locked`."""
    from filelock import Timeout

    file = Path(lock.lock_file)
    try:
        try:
            # Long enough to try again where the last holder removed the file in this moment.
            lock.acquire(timeout=0.05, poll_interval=0.02)
        except Timeout:
            if not file.exists():
                file.touch()  # Raises where no file can be made; filelock would wait there for ever.
            who = words(holder(file))
            if not wait:
                raise Failed(f"{path}: {who} is writing it; wait until it has ended, or name another") from None
            print(f"{path}: waiting for {who}, which is writing it", file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{path.parent}: a file system without locks; start nothing else that writes there", file=sys.stderr)
        file.unlink(missing_ok=True)
        return False
    return True


def holder(file: Path) -> str:
    """What a lock file says of who has it: "PID HOST TIME COMMAND"; nothing where there is none."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def words(held: str) -> str:
    """Who has a lock, in words, by what its file says."""
    pid, host, since, command = [*held.split(" ", 3), "", "", "", ""][:4]
    where = "" if host == socket.gethostname() else f" on {host}"
    return f"process {pid}{where} ({command}, since {since})" if command else "another process"


def beside(path: Path, ending: str) -> Path:
    """A hidden name beside `path` for what belongs to it: .NAME.ENDING; a long name is cut, and told by its hash."""
    name = path.name
    if len(name.encode()) > KEPT_OF_NAME:
        name = f"{name.encode()[:KEPT_OF_NAME].decode(errors='ignore')}-{sha256_of(name.encode())[:8]}"
    return path.with_name(f".{name}.{ending}")


def clear(path: Path) -> None:
    """Remove what killed processes left of `path`; put an older folder back that was about to be replaced.

    Only for who holds the lock of `path`.
    """
    stem = re.escape(beside(path, "").name)
    for item in list(path.parent.iterdir()):
        left = re.fullmatch(rf"{stem}(\d+)-[0-9a-f]{{8}}\.(partial|old|scratch)", item.name)
        if not left or int(left[1]) == os.getpid():
            continue
        if left[2] == "old" and not os.path.lexists(path):
            item.rename(path)
        else:
            remove(item)


def unique(path: Path, ending: str) -> Path:
    """A hidden name beside `path` that no other process has, and by which `clear` knows what a killed one left."""
    return beside(path, f"{os.getpid()}-{secrets.token_hex(4)}.{ending}")


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is needed on the way to it; removed at the end, or after a kill at the next call.

    Waits for another process that makes `path`, as `atomic` does.
    """
    with locked(path) as alone, one_line(path):
        if alone:
            clear(path)
        folder = unique(path, "scratch")
        folder.mkdir()
        try:
            yield folder
        finally:
            remove(folder)


def put(partial: Path, path: Path) -> None:
    """Give `partial` the name `path`. A folder there goes away only once the new one has its name."""
    old = unique(path, "old") if path.is_dir() else None
    if old:
        path.rename(old)
    elif partial.is_dir() and os.path.lexists(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    partial.rename(path)
    sync(path.parent)
    if old:
        shutil.rmtree(old)


def mark(folder: Path) -> None:
    """Note in a folder what it holds, by name and size in bytes, so that it may be replaced later."""
    sizes = {str(item.relative_to(folder)): item.lstat().st_size for item in below(folder)}
    (folder / MARK).write_bytes(orjson.dumps(sizes, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def refuse_folder(path: Path) -> None:
    """Raise BadInput where `path` is a folder that may not be replaced: one that holds anything that we did not put."""
    if not path.is_dir():
        return
    if path.is_symlink() or not (path / MARK).is_file():
        raise BadInput(f"{path}: a folder that this project did not make; move it away, or name another place")
    ours = orjson.loads((path / MARK).read_bytes())
    for item in below(path):
        name = str(item.relative_to(path))
        if name != MARK and ours.get(name) != item.lstat().st_size:
            raise BadInput(f"{item}: changed or added since {path.name} was made; move it away, and run this again")


def below(folder: Path) -> list[Path]:
    """All files and links in a folder and the folders in it; links are not followed."""
    return [Path(top, name) for top, _, names in os.walk(folder) for name in names]


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds; nothing happens where there is none.

    A folder loses its name first: what is left when this is killed is never taken for whole.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    gone = path
    if not path.name.startswith("."):
        gone = unique(path, "partial")
        path.rename(gone)
    shutil.rmtree(gone)


def flush(path: Path) -> None:
    """Have the disk hold a file, or all files of a folder."""
    for item in [path, *(each for each in below(path) if not each.is_symlink())] if path.is_dir() else [path]:
        sync(item)


def said(path: Path, title: str) -> contextlib.AbstractContextManager[Any]:
    """Say what is done to a file or folder, see progress.step; nothing where it is small, and soon done."""
    size = sum(each.lstat().st_size for each in (below(path) if path.is_dir() else [path]))
    return progress.step(title) if size >= LARGE else contextlib.nullcontext()


def sync(path: Path) -> None:
    """fsync of a file or folder; a file system that cannot is left alone."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn what the system says against writing `path` into one line: Failed for a full disk, else BadInput."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise Failed(f"{path}: no space left on the disk; free some and run the same command again") from error
        if error.filename is None or not concerns(os.fsdecode(error.filename), path):
            raise
        raise BadInput(f"{path}: cannot be written ({error.strerror}); name another place") from error


def concerns(name: str, path: Path) -> bool:
    """Whether a file's name is `path`, a folder above it, or one of the hidden names beside it (or within them)."""
    here, there = os.path.abspath(path), os.path.abspath(name)
    hidden = os.path.join(os.path.dirname(here), beside(path, "").name)
    return here == there or here.startswith(os.path.join(there, "")) or there.startswith(hidden)


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises as `atomic`."""
    with atomic(path) as partial:
        partial.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all. Raises as `atomic`."""
    write(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds, which may be a stranger's.

    Raises BadInput for what cannot be read, is too large (LARGEST_JSON), or is no object.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise BadInput(f"{path}: {size / 2**20:.0f} MiB of JSON; more than {LARGEST_JSON >> 20} is not read")
        value = orjson.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}: not JSON ({error.msg}); copy or make the file again") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}:1: not a JSON object; copy or make the file again")
    return value


@contextlib.contextmanager
def log(path: Path) -> Iterator[Any]:
    """A log to write bytes to, for its owner's eyes alone: what programs write may be private."""
    with one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.fchmod(handle, stat.S_IRUSR | stat.S_IWUSR)
    os.close(handle)
    with path.open("ab") as file:
        yield file


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files in a folder, in hexadecimal."""
    if path.is_file():
        with path.open("rb") as file, said(path, f"{path.name}: computing its SHA-256"):
            return hashlib.file_digest(file, "sha256").hexdigest()
    names = sorted(item for item in path.rglob("*") if item.is_file() and item.name != MARK)
    return sha256_of("".join(f"{item.relative_to(path)} {sha256(item)}\n" for item in names).encode())


def sha256_of(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def need_space(folder: Path, gib: float) -> None:
    """Raise Failed unless `folder`, there or to be made, can be written to and its disk has `gib` GiB free."""
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise Failed(f"{folder}: cannot be written to; give its owner the right, or choose another folder")
    free = shutil.disk_usage(folder).free / 2**30
    if free < gib:
        raise Failed(
            f"{folder}: {free:.1f} GiB free and {gib:.1f} GiB needed; free some space and run the same command again"
        )
