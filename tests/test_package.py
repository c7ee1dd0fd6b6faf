"""The installed command: a wheel in an environment without the extras, used outside of the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import __version__
from tools.core import machine, run_folder

ROOT = run_folder.ROOT
# What each command of the light ones is given, and what it says.
LIGHT = {
    "--version": f"react-recipes {__version__}",
    "-h": "Usage: react-recipes",
    "plan -h": "Usage: react-recipes plan",
    "list": "qwen7b",
    "recommend --gpu rtx4090": "1 x GeForce RTX 4090: recipes/24gb",
    "plan 24gb/qwen7b-qlora": "Qwen2.5-7B-Instruct",
    "new qwen7b qlora mine.yaml --tier 24gb": "mine.yaml: edit it",
    "diff 24gb/qwen7b-qlora mine.yaml": "output_dir: ",
    "convert mine.jsonl out.json --to alpaca": "48 episodes",
    "lint mine.jsonl": "48 episodes, 0 of level error",
    "split mine.jsonl --out parts": "parts: train.jsonl",
    "stats mine.jsonl --html stats.html": "plots in stats.html",
}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """react-recipes as pip installs it, in the versions of requirements.lock."""
    folder = tmp_path_factory.mktemp("package")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"react_recipes", f"react_recipes-{__version__}.dist-info"}  # no package `tools` of everybody's
    uv, environment = machine.uv() or "uv", folder / "environment"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(environment), "--constraint"]
    subprocess.run([*install, str(ROOT / "requirements.lock"), str(wheel)], check=True)
    return environment / "bin" / "react-recipes"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside of the repository, with episodes in it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "mine.jsonl").write_bytes((ROOT / "data" / "test.jsonl").read_bytes())
    return folder


def run(command: Path, place: Path, *arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
    """The command's end, in `place`, without the paths that tests have."""
    told = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "REACT_RECIPES_OUTPUTS")}
    return subprocess.run([command, *arguments], cwd=place, env=told | given, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", LIGHT)
def test_a_light_command_works_without_the_extras(command: Path, place: Path, arguments: str) -> None:
    done = run(command, place, *arguments.split())
    assert done.returncode == 0, done.stderr
    assert LIGHT[arguments] in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_needs_an_extra_says_which_in_one_line(command: Path, place: Path) -> None:
    extra = "which comes with the extra `train`: pip install 'react-recipes[train]'"
    for arguments in (
        "check 24gb/qwen7b-qlora",
        "stats mine.jsonl --base Qwen/Qwen2.5-7B-Instruct",
        "train smollm2-135m-lora",
    ):
        done = run(command, place, *arguments.split())
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and extra in done.stderr, done.stderr
    assert extra in run(command, place, "stats", "mine.jsonl").stderr  # which goes on without tokens


@pytest.mark.slow
def test_it_writes_into_the_current_folder_and_never_into_the_package(command: Path, place: Path) -> None:
    for arguments in ("recipes", "data", "add-model org/name"):
        done = run(command, place, *arguments.split())
        assert done.returncode == 2 and "in a checkout of the repository" in done.stderr
    # Another's Makefile that calls it has variables of its own.
    assert run(command, place, "list", MAKEFLAGS=" -- TYER=1").returncode == 0
