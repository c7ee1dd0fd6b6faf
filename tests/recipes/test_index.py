"""The index of recipes/: its figures are the plans', and its page works in a real browser."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import yaml

from tests.parts.browser import Page, browse
from tools.core import catalog, run_folder
from tools.recipes import index, plan, recipe, render


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return index.pages(render.planned())


@pytest.fixture(scope="module")
def data(made: dict[str, str]) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', made["index.html"], re.DOTALL)
    assert found
    return dict(orjson.loads(found[1]))


@pytest.fixture(scope="module")
def page(made: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text(render.sealed(made["index.html"]), encoding="utf-8")
    with browse(folder / "index.html", "document.querySelectorAll('article').length > 0") as opened:
        yield opened


def total(method: str, model: str, tier: str) -> str:
    """The GiB of a recipe's plan as the page writes them."""
    found = plan.choose(catalog.models()[model], catalog.methods()[method], catalog.tiers()[tier])
    assert found
    return f"{plan.as_json(found)['total_gib']:.2f}"


def test_the_same_bytes_each_time_and_ours_when_sealed(made: dict[str, str]) -> None:
    assert index.pages(render.planned()) == made
    for text in made.values():
        assert render.ours(render.sealed(text))
    assert made["index.html"].startswith("<!doctype html>\n")
    assert render.sealed(made["index.html"]).startswith("<!doctype html>\n<!-- hash ")


def test_pages_cost_less_than_a_second() -> None:
    """In a process of its own: here, the count of lines that ran takes as long again."""
    script = """import time
from tools.recipes import index; from tools.recipes import render; from tools.core import templates
planned = list(render.planned())
start = time.process_time()
index.pages(planned)
print(time.process_time() - start)"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=run_folder.ROOT, capture_output=True, text=True, check=True
    )
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


def test_numbers_are_written_as_people_do() -> None:
    written = {1e-4: "1e-4", 7e-4: "7e-4", 5e-6: "5e-6", 2.5e-5: "2.5e-5", 1e-10: "1e-10", 0.05: "0.05", 0.0: "0"}
    assert {value: index.number(value) for value in written} == written


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
            values = yaml.safe_load(render.recipe_text(tier, model, method, found)) | recipe.overrides([written])
            reentrant = (values.get("gradient_checkpointing_kwargs") or {}).get("use_reentrant")
            assert reentrant is (False if wanted.settings.checkpointing and tier.world > 1 else None)
            assert plan.from_recipe(values, tier) == wanted.settings, (tier.key, model.key, method.key, written)
    assert any("load_in_8bit" in each for each in seen) and any("deepspeed" in each for each in seen)
    assert len(seen) > 30
    # As a shell and make hand them on.
    most = max(seen, key=len)
    done = subprocess.run(
        ["bash", "-c", f"make --silent TOOLS=echo plan RECIPE=a TIER=b SET='{most}'"],
        cwd=run_folder.ROOT,
        env=os.environ | {"MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"plan --set={most} -- b/a\n"


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
