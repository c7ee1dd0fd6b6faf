"""Make's variables as the command line's options: SEQ=4096 is --seq=4096, OUT=my.yaml the argument OUT.

The Makefile exports what was typed: MAKE_GOALS holds the targets, MAKE_TYPED the names of the variables. Their values
are in the environment. Which variables a target takes is read from its command's options, which targets it needs first
from the Makefile: neither is listed twice.
"""

import difflib
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import click

from tools import BadInput
from tools.core import run_folder

# These hold for the target that was typed, not for those that it needs first: `make ollama FORCE=1` takes a name in
# Ollama, and must not train on data that the check refuses.
TARGET_ONLY = {"DRY_RUN", "FORCE", "GPU", "RESUME"}
# With one of these a command needs no recipe.
INSTEAD_OF_RECIPE = {"ADAPTER", "ALL", "GGUF", "MODEL", "TEACHER", "URL"}
# From the environment we do not take them: WSL keeps the computer's name there, shells their prompt, language and host,
# and DEMO may be another program's.
TYPED_ONLY = {"DEMO", "HOST", "LANG", "NAME", "PROMPT"}
# How alike two names must be for one to be the other misspelt: TYER and TIER are 0.75.
NEAR = 0.7
# A target, what it needs, and the command that it calls, if it is one of ours.
RULE = re.compile(r"^([a-z-]+):([^#=\n]*)## .*\n(?:\t@\$\(TOOLS\) ([^$\n]*))?", re.MULTILINE)
CHOICE = re.compile(r"\$\(if (?:\$\(filter ([a-z ]+),)?((?:\$\(value \w+\))+)\)?,([a-z-]*),([a-z-]*)\)")


@dataclass(frozen=True)
class Rule:
    """A target of the Makefile: the targets that it needs first, and the words of its command (none: not ours)."""

    needs: list[str]
    words: list[str]


def read_rules(makefile: str, environment: Mapping[str, str]) -> dict[str, Rule]:
    """The rules of a Makefile that have a line of help, by target; `environment` decides what $(if ...) chooses."""
    found = {}
    for target, needs, words in RULE.findall(makefile):
        chosen = CHOICE.sub(lambda choice: choice[3] if holds(choice, environment) else choice[4], needs)
        found[target] = Rule(chosen.split(), words.split())
    return found


def holds(choice: re.Match[str], environment: Mapping[str, str]) -> bool:
    """Whether the condition of an $(if ...) holds: a variable of it says something, or has a word that it wants."""
    said = " ".join(environment.get(name, "") for name in re.findall(r"value (\w+)", choice[2]))
    return not set(choice[1].split()).isdisjoint(said.split()) if choice[1] else bool(said.strip())


def chain(goals: Sequence[str], rules: Mapping[str, Rule]) -> list[str]:
    """The targets that make builds for `goals`, in its order."""
    found: dict[str, None] = {}
    for goal in goals:
        if goal in rules:
            found |= dict.fromkeys([*chain(rules[goal].needs, rules), goal])
    return list(found)


def parameters(commands: click.Group, words: Sequence[str]) -> list[click.Parameter]:
    """The options and arguments of a command that its `words` leave open: all but TO, of `submit slurm`."""
    given = sum(not word.startswith("-") for word in words[1:])
    command = commands.commands[words[0]]
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    return [each for each in command.params if each not in arguments[:given]]


def variable(parameter: click.Parameter) -> str:
    """The variable of an option (SEQ of --seq) or of an argument (OUT)."""
    return variables(parameter)[0]


def variables(parameter: click.Parameter) -> list[str]:
    """The variables of an option, one for each of its long names, or of an argument."""
    if isinstance(parameter, click.Option):
        long = [each for each in parameter.opts if each.startswith("--")]
        return [each.removeprefix("--").replace("-", "_").upper() for each in long]
    return [(parameter.metavar or parameter.name or "").rstrip(".").upper()]


def option(parameter: click.Option) -> str:
    """An option's long name, the first of several."""
    return next(each for each in parameter.opts if each.startswith("--"))


def arguments(open_parameters: Sequence[click.Parameter], given: Mapping[str, str]) -> list[str]:
    """The arguments of a command that say what the variables `given` say. Raises click.BadParameter for no switch."""
    options, positional = [], []
    for each in open_parameters:
        text = next((given[name] for name in variables(each) if name in given), None)
        if text is None:
            continue
        if not isinstance(each, click.Option):
            positional.append(text)
        elif not each.is_flag:
            options.append(f"{option(each)}={text}")
        elif text.lower() in ("1", "true", "yes"):
            options.append(option(each))
        elif text.lower() in ("0", "false", "no"):
            options += each.secondary_opts
        else:
            raise click.BadParameter(f"{text!r} is neither 1 nor 0", param=each)
    return [*options, *(["--", *positional] if positional else [])]


