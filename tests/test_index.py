"""The index of recipes/: its figures are the plans', and its page works in a real browser."""

import contextlib
import fcntl
import io
import itertools
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import brotli
import orjson
import pytest
import yaml

from tools import catalog, index, plan, recipe, render, run

# A headless Chromium that needs no root: the npm package, and its SHA-256.
CHROMIUM = "@sparticuz/chromium@153.0.0"
CHROMIUM_SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"]
# Chromium reads its orders on descriptor 3 and answers on 4.
PIPED = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return index.pages(render.planned(), render.template)


@pytest.fixture(scope="module")
def data(made: dict[str, str]) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', made["index.html"], re.DOTALL)
    assert found
    return dict(orjson.loads(found[1]))


def chromium() -> tuple[str, dict[str, str]]:
    """A Chromium and the environment it needs: the system's, else npm's, brought into the cache once."""
    if own := shutil.which("chromium"):
        return own, {}
    folder = run.cache() / CHROMIUM.rpartition("/")[2]
    with run.locked(folder):
        if not folder.exists():
            with run.whole(folder) as partial:
                unpack(partial)
    return str(folder / "chromium"), {"LD_LIBRARY_PATH": str(folder / "lib")}


def unpack(folder: Path) -> None:
    """Download the npm package into a folder, check its hash, and leave the program and its libraries there."""
    folder.mkdir(parents=True)
    npm = shutil.which("npm")
    assert npm, "the page's test needs a browser: install chromium, or npm, which brings one into the cache"
    subprocess.run([npm, "pack", "--silent", CHROMIUM], cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=300)
    package = next(folder.glob("*.tgz"))
    assert run.sha256(package) == CHROMIUM_SHA256
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

    def __init__(self, orders: int, answers: int, url: str) -> None:
        self.orders, self.answers, self.rest = orders, answers, b""
        self.count, self.session, self.url = itertools.count(1), "", url
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

    def open(self, state: str) -> None:
        """Load the page anew in a state."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=f"{self.url}#{state}")
        self.until("document.readyState === 'complete' && document.querySelectorAll('article').length > 0")

    def until(self, condition: str) -> None:
        """Wait until a condition holds, 5 s at most."""
        end = time.monotonic() + 5
        while not self.run(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """The visible text of an element."""
        return str(self.run(f"document.querySelector({selector!r}).innerText"))


@pytest.fixture(scope="module")
def page(made: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text(render.sealed(made["index.html"]), encoding="utf-8")
    program, environment = chromium()
    # Beyond 3 and 4, so that neither is in the other's way.
    pipes = [os.pipe(), os.pipe()]
    theirs = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (pipes[0][0], pipes[1][1])]
    with subprocess.Popen(
        run.tied(
            [sys.executable, "-c", PIPED, *map(str, theirs), program, *FLAGS, f"--user-data-dir={folder / 'profile'}"]
        ),
        env=os.environ | environment,
        pass_fds=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        for each in (*theirs, pipes[0][0], pipes[1][1]):
            os.close(each)
        try:
            opened = Page(pipes[0][1], pipes[1][0], (folder / "index.html").as_uri())
            opened.send("Page.bringToFront")
            yield opened
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            process.kill()
            os.close(pipes[0][1])
            os.close(pipes[1][0])


def total(method: str, model: str, tier: str) -> str:
    """The GiB of a recipe's plan as the page writes them."""
    found = plan.choose(catalog.models()[model], catalog.methods()[method], catalog.tiers()[tier])
    assert found
    return f"{plan.as_json(found)['total_gib']:.2f}"


def test_the_same_bytes_each_time_and_ours_when_sealed(made: dict[str, str]) -> None:
    assert index.pages(render.planned(), render.template) == made
    for text in made.values():
        assert render.ours(render.sealed(text))
    assert made["index.html"].startswith("<!doctype html>\n")
    assert render.sealed(made["index.html"]).startswith("<!doctype html>\n<!-- hash ")


