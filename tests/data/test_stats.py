"""Statistics of episodes: the figures are those of the episodes, and the page draws them in a real browser."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from playwright.sync_api import Page

from tests.parts.browser import browse, open_page
from tools import BadInput
from tools.core import run_folder, trajectory
from tools.data import stats
from tools.gguf import find_base

DATA = run_folder.ROOT / "data" / "test.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the command prints of the committed test set, and its page."""
    page = tmp_path_factory.mktemp("stats") / "stats.html"
    command = [sys.executable, "-m", "tools", "stats", str(DATA), "--html", str(page), "--json"]
    done = subprocess.run(command, cwd=run_folder.ROOT, capture_output=True, text=True, check=True)
    return orjson.loads(done.stdout), page


@pytest.fixture(scope="module")
def page(made: tuple[dict[str, Any], Path]) -> Iterator[Page]:
    with browse(made[1]) as opened:
        yield opened


def test_the_figures_are_those_of_the_episodes(made: tuple[dict[str, Any], Path]) -> None:
    found, _ = made
    episodes = list(trajectory.read(DATA))
    tokenizer = find_base.tokenizer("")
    lengths = sorted(len(tokenizer.apply_chat_template(each["messages"], return_dict=False)) for each in episodes)
    answers = [turn["content"] for each in episodes for turn in each["messages"] if turn["role"] == "assistant"]
    assert found["episodes"] == len(episodes) == 48
    tokens = found["tokens"]
    assert (tokens["total"], tokens["min"], tokens["max"]) == (sum(lengths), lengths[0], lengths[-1])
    assert tokens["p50"] == lengths[23] and tokens["p99"] == lengths[47]
    assert tokens["longer_than"]["1024"] == sum(each > 1024 for each in lengths)
    assert sum(tokens["histogram"]["counts"]) == 48
    assert found["turns"]["total"] == len(answers) == sum(found["actions"].values())
    assert found["actions"]["open"] == sum("\nAction: open " in each for each in answers)
    assert {each["task"]: each["episodes"] for each in found["tasks"]} == {
        task: sum(each["task"] == task for each in episodes) for task in {each["task"] for each in episodes}
    }


@settings(deadline=None)
@given(some.lists(some.integers(0, 5000), min_size=1, max_size=60))
def test_a_histogram_holds_all_and_its_ends_are_the_values(values: list[int]) -> None:
    found = stats.spread(values)
    bins = found["histogram"]
    assert sum(bins["counts"]) == len(values)
    assert 1 <= len(bins["counts"]) <= stats.BINS + 1
    assert bins["start"] <= min(values) and max(values) < bins["start"] + len(bins["counts"]) * bins["width"]
    assert bins["counts"][0] and bins["counts"][-1]
    assert sum(each <= found["p95"] for each in values) >= 0.95 * len(values)
    assert min(values) <= found["p50"] <= found["p95"] <= found["p99"] <= max(values)


@settings(deadline=None)
@given(some.lists(some.integers(1, 20_000), min_size=1, max_size=60))
def test_a_plot_has_everything_between_its_ends(values: list[int]) -> None:
    found = stats.spread(values)
    drawn: dict[str, Any] = stats.plot(found, stats.SEQUENCES)
    assert drawn["bars"][0][0] == 0 and sum(bar[4] for bar in drawn["bars"]) == len(values)
    assert all(0 <= place <= 100 for axis in ("x", "y", "marks") for place, _ in drawn[axis])
    assert max(bar[0] for bar in drawn["bars"]) + drawn["width"] <= 100.01
    assert (
        1 <= len(drawn["x"]) <= 7
        and 2 <= len(drawn["y"]) <= 8
        and drawn["y"][-1][1] >= max(bar[4] for bar in drawn["bars"])
    )
    words = [words for _, words in drawn["marks"]]
    assert f"median {found['p50']:,}" in words and f"p95 {found['p95']:,}" in words
    # The first length that holds every episode is marked, wherever there is one.
    holding = [f"sequence {each:,}" for each in stats.SEQUENCES if each >= max(values)]
    assert holding[:1] == [each for each in holding if each in words]


