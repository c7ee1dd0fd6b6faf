"""The command line: help at once, one clear line and the right exit status for what is wrong, nothing half-written."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests.parts.command import tools
from tests.parts.said import said
from tools import __version__, cli
from tools.core import run_folder
from tools.recipes import recipe

GOOD = (
    '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Thought: a\\nAction: look"}]}\n'
)


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, tools.cli; print([name for name in sys.modules if name in ('torch', 'pydantic', 'axolotl')])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
    assert "Commands" in tools("--help").stdout


def test_every_argument_and_option_says_what_it_is() -> None:
    commands: Any = typer.main.get_command(cli.app)
    page = html.unescape((run_folder.ROOT / "docs" / "cli.md").read_text())
    for name, command in commands.commands.items():
        for each in command.params:
            assert each.help and each.help in page, (name, each.name)


def test_the_page_of_all_commands_is_as_they_are(tmp_path: Path) -> None:
    page = tmp_path / "cli.md"
    command = [sys.executable, "-m", "typer", "tools.cli", "utils", "docs", "--name", "python -m tools"]
    command += ["--title", "The command line", "--output", str(page)]
    subprocess.run(command, cwd=run_folder.ROOT, capture_output=True, check=True)
    assert page.read_text() == (run_folder.ROOT / "docs" / "cli.md").read_text(), "make docs writes it anew"


@pytest.mark.parametrize("arguments", [("plan", "qwen7b-qlora", "--tier", "24gb"), ("list",), ("recommend",)])
def test_planning_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    script = (
        f"import sys; sys.argv[1:] = {list(arguments)!r}; from tools import cli\n"
        "try: cli.main()\nexcept SystemExit as end: assert not end.code\n"
        "print([name for name in ('torch', 'axolotl', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=run_folder.ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_converting_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD)
    script = (
        "import sys; sys.argv[1:] = ['convert', 'in.jsonl', 'out.jsonl', '--to', 'sharegpt']\n"
        "from tools import cli\n"
        "try: cli.main()\nexcept SystemExit as end: assert not end.code\n"
        "print([name for name in ('numpy', 'pydantic', 'pyarrow', 'jinja2') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(run_folder.ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_every_make_target_has_one_line_of_help() -> None:
    shown = subprocess.run(["make", "help"], cwd=run_folder.ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z-]+):", (run_folder.ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "demo" in targets
    for target in targets:
        assert sum(line.startswith(f"  make {target} ") for line in shown.splitlines()) == 1


def test_every_command_of_the_makefile_is_there() -> None:
    wanted = set(re.findall(r"\$\(TOOLS\) ([a-z-]+)", (run_folder.ROOT / "Makefile").read_text()))
    assert {"convert", "train", "gguf", "eval"} <= wanted
    assert wanted <= set(cli.commands().commands)


def test_episodes_are_written_the_same_from_the_same_seed(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        done = tools("episodes", str(tmp_path / name), "--count", "12", "--tasks", "look,two", "--seed", "5")
        assert done.returncode == 0, done.stderr
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines()
    assert len(lines) == 12
    assert (tmp_path / "b.jsonl").read_bytes().splitlines() == lines


def with_data(tmp_path: Path, data: str | None) -> str:
    """A recipe whose data is this text, or is not there."""
    settings = recipe.open_recipe("smollm2-135m-lora").settings
    settings["datasets"][0]["path"] = str(tmp_path / "d.jsonl")
    if data is not None:
        (tmp_path / "d.jsonl").write_text(data)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings))
    return str(tmp_path / "my.yaml")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "d.jsonl"),
        ("", "d.jsonl"),
        (GOOD + "{not json}\n", "d.jsonl:2"),
        (GOOD + GOOD.replace("Action: look", "done"), "d.jsonl:2"),
        (GOOD + "[1]\n", "d.jsonl:2"),
    ],
)
@pytest.mark.parametrize("command", ["check", "train"])
def test_bad_data_is_one_line_with_its_place(tmp_path: Path, command: str, data: str | None, says: str) -> None:
    done = tools(command, with_data(tmp_path, data), REACT_RECIPES_OUTPUTS=str(tmp_path / "outputs"))
    assert done.returncode == 2
    assert len(said(done.stderr)) == 1 and says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "smollm2-135m-lara"), "nearest: smollm2-135m-lora"),
        (("train", "smollm2-135m-lora", "--base", "tests"), "config.json"),
        (("train", "smollm2-135m-lora", "--base", "not a name"), "neither a folder nor"),
        (("gguf", "smollm2-135m-lora", "--quant", "Q9"), "Q9: no such quantisation"),
        (("eval", "smollm2-135m-lora", "--rooms", "none"), "none"),
        (("juggle",), "juggle"),
        (("train", "qwen72b-full", "--tier", "24gb"), "does not fit on tier 24gb; there is TIER=8x80gb"),
        (("train", "smollm2-135m-lora", "--tier", "cpuu"), "no such tier; nearest: cpu"),
        (("train", "smollm2-135m-lora", "--set", "lora_r"), "written key=value"),
        (("check", "smollm2-135m-lora", "--set", "lora_rr=8"), "lora_rr: no such key; did you mean lora_r?"),
        (("check", "smollm2-135m-lora", "--set", "lora_r=eight"), "lora_r: "),
        (("train", "smollm2-135m-lora", "--gpus", "2"), "1 rows an update are too few for 2 processes"),
        (("train", "smollm2-135m-lora", "--resume"), "no checkpoint to go on from"),
        (
            ("plan", "qwen7b-qlora", "--set", "lora_rr=8"),
            "lora_rr: does not affect the memory plan; did you mean lora_r?",
        ),
        (("plan", "qwen7b-qlora", "--set", "sequence_len=long"), "sequence_len: 'long' is not a whole number"),
        (("plan", "qwen77b-qlora"), "qwen77b-qlora: no such recipe; nearest: qwen7b-qlora"),
        (("new", "qwen7b", "qlorra", "my.yaml"), "qlorra: no such method; nearest: qlora"),
        (("new", "qwen77b", "qlora", "my.yaml"), "qwen77b: no such model; nearest: qwen7b"),
        (("plan", "qwen7b-qlora", "--gpu", "rtx4091"), "no such GPU; nearest: rtx4090"),
        (("new", "qwen7b", "qlora", "my.txt", "--tier", "24gb"), "ends in .yaml"),
        (("submit", "cron", "smollm2-135m-lora"), "slurm or to ray"),
    ],
)
def test_bad_use_is_one_line_and_exit_status_2(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = tools(*arguments, REACT_RECIPES_OUTPUTS=str(tmp_path / "outputs"))
    assert done.returncode == 2
    assert len(said(done.stderr)) == 1 and says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["convert"],
            "convert: IN and OUT are both needed; for example: react-recipes convert my.json my.jsonl",
        ),
        (["convert", "a", "b"], "convert: --to is missing; for example: react-recipes convert"),
        (["new", "qwen7b"], "new: METHOD is missing; for example: react-recipes new qwen7b qlora my.yaml"),
        (["diff", "a"], "diff: B is missing; for example: react-recipes diff qwen7b-lora my.yaml"),
        (["check"], "check: name a recipe, or --all; for example: react-recipes check"),
        (
            ["gguf"],
            "no model named: give a recipe (RECIPE=qwen7b-qlora), an adapter's folder (ADAPTER=my-lora) or a whole",
        ),
        (["merge", "a", "--adapter", "b"], "a folder or a recipe, not both: b and a; leave one out"),
        (["parity", "a", "--gguf", "b"], "a GGUF or a recipe, not both"),
        (["parity", "--gguf", "b"], "b: --base (BASE=) must name the model"),
        (["plan", "a", "--sec", "1"], "No such option '--sec'"),
        (["eval", "a", "--rooms", "0"], "--rooms: 0 is not in the range x>=1"),
    ],
)
def test_bad_use_says_what_to_type(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["react-recipes", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out and said.err.count("\n") == 1
    assert said.err.startswith(f"react-recipes: {says}")


def test_h_is_help_everywhere_and_the_version_is_told() -> None:
    runner = CliRunner()
    for words in ([], *([name] for name in cli.commands().commands)):
        short, long = (runner.invoke(cli.app, [*words, option]) for option in ("-h", "--help"))
        assert short.exit_code == 0 and short.output == long.output and "Usage" in short.output
    assert runner.invoke(cli.app, ["--version"]).output == f"react-recipes {__version__}\n"


@pytest.mark.parametrize("command", ["plan", "check", "train"])
def test_a_misspelt_key_of_a_persons_own_recipe_is_one_line_with_its_place(tmp_path: Path, command: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(recipe.find("smollm2-135m-lora", "cpu").read_text().replace("lora_r: 16", "lora_rr: 16"))
    line = path.read_text().splitlines().index("lora_rr: 16") + 1
    done = tools(command, str(path), "--tier", "cpu", REACT_RECIPES_OUTPUTS=str(tmp_path / "outputs"))
    assert done.returncode == 2
    assert said(done.stderr) == [f"react-recipes: {path}:{line}: lora_rr: no such key; did you mean lora_r?"]


def test_a_stage_without_the_one_before_says_which_command_makes_it(tmp_path: Path) -> None:
    done = tools("gguf", "smollm2-135m-lora", REACT_RECIPES_OUTPUTS=str(tmp_path))
    assert done.returncode == 2 and "make train RECIPE=smollm2-135m-lora" in done.stderr


@pytest.mark.heavy
def test_doctor_shows_what_is_there() -> None:
    done = tools("doctor")
    assert done.returncode == 0
    assert "llama-server" in done.stdout and "axolotl" in done.stdout.lower()


def test_a_reader_that_has_seen_enough_ends_it_without_a_word() -> None:
    command = [sys.executable, "-m", "tools", "list", "--tier", "24gb"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=run_folder.ROOT)
    assert process.stdout and process.stderr
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == b"" and process.wait() == 1
    process.stderr.close()
