"""The Makefile: what a person types reaches the program as typed, and a set-up that was stopped is completed."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from tools import BadInput, cli
from tools.core import make_variables, run_folder, trajectory
from tools.recipes import recipe

TEXT = (run_folder.ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = cli.commands()
RULES = make_variables.read_rules(TEXT, {})
OURS = [target for target, rule in RULES.items() if rule.words]
NAMES = {make_variables.variable(each) for command in COMMANDS.commands.values() for each in command.params}
# {made}: a file that must not come into being.
HOSTILE = [
    "two words  and more",
    "x;touch '{made}'",
    "`touch '{made}'`",
    "$(touch '{made}')",
    "$(shell touch '{made}')",
    "x && touch '{made}' || touch '{made}' & touch '{made}'",
    "x > '{made}' < /dev/null | cat",
    "two\nlines\n\ttouch '{made}'\n",
    "$x $$x ${HOME} $(HOME) $",
    "$(",
    "$(x",
    "endef",
    'it\'s "quoted"',
    "'",
    '"',
    "#a # comment",
    "back\\slash \\n \\",
    "--help",
    "-x",
    "-",
    "--",
    "*",
    "~",
    "{a,b}",
    "a=b:c,d%e@f!g",
    "é 日本 😀",
    "ends in space ",
]


def make(
    *arguments: str, at: Path = run_folder.ROOT, given: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`make --silent` with these arguments; none of its variables comes from the environment of the tests."""
    kept = {key: value for key, value in os.environ.items() if key not in NAMES and not key.startswith("MAKE")}
    return subprocess.run(
        ["make", "--silent", *arguments], cwd=at, env=kept | (given or {}), capture_output=True, text=True
    )