def from_make(commands: click.Group, target: str, words: Sequence[str]) -> list[str]:
    """The command line of a target's command: its own `words` and what make's variables add.

    Raises BadInput or click.UsageError for a goal or a variable that is wrong anywhere in the chain, so that it is told
    before the first of its targets does any work.
    """
    environment = os.environ
    goals, typed = environment.get("MAKE_GOALS", "").split(), environment.get("MAKE_TYPED", "").split()
    rules = read_rules(run_folder.ROOT.joinpath("Makefile").read_text(encoding="utf-8"), environment)
    stages = {each: rules[each].words for each in chain(goals, rules) if rules[each].words} | {target: list(words)}
    known = {name for stage, command in stages.items() for name in taken(commands, stage, command, goals)}
    check_goals(goals, rules)
    everywhere = {name for command in commands.commands.values() for each in command.params for name in variables(each)}
    check_names(goals, typed, known, everywhere)
    lines = {}
    for stage, command in stages.items():
        here = taken(commands, stage, command, goals)
        given = {name: environment[name] for name in here if environment.get(name)}
        if "RECIPE" not in typed and INSTEAD_OF_RECIPE & {*given}:
            given.pop("RECIPE", None)
        given = {name: text for name, text in given.items() if name in typed or name not in TYPED_ONLY}
        for each in here.values():
            if len(names := [name for name in variables(each) if name in typed]) > 1:
                raise BadInput(f"{'= and '.join(names)}= are one and the same; give one of them")
            if names:
                given = {name: text for name, text in given.items() if name in names or name not in variables(each)}
        lines[stage] = parsed(commands.commands[command[0]], command, list(here.values()), given)
    return lines[target]


def keep_stdout_for_json(target: str) -> None:
    """Send what a target says to stderr when it is only on the way to one that prints JSON."""
    if os.environ.get("JSON") and target not in os.environ.get("MAKE_GOALS", "").split():
        os.dup2(2, 1)


def taken(commands: click.Group, stage: str, words: Sequence[str], goals: Sequence[str]) -> dict[str, click.Parameter]:
    """The variables that a target takes when `goals` were typed, each with its option or argument."""
    found = {name: each for each in parameters(commands, words) for name in variables(each)}
    return {name: each for name, each in found.items() if stage in goals or name not in TARGET_ONLY}


def parsed(
    command: click.Command, words: Sequence[str], here: Sequence[click.Parameter], given: Mapping[str, str]
) -> list[str]:
    """A command line, parsed by its command to see that it is good; raises click.UsageError for what is not."""
    context = click.Context(command, info_name=words[0])
    here = list(dict.fromkeys(here))
    missing = [f"{variable(each)}=" for each in here if each.required and variable(each) not in given]
    if missing:
        raise click.UsageError(f"{', '.join(missing)} missing", context)
    line = [*words, *arguments(here, given)]
    command.make_context(words[0], line[1:])
    return line


def check_goals(goals: Sequence[str], rules: Mapping[str, Rule]) -> None:
    """Raise BadInput for a goal that is no target: `make train qwen7b-qlora` would train the default recipe first."""
    for goal in goals:
        if goal not in rules and not goal.startswith("."):
            near = difflib.get_close_matches(goal, rules, n=1, cutoff=NEAR)
            hint = f"did you mean make {near[0]}?" if near else f"a recipe is named by RECIPE={goal}"
            raise BadInput(f"make {goal}: no such target; {hint}")


def check_names(goals: Sequence[str], typed: Sequence[str], known: set[str], everywhere: set[str]) -> None:
    """Raise BadInput for a typed variable that no target of the chain takes, or that is empty.

    `known`: those that one takes; `everywhere`: those of all commands.
    """
    asked = f"make {' '.join(goals)}"
    for name in typed:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=NEAR)
            hint = f"it takes {', '.join(sorted(known)) or 'no variables'}"
            if name in TARGET_ONLY:
                hint = f"{name} works only for the target that is typed; {hint}"
            elif name not in everywhere:
                hint += f"; for the programs' environment: {name}=... {asked}"
            raise BadInput(f"{asked} does not know {name}; {f'did you mean {near[0]}?' if near else hint}")
        if not os.environ.get(name):
            raise BadInput(f"{name}= is empty; give it a value ({asked} {name}=...), or leave it out")


def explain(error: click.UsageError, target: str = "") -> str:
    """What is wrong with a command line, in one line, with an example of a good one.

    `target`: of make, whose variables then stand for the options.
    """
    command = error.ctx.command if error.ctx else None
    parameter = error.param if isinstance(error, click.BadParameter) else None
    message = error.format_message().rstrip(".")
    if parameter and isinstance(error, click.MissingParameter):
        message = f"{command.name if command else ''}: {shown(parameter, target)} is missing"
        arguments = [each for each in command.params if isinstance(each, click.Argument)] if command else []
        if parameter.nargs == -1 and len(arguments) > 1:  # click has given what was typed to the last of them
            message = f"{command.name if command else ''}: {' and '.join(map(variable, arguments))} are both needed"
    elif parameter:
        message = f"{shown(parameter, target)}: {error.message.rstrip('.')}"
    if command is None or not command.epilog or (parameter and not isinstance(error, click.MissingParameter)):
        return message
    return f"{message}; for example: {example(command, target, error.ctx)}"


def shown(parameter: click.Parameter, target: str) -> str:
    """An option or argument as a person types it."""
    if target:
        return f"{variable(parameter)}="
    return option(parameter) if isinstance(parameter, click.Option) else variable(parameter)


def example(command: click.Command, target: str, context: click.Context | None) -> str:
    """The example that ends a command's help, as a call of this program, or of make's `target`."""
    words = shlex.split((command.epilog or "").removeprefix("Example: "))
    if not target:
        program = context.find_root().info_name if context else ""
        return f"{program} {shlex.join(words)}"
    return shlex.join(["make", target, *assignments(command, words[1:])])


def assignments(command: click.Command, words: Sequence[str]) -> Iterator[str]:
    """A command's words as variables of make: --seq 4096 as SEQ=4096."""
    context = command.make_context(command.name, list(words))
    for each in command.params:
        if each.name and context.get_parameter_source(each.name) is click.core.ParameterSource.COMMANDLINE:
            value = context.params[each.name]
            text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            yield f"{variable(each)}={int(value) if isinstance(value, bool) else text}"
