"""Evaluations from end to end, of a server that answers as the household's expert: played, stopped, shown, compared."""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from tests.parts.command import tools
from tests.parts.games import evaluation
from tests.parts.players import TASKS, expert, script
from tests.parts.said import said
from tests.parts.web import Script, says, serving
from tools import BadInput, Failed
from tools.core import files, run_folder, trajectory
from tools.core.run_folder import Run
from tools.evaluation import play, scores
from tools.evaluation.backends import Chat
from tools.gguf import perplexity
from tools.pipeline import evaluation as stage
from tools.pipeline.evaluation import FORM, Asked, Drawn
from tools.pipeline.model import make_gguf, rooms_won
from tools.pipeline.trained import tuned
from tools.worlds import load

ROOMS = 6


def answering(chat: Chat, until: int = 10**9) -> Script:
    """A server that says what a chat says, and from a request on that it is away."""

    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], dict[str, Any]]:
        if number >= until:
            return 503, {"retry-after": "3600"}, {"error": {"message": "away"}}
        told = body["messages"]
        if told[-1]["content"] == stage.CLASSIC:
            return says("Action: look")
        return says(chat(told, 0).text)

    return answer


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-written")
    return tmp_path / "outputs"


@pytest.fixture
def this(outputs: Path) -> Run:
    """The folder of what a server's only model plays."""
    return Run(outputs / "served" / "only-model")


def play_on(script: Script, asked: Asked = Asked(ROOMS)) -> list[dict[str, Any]]:  # noqa: B008
    """Play through a server; what it was asked."""
    with serving(script) as (url, requests):
        stage.play_served(f"{url}/v1", "", asked)
    return requests


def test_any_server_plays_and_its_key_is_written_nowhere(this: Run, capsys: pytest.CaptureFixture[str]) -> None:
    requests = play_on(answering(expert()))
    assert all(each["headers"]["authorization"] == "Bearer sk-never-written" for each in requests)
    found = orjson.loads(this.evaluation("served").read_bytes())
    assert (found["model"], found["backend"], found["summary"]["won"]) == ("only-model", "openai", ROOMS)
    assert found["classic"]["answer"] == "Action: look"
    assert found["games"][0]["transcript"][0]["content"] == trajectory.system_prompt()
    assert not list(this.folder.glob("*.jsonl"))
    assert f"{ROOMS}/{ROOMS}" in capsys.readouterr().out
    written = [path.read_bytes() for path in this.folder.rglob("*") if path.is_file()]
    assert written and not any(b"sk-never" in each or b"127.0.0.1" in each for each in written)
    assert not play_on(answering(expert())) and "already played" in capsys.readouterr().out


def same(found: Path) -> list[dict[str, Any]]:
    """The games of a file, without what a clock says."""
    games = orjson.loads(found.read_bytes())["games"]
    return [{k: v for k, v in game.items() if k not in CLOCKS} for game in games]


CLOCKS = ("wall", "seconds", "world_seconds", "timings")


def test_a_server_that_goes_away_costs_no_game(this: Run, capsys: pytest.CaptureFixture[str]) -> None:
    play_on(answering(expert()))
    whole = same(this.evaluation("served"))
    this.evaluation("served").unlink()
    with pytest.raises(Failed, match=rf"away.*asks to wait 3600 s; [1-5] of {ROOMS} games are kept") as raised:
        play_on(answering(expert(), until=40))
    assert "\n" not in str(raised.value)
    kept = len(this.evaluation("served").with_suffix(".jsonl").read_bytes().splitlines()) - 1
    requests = play_on(answering(expert()))
    fresh = [each for each in requests if len(each["messages"]) == 2]
    assert len(fresh) == ROOMS - kept + 1  # and the classic prompt
    assert same(this.evaluation("served")) == whole