@pytest.fixture
def told(tmp_path: Path) -> Any:
    """What the commands are told: make with these arguments, and the command line of each call."""
    script = tmp_path / "told.py"
    script.write_text(
        "import json, sys\nfrom tools import cli\nfrom tools.core import make_variables\n"
        "print(json.dumps(make_variables.from_make(cli.commands(), sys.argv[1], sys.argv[2:])))\n"
    )
    tools = f'--eval=override TOOLS = PYTHONPATH=. "{sys.executable}" -B "{script}" $@'

    def calls(*arguments: str, **environment: str) -> list[list[str]]:
        done = make(tools, *arguments, given=environment)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return calls


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line of a target that was typed with these variables."""

    def of(target: str, environment: dict[str, str] | None = None, **typed: str) -> list[str]:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        given = {"RECIPE": "smollm2-135m-lora"} | (environment or {}) | typed
        given |= {"MAKE_GOALS": target, "MAKE_TYPED": " ".join(typed)}
        for name, text in given.items():
            monkeypatch.setenv(name, text)
        return make_variables.from_make(COMMANDS, target, RULES[target].words)

    return of


def takes(target: str) -> dict[str, click.Parameter]:
    """The variables of a target, each with its option or argument."""
    return make_variables.taken(COMMANDS, target, RULES[target].words, [target])


def once(known: dict[str, click.Parameter]) -> dict[str, click.Parameter]:
    """Variables, but only the first of those that are one and the same."""
    return {name: each for name, each in known.items() if name == make_variables.variable(each)}


def value_of(each: click.Parameter, text: str) -> str:
    """A value that an option takes: `text` wherever any text is one."""
    if known := {"quant": "Q4_K_M", "adapter_only": "1", "price": "0.1 0.2"}.get(each.name or ""):
        return known
    if isinstance(each, click.Option) and each.is_flag:
        return "1"
    if isinstance(each.type, click.Choice):
        return str(each.type.choices[0])
    return {"integer range": "3", "integer": "3", "float": "0.5", "float range": "0.5"}.get(each.type.name, text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_one_argument_whatever_is_in_it(tmp_path: Path, told: Any, text: str) -> None:
    text = text.replace("{made}", str(tmp_path / "made"))
    given = {name: text for name in ("RECIPE", "BASE", "SET", "DATA", "MASTER_ADDR")}
    wanted = ["train", *(f"--{option}={text}" for option in ("base", "set", "data", "master-addr")), "--", text]
    assert told("train", *(f"{name}={value}" for name, value in given.items())) == [["setup"], wanted]
    assert told("train", *(["-e"] if text < "a" else []), **given) == [["setup"], wanted]
    assert not (tmp_path / "made").exists()


def test_an_unknown_variable_is_not_expanded_either(tmp_path: Path, told: Any) -> None:
    text = f"$(shell touch '{tmp_path}/made')"
    assert told("list", f"REACT_RECIPES_CACHE={text}") == [["list"]]
    assert told("list", RECIPEE=text, HOME=text, REACT_RECIPES_CACHE=text) == [["list"]]
    done = make("list", f"RECIPEE={text}", f"UV_VERSION={text}")
    assert done.returncode == 2 and "does not know" in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("target", OURS)
def test_the_variables_of_a_line_of_help_arrive(tmp_path: Path, told: Any, target: str) -> None:
    helped = re.findall(rf"^{target}: .*## (.*)", TEXT, re.MULTILINE)[0]
    text = f'it\'s "a"; touch {tmp_path}/made\n`b` $(c) é # \\'
    stages = [stage for stage in make_variables.chain([target], RULES) if RULES[stage].words]
    known = {name: each for stage in stages for name, each in takes(stage).items()}
    named = re.findall(r"\b([A-Z_]+)=", helped)
    required = [name for name, each in takes(target).items() if each.required]
    names = [name for name in dict.fromkeys([*named, *required]) if name in once(known)]
    assert names or not named
    given = {name: value_of(known[name], f"{name} {text}") for name in names}
    arrived = [word for call in told(target, *(f"{name}={value}" for name, value in given.items())) for word in call]
    for name, value in given.items():
        each = known[name]
        if isinstance(each, click.Option):
            option = make_variables.option(each)
            assert (option if each.is_flag else f"{option}={value}") in arrived, name
        else:
            assert value in arrived, name
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("target", OURS)
def test_a_target_takes_every_option_of_its_command(line: Any, target: str) -> None:
    given = {name: value_of(each, f"a {name}") for name, each in once(takes(target)).items()}
    words = line(target, **given)
    command = COMMANDS.commands[words[0]]
    parsed = command.make_context(words[0], words[1:]).params
    for name, each in once(takes(target)).items():
        told = parsed[each.name]
        assert str(told[0] if isinstance(told, (list, tuple)) else told) in (given[name], "True"), name
    assert line(target, **{name: given[name] for name, each in takes(target).items() if each.required})[0] == words[0]


@pytest.mark.parametrize("target", OURS)
def test_a_target_refuses_what_it_does_not_take_and_names_the_nearest(line: Any, target: str) -> None:
    stages = [stage for stage in make_variables.chain([target], RULES) if RULES[stage].words]
    known = {name for stage in stages for name in make_variables.taken(COMMANDS, stage, RULES[stage].words, [target])}
    for name in sorted(NAMES - known):
        with pytest.raises(
            BadInput, match=f"make {target} does not know {name}; (it takes|did you mean|{name} works only)"
        ):
            line(target, **{name: "1"})
    for name in (name for name in takes(target) if len(name) > 2):
        with pytest.raises(BadInput, match=rf"does not know {name}X; did you mean {name}\?"):
            line(target, **{f"{name}X": "1"})


def test_a_misspelt_variable_and_a_stray_word_are_refused_before_any_work() -> None:
    for arguments, says in {
        ("list", "TYER=24gb"): "make list does not know TYER; did you mean TIER?",
        ("list", "RECIPE=x"): "make list does not know RECIPE; it takes MODEL, TIER",
        ("list", "HF_HUB_OFFLINE=1"): "for the programs' environment: HF_HUB_OFFLINE=... make list",
        ("train", "qwen7b-qlora"): "a recipe is named by RECIPE=qwen7b-qlora",
        ("eval", "ROOMS=many"): "ROOMS=: 'many' is not a valid integer",
        ("eval", "FORCE=1"): "make eval does not know FORCE; FORCE works only for the target that is typed",
        ("check", "JSON=maybe"): "JSON=: 'maybe' is neither 1 nor 0",
        ("ollama", "QUANT=Q4_K_M Q8_0"): "one quantisation here; make gguf and make quality take several",
        ("gguf", "ADAPTER="): "ADAPTER= is empty; give it a value (make gguf ADAPTER=...)",
        ("gguf", "ADAPTER=a", "MODEL=b"): "ADAPTER= and MODEL= are one and the same; give one of them",
        ("help", "TIER=cpu"): "TIER: make help takes no variables",
    }.items():
        done = make(*arguments)
        assert done.returncode == 2 and says in done.stderr and not done.stdout, (arguments, done.stderr)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("convert", "IN=, OUT=, TO= missing; for example: make convert IN=my.json OUT=my.jsonl TO=messages"),
        ("new", "MODEL=, METHOD=, OUT= missing; for example: make new MODEL=qwen7b METHOD=qlora OUT=my.yaml TIER=24gb"),
        ("diff", "A=, B= missing; for example: make diff A=qwen7b-lora B=my.yaml"),
        ("episodes", "OUT= missing; for example: make episodes OUT=my.jsonl COUNT=1000"),
        ("add-model", "HUB= missing; for example: make add-model HUB=org/name"),
        ("ollama-rm", "NAME= missing; for example: make ollama-rm NAME=react-smollm2"),
    ],
)
def test_a_bare_target_says_what_to_type(target: str, says: str) -> None:
    done = make(target)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode == 2 and lines == [f"react-recipes: {says}"] and not done.stdout


def test_every_example_is_a_good_command_line(line: Any) -> None:
    for target in OURS:
        command = COMMANDS.commands[RULES[target].words[0]]
        if command.epilog:
            words = shlex.split(command.epilog.removeprefix("Example: "))
            assert words[0] == command.name
            given = dict(each.split("=", 1) for each in make_variables.assignments(command, words[1:]))
            assert line(target, **{name: text for name, text in given.items() if name in takes(target)})


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["lint"], ["lint", "--", "data/train.jsonl data/test.jsonl"]),
        (["split"], ["split", "--", "data/train.jsonl data/test.jsonl"]),
        # The page in outputs/ is ours to replace; another is replaced when FORCE says so.
        (["stats", "DATA=a b"], ["stats", "--html=outputs/stats.html", "--force", "--", "a b"]),
        (["stats", "DATA=a b", "HTML=my page.html"], ["stats", "--html=my page.html", "--", "a b"]),
        (["train"], ["train", "--", "smollm2-135m-lora"]),
        (["train", "FORCE=0", "RESUME=no"], ["train", "--", "smollm2-135m-lora"]),
        (["resume"], ["train", "--resume", "--", "smollm2-135m-lora"]),
        (["slurm", "TIER=2x 24gb"], ["submit", "slurm", "--tier=2x 24gb", "--", "smollm2-135m-lora"]),
        (["train", "RECIPE=my recipe.yml", "TIER=2x 24gb"], ["train", "--tier=2x 24gb", "--", "my recipe.yml"]),
        (["gguf", "ADAPTER=my folder", "BASE=b c"], ["gguf", "--base=b c", "--adapter=my folder"]),
        (["parity", "GREEDY=0"], ["parity", "--no-greedy", "--", "smollm2-135m-lora"]),
        (["parity", "GREEDY=1"], ["parity", "--greedy", "--", "smollm2-135m-lora"]),
        (["check", "ALL=1"], ["check", "--all"]),
    ],
)
def test_what_is_not_given_has_its_default(told: Any, arguments: list[str], wanted: list[str]) -> None:
    assert told(*arguments)[-1] == wanted


def test_the_chain_is_the_one_that_make_runs() -> None:
    for target in OURS:
        for name in ("", "ADAPTER", "MODEL", "GGUF"):
            if name and name not in takes(target):
                continue
            rules = make_variables.read_rules(TEXT, {name: "x"})
            shown = make("--dry-run", target, *([f"{name}=x"] if name else [])).stdout
            run = re.findall(r"tools --from-make ([a-z-]+)", shown)
            assert run == [each for each in make_variables.chain([target], rules) if rules[each].words], (target, name)


def test_each_stage_of_a_chain_takes_its_own_variables(told: Any) -> None:
    recipe = ["--", "smollm2-135m-lora"]
    assert told("ollama", "QUANT=Q4_K_M", "IMATRIX=1", "DATA=d", "NAME=n", "FORCE=1", "TIER=cpu") == [
        ["setup"],
        ["train", "--tier=cpu", "--data=d", *recipe],
        ["gguf", "--tier=cpu", "--quant=Q4_K_M", "--imatrix", *recipe],
        ["ollama", "--tier=cpu", "--quant=Q4_K_M", "--name=n", "--force", *recipe],
    ]
    either = ["--base=b", "--adapter=a"]
    assert told("export", "ADAPTER=a", "BASE=b") == [["setup"], ["gguf", *either], ["export", *either]]
    for other in ("llamafactory", "trl", "unsloth"):
        asked = [f"--to={other}", "--data=d"]
        assert told("export", f"TO={other}", "DATA=d") == [["setup"], ["export", *asked, *recipe]]
    assert told("export", "MODEL=a", "BASE=b") == [["setup"], ["gguf", *either], ["export", *either]]
    assert told("ask", "PROMPT=p", "QUANT=F16")[1:] == [
        ["train", *recipe],
        ["gguf", "--quant=F16", *recipe],
        ["ask", "--prompt=p", "--quant=F16", *recipe],
    ]
    by = "--backend=transformers"
    assert told("ask", "BACKEND=transformers") == [["setup"], ["train", *recipe], ["ask", by, *recipe]]
    assert told("ask", "BACKEND=transformers", "ADAPTER=a", "BASE=b") == [["setup"], ["ask", by, *either]]
    assert told("parity", "GGUF=g", "BASE=b", "HELD_OUT=h")[1:] == [["parity", "--base=b", "--gguf=g", "--held-out=h"]]


def test_the_environment_counts_but_for_a_name(line: Any) -> None:
    environment = {"RECIPE": "a", "NAME": "DESKTOP-1", "FORCE": "", "SLIP": "no number", "QUANT": "F16", "PROMPT": "$ "}
    assert line("ollama", environment=environment) == ["ollama", "--quant=F16", "--", "a"]
    assert line("ask", environment=environment) == ["ask", "--quant=F16", "--", "a"]
    assert line("ollama", environment=environment, NAME="b") == ["ollama", "--quant=F16", "--name=b", "--", "a"]


def test_json_has_stdout_for_itself() -> None:
    told = os.environ | {"MAKE_GOALS": "check", "MAKE_TYPED": "JSON", "JSON": "1", "RECIPE": "smollm2-135m-lora"}
    command = [sys.executable, "-m", "tools", "--from-make", "clean-ollama", "doctor"]
    done = subprocess.run(command, cwd=run_folder.ROOT, env=told, capture_output=True, text=True)
    assert not done.stdout and "llama-server" in done.stderr


def test_no_text_of_a_person_stands_in_a_command() -> None:
    """Make puts none into a command, where the shell would read it."""
    code = re.sub(r"^#.*|## .*", "", TEXT, flags=re.MULTILINE)
    names = "|".join(sorted(NAMES))
    assert len(re.findall(rf"\$\(if \$\(value ({names})\)", code)) >= 4
    assert not re.findall(rf"\$[({{]({names})[)}}]|\$\$\{{?({names})\b", code)


def test_a_dry_run_and_help_run_nothing(tmp_path: Path) -> None:
    text = f"$(shell touch '{tmp_path}/made');`touch '{tmp_path}/made'`"
    shown = make("--dry-run", "demo", f"RECIPE={text}")
    assert shown.returncode == 0 and "train" in shown.stdout and "touch" not in shown.stdout
    assert make("help", given={"RECIPE": text}).returncode == 0
    assert not (tmp_path / "made").exists()


def test_without_a_home_a_line_says_what_to_set(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("REACT_RECIPES_CACHE", raising=False)
    done = make("list")
    assert done.returncode == 2 and not done.stdout
    assert "HOME" in done.stderr and "REACT_RECIPES_CACHE" in done.stderr and done.stderr.count("\n") == 1
    assert make("help").returncode == 0 and make().returncode == 0
    assert told("list", REACT_RECIPES_CACHE="some where") == [["list"]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project in a folder with a space and an accent in its name, with the packages of this one."""
    folder = tmp_path_factory.mktemp("projects") / "my proj é"
    shutil.copytree(
        run_folder.ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "outputs", "tests", "bench")
    )
    (folder / ".venv").symlink_to(run_folder.ROOT / ".venv")
    os.utime(folder / "requirements.lock", (0, 0))  # older than .venv/.ready
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "TIER=24gb"], "qwen7b"),
        (["plan", "RECIPE=qwen7b-qlora", "TIER=24gb", "SET=lora_r=32 optimizer='adamw_torch'"], "Qwen2.5-7B-Instruct"),
        (["plan", "RECIPE=my recipe.yaml", "TIER=24gb"], "Qwen2.5-7B-Instruct"),
        (["lint"], "288 episodes, 0 of level error"),
        (["lint", "DATA=data/test.jsonl"], "48 episodes"),
        (["lint", "DATA=my episodes é.jsonl"], "48 episodes"),
        (["lint", "DATA=data/test.jsonl 'my episodes é.jsonl'"], "96 episodes"),
        (["lint", "DATA=data/*.jsonl"], "288 episodes"),
        (
            ["split", "DATA=data/train.jsonl data/test.jsonl", "OUT=my parts"],
            "my parts: train.jsonl, validation.jsonl, test.jsonl",
        ),
        (["convert", "IN=data/train.jsonl 'my episodes é.jsonl'", "OUT=my out.json", "TO=alpaca"], "out.json: 288"),
        (["convert", "IN=my episodes*.jsonl", "OUT=my other.json", "TO=alpaca"], "my other.json: 48 episodes read"),
        (["convert", "IN=my episodes é.jsonl", "OUT=--help", "TO=alpaca"], "--help: 48 episodes read"),
        (["plan", "RECIPE=--help"], "--help: no such recipe"),
        (["convert", "OUT=out.json", "TO=alpaca"], "IN= missing; for example: make convert IN=my.json"),
    ],
)
def test_names_with_spaces_are_names(project: Path, arguments: list[str], says: str) -> None:
    shutil.copy(project / "recipes/24gb/qwen7b-qlora.yaml", project / "my recipe.yaml")
    shutil.copy(project / "data/test.jsonl", project / "my episodes é.jsonl")
    done = make(*arguments, at=project)
    assert says in done.stdout + done.stderr and "Traceback" not in done.stderr
    for out in (each.partition("=")[2] for each in arguments if each.startswith("OUT=")):
        assert (project / out).exists() == (done.returncode == 0)