def test_another_tokenizers_folder_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that holds a tokenizer and nothing else: each word is one token, and there is no chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path / "words")
    stats.print_stats([str(DATA)], str(tmp_path / "words"), "", as_json=True)
    found = orjson.loads(capsys.readouterr().out)
    said = [turn["content"] for each in trajectory.read(DATA) for turn in each["messages"]]
    assert found["tokens"]["total"] == sum(len(each.split()) for each in said)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no tokenizer") as error:
        stats.print_stats([str(DATA)], str(tmp_path), "", as_json=True)
    assert "\n" not in str(error.value)


def test_the_tables_say_the_same(capsys: pytest.CaptureFixture[str], made: tuple[dict[str, Any], Path]) -> None:
    from rich.console import Console

    found = made[0]
    found["tokens"]["longer_than"] = {int(size): count for size, count in found["tokens"]["longer_than"].items()}
    for each in stats.tables(cast("stats.Stats", found)):
        Console(width=150).print(each)
    shown = capsys.readouterr().out
    assert f"{found['tokens']['total']:,}" in shown and "1,024 tokens" in shown
    assert all(each["task"] in shown for each in found["tasks"]) and all(each in shown for each in found["actions"])


def test_the_page_draws_what_was_measured_and_asks_for_nothing(made: tuple[dict[str, Any], Path], page: Page) -> None:
    found, _ = made
    open_page(page, made[1])
    assert page.inner_text("h1") == "48 episodes"
    for unit, key in (("tokens", "tokens"), ("answers", "turns")):
        counts = found[key]["histogram"]["counts"]
        heights = page.evaluate(
            f"[...document.querySelectorAll('#{unit} rect')].map(bar => bar.getBoundingClientRect().height)"
        )
        assert len(heights) == len(counts)
        tallest = max(heights)
        assert tallest > 100
        for height, count in zip(heights, counts, strict=True):
            assert height == pytest.approx(tallest * count / max(counts), abs=0.5)
    tokens = found["tokens"]
    marked = [f"{words} {tokens[key]:,}" for words, key in (("median", "p50"), ("p95", "p95"), ("p99", "p99"))]
    assert tokens["max"] < 2048
    marked += ["sequence 1,024", "sequence 2,048"]
    assert sorted(page.locator("#tokens .name").all_text_contents()) == sorted(marked)
    assert page.locator("#answers .name").count() == len(stats.PERCENTILES)
    rows = page.evaluate(
        "[...document.querySelectorAll('#actions tr')].map(row => [row.cells[0].innerText, row.cells[2].innerText])"
    )
    assert rows == [[name, f"{count:,}"] for name, count in found["actions"].items()]


def test_the_page_is_read_on_a_phone_and_in_the_dark(made: tuple[dict[str, Any], Path], page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    open_page(page, made[1])
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # All that is written in a plot can be read: it is large enough, inside its section, and covers nothing else.
    page.add_style_tag(content="svg text { stroke: none !important }")  # The halo counts as part of a text's box.
    for unit in ("tokens", "answers"):
        section = page.locator(f"#{unit}").bounding_box()
        boxes = [each.bounding_box() for each in page.locator(f"#{unit} svg text").all()]
        assert section and len(boxes) > 10
        for at, box in enumerate(boxes):
            assert box and box["height"] > 12
            assert section["x"] <= box["x"] and box["x"] + box["width"] <= section["x"] + section["width"]
            for other in boxes[:at]:
                assert other and (
                    box["x"] >= other["x"] + other["width"]
                    or other["x"] >= box["x"] + box["width"]
                    or box["y"] >= other["y"] + other["height"]
                    or other["y"] >= box["y"] + box["height"]
                )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 22, 20)"


def test_names_of_the_data_are_text_on_the_page() -> None:
    episode: dict[str, object] = {
        "task": "<b>&",
        "messages": [{"role": "assistant", "content": "Thought: a\nAction: b"}],
    }
    measured = stats.measure([episode], lambda messages: 3)
    text = stats.page({"files": ["<i>.jsonl"], "tokenizer": "t", **measured})
    assert "<b>" not in text and "<i>" not in text and "&lt;b&gt;&amp;" in text and "&lt;i&gt;.jsonl" in text


def test_many_tasks_are_the_most_frequent_and_the_others() -> None:
    counted = [(str(number), 100 - number) for number in range(stats.SHOWN + 3)]
    assert stats.most(counted)[-1] == ("3 others", sum(n for _, n in counted[stats.SHOWN :]))
    assert stats.most(counted[: stats.SHOWN]) == counted[: stats.SHOWN]