@pytest.mark.heavy
def test_a_killed_evaluation_goes_on_and_gives_the_same_table(this: Run) -> None:
    play_on(answering(expert()))
    whole = same(this.evaluation("served"))
    this.evaluation("served").unlink()
    log = this.evaluation("served").with_suffix(".jsonl")
    with serving(answering(expert())) as (url, _):
        command = [sys.executable, "-m", "tools", "eval", "--url", url, "--rooms", str(ROOMS)]
        process = subprocess.Popen(command, cwd=run_folder.ROOT, env=os.environ, stderr=subprocess.PIPE)
        while not log.exists() or log.read_bytes().count(b"\n") < 2:
            assert process.poll() in (None, 0)
            if this.evaluation("served").exists():
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = tools("eval", "--url", url, "--rooms", str(ROOMS), "--json")
    assert done.returncode == 0, done.stderr
    assert orjson.loads(done.stdout)[0]["summary"]["won"] == ROOMS
    assert same(this.evaluation("served")) == whole


def test_a_model_that_was_not_tuned_is_told_the_form_and_shown_episodes(this: Run) -> None:
    zero = play_on(answering(script("")), Asked(1, prompt="zero-shot"))
    few = play_on(answering(script("")), Asked(1, prompt="few-shot", shots=2))
    system = f"{trajectory.system_prompt()}\n\n{FORM}"
    assert zero[0]["messages"][0] == few[0]["messages"][0] == {"role": "system", "content": system}
    assert len(zero[0]["messages"]) == 2
    told = few[0]["messages"]
    episodes = list(trajectory.read(trajectory.TRAIN_DATA))
    first = episodes[0]
    second = next(each for each in episodes if each["task"] != first["task"])
    assert told[1:-1] == [*first["messages"][1:], *second["messages"][1:]]
    assert told[-1] == zero[0]["messages"][-1]
    assert trajectory.order(told[:-1]) is None
    names = {path.name for path in this.folder.glob("eval-*.json")}
    assert names == {"eval-served-zero-shot.json", "eval-served-few-shot-2-shots.json"}
    game = orjson.loads(this.evaluation("served-few-shot-2-shots").read_bytes())["games"][0]
    assert game["transcript"][1] == told[-1]


def test_several_games_of_a_room(this: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="REPEAT=3: at temperature 0 all games of a task are one"):
        play_on(answering(script("")), Asked(2, repeat=3))
    play_on(answering(script("")), Asked(2, repeat=3, temperature=0.7))
    found = orjson.loads(this.evaluation("served-t0.7-x3").read_bytes())
    assert found["summary"]["pass_at"] == {"1": 0.0, "2": 0.0, "3": 0.0}
    assert [game["attempt"] for game in found["games"]] == [0, 1, 2] * 2
    assert "pass@3" in capsys.readouterr().out


@pytest.mark.parametrize(
    "url", ["ftp://x", "me:secret@host", "https://me:secret@host/v1", "https://host/v1?key=secret"]
)
def test_an_address_that_is_none_is_one_line_without_its_key(outputs: Path, url: str) -> None:
    with pytest.raises(BadInput, match="OPENAI_API_KEY") as raised:
        stage.play_served(url, "", Asked(1))
    assert "secret" not in str(raised.value)


@pytest.fixture
def run(outputs: Path) -> Iterator[Run]:
    """A run of the demo's recipe with games of three players."""
    this = Run(outputs / "cpu" / "smollm2-135m-lora")
    trained = {"inputs": {}, "seconds": 600.0, "peak_gib": 2.0, "loss": 0.5, "eval_loss": 0.6}
    files.write_json(this.folder / "run.json", {"train": trained})
    files.write_json(this.parity, {"equal": True})
    files.write_json(this.evaluation("base-q8_0"), evaluation("base", "Q8_0", script("")))
    files.write_json(this.evaluation("tuned-q8_0"), evaluation("tuned", "Q8_0", expert()))
    files.write_json(this.evaluation("tuned-q4_k_m"), evaluation("tuned", "Q4_K_M", expert(), TASKS[:4]))
    files.write_json(
        this.evaluation("tuned-q8_0-lenient"), evaluation("tuned", "Q8_0", script("")) | {"parse": "lenient"}
    )
    yield this


