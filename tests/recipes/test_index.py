"""The index of recipes/: its figures are the plans', and its page works in a real browser."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from playwright.sync_api import Page

from tests.parts.browser import browse, open_page
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
def file(made: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render.sealed(made["index.html"]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tab(file: Path) -> Iterator[Page]:
    with browse(file) as page:
        yield page


@pytest.fixture
def page(tab: Page) -> Page:
    """The browser's tab, as large as a laptop's."""
    tab.set_viewport_size({"width": 1280, "height": 800})
    tab.emulate_media(color_scheme="light")
    return tab


def total(method: str, model: str, tier: str) -> str:
    """The GiB of a recipe's plan as the page's headings write them."""
    found = plan.choose(catalog.models()[model], catalog.methods()[method], catalog.tiers()[tier])
    assert found
    return f"{found.total:.1f}"


def test_the_same_bytes_each_time_and_ours_when_sealed(made: dict[str, str]) -> None:
    assert index.pages(render.planned()) == made
    for text in made.values():
        assert render.ours(render.sealed(text))
    assert made["index.html"].startswith("<!doctype html>\n")
    assert render.sealed(made["index.html"]).startswith("<!doctype html>\n<!-- hash ")


def test_the_matrix_is_that_of_the_plans(made: dict[str, str]) -> None:
    matrix = made["README.md"].split("## What fits")[1].split("## Methods")[0]
    planned = [each for each in render.planned() if not each[2].rl]
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


def test_methods_and_the_first_five_are_listed(made: dict[str, str]) -> None:
    after = made["README.md"].split("## Methods")[1]
    for method in catalog.methods().values():
        assert f"| `{method.key}` | {method.title}: {method.purpose} |" in after
    assert "| at 2048 tokens | at 8192 tokens |" in after
    row = r"^\| \[(\S+)\]\(\S+\) \|.*\| (\d+) bits \| ([\d.]+) of [^|]* \| ([\d.]+ of|does not fit)"
    rows = re.findall(row, after, re.MULTILINE)
    assert len(rows) == 5
    for name, bits, gib, longer in rows:
        tier, _, title = name.partition("/")
        model, _, method = title.rpartition("-")
        found = plan.choose(catalog.models()[model], catalog.methods()[method], catalog.tiers()[tier])
        assert found and found.settings.bits == int(bits)
        assert f"{found.total:.1f}" == gib
        at_8k = index.at_length(found, found.tier, 8192)
        assert longer == (f"{at_8k.total:.1f} of" if at_8k.fits else "does not fit")


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
    assert [each["key"] for each in data["methods"]] == list(catalog.supervised())
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
    for tier, model, method, found in (each for each in render.planned() if not each[2].rl):
        at = [list(catalog.tiers()).index(tier.key), list(catalog.models()).index(model.key)]
        row = data["rows"][data["cells"][at[0]][at[1]][list(catalog.supervised()).index(method.key)]]
        place, fits, named, _, change, host, speed = row[data["sequences"].index(found.settings.sequence_len)]
        whole, *parts = data["plans"][place]
        assert (fits, named, data["sets"][change], host) == (1, at[0], "", 0)
        assert whole == round(100 * found.total)
        assert speed == pytest.approx(found.tokens_per_second * (found.settings.sequence_len in (2048, 8192)), rel=0.05)
        shown = {name: size for name, size in zip(data["parts"], parts, strict=True) if size}
        assert shown == {name: round(100 * size) for name, size in found.parts.items() if round(100 * size)}
        recipes += 1
    assert recipes > 1000


def test_a_longer_sequence_changes_the_recipe_as_little_as_it_must() -> None:
    for tier, _, _, found in render.planned():
        there = found.settings
        assert index.at_length(found, tier, there.sequence_len) is found
        shorter = index.at_length(found, tier, there.sequence_len // 2)
        rows = f" gradient_accumulation_steps={2 * there.accumulation}" if there.packed else ""
        assert shorter.fits and index.changes(found, shorter) == f"sequence_len={there.sequence_len // 2}{rows}"
        longer = index.at_length(found, tier, 2 * there.sequence_len)
        assert longer.settings.sequence_len == 2 * there.sequence_len
        assert longer.settings.micro_batch <= there.micro_batch
        s = longer.settings
        tokens = s.tokens * s.accumulation / (there.tokens * there.accumulation * s.context_parallel)
        alone = not there.packed or there.micro_batch * there.accumulation == 1
        assert tokens == 2 if alone and s.context_parallel == 1 else 1 <= tokens < 1.5


def test_what_no_memory_makes_possible_has_its_reason() -> None:
    model, methods, tiers = catalog.models()["qwen7b"], catalog.methods(), catalog.tiers()
    short = model.model_copy(update={"context": 2048})
    assert index.impossible(short, methods["qlora"], tiers["24gb"], 2048) == ""
    assert index.impossible(short, methods["qlora"], tiers["24gb"], 4096) == "the model's context ends at 2048 tokens"
    assert "without a GPU" in index.impossible(model, methods["qlora"], tiers["cpu"], 2048)
    assert "bf16" in index.impossible(model, methods["full"], tiers["16gb-turing"], 2048)
    many = tiers["24gb"].model_copy(update={"devices": 32})
    assert "32 GPUs" in index.impossible(model, methods["lora"], many, 2048)
    for method in methods.values():
        for tier in tiers.values():
            assert bool(index.impossible(model, method, tier, 2048)) >= (not plan.possible(method, tier))


def test_a_cpu_without_a_recipe_shows_what_it_would_take() -> None:
    found, recipe = index.shown({}, ("cpu", "qwen7b", "lora"), 4096)
    assert recipe is None and not found.fits and found.total > catalog.tiers()["cpu"].usable_gib
    assert (found.settings.sequence_len, found.settings.bits) == (4096, 32)


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
            several = wanted.settings.checkpointing and tier.world > 1
            assert reentrant is (wanted.settings.reentrant if several else None)
            assert plan.from_recipe(values, tier) == wanted.settings, (tier.key, model.key, method.key, written)
    assert any("load_in_8bit" in each for each in seen) and any("deepspeed" in each for each in seen)
    assert len(seen) > 30
    # As a shell and make hand them on.
    most = max(seen, key=len)
    done = subprocess.run(
        ["bash", "-c", f"make --silent TOOLS='printenv SET #' plan RECIPE=a TIER=b SET='{most}'"],
        cwd=run_folder.ROOT,
        env=os.environ | {"MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{most}\n"


def test_the_page_shows_what_fits_a_gpu(page: Page, file: Path) -> None:
    open_page(page, file, "gpu=rtx3060&gpus=1&model=qwen7b&seq=2048")
    shown = page.inner_text("[data-method=qlora]")
    assert "✓ fits" in shown and f"{total('qlora', 'qwen7b', '12gb')} of 11.6 GiB" in shown
    found = plan.choose(catalog.models()["qwen7b"], catalog.methods()["qlora"], catalog.tiers()["12gb"])
    assert found
    for name, size in found.parts.items():
        assert f"{name} {size:.2f}" in shown
    assert "make train RECIPE=qwen7b-qlora TIER=12gb\n" in shown
    assert "recipes/12gb/qwen7b-qlora.yaml" in shown
    assert page.inner_text("#sum").startswith("QLoRA fits on GeForce RTX 3060 12 GB, tier 12gb.")


def test_what_fits_comes_first_and_what_does_not_says_why(page: Page, file: Path) -> None:
    open_page(page, file, "gpu=rtx3060&gpus=1&model=qwen7b&seq=2048")
    shown = page.evaluate("[...document.querySelectorAll('article')].map(each => each.dataset.method)")
    assert shown == ["qlora", "lora", "full", "lora-regularised"]
    least, _ = index.shown({}, ("12gb", "qwen7b", "lora"), 2048)
    lora = page.inner_text("[data-method=lora]")
    assert "✗ does not fit" in lora and "make train" not in lora and "It fits with" in lora
    assert re.search(r"needs 1\d\.\d GiB; the card has 11\.6\n", lora) and least.total > 11.63
    # Offloaded, it would fit the card, and not the machine.
    assert re.search(
        r"needs \d+\.\d GiB of the machine's RAM; tier 12gb counts on 28\.8", page.inner_text("article >> nth=2")
    )
    open_page(page, file, "tier=cpu&model=qwen7b&seq=2048")
    assert re.search(r"needs \d+\.\d GiB of RAM; the machine has 8\.0\n", page.inner_text("[data-method=lora]"))
    assert "✗ not possible\nwithout a GPU only LoRA" in page.inner_text("[data-method=qlora]")
    open_page(page, file, "gpu=t4&gpus=1&model=qwen7b&seq=2048")
    assert "needs bf16" in page.inner_text("[data-method=full] header")
    # More memory than any tier of its kind.
    open_page(page, file, "gpu=v100-32gb&gpus=1&model=qwen32b&seq=1024")
    assert "✗ no recipe\nno tier with this much memory" in page.inner_text("[data-method=qlora] header")


def test_all_bars_have_one_scale_and_their_marks(page: Page, file: Path) -> None:
    open_page(page, file, "gpu=rtx3060&gpus=1&model=qwen7b&seq=2048")
    bars = page.evaluate("""[...document.querySelectorAll(".graph")].map(graph => {
      const box = each => each.getBoundingClientRect();
      const at = each => box(graph.querySelector(each)).left - box(graph).left;
      const parts = [...graph.querySelectorAll("i")].map(part => box(part).width);
      return {limit: at(".mark"), card: at(".end"), words: graph.innerText,
        parts: parts.reduce((sum, width) => sum + width)}; })""")
    assert len(bars) == 4
    found = plan.choose(catalog.models()["qwen7b"], catalog.methods()["qlora"], catalog.tiers()["12gb"])
    assert found
    assert bars[0]["parts"] / bars[0]["card"] == pytest.approx(found.total / 11.63, abs=0.01)
    for each in bars:
        assert each["card"] == bars[0]["card"] and each["limit"] / each["card"] == pytest.approx(0.92, abs=0.005)
        assert "limit 10.7" in each["words"] and "card 11.6" in each["words"]
    # A bar with no room for all of it fades out.
    open_page(page, file, "gpu=rtx3060&gpus=1&model=qwen72b&seq=8192")
    assert page.locator(".bar.cut").count() > 0


def test_the_page_says_that_nothing_fits_and_what_would(page: Page, file: Path) -> None:
    state = "gpu=rtx3060&gpus=1&model=qwen72b&seq=8192"
    open_page(page, file, state)
    assert page.inner_text("#sum").startswith("Nothing fits on GeForce RTX 3060")
    assert page.locator("article.fits").count() == page.locator("article .run").count() == 0
    for method in catalog.supervised():
        open_page(page, file, state)
        offered = page.evaluate(f"[...document.querySelectorAll('[data-method={method}] .hints a')].map(a => a.hash)")
        assert offered
        for other in offered:
            open_page(page, file, other.removeprefix("#"))
            assert page.locator("article.fits").count() > 0, other


def test_8k_stands_beside_2k(page: Page, file: Path) -> None:
    tier, model = catalog.tiers()["12gb"], catalog.models()["qwen7b"]
    found = plan.choose(model, catalog.methods()["qlora"], tier)
    assert found
    open_page(page, file, "gpu=rtx3060&gpus=1&model=qwen7b&seq=2048")
    shown = page.inner_text("[data-method=qlora] .lengths")
    for length in (2048, 8192):
        planned = index.at_length(found, tier, length)
        assert planned.fits
        speed = float(f"{planned.tokens_per_second:.2g}")
        assert f"{length} tokens: {planned.total:.1f} GiB, {speed:.0f} tokens/s" in shown
    assert shown.endswith("predicted, on GeForce RTX 3060 12 GB")
    page.click("[data-method=qlora] .lengths a >> text='8192 tokens'")
    page.wait_for_url("**seq=8192")
    open_page(page, file, "gpu=rtx3060&gpus=1&model=qwen14b&seq=2048")
    assert page.locator("[data-method=full] .lengths").count() == 0


def test_the_copy_button_copies_the_command(page: Page, file: Path) -> None:
    open_page(page, file, "tier=24gb&model=qwen7b&seq=8192")
    shown = page.inner_text("[data-method=qlora] code")
    found = plan.choose(catalog.models()["qwen7b"], catalog.methods()["qlora"], catalog.tiers()["24gb"])
    assert found
    assert shown == "make train RECIPE=qwen7b-qlora TIER=24gb SEQ=8192"
    change = index.changes(found, index.at_length(found, found.tier, 8192))
    assert f"with {change.replace(' ', ', ')} in place of its own" in page.inner_text("[data-method=qlora]")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("[data-method=qlora] button")
    page.locator("[data-method=qlora] button >> text=Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == shown
    # A page that may not write to the clipboard copies as the keyboard does.
    open_page(page, file, "tier=24gb&model=qwen7b&seq=2048")
    page.context.clear_permissions()
    page.context.grant_permissions(["clipboard-read"])
    assert (
        page.evaluate("navigator.clipboard.writeText('').then(() => 'written', error => error.name)")
        == "NotAllowedError"
    )
    page.click("[data-method=qlora] button")
    page.locator("[data-method=qlora] button >> text=Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "make train RECIPE=qwen7b-qlora TIER=24gb"


def test_a_choice_is_kept_in_the_address(page: Page, file: Path) -> None:
    open_page(page, file)
    page.select_option("#device", "gpu a6000")
    page.select_option("#model", "llama3.1-8b")
    page.click("#gpus span >> text='2'")
    page.click("#seq span >> text='1024'")
    page.wait_for_url("**#gpu=a6000&gpus=2&model=llama3.1-8b&seq=1024")
    assert "2 × RTX A6000" in page.inner_text("#sum")
    page.select_option("#device", "tier 80gb")
    page.wait_for_url("**#tier=80gb&model=llama3.1-8b&seq=1024")
    # Keys that the catalog does not have leave the first choice.
    open_page(page, file, "gpu=nosuch&gpus=3&model=nosuch&seq=7")
    assert page.input_value("#model") == "qwen7b"


def test_a_gpu_between_two_tiers_takes_what_it_holds(page: Page, file: Path, data: dict[str, Any]) -> None:
    """A recipe that not all of its tier hold, on a GPU that does, as the plan for that very GPU says."""
    checked = 0
    qlora = list(catalog.supervised()).index("qlora")
    for gpu in data["gpus"]:
        tier, limit = data["tiers"][gpu["tiers"][0]], 100 * gpu["limit"]
        for place, model in enumerate(data["models"]):
            entry = data["rows"][data["cells"][gpu["tiers"][0]][place][qlora]][data["sequences"].index(2048)]
            if isinstance(entry, str):
                continue
            held, fits, recipe, _, _, host, _ = entry
            if not fits and not host and recipe >= 0 and data["plans"][held][0] <= limit:
                own = plan.for_gpu(catalog.gpus()[gpu["key"]])
                assert plan.search(catalog.models()[model["key"]], catalog.methods()["qlora"], own)
                checked += 1
                if checked == 1:
                    open_page(page, file, f"gpu={gpu['key']}&gpus=1&model={model['key']}&seq=2048")
                    shown = page.inner_text("[data-method=qlora]")
                    assert "✓ fits" in shown and f"not every device of {tier['key']} holds it, yours does" in shown
                    assert f"TIER={data['tiers'][recipe]['key']}" in shown
    assert checked


def test_every_choice_is_drawn_and_has_a_reason_where_it_does_not_fit(page: Page, file: Path) -> None:
    """All tiers, models, lengths and methods, by the page's own functions."""
    open_page(page, file, "tier=cpu&model=smollm2-135m&seq=2048")
    assert page.inner_text("[data-method=lora] .state") == "✓ fits"
    drawn = page.evaluate("""(() => {
      let count = 0;
      for (const tier of D.tiers) for (const model of D.models) for (const seq of D.sequences)
        for (const method of D.methods) {
          const state = {tier: tier.key, gpus: 1, model: model.key, seq}, seen = look(state, method);
          count += card(state, method) !== null && seen.fits === !seen.reason;
        }
      return count; })()""")
    assert drawn == len(catalog.tiers()) * len(catalog.models()) * len(index.SEQUENCES) * len(catalog.supervised())


