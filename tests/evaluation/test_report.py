"""What a run's files come to: the table, a game in full, demo.json, the last lines."""

import io
from collections.abc import Iterable
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from tests.parts.games import evaluation
from tests.parts.players import expert, script
from tools import BadInput
from tools.core import files
from tools.core.run_folder import Run
from tools.evaluation import report, scores


@pytest.fixture(scope="module")
def played() -> list[scores.Evaluation]:
    """Eight rooms, lost by one player and won by another in two quantisations."""
    return [
        evaluation("base", "Q8_0", expert(wins=False)),
        evaluation("tuned", "F16", expert()),
        evaluation("tuned", "Q8_0", expert()),
    ]


def shown_all(what: Iterable[object]) -> str:
    return "".join(map(shown, what))


def shown(what: object) -> str:
    console = Console(width=140, file=io.StringIO())
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_has_a_column_for_each_player_and_its_intervals(played: list[scores.Evaluation]) -> None:
    text = shown(report.table(played))
    assert "base Q8_0" in text and "tuned F16" in text and "tuned Q8_0" in text
    assert text.count("0/8 0 %") == 1 and text.count("8/8 100 %") == 2 and text.count("(68-100)") == 2
    two = shown(report.table(played[:2]))
    assert two.count("0/8    0 % (0-32)") == 1 and two.count("8/8  100 % (68-100)") == 1
    rows = {line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")}
    tasks = set(played[0]["summary"]["by_task"])
    figures = {"invalid actions", "actions read", "expert's first step", "mean steps", "steps a win"}
    assert rows == tasks | figures | {"all", "95 %", "lost: no action", "tokens/s", "seconds"}


def test_what_the_lenient_parser_reads_more_is_said() -> None:
    text = shown(report.table([evaluation("base", "Q8_0", script("action: look"))]))
    assert "0 % (100 % leniently)" in text


def test_two_models_are_compared_task_by_task(played: list[scores.Evaluation]) -> None:
    found = scores.compare(played[0], played[1])
    assert (found["both"], found["a_alone"], found["b_alone"], found["neither"]) == (0, 0, 8, 0)
    assert found["p"] == 2 / 2**8 and len(found["parted"]) == 8
    text = shown_all(report.comparison(found))
    assert "A: base Q8_0" in text and "B: tuned F16" in text and "B alone 8" in text and "p = 0.0078" in text
    assert all(game["goal"] in text for game in played[0]["games"])
    same = scores.compare(played[1], played[2])
    assert (same["both"], same["p"], same["parted"]) == (8, 1.0, [])


@pytest.mark.parametrize("text", ["[]", "{", '{"player": "tuned", "quant": "Q8_0", "summary": {}}'])
def test_what_is_no_evaluation_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "eval-tuned-q8_0.json"
    file.write_text(text)
    with pytest.raises(BadInput, match="eval-tuned-q8_0.json") as raised:
        report.read_evaluation(file)
    assert "\n" not in str(raised.value)


def test_a_game_is_printed_in_full(played: list[scores.Evaluation]) -> None:
    game = played[1]["games"][0]
    text = " ".join(shown(report.transcript(game)).split())
    assert "A game that was won" in text
    for turn in game["transcript"]:
        assert " ".join(turn["content"].split()) in text


def test_demo_sums_up_a_runs_folder(tmp_path: Path, played: list[scores.Evaluation]) -> None:
    this = Run(tmp_path / "cpu" / "smollm2-135m-lora")
    with this.stage("check", {}):
        pass
    with this.stage("train", {}) as notes:
        notes["tokens_per_second"] = 400.0
    before = report.demo(this, [])
    assert before["parity"] is False and before["base"] is None and before["tuned"] is None
    files.write_json(this.parity, {"equal": True})
    found = report.demo(this, played)
    assert set(found["seconds"]) == {"check", "train"}
    assert found["seconds_total"] == pytest.approx(sum(found["seconds"].values()))
    assert 0 < found["peak_gib"] < 8
    assert found["tokens_per_second"] == 400.0
    assert found["parity"] is True
    assert found["base"] and found["tuned"]
    assert (found["base"]["won"], found["base"]["rooms"]) == (0, 8)
    assert (found["tuned"]["won"], found["tuned"]["rooms"]) == (8, 8)
    assert found["tuned"]["by_quantisation"] == {"F16": {"won": 8, "rooms": 8}, "Q8_0": {"won": 8, "rooms": 8}}
    assert found["tuned"]["by_task"] == played[1]["summary"]["by_task"]
    assert orjson.loads(orjson.dumps(found)) == found


def test_the_last_lines_say_where_how_and_what_next() -> None:
    this = Run(Path("outputs/cpu/smollm2-135m-lora"))
    text = report.closing(this, "react-smollm2", own=True)
    for part in (str(this.folder), "ollama run react-smollm2", "make ollama-run", "make recommend"):
        assert part in text
    assert "make ollama-run" not in report.closing(this, "react-smollm2", own=False)
