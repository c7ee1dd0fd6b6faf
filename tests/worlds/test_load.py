"""Worlds by their names, and a person's own world that is wrong, raises, hangs or answers nonsense."""

import gc
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from tools import BadInput, Failed
from tools.core import run_folder
from tools.worlds.guard import Guarded, WorldFailed
from tools.worlds.load import load
from tools.worlds.world import Task, World

EXAMPLE = run_folder.ROOT / "docs" / "examples" / "my_world.py"
TASK = Task("1", "a", "b")
WORLD = """
import time
from tools.worlds.world import Task

class Mine:
    system_prompt = "Act."
    nothing = ""
    won = done = False

    def tasks(self, split):
        yield Task("1", "a", "b")

    def reset(self, task):
        return "Hello."

    def step(self, action):
        return f"You {action}."
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes mine.py with changes of WORLD; its name as a user gives it."""
    monkeypatch.chdir(tmp_path)

    def write(*changes: tuple[str, str]) -> str:
        text = WORLD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "mine.py").write_text(text)
        return "mine.py:Mine"

    return write


def halving(world: World, task: Task) -> bool:
    """Play the example's game by halving; whether it is won."""
    world.reset(task)
    low, high = 1, int(task.goal.rsplit(" ", 1)[1])
    while not world.done:
        guess = (low + high) // 2
        said = world.step(f"guess {guess}")
        low, high = (guess + 1, high) if "low" in said else (low, guess - 1)
    return world.won


def test_the_example_of_the_documentation_is_played_from_its_file() -> None:
    loaded = load(f"{EXAMPLE}:MyWorld")
    world = loaded.make()
    tasks = list(world.tasks("unseen"))
    assert len(tasks) == 200 and not {task.id for task in tasks} & {task.id for task in world.tasks("train")}
    assert all(halving(world, task) for task in tasks)
    world.reset(tasks[0])
    assert world.step("dance") == world.nothing
    for _ in range(10):
        world.step("guess 0")
    assert world.done and not world.won
    assert len(EXAMPLE.read_text().splitlines()) <= 50


def test_our_worlds_have_names() -> None:
    for name, prompt in (
        ("household", "clean O with R. R"),
        ("household:all", "use O. R"),
        ("household:look", "use O. R"),
    ):
        loaded = load(name)
        world = loaded.make()
        task = next(iter(world.tasks(loaded.split)))
        assert prompt in world.system_prompt and task.goal in world.reset(task)
        assert loaded.steps == 30


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("houshold", "houshold: no such world; a world is household, "),
        ("household:juggle", "juggle: not among the household's tasks"),
        ("alfworld:valid_nowhere", "valid_nowhere: no such folder"),
        ("none.py:Mine", "none.py:Mine: no such file: .*none.py"),
        ("mine.py:Other", "it has no class Other; FILE.py:CLASS, and the file has Mine"),
        ("mine.py", "mine.py: the class is not named; FILE.py:CLASS, and the file has Mine"),
    ],
)
def test_a_name_that_means_no_world_is_told(name: str, said: str, written: Callable[..., str]) -> None:
    written()
    with pytest.raises(BadInput, match=said):
        load(name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("def step", "def move"), ("won = done", "won")], r"it lacks step, done; docs/worlds.md"),
        (
            [('    nothing = ""\n', ""), ('"Act."', "5")],
            r"it lacks system_prompt, nothing \(system_prompt and nothing: a t",
        ),
        (
            [("won = done = False", "done = False\n    def won(self): return True")],
            "won: a method where a property is wan",
        ),
        (
            [("import time", "import nowhere")],
            r"^mine.py:2: mine.py:Mine cannot be imported: ModuleNotFoundError: No mod",
        ),
        ([("import time", "raise SystemExit(3)")], r"^mine.py:2: mine.py:Mine cannot be imported: SystemExit: 3"),
        ([("class Mine:", "class Mine")], r"mine.py:5: mine.py:Mine: SyntaxError: expected ':'"),
    ],
)
def test_what_a_world_lacks_is_told_before_it_is_played(
    changes: list[tuple[str, str]], said: str, written: Callable[..., str]
) -> None:
    name = written(*changes)
    with pytest.raises(BadInput, match=said) as told:
        load(name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            [('return f"You', '1 / 0\n        return f"You')],
            r"^mine.py:17: mine.py:Mine raised ZeroDivisionError: .* in step",
        ),
        ([('return f"You {action}."', "return 5")], r"^mine.py:Mine: step gave 5, no text"),
        ([('return f"You', 'raise SystemExit("bye\\nnow")\n        return f"You')], r"SystemExit: bye now in step$"),
        (
            [("won = done = False", "won = False\n    done = property(lambda self: 1 / 0)")],
            r"ZeroDivisionError.* in reset$",
        ),
        ([('Task("1", "a", "b")', '("1", "a")')], r"tasks gave \('1', 'a'\), no Task\(id, kind, goal\) of texts"),
        ([('yield Task("1", "a", "b")', 'yield from [Task("1", "a", "b")] * 2')], "tasks gave the id 1 twice"),
        ([('return "Hello."', 'return open("no file").read()')], r"^mine.py:14: .*FileNotFoundError: .* in reset$"),
    ],
)
def test_a_world_that_fails_ends_its_game_in_one_line(
    changes: list[tuple[str, str]], said: str, written: Callable[..., str]
) -> None:
    world = load(written(*changes)).make()
    with pytest.raises(WorldFailed, match=said) as told:
        list(world.tasks("unseen"))
        world.reset(TASK)
        world.step("dance")
    assert isinstance(told.value, Failed) and "\n" not in str(told.value)


