"""Collecting from end to end, of a server that answers as the household's expert: kept, added to, paid for, trained."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.parts.players import expert
from tests.parts.web import says, serving
from tests.pipeline.test_evaluation import answering
from tools import BadInput, Failed
from tools.data import reader
from tools.pipeline import collect as stage
from tools.pipeline.collect import Wanted
from tools.pipeline.evaluation import Asked

ROOMS = 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-written")
    return tmp_path / "collected"


def asked(rooms: int = ROOMS, repeat: int = 1, temperature: float = 0.7) -> Asked:
    return Asked(rooms, split="train", temperature=temperature, repeat=repeat)


def rows(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def collected(script: Any, out: Path, how: Asked, **more: Any) -> list[dict[str, Any]]:
    """Collect from a server; what it was asked."""
    with serving(script) as (url, requests):
        stage.collect_served(url, "", how, Wanted(str(out), **more))
    return requests


def mixed() -> Any:
    """A server that plays as the expert where it is told to by the seed's last bit, and else looks around for ever."""
    right = expert()
    good: dict[str, bool] = {}

    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], dict[str, Any]]:
        told = body["messages"]
        first = told[1]["content"]
        said = right(told, 0).text
        if len(told) == 2:
            good[first] = not good.get(first, True)
        return says("Action: look" if good[first] and len(told) > 2 else said)

    return answer


def test_wins_and_pairs_are_data_for_the_next_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(mixed()) as (url, _):
        stage.collect_served(url, "", asked(repeat=2), Wanted(str(folder), price=(1.0, 2.0), parallel=1))
    out = capsys.readouterr().out
    wins, pairs = rows(folder / "wins.jsonl"), rows(folder / "pairs.jsonl")
    assert len(wins) == len(pairs) == ROOMS
    assert f"{ROOMS} episodes of {ROOMS} won games" in out and f"{ROOMS} preference pairs of {2 * ROOMS} games" in out
    told = {"model", "quant", "prompt", "temperature", "world", "split", "task", "goal", "date"}
    assert wins[0]["provenance"].keys() == told
    assert wins[0]["provenance"]["model"] == "only-model"
    for row, pair in zip(wins, pairs, strict=True):
        assert pair["prompt"] + pair["chosen"] == row["messages"][: len(pair["prompt"]) + 1]
    found = [*reader.rows([folder / "wins.jsonl"], say=False)]
    assert all(isinstance(episode, dict) for _, episode in found)
    assert "dollars" in out
    written = [path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()]
    assert not any(b"sk-never" in each for each in written)


def test_more_rooms_are_added_to_those_that_were_played(folder: Path) -> None:
    first = collected(answering(expert()), folder, asked(2))
    more = collected(answering(expert()), folder, asked(4))
    assert len(rows(folder / "wins.jsonl")) == 4
    begun = [sum(len(each["messages"]) == 2 for each in requests) for requests in (first, more)]
    assert begun == [2, 2]


def test_other_rules_replace_nothing_unless_forced(folder: Path) -> None:
    collected(answering(expert()), folder, asked())
    with pytest.raises(BadInput, match=r"games\.jsonl: games of another teacher or by other rules; .*FORCE=1"):
        collected(answering(expert()), folder, asked(temperature=1.0))
    collected(answering(expert()), folder, asked(2, temperature=1.0), force=True)
    assert len(rows(folder / "wins.jsonl")) == 2


def test_the_budget_stops_it_and_what_was_played_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dollars = {"price": (0.0, 1e6 / 7), "parallel": 1}  # each answer of the server has 7 tokens: a dollar
    collected(answering(expert()), folder, asked(1), **dollars)
    one = int(capsys.readouterr().out.split(" dollars")[0].rsplit(" ")[-1].split(".")[0])
    collected(answering(expert()), folder, asked(), budget=one + 2, **dollars)
    assert "stopped: the budget of" in capsys.readouterr().out
    assert len(rows(folder / "wins.jsonl")) == 1
    with pytest.raises(BadInput, match="BUDGET= is in dollars; PRICE="):
        collected(answering(expert()), folder, asked(), budget=1.0)


def test_a_teacher_that_wins_nothing_is_a_failure_that_says_so(folder: Path) -> None:
    with pytest.raises(Failed, match=f"none of {ROOMS} games was won"):
        collected(lambda number, body: says("<b>I cannot.</b>"), folder, asked())
    assert (folder / "wins.jsonl").read_bytes() == b""


def test_the_expert_needs_no_model(folder: Path) -> None:
    stage.collect_expert(0.2, asked(repeat=4), Wanted(str(folder)))
    wins = rows(folder / "wins.jsonl")
    assert len(wins) >= ROOMS - 1 and wins[0]["provenance"]["model"] == "expert, slip 0.2"
    with pytest.raises(BadInput, match="the expert knows the household alone"):
        stage.collect_expert(0.0, Asked(ROOMS, world="my.py:World"), Wanted(str(folder)))
