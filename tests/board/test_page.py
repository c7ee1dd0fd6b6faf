"""The whole way through the page in a real browser: SmolLM2, two steps, to a model that answers and plays."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.parts.browser import chromium
from tools.core import run_folder
from tools.gguf import llamacpp

NAME = "my-smollm2-135m-lora"
# In a file, a recipe and a question: it must stay text wherever it is shown.
HOSTILE = "<img src=x onerror=document.title='broken'>"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def address(outputs: Path) -> Iterator[str]:
    """The page as a person has it served; Ctrl-C ends it, and leaves nothing running."""
    yield from served(outputs)


def served(outputs: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """`ui` on a free port, until it is ended by Ctrl-C."""
    port = llamacpp.free_port()
    command = [sys.executable, "-m", "tools", "ui", "--port", str(port), *arguments]
    given = os.environ | {"REACT_RECIPES_OUTPUTS": str(outputs)} | environment
    with subprocess.Popen(command, cwd=run_folder.ROOT, env=given, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert llamacpp.free_port(port) == port


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    """The page in a browser. Fails where it asks anybody else for anything, or logs an error."""
    program, environment = chromium()
    asked: list[str] = []
    wrong: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"], env={**os.environ, **environment}
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(30_000)
        page.on("request", lambda each: asked.append(each.url))
        page.on("pageerror", lambda each: wrong.append(str(each)))
        page.on("console", lambda each: wrong.append(each.text) if each.type == "error" else None)
        page.goto(address, wait_until="domcontentloaded")
        expect(box(page, "plan-command")).to_have_value(re.compile("make plan RECIPE="))
        yield page
        assert page.title() == "react-recipes" and page.locator("img[src=x]").count() == 0
        browser.close()
    assert wrong == []
    assert not [each for each in asked if not each.startswith((address, "data:", "blob:"))]


def box(page: Page, key: str):  # type: ignore[no-untyped-def]
    """The text of a box on the page."""
    return page.locator(f"#{key} textarea, #{key} input").first
