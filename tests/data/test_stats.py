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

from tests.parts.browser import Page, browse
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
    with browse(made[1], "document.querySelectorAll('section').length > 0") as opened:
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
    assert sum(each <= found["p90"] for each in values) >= 0.9 * len(values)
    assert min(values) <= found["p50"] <= found["p90"] <= found["p99"] <= max(values)


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
    page.open()
    assert page.text("h1") == "48 episodes"
    for unit, key in (("tokens", "tokens"), ("answers", "turns")):
        counts = found[key]["histogram"]["counts"]
        heights = page.run(
            f"[...document.querySelectorAll('#{unit} rect')].map(bar => bar.getBoundingClientRect().height)"
        )
        assert len(heights) == len(counts)
        tallest = max(heights)
        assert tallest > 100
        for height, count in zip(heights, counts, strict=True):
            assert height == pytest.approx(tallest * count / max(counts), abs=0.5)
        assert page.run(f"document.querySelectorAll('#{unit} line').length") == len(stats.PERCENTILES)
    rows = page.run(
        "[...document.querySelectorAll('#actions tr')].map(row => [row.cells[0].innerText, row.cells[2].innerText])"
    )
    assert rows == [[name, f"{count:,}"] for name, count in found["actions"].items()]
    assert page.wrong == [] and {each.partition("#")[0] for each in page.requested} <= {
        page.url,
        "about:blank",
        "data:,",
    }


def test_the_page_is_read_on_a_phone_and_in_the_dark(page: Page) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.open()
    assert page.run("document.documentElement.scrollWidth") <= 360
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 22, 20)"
    page.send("Emulation.clearDeviceMetricsOverride")


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
