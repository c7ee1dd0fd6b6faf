"""A page in a real browser, for the tests of pages."""

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import brotli
from playwright.sync_api import Page, sync_playwright

from tools.core import files, run_folder

# A headless Chromium that needs no root: the npm package, and its SHA-256.
CHROMIUM = "@sparticuz/chromium@153.0.0"
CHROMIUM_SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"


def chromium() -> tuple[str, dict[str, str]]:
    """A Chromium and the environment it needs: the system's, else npm's, brought into the cache once."""
    if own := shutil.which("chromium"):
        return own, {}
    folder = run_folder.cache() / CHROMIUM.rpartition("/")[2]
    with files.locked(folder):
        if not folder.exists():
            with files.atomic(folder) as partial:
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


@contextlib.contextmanager
def browse(file: Path) -> Iterator[Page]:
    """A tab of a headless Chromium for a file's page. Fails if the page logs anything or requests another file."""
    program, environment = chromium()
    wrong, requested = [], set()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"], env={**os.environ, **environment}
        )
        page = browser.new_page()
        page.set_default_timeout(5000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: requested.add(request.url.partition("#")[0]))
        yield page
        browser.close()
    assert wrong == []
    assert requested <= {file.as_uri(), "data:,"}


def open_page(page: Page, file: Path, state: str = "") -> None:
    """Load a file's page anew, with what its address says after #."""
    page.goto("about:blank")
    page.goto(f"{file.as_uri()}#{state}")
