"""ALFWorld's games as a world: by our rules, and by its own engine in the environment that has it."""

import os
import subprocess
import sys
import sysconfig
from itertools import islice
from pathlib import Path

import orjson
import pytest

from tests.parts.household import engine, problem
from tests.worlds.test_household import BEDROOM, save_game
from tools import BadInput
from tools.core import run_folder
from tools.worlds import alfworld
from tools.worlds.household import episodes
from tools.worlds.household.facts import facts
from tools.worlds.load import load
from tools.worlds.world import Task

# The expert plays all games of valid_seen; prints what it was told.
PLAY = """
import sys
sys.path.append(sys.argv[1])
import random
import orjson
from tools.worlds.household.expert import Expert
from tools.worlds.load import load
loaded = load("alfworld:valid_seen")
world = loaded.make()
told = []
for task in world.tasks(loaded.split):
    said = world.reset(task)
    expert, game = Expert(said, random.Random(0)), [*task, said]
    for action in ["look", "go to nowhere 1", "inventory"]:
        game.append(world.step(action))
    while not world.done and len(game) < 60:
        said = world.step(expert.act(said)[1])
        game.append(said)
    told.append([*game, world.won])
print(orjson.dumps({"by": loaded.played_by, "games": told}).decode())
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A json_2.1.1 with twelve games to play and two that ALFWorld leaves out."""
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    folder = tmp_path / "json_2.1.1" / "valid_unseen"
    for number, room in enumerate(islice(episodes.drawn_rooms(3, list(facts().tasks), list(facts().rooms)), 12)):
        save_game(folder / f"{number:02d}-{room.task}" / "trial_T1", room)
    save_game(folder / "90-unsolvable" / "trial_T1", BEDROOM, solvable=False)
    save_game(folder / "91-AppleSliced" / "trial_T1", BEDROOM)
    return folder


def test_a_split_has_all_its_games_and_each_is_started_by_its_id_alone(data: Path) -> None:
    loaded = load("alfworld:valid_unseen")
    assert (loaded.split, loaded.steps) == ("valid_unseen", 50)
    assert "our rules" in loaded.played_by and not alfworld.engine()
    tasks = list(loaded.make().tasks(loaded.split))
    assert tasks == list(loaded.make().tasks("unseen")) == list(load("alfworld").make().tasks("unseen"))
    assert [task.id for task in tasks][:2] == ["valid_unseen/00-put/trial_T1", "valid_unseen/01-look/trial_T1"]
    assert len(tasks) == 12 and {task.kind for task in tasks} == set(facts().tasks)
    for task in tasks:
        world = loaded.make()
        assert world.reset(task).startswith("You are in the middle of a room.") and not world.done
        assert world.step("dance") == world.nothing
        assert "use O" in world.system_prompt


def test_a_folder_of_games_is_a_split_too(data: Path) -> None:
    loaded = load(f"alfworld:{data}")
    world = loaded.make()
    task = next(iter(world.tasks(loaded.split)))
    assert task.goal in world.reset(task)


def test_what_is_no_game_is_told(data: Path) -> None:
    world = alfworld.AlfWorld()
    with pytest.raises(BadInput, match="00-put: not a game of ALFWorld: SPLIT/TASK/TRIAL"):
        world.reset(Task("00-put", "put", ""))
    with pytest.raises(BadInput, match="game.tw-pddl"):
        world.reset(Task("valid_unseen/99-put/trial_T1", "put", ""))
    with pytest.raises(BadInput, match="90-unsolvable/trial_T1: a game that ALFWorld does not play"):
        world.reset(Task("valid_unseen/90-unsolvable/trial_T1", "put", ""))
    with pytest.raises(BadInput, match="valid_seen: no such folder"):
        next(world.tasks("seen"))


def test_a_row_of_the_literature_has_all_games_and_fifty_steps() -> None:
    assert alfworld.why_no_row("valid_unseen", 134, 50) is None is alfworld.why_no_row("seen", 140, 50)
    assert alfworld.why_no_row("unseen", 12, 50) == "12 games were played, not all 134 of valid_unseen"
    assert alfworld.why_no_row("valid_unseen", 134, 30) == "a game had 30 steps, not 50"
    assert alfworld.why_no_row("train", 3553, 50) == "train is neither valid_seen nor valid_unseen"


@pytest.mark.slow
def test_where_alfworld_is_installed_its_own_engine_plays_and_says_the_same(tmp_path: Path) -> None:
    """Games that alfworld-generate makes, played by the engine in its environment and by our rules in ours."""
    data = tmp_path / "json_2.1.1"
    for number, room in enumerate(islice(episodes.drawn_rooms(5, list(facts().tasks), list(facts().rooms)), 6)):
        problem.write(data / "valid_seen" / f"{room.task}-{number:02d}" / "trial_T1", room)
    with engine.Engine() as running:
        assert running.ask(make=str(data))["made"] == 6
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "made").rename(home / "json_2.1.1")
    own, ours = (played(python, home) for python in (str(engine.environment()), sys.executable))
    assert own["by"] == "ALFWorld 0.4.2's own engine" and "our rules" in ours["by"]
    assert own["games"] == ours["games"]
    assert len(own["games"]) == 6 and all(game[-1] for game in own["games"])


def played(python: str, home: Path) -> dict[str, list[list[object]]]:
    """What PLAY prints in this Python; what it has not itself it takes from ours."""
    packages = sysconfig.get_paths()["purelib"]
    done = subprocess.run(
        [python, "-c", PLAY, packages],
        cwd=run_folder.ROOT, env=os.environ | {"ALFWORLD_DATA": str(home)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return orjson.loads(done.stdout)
