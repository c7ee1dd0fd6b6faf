"""The whole way through the page in a real browser: SmolLM2, two steps, to a model that answers and plays."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.parts.browser import chromium
from tools.core import catalog, run_folder, trajectory
from tools.gguf import llamacpp
from tools.recipes import plan

pytestmark = pytest.mark.slow
expect.set_options(timeout=240_000)  # what is checked first loads Axolotl
NAME = "my-smollm2-135m-lora"
# In a file, a recipe and a question: it must stay text wherever it is shown.
HOSTILE = "<img src=x onerror=document.title='broken'>"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def address(outputs: Path) -> Iterator[str]:
    """The page as a person has it served; Ctrl-C ends it, and leaves nothing running."""
    with served(outputs) as here:
        yield here


@contextlib.contextmanager
def served(outputs: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """`ui` on a free port, until it is ended by Ctrl-C."""
    port = llamacpp.free_port()
    command = [sys.executable, "-m", "tools", "ui", "--port", str(port), *arguments]
    given = os.environ | {"REACT_RECIPES_OUTPUTS": str(outputs)} | environment
    with subprocess.Popen(command, cwd=run_folder.ROOT, env=given, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                with socket.socket() as there:
                    if there.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(60)
    assert status == 130
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
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda each: asked.append(each.url))
        page.on("pageerror", lambda each: wrong.append(str(each)))
        page.on("console", lambda each: wrong.append(each.text) if each.type == "error" else None)
        page.goto(address, wait_until="domcontentloaded")
        expect(box(page, "plan-command")).to_have_value(re.compile("make plan RECIPE="))
        yield page
        assert page.title() == "react-recipes" and page.locator("img[src=x]").count() == 0
        browser.close()
    # Gradio's own, where a page is left while it listens.
    assert [each for each in wrong if "AbortError" not in each] == []
    assert not [each for each in asked if not each.startswith((address, "data:", "blob:"))]


def box(page: Page, key: str) -> Locator:
    """A box of text on the page."""
    return page.locator(f"#{key} textarea, #{key} input").first


def pick(page: Page, key: str, text: str) -> None:
    """Choose from a list."""
    box(page, key).click()
    box(page, key).fill(text)
    page.get_by_role("option", name=text).first.click()


def tab(page: Page, name: str) -> None:
    """Open one of the tabs."""
    page.get_by_role("tab", name=name).click()


def press(page: Page, button: str, key: str, says: str) -> None:
    """Press a button until a box says so: a press is lost while the page still draws its tab."""
    for _ in range(4):
        page.locator(f"#{button}").click()
        with contextlib.suppress(AssertionError):
            expect(box(page, key)).to_have_value(re.compile(says), timeout=60_000)
            return
    expect(box(page, key)).to_have_value(re.compile(says))


def done(page: Page, button: str, seconds: float = 600) -> None:
    """Press a button, and wait until what it started has ended well."""
    line = box(page, f"{button}-command").input_value()
    press(page, button, "state", rf"^(running|done|ended[\w ]*): {re.escape(line)}")
    expect(box(page, "state")).to_have_value(
        re.compile(rf"^(done|ended[\w ]*): {re.escape(line)}"), timeout=1000 * seconds
    )
    assert box(page, "state").input_value().startswith("done"), box(page, "log").input_value()[-3000:]
    assert box(page, "notice").count() == 0


def test_a_choice_shows_what_it_takes_and_its_commands(page: Page) -> None:
    pick(page, "model", "SmolLM2-135M-Instruct")
    pick(page, "device", "tier cpu")
    pick(page, "method", "LoRA")
    expect(page.locator("#bars [data-method]").first).to_have_attribute("data-method", "lora")
    assert page.locator("#bars [data-method=lora] .state").inner_text() == "✓ fits"
    found = plan.choose(catalog.models()["smollm2-135m"], catalog.methods()["lora"], catalog.tiers()["cpu"])
    assert found and f"{found.total:.1f} / 8.0 GiB" in page.locator("#bars [data-method=lora]").inner_text()
    assert box(page, "plan-command").input_value() == "make plan RECIPE=smollm2-135m-lora TIER=cpu"
    assert "make train RECIPE=smollm2-135m-lora TIER=cpu" in box(page, "head").input_value()


def test_a_file_is_linted_and_drawn_or_told_with_its_line(page: Page, outputs: Path, tmp_path: Path) -> None:
    tab(page, "Data")
    rows = trajectory.TRAIN_DATA.read_text().splitlines(keepends=True)[:12]
    bad, good = tmp_path / "bad.jsonl", tmp_path / f"{HOSTILE.replace('/', '')} good.jsonl"
    bad.write_text(rows[0] + f'{{"messages": "{HOSTILE}"}}\n')
    good.write_text("".join(rows).replace("You are in the middle", f"{HOSTILE} You are in the middle"))
    page.set_input_files("#drop input[type=file]", bad)
    expect(box(page, "findings")).to_have_value(re.compile(r"bad\.jsonl:2: error: unreadable"))
    page.set_input_files("#drop input[type=file]", good)
    expect(page.locator("#lengths svg rect").first).to_be_visible()
    assert "12 episodes, 0 of level error" in box(page, "findings").input_value()
    (kept,) = (outputs / "board" / "data").glob("img*good.jsonl")
    assert kept.read_bytes() == good.read_bytes()
    assert box(page, "stats-command").input_value() == f"make stats DATA={kept}"


def test_a_recipe_is_checked_as_it_is_typed_and_saved_as_a_copy(page: Page, outputs: Path) -> None:
    tab(page, "Recipe")
    page.locator("#recipe .cm-content").click()
    page.keyboard.press("ControlOrMeta+End")
    page.keyboard.insert_text(f"# {HOSTILE}\nmax_steps: two\n")
    expect(box(page, "checked")).to_have_value(re.compile(rf"{NAME}\.yaml:\d+: max_steps: "))
    for _ in range(4):
        page.keyboard.press("Backspace")
    page.keyboard.insert_text("2\n")
    expect(box(page, "checked")).not_to_have_value(re.compile("max_steps"))
    tab(page, "Train")
    press(page, "train", "notice", "save it in 3 first")
    tab(page, "Recipe")
    page.locator("#new").click()
    saved = outputs / "board" / "cpu" / f"{NAME}.yaml"
    expect(box(page, "train-command")).to_have_value(re.compile(re.escape(f"RECIPE={saved}")))
    assert saved.read_text().endswith(f"# {HOSTILE}\nmax_steps: 2\n")


def test_a_training_is_followed_by_every_page_that_is_opened(page: Page, address: str) -> None:
    tab(page, "Train")
    press(page, "train", "state", "^running: make train")
    other = page.context.new_page()
    other.goto(address)
    expect(box(other, "state")).to_have_value(re.compile("^running: make train"))
    other.close()
    expect(box(page, "state")).to_have_value(re.compile("^(done|ended)"), timeout=600_000)
    assert box(page, "state").input_value().startswith("done: make train"), box(page, "log").input_value()
    expect(page.locator("#plots polyline").first).to_be_visible()


def test_the_model_is_made_proven_asked_and_plays(page: Page, outputs: Path) -> None:
    tab(page, "Model")
    done(page, "gguf")
    assert (outputs / "cpu" / NAME / "model-q8_0.gguf").exists()
    page.locator("#force input").check()  # two steps do not teach it to end its answers
    done(page, "ollama")
    assert orjson.loads((outputs / "cpu" / NAME / "parity.json").read_bytes())["equal"] is True
    box(page, "prompt").fill(f"{HOSTILE} Your task is to: heat some egg.")
    page.locator("#ask").click()
    for who in ("base", "tuned"):
        expect(box(page, who)).to_have_value(
            re.compile(rf"\[user\]\n{re.escape(HOSTILE)}.*\[assistant\]\n.+", re.DOTALL)
        )
    expect(box(page, "state")).to_have_value(re.compile("^done: make ask"), timeout=600_000)
    page.locator("#eval").click()
    expect(box(page, "game")).to_have_value(re.compile(r"\[assistant\]\n.*\n\n\[[\w ]+\]$", re.DOTALL), timeout=600_000)


def test_other_sites_and_other_files_are_refused(address: str) -> None:
    with httpx.Client(base_url=address, trust_env=False) as client:
        page = client.get("/")
        assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
        assert client.get("/", headers={"host": "evil.example"}).status_code == 403
        asked = {"data": [], "fn_index": 0, "session_hash": "x"}
        for origin in ("http://evil.example", "null"):
            done = client.post("/gradio_api/queue/join", json=asked, headers={"origin": origin})
            assert done.status_code == 403
        for path in ("/etc/passwd", str(run_folder.ROOT / "pyproject.toml"), "../../etc/passwd"):
            assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_others_log_in_by_the_password_and_it_speaks_chinese(tmp_path: Path) -> None:
    secret = "correct horse"
    environment = {"REACT_RECIPES_UI_PASSWORD": secret}
    with (
        served(tmp_path, "--host", "0.0.0.0", "--lang", "zh", **environment) as address,
        httpx.Client(base_url=address, trust_env=False) as client,
    ):
        assert "1 选择" not in client.get("/").text and client.get("/config").status_code == 401
        wrong = client.post("/login", data={"username": "x", "password": "wrong"})
        assert wrong.status_code == 400 and client.get("/config").status_code == 401
        assert client.post("/login", data={"username": "x", "password": secret}).status_code == 200
        assert "1 选择" in client.get("/").text and secret not in client.get("/config").text
