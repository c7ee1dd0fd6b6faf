"""The pages that a person reads: their commands can be typed, their links lead somewhere, both READMEs say the same."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.parts.command import tools
from tools import cli
from tools.core import catalog, make_variables, run_folder
from tools.recipes import index, plan
from tools.recipes.commands import model_and_method

ROOT = run_folder.ROOT
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
GUIDES = sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "cli.md"})
PAGES = [*READMES, *GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md", ROOT / "data" / "README.md"]
COMMANDS = cli.commands()
# A block of code, with its language; `code` in a line; [text](target).
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PROGRAM = re.compile(r"^(?:python -m tools|uvx --from \. react-recipes) ")


def commands(page: Path) -> list[str]:
    """The command lines of a page, in blocks and in text, without the comments behind them."""
    text = page.read_text(encoding="utf-8")
    blocks = [line for language, block in BLOCK.findall(text) if not language for line in block.splitlines()]
    found = [*blocks, *INLINE.findall(BLOCK.sub("", text))]
    return [re.sub(r"\s+# .*", "", line) for line in found if re.match(r"(make|python|uvx|axolotl) ", line)]


ALL = sorted({command for page in PAGES for command in commands(page)})


def test_every_page_has_commands() -> None:
    assert len(PAGES) >= 8 and all(commands(page) for page in [*READMES, ROOT / "docs" / "data.md"])


@pytest.mark.parametrize("command", [each for each in ALL if each.startswith("make ")])
def test_a_command_of_make_names_a_target_and_its_variables(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)[1:]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    goals = [word for word in words if "=" not in word]
    rules = make_variables.read_rules((ROOT / "Makefile").read_text(encoding="utf-8"), given)
    assert goals and set(goals) <= {*rules}
    for name in {make_variables.variable(each) for every in COMMANDS.commands.values() for each in every.params}:
        monkeypatch.delenv(name, raising=False)
    defaults = {"RECIPE": "smollm2-135m-lora", "DATA": "data/train.jsonl"}  # the Makefile's own
    typed = {"MAKE_GOALS": " ".join(goals), "MAKE_TYPED": " ".join(given)}
    for name, value in (defaults | given | typed).items():
        monkeypatch.setenv(name, value)
    for goal in goals:
        if rules[goal].words:
            make_variables.from_make(COMMANDS, goal, rules[goal].words)  # raises for what the target does not take
        else:
            assert not given


@pytest.mark.parametrize("command", [each for each in ALL if PROGRAM.match(each)])
def test_a_command_of_the_program_parses(command: str) -> None:
    name, *words = shlex.split(PROGRAM.sub("", command))
    COMMANDS.commands[name].make_context(name, words)  # raises for what the command does not take


@pytest.mark.parametrize("command", [each for each in ALL if re.match(r"(python bench/|axolotl train \S+/)", each)])
def test_a_file_that_a_command_names_exists(command: str) -> None:
    assert (ROOT / command.split()[-1]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", target.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_both_readmes_hold_the_same_commands_links_and_figures() -> None:
    english, chinese = (page.read_text(encoding="utf-8") for page in READMES)
    assert Counter(commands(READMES[0])) == Counter(commands(READMES[1]))
    links = [
        Counter(re.sub(r"#.*|README.*|\.zh-CN", "", link) for link in LINK.findall(text)) for text in (english, chinese)
    ]
    assert links[0] == links[1]
    examples = [[block for language, block in BLOCK.findall(text) if language] for text in (english, chinese)]
    assert examples[0] == examples[1]
    rows = [[line.count("|") for line in text.splitlines() if line.startswith("|")] for text in (english, chinese)]
    assert rows[0] == rows[1]
    assert english.count("\n## ") == chinese.count("\n## ")


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_table_of_gpus_says_what_the_recipes_say(page: Path) -> None:
    row = r"\[([\w.-]+)\]\((recipes/\S+\.yaml)\) \|[^|]+\|[^|\d]*([\d.]+)[^|\d]+([\d.]+) GiB[^|]*\| ([^|]+) \|"
    rows = re.findall(row, page.read_text("utf-8"))
    assert len(rows) == 6
    for name, path, predicted, usable, longer in rows:
        recipe = (ROOT / path).read_text(encoding="utf-8")
        assert Path(path).stem == name
        (memory,) = re.findall(r"^# Memory +(.*?) predicted", recipe, re.MULTILINE)
        assert memory.replace(" GiB", "") == f"{predicted} of {usable}"
        model, method, tier = model_and_method(f"{Path(path).parent.name}/{name}")
        assert yaml.safe_load(recipe)["sequence_len"] == 2048
        found = plan.choose(model, method, catalog.tiers()[tier])
        assert found
        long = index.at_length(found, found.tier, 8192)
        assert longer == f"{long.total:.1f} GiB" if long.fits else longer in ("does not fit", "放不下")


def test_the_example_of_data_is_good_data(tmp_path: Path) -> None:
    (example,) = (block for language, block in BLOCK.findall(READMES[0].read_text("utf-8")) if language == "json")
    assert json.loads(example)["messages"]
    (tmp_path / "my.jsonl").write_text(example, encoding="utf-8")
    done = tools("lint", str(tmp_path / "my.jsonl"), "--fail-on", "warning")
    assert done.returncode == 0, done.stdout + done.stderr
