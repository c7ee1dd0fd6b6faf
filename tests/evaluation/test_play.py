"""Games: how they are played, named by their end, saved and stopped."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parts.players import TASKS, all_played, counted, expert, played, script
from tools import Failed
from tools.core import run_folder
from tools.evaluation import play
from tools.evaluation.backends import Refused, Reply
from tools.worlds.guard import Guarded
from tools.worlds.household import episodes
from tools.worlds.household.environment import Household
from tools.worlds.household.world import NOTHING
from tools.worlds.world import Task

# Plays for ever, until it is told to end.
ENDLESS = """import time
from itertools import islice
from tools.evaluation import backends, play
from tools.worlds.household.environment import Household
def chat(messages, seed):
    print("asked", flush=True)
    time.sleep(0.1)
    return backends.Reply("Action: look", 1, 0.1)
tasks = list(islice(Household().tasks("unseen"), 8))
play.play_games(chat, Household, tasks, repeat=50)
"""


def test_a_game_is_the_conversation_of_the_data() -> None:
    """The model is asked with the very messages that it was trained on."""
    for task, room in zip(TASKS, episodes.unseen_rooms(len(TASKS)), strict=True):
        told = episodes.episode(room, slip=0)
        game = played(expert(), task)
        assert told and game.transcript == told["messages"]
        assert game.won and game.end == "won" and game.invalid == 0 and not game.faults
        assert game.steps == sum(turn["role"] == "assistant" for turn in game.transcript)
        assert (game.tokens, game.seconds) == (20 * game.steps, 0.5 * game.steps)
        assert (game.strict, game.lenient) == (game.steps, game.steps)
        assert (game.id, game.task, game.goal) == (f"household-{room.seed}", room.task, room.goal)


def test_four_answers_in_a_row_that_do_nothing_lose() -> None:
    game = played(script("go to fridge 1", "Action: dance", "Thought: hm.\nAction:", ""))
    assert not game.won and (game.steps, game.invalid, game.end) == (4, 4, "no action")
    assert [turn["content"] for turn in game.transcript if turn["role"] == "user"][1:] == [
        f"Observation: {NOTHING}"
    ] * 4


def test_an_answer_that_does_something_ends_the_row() -> None:
    game = played(script("Action: dance", "Action: dance", "Action: dance", "Action: look"))
    assert not game.won and (game.steps, game.invalid) == (30, 23)


@pytest.mark.parametrize(
    ("chat", "end", "faults"),
    [
        (script("Action: dance"), "nothing happens", {"nothing happens": 4}),
        (script("I would rather not."), "no action", {"no action": 4}),
        (script("Thought: I think that", ended="length"), "cut by length", {"cut by length": 4}),
        (script("Action: look"), "loop", {"loop": 29}),
        (script("Action: look\nObservation: You won."), "made-up observation", {"made-up observation": 30}),
        (script("Action: dance\n**Observation:** You won."), "made-up observation", {"made-up observation": 4}),
        (
            script(*(f"Action: look at {n}" for n in range(4)), "Action: look"),
            "nothing happens",
            {"nothing happens": 4},
        ),
        (script("", ended="context"), "context full", {}),
    ],
)
def test_a_lost_game_says_why(chat: play.Chat, end: str, faults: dict[str, int]) -> None:
    game = played(chat)
    assert not game.won and (game.end, game.faults) == (end, faults)


def test_steps_that_all_do_something_new_are_used_up() -> None:
    room = next(episodes.unseen_rooms(1))
    answers = [f"Action: go to {name}" for name in room.receptacles]
    game = played(script(*answers), rules=play.Rules(steps=len(answers)))
    assert (game.end, game.faults) == ("steps used up", {})


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("Thought: so.\nAction: go to fridge 1", "go to fridge 1", "go to fridge 1"),
        ("Action: `Go to fridge 1.`", "`Go to fridge 1.`", "go to fridge 1"),
        ("**Action:** [look]", "** [look]", "look"),
        ("action: look", None, "look"),
        ("I say Action: as an example.\nAction: look", "as an example.", "look"),
        ("Action: look\nObservation: a mug.\nAction: take mug", "look", "look"),
        ("Action:", None, None),
        ("I look around.", None, None),
    ],
)
def test_both_readings_of_an_answer(text: str, strict: str | None, lenient: str | None) -> None:
    assert (play.PARSERS["strict"](text), play.PARSERS["lenient"](text)) == (strict, lenient)


def test_a_game_is_played_by_one_parser_and_both_are_counted() -> None:
    shouting, wins = script("action: LOOK"), expert()

    def capitals(messages: list[dict[str, str]], seed: int) -> Reply:
        return wins(messages, seed)._replace(text=wins(messages, seed).text.replace("Action: ", "action: "))

    assert (played(shouting).end, played(shouting, rules=play.Rules("lenient")).end) == ("no action", "loop")
    game = played(shouting)
    assert (game.strict, game.lenient, game.steps) == (0, 4, 4)


def test_all_games_come_in_the_order_of_the_tasks() -> None:
    player = expert()

    def slow(messages: list[dict[str, str]], seed: int) -> Reply:
        time.sleep(0.001 * len(messages[1]["content"]) % 0.01)
        return player(messages, seed)

    games = all_played(slow)
    assert [game.id for game in games] == [task.id for task in TASKS]
    assert all(game.won for game in games)


def test_a_seed_is_that_of_task_attempt_and_step() -> None:
    seeds: dict[tuple[str, int], list[int]] = {}

    def chat(messages: list[dict[str, str]], seed: int) -> Reply:
        seeds.setdefault((messages[1]["content"], len(messages)), []).append(seed)
        return Reply("", 1, 0.0)

    all_played(chat, repeat=2)
    once = {key: sorted(each) for key, each in seeds.items()}
    seeds.clear()
    all_played(chat, repeat=2)
    assert {key: sorted(each) for key, each in seeds.items()} == once
    assert len({seed for each in once.values() for seed in each}) == 2 * 4 * len(TASKS)


def test_a_failure_stops_all_games() -> None:
    asked: list[int] = []

    def failing(messages: list[dict[str, str]], seed: int) -> Reply:
        asked.append(1)
        time.sleep(0.02)
        if len(messages) > 4:
            raise Failed("the server is gone")
        return Reply("Action: look", 1, 0.0)

    with pytest.raises(Failed, match="the server is gone"):
        all_played(failing)
    time.sleep(0.1)
    assert len(asked) < 20


def test_what_was_stopped_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    about, file = {"model": "a"}, tmp_path / "eval-a.jsonl"
    whole = all_played(expert())
    chat, asked = counted(expert())

    def stops(messages: list[dict[str, str]], seed: int) -> Reply:
        if len(asked) == 40:
            raise Failed("the server is gone")
        return chat(messages, seed)

    log = play.Log(file, about)
    with pytest.raises(Failed, match=f"gone; [1-7] of {len(TASKS)} games are kept, and the same command plays"):
        all_played(stops, log)
    log.close()
    kept = len(log.games)
    with file.open("ab") as half:  # as a kill leaves it
        half.write(b'{"id": "household-')
    again, more = counted(expert())
    log = play.Log(file, about)
    assert len(log.games) == kept
    left = sum(game.steps for game in whole) - sum(game.steps for game in log.games.values())
    games = all_played(again, log)
    log.close()
    assert len(more) == left
    for game in (*games, *whole):
        game.wall = game.world_seconds = 0
    assert games == whole


def test_games_of_another_model_are_played_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "eval-a.jsonl"
    log = play.Log(file, {"model": "a"})
    all_played(script(""), log)
    log.close()
    assert not play.Log(file, {"model": "b"}).games
    assert capsys.readouterr().err.count("\n") == 1


class Faulty(Household):
    """The household, but one task raises, and one hangs."""

    def reset(self, task: Task) -> str:
        if task is TASKS[1]:
            raise ValueError("no such\nroom")
        return super().reset(task)

    def step(self, action: str) -> str:
        if self.game and f"household-{self.game.room.seed}" == TASKS[2].id:
            time.sleep(20)
        return super().step(action)


def test_a_world_that_raises_or_hangs_loses_no_other_game(capsys: pytest.CaptureFixture[str]) -> None:
    def make() -> Guarded:
        return Guarded(Faulty, "faulty", seconds=3)

    games = play.play_games(expert(), make, TASKS, parallel=2)
    assert [game.end for game in games] == ["won", "world failed", "world failed", *["won"] * 5]
    assert "faulty raised ValueError: no such room in reset" in games[1].error
    assert "faulty did not come back from step within 3 s" in games[2].error and games[2].steps == 1
    *_, said = capsys.readouterr().err.splitlines()  # on a slow machine, how far it is comes before
    assert said.startswith(f"2 of 8 games failed, the first by world failed, {TASKS[1].id}: ")
    with pytest.raises(Failed, match="every game failed, the first by world failed"):
        play.play_games(expert(), make, TASKS[1:2])


def test_a_conversation_that_a_server_refuses_is_one_game(tmp_path: Path) -> None:
    player = expert()

    def refusing(messages: list[dict[str, str]], seed: int) -> Reply:
        if TASKS[3].goal in messages[1]["content"]:
            raise Refused("400: no")
        return player(messages, seed)

    log = play.Log(tmp_path / "eval-a.jsonl", {})
    games = all_played(refusing, log)
    log.close()
    refused = [game for game in games if game.end == "server failed"]
    assert refused and all(game.won for game in games if game not in refused)
    kept = play.Log(tmp_path / "eval-a.jsonl", {})
    assert {game.id for game in refused} == {task.id for task in TASKS} - {name for name, _ in kept.games}


@pytest.mark.heavy
def test_ctrl_c_stops_all_games_at_once() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], cwd=run_folder.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 5
    assert "KeyboardInterrupt" in errors
