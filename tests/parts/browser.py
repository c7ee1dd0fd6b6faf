"""A page in a real browser, for the tests of pages."""

import contextlib
import fcntl
import io
import itertools
import os
import select
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import brotli
import orjson

from tools.core import files, run_folder
from tools.core.process import Program

# A headless Chromium that needs no root: the npm package, and its SHA-256.
CHROMIUM = "@sparticuz/chromium@153.0.0"
CHROMIUM_SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"]
# Chromium reads its orders on descriptor 3 and answers on 4.
PIPED = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def chromium() -> tuple[str, dict[str, str]]:
    """A Chromium and the environment it needs: the system's, else npm's, brought into the cache once."""
    if own := shutil.which("chromium"):
        return own, {}
    folder = run_folder.cache() / CHROMIUM.rpartition("/")[2]
    with files.locked(folder):
        if not folder.exists():
            with files.whole(folder) as partial:
                unpack(partial)
    return str(folder / "chromium"), {"LD_LIBRARY_PATH": str(folder / "lib")}


def unpack(folder: Path) -> None:
    """Download the npm package into a folder, check its hash, and leave the program and its libraries there."""
    folder.mkdir(parents=True)
    npm = shutil.which("npm")
    assert npm, "the page's test needs a browser: install chromium, or npm, which brings one into the cache"
    subprocess.run([npm, "pack", "--silent", CHROMIUM], cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=300)
    package = next(folder.glob("*.tgz"))
    assert files.sha256(package) == CHROMIUM_SHA256
    with tarfile.open(package) as tar:
        packed = {}
        for name in ("chromium", "al2023.tar"):
            member = tar.extractfile(f"package/bin/{name}.br")
            assert member
            packed[name] = brotli.decompress(member.read())
    with tarfile.open(fileobj=io.BytesIO(packed["al2023.tar"])) as tar:
        tar.extractall(folder, filter="data")
    (folder / "chromium").write_bytes(packed["chromium"])
    (folder / "chromium").chmod(0o755)
    package.unlink()


class Page:
    """The page in a browser, driven by the DevTools protocol: its orders in, its answers and what went wrong out."""

    def __init__(self, orders: int, answers: int, url: str, ready: str) -> None:
        self.orders, self.answers, self.rest = orders, answers, b""
        self.count, self.session, self.url, self.ready = itertools.count(1), "", url, ready
        self.wrong: list[str] = []
        self.requested: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Give an order and wait for its answer."""
        number = next(self.count)
        order = {"id": number, "method": method, "params": params} | (
            {"sessionId": self.session} if self.session else {}
        )
        os.write(self.orders, orjson.dumps(order) + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])

    def next(self) -> dict[str, Any]:
        """The next message of the browser; errors and requests are noted."""
        while b"\0" not in self.rest:
            assert select.select([self.answers], [], [], 30)[0], "the browser says nothing"
            chunk = os.read(self.answers, 1 << 20)
            assert chunk, "the browser ended"
            self.rest += chunk
        line, _, self.rest = self.rest.partition(b"\0")
        message = dict(orjson.loads(line))
        if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.wrong.append(str(message["params"]))
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(message["params"]["request"]["url"])
        return message

    def run(self, script: str) -> Any:
        """What a script gives, awaited."""
        done = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def open(self, state: str = "") -> None:
        """Load the page anew in a state."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=f"{self.url}#{state}")
        self.until(f"document.readyState === 'complete' && {self.ready}")

    def until(self, condition: str) -> None:
        """Wait until a condition holds, 5 s at most."""
        end = time.monotonic() + 5
        while not self.run(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """The visible text of an element."""
        return str(self.run(f"document.querySelector({selector!r}).innerText"))


@contextlib.contextmanager
def browse(file: Path, ready: str) -> Iterator[Page]:
    """A page in a headless Chromium; it is `ready` when this condition holds."""
    program, environment = chromium()
    # Beyond 3 and 4, so that neither is in the other's way.
    pipes = [os.pipe(), os.pipe()]
    theirs = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (pipes[0][0], pipes[1][1])]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        Program(
            [sys.executable, "-c", PIPED, *map(str, theirs), program, *FLAGS, f"--user-data-dir={profile}"],
            env=os.environ | environment,
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        for each in (*theirs, pipes[0][0], pipes[1][1]):
            os.close(each)
        try:
            opened = Page(pipes[0][1], pipes[1][0], file.as_uri(), ready)
            opened.send("Page.bringToFront")
            yield opened
        finally:
            process.stop(5)
            os.close(pipes[0][1])
            os.close(pipes[1][0])