def test_pages_cost_less_than_a_second() -> None:
    """In a process of its own: here, the count of lines that ran takes as long again."""
    script = """import time
from tools import index, render
planned = list(render.planned())
start = time.process_time()
index.pages(planned, render.template)
print(time.process_time() - start)"""
    done = subprocess.run([sys.executable, "-c", script], cwd=run.ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.0


def test_the_matrix_is_that_of_the_plans(made: dict[str, str]) -> None:
    matrix = made["README.md"].split("## What fits")[1].split("## Methods")[0]
    planned = list(render.planned())
    plans = {f"{tier.key}/{render.name(model, method)}": found for tier, model, method, found in planned}
    cells = re.findall(r"\[([\w-]+)\]\(([\w.-]+/[\w.-]+)\.yaml\)<br>([\d.]+) GiB, (\d+)", matrix)
    # A recipe is named for each tier and model that has one, and for no other.
    assert len(cells) == len({(tier.key, model.key) for tier, model, _, _ in planned}) > 200
    for method, name, gib, tokens in cells:
        found = plans[name]
        assert (f"{found.total:.1f}", found.settings.sequence_len) == (gib, int(tokens)), name
        tier, _, title = name.partition("/")
        assert title == f"{found.model.key}-{method}"
        if method != "full":
            assert f"{tier}/{found.model.key}-full" not in plans
        if method == "qlora":
            assert f"{tier}/{found.model.key}-lora" not in plans
    headed = [key for line in matrix.splitlines() if line.startswith("| |") for key in re.findall(r"\[(\S+)\]", line)]
    assert sorted(headed) == sorted(catalog.tiers())


def test_all_links_of_the_readme_lead_to_what_is_rendered(made: dict[str, str]) -> None:
    there = {f"{tier.key}/{render.name(model, method)}.yaml" for tier, model, method, _ in render.planned()}
    there |= {*catalog.tiers(), "index.html"}
    assert set(re.findall(r"\]\(([^)]+)\)", made["README.md"])) <= there
    for command in re.findall(r"recipes/([\w.-]+/[\w.-]+\.yaml)", made["README.md"]):
        assert command in there


def test_methods_and_the_usual_five_stand_there(made: dict[str, str]) -> None:
    after = made["README.md"].split("## Methods")[1]
    for method in catalog.methods().values():
        assert f"| `{method.key}` | {method.title}: {method.purpose} |" in after
    rows = re.findall(r"^\| \[(\S+)\]\(\S+\) \|.*\| (\d+) bits \| (\d+) \| ([\d.]+) of", after, re.MULTILINE)
    assert len(rows) == 5
    for name, bits, tokens, gib in rows:
        tier, _, title = name.partition("/")
        model, _, method = title.rpartition("-")
        found = plan.choose(catalog.models()[model], catalog.methods()[method], catalog.tiers()[tier])
        assert found and (found.settings.bits, found.settings.sequence_len) == (int(bits), int(tokens))
        assert f"{found.total:.1f}" == gib


def test_rates_are_written_as_people_do() -> None:
    assert [index.rate(value) for value in (1e-4, 5e-6, 2.5e-5)] == ["1e-4", "5e-6", "2.5e-5"]


def test_the_page_is_small_and_asks_nobody(made: dict[str, str]) -> None:
    text = made["index.html"]
    assert len(render.sealed(text).encode()) < 600_000
    assert "http:" not in text and "https:" not in text
    assert not re.search(r"<script[^>]+src|@import|url\(|fetch\(|XMLHttpRequest|<img|<iframe", text)
    assert re.findall(r'<link[^>]+href="([^"]*)"', text) == ["data:,"]


def test_the_page_knows_all_and_each_gpus_tier(data: dict[str, Any]) -> None:
    assert [each["key"] for each in data["gpus"]] == list(catalog.gpus())
    assert [each["key"] for each in data["models"]] == list(catalog.models())
    assert [each["key"] for each in data["methods"]] == list(catalog.methods())
    tiers = {gpu["key"]: [data["tiers"][place]["key"] for place in gpu["tiers"]] for gpu in data["gpus"]}
    assert tiers["rtx3060"][0] == "12gb" and tiers["t4"][0] == "16gb-turing"
    assert tiers["h100-sxm"] == ["80gb", "2x80gb", "4x80gb", "8x80gb", "2x8x80gb"]


def test_the_page_knows_what_each_device_holds(data: dict[str, Any]) -> None:
    for kind, entries in (("tiers", catalog.tiers()), ("gpus", catalog.gpus())):
        for each in data[kind]:
            entry = entries[each["key"]]
            usable = entry.usable if isinstance(entry, catalog.Gpu) else entry.usable_gib
            assert each["usable"] == pytest.approx(usable, abs=0.005)
            assert each["limit"] == pytest.approx(usable * (1 - plan.SPARE), abs=0.005)


def test_the_page_says_of_each_recipe_what_its_plan_does(data: dict[str, Any]) -> None:
    recipes = 0
    for tier, model, method, found in render.planned():
        at = [list(catalog.tiers()).index(tier.key), list(catalog.models()).index(model.key)]
        kin = next(each["kin"] for each in data["methods"] if each["key"] == method.key)
        row = data["cells"][at[0]][at[1]][kin]
        place, fits, named, _, change, host = row[data["sequences"].index(found.settings.sequence_len)]
        whole, *parts = data["plans"][place]
        assert (fits, named, data["sets"][change], host) == (1, at[0], "", 0)
        assert whole == round(100 * found.total)
        shown = {name: size for name, size in zip(data["parts"], parts, strict=True) if size}
        assert shown == {name: round(100 * size) for name, size in found.parts.items() if round(100 * size)}
        recipes += 1
    assert recipes > 1000


def test_a_longer_sequence_changes_the_recipe_as_little_as_it_must() -> None:
    for tier, _, _, found in render.planned():
        there = found.settings
        assert index.at_length(found, tier, there.sequence_len) is found
        shorter = index.at_length(found, tier, there.sequence_len // 2)
        assert shorter.fits and index.changes(found, shorter) == f"sequence_len={there.sequence_len // 2}"
        longer = index.at_length(found, tier, 2 * there.sequence_len)
        assert longer.settings.sequence_len == 2 * there.sequence_len
        assert longer.settings.micro_batch <= there.micro_batch
        assert longer.settings.micro_batch * longer.settings.accumulation == there.micro_batch * there.accumulation


def test_nothing_is_planned_beyond_what_a_model_knows() -> None:
    model = catalog.models()["qwen7b"].model_copy(update={"context": 2048})
    method, tier = catalog.methods()["qlora"], catalog.tiers()["24gb"]
    assert index.cell({}, model, method, tier, 4096) is None
    shown = index.cell({}, model, method, tier, 2048)
    assert shown and shown[1] is None and shown[0].settings.sequence_len == 2048


def test_what_set_says_makes_the_settings_that_were_planned() -> None:
    """Each distinct change, once: put into its recipe as `make train SET=` does, it gives the very settings."""
    seen = set()
    for tier, model, method, found in render.planned():
        for length in index.SEQUENCES:
            wanted = index.at_length(found, tier, length)
            written = index.changes(found, wanted)
            if written in seen or not wanted.fits or length > model.context:
                continue
            seen.add(written)
            values = yaml.safe_load(render.recipe(tier, model, method, found)) | recipe.overrides(written.split())
            reentrant = (values.get("gradient_checkpointing_kwargs") or {}).get("use_reentrant")
            assert reentrant is (False if wanted.settings.checkpointing and tier.world > 1 else None)
            assert plan.from_recipe(values, tier) == wanted.settings, (tier.key, model.key, method.key, written)
    assert any("load_in_8bit" in each for each in seen) and any("deepspeed" in each for each in seen)
    assert len(seen) > 30
    # As a shell and make hand them on.
    most = max(seen, key=len)
    done = subprocess.run(
        ["bash", "-c", f"make --no-print-directory -n plan RECIPE=a TIER=b SET='{most}'"],
        cwd=run.ROOT,
        env=os.environ | {"MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    words = shlex.split(done.stdout.splitlines()[-1])
    assert [word for before, word in itertools.pairwise(words) if before == "--set"] == most.split()


def test_the_page_shows_what_fits_a_gpu(page: Page) -> None:
    page.open("gpu=rtx3060&gpus=1&model=qwen7b&seq=2048")
    shown = page.text("article[data-method=qlora]")
    assert "✓ fits" in shown and f"{total('qlora', 'qwen7b', '12gb')} of 11.63 GiB" in shown
    found = plan.choose(catalog.models()["qwen7b"], catalog.methods()["qlora"], catalog.tiers()["12gb"])
    assert found
    for name, size in found.parts.items():
        assert f"{name} {size:.2f}" in shown
    assert "make train RECIPE=qwen7b-qlora TIER=12gb\n" in shown
    assert "recipes/12gb/qwen7b-qlora.yaml" in shown
    full = page.text("article[data-method=full]")
    assert "✗ does not fit" in full and "It fits with" in full and "make train" not in full
    assert "QLoRA fits." in page.text("#sum") and "11.63 GiB" in page.text("#sum")
    left = page.run(
        "[...document.querySelectorAll('[data-method=qlora] .track > :nth-child(n+3)')].map(e => e.style.left)"
    )
    assert [float(each.removesuffix("%")) for each in left] == pytest.approx([92, 100], abs=0.1)
    # The bar is as wide as its parts are of the device.
    width = page.run("""(() => {
      const [bar, on] = ["article[data-method=qlora] .bar", "article[data-method=qlora] .device"].map(
        each => document.querySelector(each));
      const parts = [...bar.children].reduce((sum, part) => sum + part.getBoundingClientRect().width, 0);
      return parts / on.getBoundingClientRect().width; })()""")
    assert width == pytest.approx(found.total / 11.63, abs=0.01)


def test_the_page_says_that_nothing_fits_and_what_would(page: Page) -> None:
    page.open("gpu=rtx3060&gpus=1&model=qwen72b&seq=8192")
    said = page.text("#sum")
    assert "Nothing fits." in said and "fewer tokens, QLoRA, more or larger GPUs, or a smaller model" in said
    assert page.run("document.querySelectorAll('article.fits').length") == 0
    assert page.run("document.querySelectorAll('article .run').length") == 0
    # What is offered instead does fit.
    for method in catalog.methods():
        page.open("gpu=rtx3060&gpus=1&model=qwen72b&seq=8192")
        offered = page.run(f"[...document.querySelectorAll('article[data-method={method}] .hints a')].map(a => a.hash)")
        assert offered
        for state in offered:
            page.open(state.removeprefix("#"))
            assert page.run("document.querySelectorAll('article.fits').length") > 0, state


def test_the_copy_button_copies_the_command(page: Page) -> None:
    page.open("tier=24gb&model=qwen7b&seq=8192")
    shown = page.text("article[data-method=qlora] code")
    found = plan.choose(catalog.models()["qwen7b"], catalog.methods()["qlora"], catalog.tiers()["24gb"])
    assert found
    change = index.changes(found, index.at_length(found, found.tier, 8192))
    assert shown == f"make train RECIPE=qwen7b-qlora TIER=24gb SET='{change}'"
    button = "document.querySelector('article[data-method=qlora] button')"
    # The way of a page that may use the clipboard, then the way of one that may not.
    page.run("navigator.clipboard.writeText = async text => { window.copied = text; }")
    page.run(f"{button}.click()")
    page.until(f"{button}.textContent === 'Copied'")
    assert page.run("window.copied") == shown
    page.open("tier=24gb&model=qwen7b&seq=2048")
    page.run("navigator.clipboard.writeText = async () => { throw new Error('not allowed'); }")
    page.run("addEventListener('copy', () => { window.copied = document.activeElement.value; })")
    page.run(f"{button}.click()")
    page.until(f"{button}.textContent === 'Copied'")
    assert page.run("window.copied") == "make train RECIPE=qwen7b-qlora TIER=24gb"


def test_a_choice_is_kept_in_the_address(page: Page) -> None:
    page.open("")
    page.run("""(() => {
      const change = (element, value) => { element.value = value; element.dispatchEvent(new Event("change")); };
      change(document.getElementById("device"), "gpu a6000");
      change(document.getElementById("model"), "llama3.1-8b");
      document.querySelector("[name=gpus][value='2']").click();
      document.querySelector("[name=seq][value='1024']").click(); })()""")
    page.until("location.hash === '#gpu=a6000&gpus=2&model=llama3.1-8b&seq=1024'")
    page.until("document.getElementById('sum').innerText.includes('Llama-3.1-8B-Instruct with 1024 tokens')")
    assert "2 × RTX A6000" in page.text("#sum")
    page.run("document.getElementById('device').value = 'tier 80gb'")
    page.run("document.getElementById('device').dispatchEvent(new Event('change'))")
    page.until("location.hash === '#tier=80gb&model=llama3.1-8b&seq=1024'")
    # Nobody's key is no one's error.
    page.open("gpu=nosuch&gpus=3&model=nosuch&seq=7")
    assert page.run("document.getElementById('model').selectedIndex") >= 0


def test_a_gpu_between_two_tiers_takes_what_it_holds(page: Page, data: dict[str, Any]) -> None:
    """A recipe that not all of its tier hold, on a GPU that does, as the plan for that very GPU says."""
    checked = 0
    for gpu in data["gpus"]:
        tier, limit = data["tiers"][gpu["tiers"][0]], 100 * gpu["limit"]
        for place, model in enumerate(data["models"]):
            cell = data["cells"][gpu["tiers"][0]][place][data["methods"][1]["kin"]][2]
            if cell and not cell[1] and not cell[5] and cell[2] >= 0 and data["plans"][cell[0]][0] <= limit:
                own = plan.for_gpu(catalog.gpus()[gpu["key"]])
                assert plan.search(catalog.models()[model["key"]], catalog.methods()["qlora"], own)
                checked += 1
                if checked == 1:
                    page.open(f"gpu={gpu['key']}&gpus=1&model={model['key']}&seq=2048")
                    shown = page.text("article[data-method=qlora]")
                    assert "✓ fits" in shown and f"not every device of {tier['key']} holds it, yours does" in shown
                    assert f"TIER={data['tiers'][cell[2]]['key']}" in shown
    assert checked


def test_every_choice_is_drawn_without_an_error(page: Page) -> None:
    """All tiers and models at one length and a CPU: the page's own functions, called as a person would."""
    page.open("tier=cpu&model=smollm2-135m&seq=2048")
    assert page.text("article[data-method=lora] .state") == "✓ fits"
    assert "no recipe for this without a GPU" in page.text("article[data-method=qlora]")
    drawn = page.run("""(() => {
      let count = 0;
      for (const tier of D.tiers) for (const model of D.models) for (const seq of D.sequences)
        for (const method of D.methods)
          count += card({tier: tier.key, gpus: 1, model: model.key, seq}, method) !== null;
      return count; })()""")
    assert drawn == len(catalog.tiers()) * len(catalog.models()) * len(index.SEQUENCES) * len(catalog.methods())


def test_the_page_works_on_a_phone_with_a_keyboard_and_in_the_dark(page: Page) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.send("Emulation.setDeviceMetricsOverride", **size)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.open("gpu=rtx3060&gpus=1&model=qwen7b&seq=2048")
    assert page.run("document.documentElement.scrollWidth") <= 360
    light = page.run("getComputedStyle(document.body).color")
    assert min(map(int, re.findall(r"\d+", light)[:3])) > 200
    # All that can be chosen or pressed is reached by Tab, in order.
    reached = []
    for _ in range(8):
        for kind in ("keyDown", "keyUp"):
            page.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.append(
            page.run("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
    assert [each for each in reached if each in ("device", "gpus", "model", "seq")] == [
        "device",
        "gpus",
        "model",
        "seq",
    ]
    page.run("document.querySelector('[name=seq]:checked').focus()")
    for kind in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    page.until("location.hash.endsWith('seq=4096')")
    page.send("Emulation.clearDeviceMetricsOverride")


def test_the_browser_found_nothing_wrong(page: Page) -> None:
    """After all that was done with it above: no error, no word in the console, no request but for the page itself."""
    page.open("gpu=rtx3060&gpus=1&model=qwen7b&seq=2048")
    assert page.wrong == []
    assert {each.partition("#")[0] for each in page.requested} <= {page.url, "about:blank", "data:,"}
