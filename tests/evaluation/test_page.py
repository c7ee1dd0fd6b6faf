"""The page of a run's games, in a real browser."""

from pathlib import Path

import pytest

from tests.parts.browser import browse, open_page
from tests.parts.games import evaluation
from tests.parts.players import TASKS, expert, script
from tools.core import files
from tools.core.run_folder import Run
from tools.evaluation import curves, page

EVIL = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\"></ol></details>"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three players, one of which answers in HTML."""
    played = [
        evaluation("base", "Q8_0", script(f"Thought: {EVIL}\nAction: {EVIL}")),
        evaluation("tuned", "F16", expert()),
        evaluation("tuned", "Q8_0", expert(wins=False)),
        evaluation("tuned", "Q4_K_M", expert(), TASKS[:3]),
    ]
    this = Run(tmp_path_factory.mktemp("page"))
    trained = {"inputs": {"recipe": "ab" * 32}, "loss": 0.5, "seconds": 600.0}
    files.write_json(this.folder / "run.json", {"train": trained})
    logged: list[dict[str, object]] = [{"step": n, "loss": 2 / n, "learning_rate": 0.001 / n} for n in range(1, 41)]
    logged += [{"step": n, "eval_loss": 3 / n} for n in (10, 20, 40)]
    for step in (20, 40):
        state = {"log_history": [each for each in logged if int(str(each["step"])) <= step]}
        files.write_json(this.checkpoints / f"checkpoint-{step}" / "trainer_state.json", state)
    files.write(this.report, page.render(f"cpu/{EVIL}", played, this).encode())
    return this.report


def test_html_of_a_model_is_text(file: Path) -> None:
    text = file.read_text()
    assert text.count("<script") == 0 and text.count("<img") == 0
    assert text.count("&lt;script&gt;") >= 2 * 4 * len(TASKS)


def test_the_curves_are_those_of_the_newest_checkpoint(file: Path) -> None:
    loss, rate = curves.curves(curves.history(Run(file.parent)))
    assert (loss.steps, loss.high, loss.low) == (40, 2.0, 0.05)
    assert [name for name, _ in loss.drawn] == ["training", "validation"]
    assert loss.drawn[0][1].startswith("2.50,0.00 ") and loss.drawn[0][1].endswith(" 100.00,100.00")
    assert rate.title == "Learning rate"
    assert curves.curves([{"step": 1, "loss": 1.0}]) == [] and curves.history(Run(file.parent / "none")) == []


@pytest.mark.heavy
def test_every_game_can_be_read(file: Path) -> None:
    with browse(file) as tab:
        open_page(tab, file)
        assert tab.title() == f"cpu/{EVIL}: games"
        assert tab.locator("details").count() == 3 * len(TASKS) + 3
        assert tab.locator("h2").all_inner_texts() == [
            "Training",
            "8 tasks of household, unseen",
            "3 tasks of household, unseen",
        ]
        assert tab.locator("polyline").count() == 3
        assert "8/8, 100 %" in tab.locator(".rate").all_inner_texts()[1].replace("\n", " ")
        first = tab.locator("#games-0-0 details").first
        assert first.locator("li").first.is_hidden()
        first.locator("summary").click()
        assert EVIL in first.locator("li.assistant").first.inner_text()
        assert "nothing happens" in first.locator("summary").inner_text()
        pairs = tab.locator("tr", has_text="base Q8_0 and tuned F16").inner_text()
        assert pairs.split("\t")[1:] == ["0", "0", "8", "0", "0.0078"]


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_read_on_a_phone_by_day_and_night(file: Path, scheme: str) -> None:
    with browse(file) as tab:
        tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        tab.set_viewport_size({"width": 390, "height": 800})
        open_page(tab, file)
        tab.locator("#games-0-0 summary").first.click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        seen = tab.evaluate(CONTRAST)
        assert len(seen) > 50 and min(seen) >= 4.5


# The contrast of each text with what is behind it, by WCAG 2.2 (1.4.3 wants 4.5).
CONTRAST = """(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const linear = x => (x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    const [r, g, b] = numbers(colour).map(each => linear(each / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = each => {
    for (; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (numbers(colour).length < 4 || numbers(colour)[3] > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const speaks = each => [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  return [...document.querySelectorAll("main *")]
    .filter(each => speaks(each) && each.checkVisibility())
    .map(each => {
      const [a, b] = [light(getComputedStyle(each).color), light(behind(each))].sort((x, y) => y - x);
      return (a + .05) / (b + .05);
    });
})()"""
