"""What is chosen on the page: its recipe, its plans, and commands that a person can type."""

import shlex

import pytest

from tools import cli
from tools.board import choice
from tools.board.board import Board, Form
from tools.board.choice import Choice, Command
from tools.board.runs import Work
from tools.board.serve import texts
from tools.core import catalog, make_variables, run_folder
from tools.recipes import commands, plan, recipe

COMMANDS = cli.commands()
FORM = Form("qwen7b", "qlora", "tier 24gb", "", "", "Q4_K_M", 3, "", "my-qwen", False)


def typed(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of ours that a line of make calls; raises for a line that make refuses."""
    goal, *given = shlex.split(line)[1:]
    values = dict(each.split("=", 1) for each in given)
    for each in (each for command in COMMANDS.commands.values() for each in command.params):
        monkeypatch.delenv(make_variables.variable(each), raising=False)
    for name, value in (values | {"MAKE_GOALS": goal, "MAKE_TYPED": " ".join(values)}).items():
        monkeypatch.setenv(name, value)
    rules = make_variables.read_rules((run_folder.ROOT / "Makefile").read_text(encoding="utf-8"), values)
    return make_variables.from_make(COMMANDS, goal, rules[goal].words)


ON_A_GPU = FORM._replace(device="gpu rtx4090", prompt="It's `a` $b", force=True)


@pytest.mark.parametrize("form", [FORM, ON_A_GPU], ids=["tier", "gpu"])
def test_each_command_on_the_page_is_what_make_runs(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, command in Board(texts("en"), Work()).commands(form).items():
        line = typed(command.make, monkeypatch)
        if name in ("lint", "stats", "new"):  # of these the page runs the functions
            continue
        assert sorted(line) == sorted(command.words), name
        COMMANDS.commands[command.name].make_context(command.name, command.words[1:])


def test_a_gpu_is_planned_for_itself_and_takes_the_recipes_of_its_tier() -> None:
    chosen = Choice("qwen7b", "qlora", "gpu rtx4090")
    found = next(iter(chosen.plans().values()))
    assert found.total == commands.planned("qwen7b-qlora", "", "rtx4090", 0, {}).total
    assert found.tier.usable_gib == plan.for_gpu(catalog.gpus()["rtx4090"]).usable_gib
    assert chosen.file == recipe.RECIPES / chosen.tier / "qwen7b-qlora.yaml"


def test_the_method_that_was_chosen_comes_first_and_all_others_follow() -> None:
    plans = Choice("smollm2-135m", "full", "tier 8gb").plans()
    assert next(iter(plans)) == "full" and sorted(plans) == sorted(choice.methods("smollm2-135m"))


def test_what_the_page_opens_with_has_a_recipe() -> None:
    assert choice.first().file.is_file()


def test_switches_and_what_is_left_out_in_a_command() -> None:
    command = Command("train", {"recipe": "my own.yaml", "tier": "", "resume": "1"})
    assert command.words == ["train", "--resume", "--", "my own.yaml"]
    assert command.make == "make train 'RECIPE=my own.yaml' RESUME=1"
