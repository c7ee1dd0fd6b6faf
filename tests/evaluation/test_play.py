"""Games: how they are played, counted and stopped, with the household's expert and with real servers."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import Failed
from tools.core import run_folder
from tools.evaluation import play
from tools.gguf import llamacpp
from tools.serving import ollama
from tools.worlds.household import episodes
from tools.worlds.household.expert import SYSTEM, Expert
from tools.worlds.household.world import NOTHING, Room

pytestmark = pytest.mark.heavy

ROOMS = list(episodes.rooms("play", 8))
# Plays for ever, until it is told to end.
ENDLESS = """import time
from tools.evaluation import play
from tools.worlds.household import episodes
def chat(messages):
    print("asked", flush=True)
    time.sleep(0.1)
    return play.Reply("Action: look", 1, 0.1)
play.play_rooms(chat, [room for room in episodes.rooms("play", 8) for _ in range(50)], "")
"""


def expert() -> play.Chat:
    """The household's expert as a backend, for any number of rooms at a time."""
    playing: dict[str, Expert] = {}

    def chat(messages: list[dict[str, str]]) -> play.Reply:
        introduction = messages[1]["content"]
        player = playing.setdefault(introduction, Expert(introduction, random.Random(0)))
        thought, action = player.act(messages[-1]["content"].removeprefix("Observation: "))
        return play.Reply(f"Thought: {thought}\nAction: {action}", 20, 0.5)

    return chat


def script(*answers: str) -> play.Chat:
    """A backend that gives these answers over and over."""
    return lambda messages: play.Reply(answers[(len(messages) // 2 - 1) % len(answers)], 1, 0.0)


def test_a_game_is_the_conversation_of_the_data() -> None:
    """The model is asked with the very messages that it was trained on."""
    for room in ROOMS:
        told = episodes.episode(room, slip=0)
        game = play.play_room(expert(), room, SYSTEM)
        assert told and game.transcript == told["messages"]
        assert game.won and game.invalid == 0
        assert game.steps == sum(turn["role"] == "assistant" for turn in game.transcript)
        assert (game.tokens, game.seconds) == (20 * game.steps, 0.5 * game.steps)
        assert (game.seed, game.task, game.goal) == (room.seed, room.task, room.goal)


def test_four_answers_in_a_row_that_do_nothing_lose() -> None:
    game = play.play_room(script("go to fridge 1", "Action: dance", "Thought: hm.\nAction:", ""), ROOMS[0], "")
    assert not game.won and (game.steps, game.invalid) == (4, 4)
    assert [turn["content"] for turn in game.transcript if turn["role"] == "user"][1:] == [
        f"Observation: {NOTHING}"
    ] * 4


def test_an_answer_that_does_something_ends_the_row() -> None:
    game = play.play_room(script("Action: dance", "Action: dance", "Action: dance", "Action: look"), ROOMS[0], "")
    assert not game.won and (game.steps, game.invalid) == (30, 23)


def test_the_first_action_counts() -> None:
    game = play.play_room(script("Action: look\nObservation: You won.\nAction: dance"), ROOMS[0], "", steps=2)
    assert (game.steps, game.invalid) == (2, 0)


def test_all_games_come_in_the_order_of_the_rooms() -> None:
    def slow(messages: list[dict[str, str]]) -> play.Reply:
        time.sleep(0.001 * len(messages[1]["content"]) % 0.01)
        return player(messages)

    player = expert()
    games = play.play_rooms(slow, ROOMS, SYSTEM)
    assert [game.seed for game in games] == [room.seed for room in ROOMS]
    assert all(game.won for game in games)


def test_a_failure_stops_all_games() -> None:
    asked: list[int] = []

    def failing(messages: list[dict[str, str]]) -> play.Reply:
        asked.append(1)
        time.sleep(0.02)
        if len(messages) > 4:
            raise Failed("the server is gone")
        return play.Reply("Action: look", 1, 0.0)

    with pytest.raises(Failed, match="the server is gone"):
        play.play_rooms(failing, ROOMS * 10, "")
    time.sleep(0.1)
    assert len(asked) < 20


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


def test_the_summary_adds_up() -> None:
    games = [play.play_room(expert() if index % 2 else script(""), room, SYSTEM) for index, room in enumerate(ROOMS)]
    found = play.summary(games, wall_seconds=2.0)
    assert (found["won"], found["rooms"], found["rate"]) == (4, 8, 0.5)
    assert found["wilson95"] == play.wilson(4, 8)
    assert found["invalid"] == 16
    assert sum(each["rooms"] for each in found["by_task"].values()) == 8
    assert sum(each["won"] for each in found["by_task"].values()) == 4
    assert found["mean_steps"] == sum(game.steps for game in games) / 8
    assert found["tokens_per_second"] == sum(game.tokens for game in games) / 2.0
    assert found["seconds"] == 2.0


@pytest.mark.parametrize(("won", "rooms"), [(0, 8), (1, 10), (26, 48), (120, 200), (48, 48)])
def test_the_interval_holds_the_rates_that_the_score_test_allows(won: int, rooms: int) -> None:
    """Wilson's ends are the rates p with |won / rooms - p| = z sqrt(p (1 - p) / rooms)."""
    low, high = play.wilson(won, rooms)
    assert 0 <= low <= won / rooms <= high <= 1
    for end in (low, high):
        assert abs(won / rooms - end) == pytest.approx(1.959964 * (end * (1 - end) / rooms) ** 0.5, abs=1e-9)


@pytest.fixture(scope="module")
def url(smollm2_gguf: Path) -> Iterator[str]:
    with llamacpp.server(smollm2_gguf, 512) as url:
        yield url


def test_the_base_model_plays_through_openai_s_api(url: str) -> None:
    """Without training it wins no room; what it says and what that took is counted."""
    game = play.play_room(play.openai_chat(url), ROOMS[0], SYSTEM, steps=1)
    assert not game.won and game.steps == 1
    assert 0 < game.tokens <= play.ANSWER_TOKENS and game.seconds > 0
    answer = game.transcript[2]["content"]
    assert answer and "<|im_end|>" not in answer


def test_a_conversation_that_outgrows_the_context_loses(url: str) -> None:
    room = Room(0, "put", "mug", "desk", "put some mug on desk", {f"drawer {number}": () for number in range(200)})
    game = play.play_room(play.openai_chat(url), room, SYSTEM)
    assert (game.won, game.steps, game.tokens) == (False, 4, 0)


def test_a_server_that_is_gone_fails_in_one_line() -> None:
    chat = play.openai_chat(f"http://127.0.0.1:{llamacpp.free_port()}")
    with pytest.raises(Failed, match="Connection error"):
        chat([{"role": "user", "content": "Hi"}])


@pytest.mark.slow
def test_the_base_model_plays_through_ollama(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ollama.install() is None:
        pytest.skip("neither Ollama nor Go is installed")
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{llamacpp.free_port()}")  # no Ollama of the user's
    spec = ollama.Spec("react-test", smollm2_gguf, "smollm2-135m-lora", "0", "Apache-2.0", {"num_ctx": 2048})
    with ollama.session() as session:
        ollama.create(session.client, spec)
        game = play.play_room(play.ollama_chat(session.client, "react-test"), ROOMS[0], SYSTEM, steps=1)
    assert not game.won and game.steps == 1
    assert 0 < game.tokens <= play.ANSWER_TOKENS