def test_a_constructor_that_fails_is_told_with_its_line(written: Callable[..., str]) -> None:
    with pytest.raises(WorldFailed, match=r"^mine.py:9: mine.py:Mine raised KeyError: 'x' in its constructor"):
        load(written(("won = done = False", "won = done = False\n    def __init__(self): {}['x']")))


@pytest.mark.parametrize("wait", ["while True: pass", "time.sleep(3)"])
def test_a_world_that_hangs_is_left_and_the_next_game_is_played(wait: str, written: Callable[..., str]) -> None:
    hang = ('        return f"You', f'        if action == "wait":\n            {wait}\n        return f"You')
    world = load(written(hang), seconds=0.3).make()
    world.reset(TASK)
    assert world.step("dance") == "You dance."
    with pytest.raises(WorldFailed, match=r"^mine.py:18: mine.py:Mine did not come back from step within 0.3 s"):
        world.step("wait")
    with pytest.raises(WorldFailed, match="mine.py:Mine: it hung before; reset starts it anew"):
        world.step("dance")
    assert world.reset(TASK) == "Hello." and world.step("dance") == "You dance."
    assert ended("mine.py:Mine", but=1), "the thread that hung still works"


def ended(name: str, but: int) -> bool:
    """Whether all threads of this name but some end within some seconds."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        gc.collect()  # what an error's traceback holds
        if sum(thread.name == name for thread in threading.enumerate()) <= but:
            return True
        time.sleep(0.05)
    return False


def test_a_world_that_is_done_with_leaves_no_thread(written: Callable[..., str]) -> None:
    worlds = [load(written()).make() for _ in range(3)]
    assert [world.reset(TASK) for world in worlds] == ["Hello."] * 3
    worlds.clear()
    assert ended("mine.py:Mine", but=0)


def test_a_world_lives_in_one_thread(written: Callable[..., str]) -> None:
    """As one with a connection to a database must."""
    import_it = ("import time", "import sqlite3, time")
    connect = (
        "won = done = False",
        "won = done = False\n    def __init__(self): self.base = sqlite3.connect(':memory:')",
    )
    ask = ('return f"You {action}."', "return str(self.base.execute('select 1').fetchone()[0])")
    world = load(written(import_it, connect, ask)).make()
    asked: list[str] = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: asked.append(world.reset(TASK) + world.step("")))
        thread.start()
        thread.join()
    assert asked == ["Hello.1"] * 3


def test_a_module_beside_the_file_can_be_imported(written: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "words_of_mine.py").write_text("HELLO = 'Good day.'")
    name = written(('return "Hello."', "import words_of_mine; return words_of_mine.HELLO"))
    assert load(name).make().reset(TASK) == "Good day."


def test_a_guarded_world_plays_as_the_world_itself() -> None:
    from tools.worlds.household.environment import Household

    plain, guarded = Household(), Guarded(partial(Household, ""), "household")
    tasks = list(islice(plain.tasks("seen"), 5))
    assert tasks == list(islice(guarded.tasks("seen"), 5))
    for task in tasks:
        assert plain.reset(task) == guarded.reset(task)
        for action in ("look", "go to fridge 1", "open fridge 1", "dance"):
            assert plain.step(action) == guarded.step(action)
            assert (plain.won, plain.done) == (guarded.won, guarded.done)