def test_one_argument_may_name_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "a b.jsonl", "it's.jsonl", "c[1].jsonl"):
        Path(name).touch()
    for given, named in {
        "a.jsonl b.jsonl": ["a.jsonl", "b.jsonl"],
        "a b.jsonl": ["a b.jsonl"],
        "a.jsonl\n'a b.jsonl'": ["a.jsonl", "a b.jsonl"],
        "a.jsonl nowhere.jsonl": ["a.jsonl", "nowhere.jsonl"],  # what is not there is told of by who reads it
        "no where.jsonl": ["no where.jsonl"],
        "it's.jsonl": ["it's.jsonl"],
        "it's not.jsonl": ["it's not.jsonl"],
        "c[1].jsonl": ["c[1].jsonl"],
        "a*.jsonl": ["a b.jsonl", "a.jsonl"],
        "-": ["-"],
        "--help": ["--help"],
        "$(touch made)": ["$(touch made)"],
    }.items():
        assert trajectory.paths([given, "b.jsonl"]) == [*named, "b.jsonl"]
    with pytest.raises(BadInput, match="a file without a name"):
        trajectory.paths([""])
    assert not Path("made").exists()


def test_one_argument_may_hold_several_changes() -> None:
    read: dict[str, dict[str, Any]] = {
        "lora_r=32 num_epochs=2": {"lora_r": 32, "num_epochs": 2},
        " lora_r=32\n\tnum_epochs=2\n": {"lora_r": 32, "num_epochs": 2},
        "lora_target_modules=[q_proj, v_proj] lora_r=8": {"lora_target_modules": ["q_proj", "v_proj"], "lora_r": 8},
        "a={b: 'c d=1 e'} f=": {"a": {"b": "c d=1 e"}, "f": None},
        'default_system_message="say a=b # and c=d" x=1e-4': {"default_system_message": "say a=b # and c=d", "x": 1e-4},
        "default_system_message=You are here": {"default_system_message": "You are here"},
        "chat_template_jinja='{% set x=1 %}'": {"chat_template_jinja": "{% set x=1 %}"},
        "a==b": {"a": "=b"},
        " ": {},
    }
    for given, changes in read.items():
        assert recipe.overrides([given, "last=1"]) == changes | {"last": 1}
    for given, why in {
        "lora_r=8 # rank": "quote a text",
        "a=use #1 b=2": "quote a text",
        "a=[1, 2 b=3": "quote a text",
        "a=2001-99-99": "put a text in quotes",
        "lora_r = 8": "key=value",
        "lora_r=8 lora_r=9": "two values",
    }.items():
        with pytest.raises(BadInput, match=why):
            recipe.overrides([given])