def test_a_phones_first_screen_has_the_command(page: Page, file: Path) -> None:
    """The longest command of all, too."""
    page.set_viewport_size({"width": 390, "height": 844})
    open_page(page, file)
    longest = page.evaluate("""(() => {
      const found = [];
      for (const tier of D.tiers) for (const model of D.models) for (const seq of D.sequences) {
        const state = {tier: tier.key, gpus: 1, model: model.key, seq};
        const first = D.methods.find(method => fits(state, method));
        if (first) found.push([command(state, first, look(state, first)).length, address(state)]);
      }
      return found.sort((a, b) => b[0] - a[0])[0][1]; })()""")
    for state in ("gpu=rtx3060&gpus=1&model=qwen7b&seq=2048", longest.removeprefix("#")):
        open_page(page, file, state)
        box = page.locator(".run").first.bounding_box()
        assert box and box["y"] + box["height"] <= 844
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_is_used_with_a_keyboard_and_in_the_dark(page: Page, file: Path) -> None:
    page.emulate_media(color_scheme="dark")
    open_page(page, file, "gpu=rtx3060&gpus=1&model=qwen7b&seq=2048")
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert min(map(int, re.findall(r"\d+", ink)[:3])) > 200
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
    assert reached == ["device", "gpus", "model", "seq", "BUTTON"]
    page.focus("[name=seq]:checked")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**seq=4096")
    # A link that is followed is gone; the focus goes to what is said of the new choice.
    page.focus(".hints a >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.id === 'sum'")