def test_the_demo_sums_up_what_was_played_as_usual(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    stage.sum_up("smollm2-135m-lora", "Q8_0", "", tier="cpu")
    told = capsys.readouterr().out
    assert "A game that was won" in told and "The classic first prompt" in told and "lenient" not in told
    found = files.read_object(run.folder / "demo.json")
    assert (found["base"]["won"], found["tuned"]["won"], found["parity"]) == (0, 8, True)


def test_a_report_is_written_of_a_run_s_games(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    stage.write_report("smollm2-135m-lora", tier="cpu")
    assert capsys.readouterr().out == f"{run.report}: 28 games\n"
    assert "tuned Q4_K_M" in run.report.read_text()


def test_two_runs_are_compared(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    stage.compare_evaluations(str(run.evaluation("base-q8_0")), str(run.folder), "Q8_0", as_json=True)
    found = orjson.loads(capsys.readouterr().out)
    assert (found["b_alone"], found["tasks"], len(found["parted"])) == (8, 8, 8)
    stage.compare_evaluations(str(run.evaluation("base-q8_0")), str(run.folder), "Q8_0", as_json=False)
    assert "McNemar's exact test: p = 0.0078" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("other", "says_what"),
    [
        ("eval-tuned-q4_k_m.json", "other tasks (8 of household, 4 of household)"),
        ("run.json", "no evaluation of this version"),
        ("parity.json", "no evaluation of this version"),
    ],
)
def test_what_cannot_be_compared_is_one_line(run: Run, other: str, says_what: str) -> None:
    done = tools("compare", str(run.evaluation("base-q8_0")), str(run.folder / other))
    assert done.returncode == 2 and len(said(done.stderr)) == 1 and says_what in done.stderr, done.stderr


def test_what_was_not_played_says_what_there_is(run: Run) -> None:
    with pytest.raises(BadInput, match="eval-tuned-f16.json: no such games; there: eval-base-q8_0.json, eval-tuned"):
        stage.compare_evaluations(str(run.folder), str(run.folder), "F16", as_json=False)
    for each in run.folder.glob("eval-*.json"):
        each.unlink()
    with pytest.raises(BadInput, match="no games; make eval RECIPE=smollm2-135m-lora plays them"):
        stage.write_report("smollm2-135m-lora", tier="cpu")


def test_all_runs_are_in_a_table(run: Run, outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Run(outputs / "cpu" / "mine")
    files.write(broken.folder / "run.json", b"{")
    stage.show_runs(as_json=True)
    shown = capsys.readouterr()
    rows = {row["recipe"]: row for row in orjson.loads(shown.out)}
    row = rows["smollm2-135m-lora"]
    assert (row["tier"], row["loss"], row["eval_loss"], row["parity"]) == ("cpu", 0.5, 0.6, True)
    assert row["won"] == {"base-q8_0": "0/8", "tuned-q8_0": "8/8", "tuned-q4_k_m": "4/4", "tuned-q8_0-lenient": "0/8"}
    assert rows["mine"]["loss"] is None and not rows["mine"]["won"]
    assert shown.err.count("\n") == 1 and "not JSON" in shown.err
    stage.show_runs(as_json=False)
    assert "tuned-q8_0 8/8" in capsys.readouterr().out


def test_quality_has_the_rooms_won_beside_what_a_quantisation_costs(run: Run) -> None:
    assert rooms_won(run) == {"Q8_0": "8/8", "Q4_K_M": "4/4"}
    one: Any = {"quant": "F16", "bytes": 1, "imatrix": False, "perplexity": 1.5, "perplexity_error": 0.1}
    two = one | {"quant": "Q8_0", "mean_kld": 0.1, "kld_99_9": 0.2, "max_kld": 0.3, "same_top_percent": 99.0}
    console = Console(width=120, file=io.StringIO())
    console.print(perplexity.table([one, two], rooms_won(run)))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[-1] for line in lines if "rooms" in line or "Q8_0" in line] == ["rooms", "8/8"]


def test_without_runs_it_says_what_makes_one(outputs: Path) -> None:
    with pytest.raises(BadInput, match="no runs; make train"):
        stage.show_runs(as_json=False)


def set_up(asked: Asked) -> scores.Setup:
    """Of what an evaluation of a tuned model is."""
    drawn = Drawn(load.load("household"), asked.split or "unseen", TASKS, "0")
    return asked.setup("tuned", "m", "Q8_0", "ollama", drawn, "0")


def test_the_tasks_of_a_person_s_own_world_are_those_of_its_code(tmp_path: Path) -> None:
    code = tmp_path / "my_world.py"
    shutil.copy2(run_folder.ROOT / "docs" / "examples" / "my_world.py", code)
    asked = Asked(2, world=f"{code}:MyWorld")
    first = asked.drawn()
    assert first.tasks and first.sha256 == asked.drawn().sha256
    code.write_text(code.read_text() + "\n")
    assert asked.drawn().sha256 != first.sha256
    with pytest.raises(BadInput, match="no such world"):
        Asked(world="houshold").drawn()


def test_files_of_other_kinds_of_evaluation_have_other_names() -> None:
    usual = set_up(Asked())
    assert stage.file_name(usual) == "tuned-q8_0"
    others = [
        Asked(parse="lenient"),
        Asked(split="seen"),
        Asked(world="a/b.py:C"),
        Asked(temperature=0.5),
        Asked(temperature=0.5, repeat=2),
    ]
    names = [stage.file_name(set_up(each)) for each in others]
    names.append(stage.file_name({**usual, "backend": "transformers", "quant": ""}))
    assert len({*names, "tuned-q8_0"}) == 7 and all("/" not in name for name in names)


def test_the_tuned_model_is_always_asked_as_it_was_trained() -> None:
    asked = Asked(prompt="few-shot")
    assert asked.rules("tuned", 30) == play.Rules()
    assert set_up(asked)["prompt"] == "trained"
    rules = asked.rules("base", 50)
    assert rules.shown and (rules.added, rules.steps) == (FORM, 50)


@pytest.mark.heavy
def test_base_and_tuned_play_and_answer_in_this_process_and_served(
    small_base: Path, small_adapter: Path, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tuned("", str(small_base), shutil.copytree(small_adapter, tmp_path / "mine").as_posix())
    stage.play_games(model, "F16", "", "tokens", Asked(1, backend="transformers"))
    make_gguf(model, "F16")
    stage.play_games(model, "F16", "", "tokens", Asked(1, backend="llama-server"))
    table = capsys.readouterr().out
    assert all(name in table for name in ("base transformers", "tuned transformers", "base F16", "tuned F16"))
    held_out = tmp_path / "held.jsonl"
    held_out.write_bytes(b"".join(trajectory.TEST_DATA.read_bytes().splitlines(keepends=True)[:1]))
    found: dict[str, Any] = {}
    for backend in ("transformers", "llama-server"):
        stage.score_answers(model, "F16", "", "tokens", backend, str(held_out), as_json=True)
        found |= orjson.loads(capsys.readouterr().out)
    assert set(found) == {"base in transformers", "tuned in transformers", "base F16", "tuned F16"}
    turns = sum(turn["role"] == "assistant" for turn in next(trajectory.read(held_out))["messages"])
    for each in found.values():
        assert each["turns"] == turns and each["action"] == 0 and 1 < each["perplexity"] < 10**6
    assert found["tuned F16"]["perplexity"] == found["tuned in transformers"]["perplexity"]