def test_a_set_up_that_was_stopped_is_completed(tmp_path: Path) -> None:
    """Real uv, from an empty cache, and a real environment of one small package, killed on the way."""
    folder, cache = tmp_path / "my proj é", tmp_path / "my 'cache' é $x"
    folder.mkdir()
    shutil.copy(run_folder.ROOT / "Makefile", folder)
    pins = (run_folder.ROOT / "requirements.lock").read_text()
    lock = re.findall(r"^iniconfig==.*\n(?:    .*\n)*", pins, re.MULTILINE)
    (folder / "requirements.lock").write_text(lock[0])
    path = os.pathsep.join(each for each in os.environ["PATH"].split(os.pathsep) if not Path(each, "uv").exists())
    environment = os.environ | {"PATH": path, "REACT_RECIPES_CACHE": str(cache), "MAKEFLAGS": ""}
    command, uv = ["make", "--silent", ".venv/.ready"], cache / re.findall("UV_VERSION := (.*)", TEXT)[0]
    uv = uv.with_name(f"uv-{uv.name}")
    for seconds in (0.5, 1.5):
        process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, stderr=-3, stdout=-3)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not uv.exists() or subprocess.run([uv / "bin" / "uv", "--version"]).returncode == 0
    # What older set-ups left when they were stopped: a folder of uv without uv, an environment without its Python.
    shutil.rmtree(uv, ignore_errors=True)
    (uv / "bin").mkdir(parents=True)
    shutil.rmtree(folder / ".venv", ignore_errors=True)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/CACHEDIR.TAG").touch()
    python = folder / ".venv/bin/python"
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert subprocess.run([python, "-c", "import iniconfig"]).returncode == 0
        # Then: an environment with a Python, and nothing else.
        (folder / ".venv/.ready").unlink()
        (folder / ".venv/pyvenv.cfg").unlink()
    assert (uv / "bin" / "uv").is_file()
