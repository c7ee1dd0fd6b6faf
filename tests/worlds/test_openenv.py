"""OpenEnv's own servers as worlds: 0.1, which our lock has, and 0.3 in an environment of its own."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import httpx
import pytest

from tests.parts import environments
from tools import BadInput
from tools.core import run_folder
from tools.gguf import llamacpp
from tools.worlds.guard import WorldFailed
from tools.worlds.load import load
from tools.worlds.world import World

SERVER = run_folder.ROOT / "tests" / "parts" / "openenv_server.py"


@contextmanager
def served(python: str | Path, action: str = "message", observation: str = "text") -> Iterator[str]:
    """The address of a server that this Python runs."""
    port = llamacpp.free_port()
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([python, str(SERVER), str(port), action, observation])
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            try:
                if httpx.get(f"{address}/health", trust_env=False).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def current() -> Path:
    """The Python with a current openenv-core."""
    return environments.programs("inspect-ai", "inspect") / "python"


def halving(world: World) -> tuple[bool, list[str]]:
    """Play a started game by halving; whether it is won, and what was guessed."""
    low, high, guesses = 1, 8, list[str]()
    while not world.done:
        guess = (low + high) // 2
        guesses.append(f"guess {guess}")
        said = world.step(guesses[-1])
        low, high = (guess + 1, high) if "low" in said else (low, guess - 1)
    return world.won, guesses


def test_a_server_of_the_version_in_our_lock_is_played() -> None:
    with served(sys.executable) as address:
        loaded = load(address)
        assert loaded.together == 1
        world = loaded.make()
        for task in islice(world.tasks("unseen"), 3):
            assert world.reset(task) == "Guess a number from 1 to 8."
            assert halving(world) == (True, ["guess 4", "guess 6", "guess 7"])
        world.reset(task)
        for _ in range(4):
            world.step("guess 1")
        assert world.done and not world.won
        with pytest.raises(WorldFailed, match=r"/step: status 500; is message the action's field\?"):
            world.step("boom")
    with pytest.raises(WorldFailed, match=rf"{address}/reset: ConnectError"):
        world.reset(task)


def test_the_names_of_the_texts_stand_in_the_address() -> None:
    with served(sys.executable, "command", "response") as address:
        world = load(f"{address}?action=command&observation=response").make()
        world.reset(next(iter(world.tasks("seen"))))
        assert world.step("guess 7") == "That is it." and world.won
        wrong = load(f"{address}?observation=screen").make()
        with pytest.raises(
            WorldFailed, match=r"which field is the observation\? its texts are response; \?observation="
        ):
            wrong.reset(next(iter(world.tasks("seen"))))
        with pytest.raises(BadInput, match=r"field: after the \? stand only action= and observation="):
            load(f"{address}?field=command")


def test_an_address_without_such_a_server_is_told() -> None:
    with pytest.raises(BadInput, match=r"no server answers: .*; start it, or mend the address"):
        load(f"http://127.0.0.1:{llamacpp.free_port()}")


@pytest.mark.slow
def test_a_current_server_plays_each_seed_in_a_session_of_its_own() -> None:
    with served(current(), "utterance") as address:
        loaded = load(address)
        games = {}
        for task in islice(loaded.make().tasks("unseen"), 8):
            world = loaded.make()  # the server has one place: the game before has left it
            assert world.reset(task) == "Guess a number from 1 to 8."
            won, games[task.id] = halving(world)
            assert won
        assert games == {task: games[task] for task in games} and len({*map(tuple, games.values())}) == 8
        world.reset(task)
        assert halving(world)[1] == games[task.id]
        with pytest.raises(WorldFailed, match="the world broke"):
            world.step("boom")
        world.reset(task)
    with pytest.raises(WorldFailed, match="the server closed the game|ConnectionReset|ClientConn|closing"):
        world.step("guess 1")


@pytest.mark.slow
def test_a_current_server_without_a_place_is_waited_for_and_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.worlds.openenv.PLACE_SECONDS", 0.5)
    with served(current()) as address:
        loaded = load(address)
        first, second = loaded.make(), loaded.make()
        task = next(iter(first.tasks("train")))
        first.reset(task)
        with pytest.raises(WorldFailed, match="capacity"):
            second.reset(task)
        del first
        assert second.reset(task) == "Guess a number from 1 to 8."
