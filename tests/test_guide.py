"""The page that leads from the step-by-step guide to a command: its languages agree, and each of its commands runs."""

import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.test_readme import COMMANDS, LINK, commands
from tools import BadInput
from tools.cli import app
from tools.core import make_variables, run_folder

ROOT = run_folder.ROOT
PAGES = [ROOT / "docs" / "guide.md", ROOT / "docs" / "guide.zh-CN.md"]
MAKE = sorted({each for each in commands(PAGES[0]) if each.startswith("make ")})
# What each prints at once, here; a training prints what it would run.
AT_ONCE = {
    "convert": "48 episodes",
    "diff": "lora_r",
    "episodes": "episodes, 0 left out",
    "export": "in which to run",
    "lint": "48 episodes",
    "list": "qwen7b",
    "new": "my.yaml",
    "plan": "in all",
    "recommend": "make train RECIPE=",
    "split": "train.jsonl, validation.jsonl, test.jsonl",
    "train": "dry-run.yaml",
}
# What needs the model that a training has not yet made: each names the command that makes it.
AFTER_TRAINING = ["ask", "eval", "gguf", "merge", "ollama", "parity", "quality", "resume"]
# What starts something that stays, or takes minutes: their own tests run them.
ELSEWHERE = ["check", "demo", "doctor", "ollama-run", "webui"]


def test_every_command_of_the_guide_is_run_by_a_test() -> None:
    assert {shlex.split(each)[1] for each in MAKE} == {*AT_ONCE, *AFTER_TRAINING, *ELSEWHERE}


def test_both_languages_hold_the_same_commands_threads_and_rows() -> None:
    english, chinese = (page.read_text(encoding="utf-8") for page in PAGES)
    assert Counter(commands(PAGES[0])) == Counter(commands(PAGES[1]))
    links = [[each for each in LINK.findall(text) if "://" in each] for text in (english, chinese)]
    assert links[0] == links[1] and len(links[0]) > 25
    rows = [[line.count("|") for line in text.splitlines() if line.startswith("|")] for text in (english, chinese)]
    assert rows[0] == rows[1]
    assert english.count("\n## ") == chinese.count("\n## ")


def test_the_readmes_lead_to_it() -> None:
    for readme, page in (("README.md", "docs/guide.md"), ("README.zh-CN.md", "docs/guide.zh-CN.md")):
        assert f"]({page})" in (ROOT / readme).read_text(encoding="utf-8")


def run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """The command behind a line of make, run in `folder`; a training is a dry run."""
    words = shlex.split(command)[1:]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for name in {make_variables.variable(each) for every in COMMANDS.commands.values() for each in every.params}:
        monkeypatch.delenv(name, raising=False)
    given |= {"DRY_RUN": "1"} if words[0] == "train" else {}
    # A test has one tier, whatever machine it runs on.
    if "RECIPE" in given and not {"TIER", "GPU"} & {*given}:
        given["TIER"] = "24gb"
    typed = {"MAKE_GOALS": words[0], "MAKE_TYPED": " ".join(given), "REACT_RECIPES_OUTPUTS": str(folder / "outputs")}
    for name, value in ({"RECIPE": "smollm2-135m-lora"} | given | typed).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    rules = make_variables.read_rules((ROOT / "Makefile").read_text(encoding="utf-8"), given)
    return CliRunner().invoke(app, make_variables.from_make(COMMANDS, words[0], rules[words[0]].words))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader stands: with episodes of their own and a recipe to edit."""
    for name in ("my.json", "my.jsonl"):
        shutil.copy(ROOT / "data" / "test.jsonl", tmp_path / name)
    own = (ROOT / "recipes" / "24gb" / "qwen7b-lora.yaml").read_text(encoding="utf-8")
    (tmp_path / "my.yaml").write_text(own.replace("lora_r: 16", "lora_r: 32"), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(each, marks=pytest.mark.heavy if shlex.split(each)[1] == "train" else ())
        for each in MAKE
        if shlex.split(each)[1] in AT_ONCE
    ],
)
def test_a_command_that_needs_no_training_does_what_it_says(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = shlex.split(command)[1]
    for made in re.findall(r"(?:OUT|FIX)=(\S+)", command):
        (folder / made).unlink(missing_ok=True)
    done = run(command, folder, monkeypatch)
    assert done.exit_code == 0, done.exception
    assert AT_ONCE["export" if "TRAINER=" in command else target] in done.output
    for made in re.findall(r"(?:OUT|FIX)=(\S+)", command):
        assert (folder / made).exists()


@pytest.mark.heavy
@pytest.mark.parametrize("command", [each for each in MAKE if shlex.split(each)[1] in AFTER_TRAINING])
def test_a_command_that_needs_a_training_says_so(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(command, folder, monkeypatch)
    assert isinstance(done.exception, BadInput)
    told = r"make train RECIPE=qwen7b-lora makes it|no checkpoint to go on from|saves/\S+: no such"
    assert re.search(told, str(done.exception))
