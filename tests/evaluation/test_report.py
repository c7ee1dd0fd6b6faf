"""What a run's files come to: the table, a game in full, demo.json, the last lines."""

import io
import random
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from tools.core import files
from tools.core.run_folder import Run
from tools.evaluation import play, report
from tools.worlds.household import episodes
from tools.worlds.household.expert import SYSTEM, Expert


def expert(wins: bool) -> play.Chat:
    """The household's expert as a player; it stops playing after its first answer unless it `wins`."""
    playing: dict[str, Expert] = {}

    def chat(messages: list[dict[str, str]]) -> play.Reply:
        introduction = messages[1]["content"]
        if len(messages) == 2:
            playing[introduction] = Expert(introduction, random.Random(0))
        elif not wins:
            return play.Reply("I do not know.", 4, 0.0)
        thought, action = playing[introduction].act(messages[-1]["content"].removeprefix("Observation: "))
        return play.Reply(f"Thought: {thought}\nAction: {action}", 20, 0.0)

    return chat


@pytest.fixture(scope="module")
def played() -> list[play.Evaluation]:
    """Eight rooms, lost by one player and won by another in two quantisations."""
    rooms = list(episodes.rooms("play", 8))
    found: list[play.Evaluation] = []
    for player, quant, wins in (("base", "Q8_0", False), ("tuned", "F16", True), ("tuned", "Q8_0", True)):
        games = [play.play_room(expert(wins), room, SYSTEM) for room in rooms]
        summary = play.summary(games, 2.0)
        classic: play.Classic = {"prompt": "You are in a room.", "answer": "Action: look"}
        written = [*map(play.as_json, games)]
        found.append({"player": player, "quant": quant, "summary": summary, "classic": classic, "games": written})
    return found


def shown(what: object) -> str:
    console = Console(width=140, file=io.StringIO())
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_has_a_column_for_each_player_and_its_intervals(played: list[play.Evaluation]) -> None:
    text = shown(report.table(played))
    assert "base Q8_0" in text and "tuned F16" in text and "tuned Q8_0" in text
    assert text.count("0/8 0 %") == 1 and text.count("8/8 100 %") == 2 and text.count("(68-100)") == 2
    two = shown(report.table(played[:2]))
    assert two.count("0/8    0 % (0-32)") == 1 and two.count("8/8  100 % (68-100)") == 1
    rows = {line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")}
    tasks = set(played[0]["summary"]["by_task"])
    assert rows == tasks | {"all", "95 %", "invalid actions", "mean steps", "tokens/s", "seconds"}


def test_a_game_is_printed_in_full(played: list[play.Evaluation]) -> None:
    game = played[1]["games"][0]
    text = " ".join(shown(report.transcript(game)).split())
    assert "A game that was won" in text
    for turn in game["transcript"]:
        assert " ".join(turn["content"].split()) in text


def test_demo_sums_up_a_runs_folder(tmp_path: Path, played: list[play.Evaluation]) -> None:
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
