"""The Makefile: what a person types reaches the program as typed, and a set-up that was stopped is completed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tools import BadInput, cli
from tools.core import run_folder, trajectory
from tools.pipeline import serving
from tools.recipes import recipe

TEXT = (run_folder.ROOT / "Makefile").read_text(encoding="utf-8")
WHOLE = TEXT.replace("\\\n", " ")
TARGETS = re.findall(r"^([a-z-]+):", TEXT, re.MULTILINE)
VARIABLES = re.findall(r"\S+", WHOLE.partition("VARIABLES := ")[2].partition("\n")[0])
NAMES = "|".join(sorted(VARIABLES, key=len, reverse=True))
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
    kept = {key: value for key, value in os.environ.items() if key not in VARIABLES and not key.startswith("MAKE")}
    return subprocess.run(
        ["make", "--silent", *arguments], cwd=at, env=kept | (given or {}), capture_output=True, text=True
    )


@pytest.fixture
def told(tmp_path: Path) -> Any:
    """What the program is told: make with these arguments, and the arguments of each call of the program."""
    script = tmp_path / "told.py"
    script.write_text("import json, sys; print(json.dumps(sys.argv[1:]))")

    def calls(*arguments: str, **environment: str) -> list[list[str]]:
        done = make(f'TOOLS="{sys.executable}" -SE "{script}"', *arguments, given=environment)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return calls


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_one_argument_whatever_is_in_it(tmp_path: Path, told: Any, text: str) -> None:
    text = text.replace("{made}", str(tmp_path / "made"))
    given = {name: text for name in ("RECIPE", "BASE", "DATA", "SET", "MASTER_ADDR")}
    wanted = ["train", *(f"--{option}={text}" for option in ("base", "data", "set", "master-addr")), "--", text]
    assert told("train", *(f"{name}={value}" for name, value in given.items())) == [["setup"], wanted]
    assert told("train", **given) == [["setup"], wanted]
    assert told("train", "-e", **given) == [["setup"], wanted]
    assert not (tmp_path / "made").exists()


def test_an_unknown_variable_is_not_expanded_either(tmp_path: Path, told: Any) -> None:
    text = f"$(shell touch '{tmp_path}/made')"
    assert told("list", f"RECIPEE={text}", f"REACT_RECIPES_CACHE={text}", f"UV_VERSION={text}") == [["list"]]
    assert told("list", RECIPEE=text, HOME=text, REACT_RECIPES_CACHE=text) == [["list"]]
    assert not (tmp_path / "made").exists()


# The arguments of each target when all variables are given, but for ADAPTER: NAME stands for the text of the variable.
ARGUMENTS = {
    "setup": "setup",
    "doctor": "doctor",
    "data": "data --force",
    "lint": "lint --base=BASE --sequence-len=SEQ --world=WORLD --fail-on=FAIL_ON --fix=FIX --force -- DATA",
    "split": "split --out=OUT --validation=VALIDATION --test=TEST --seed=SEED --force -- DATA",
    "stats": "stats --base=BASE --html=HTML --force -- DATA",
    "convert": "convert --to=TO --from=FROM --per=PER --force -- IN OUT",
    "episodes": "episodes --count=COUNT --seed=SEED --tasks=TASKS --rooms=PLACES --style=STYLE --slip=SLIP "
    "--alfworld=ALFWORLD --force -- OUT",
    "recipes": "recipes --force",
    "list": "list --tier=TIER --model=MODEL",
    "recommend": "recommend --gpu=GPU --gpus=GPUS",
    "plan": "plan --gpu=GPU --gpus=GPUS --seq=SEQ --set=SET -- TIER/RECIPE",
    "new": "new --tier=TIER --force -- MODEL METHOD OUT",
    "diff": "diff -- A B",
    "add-model": "add-model -- HUB",
    "check": "check --base=BASE --data=DATA --set=SET --force -- TIER/RECIPE",
    "train": "train --base=BASE --data=DATA --set=SET --force --gpus=GPUS --nodes=NODES --node-rank=NODE_RANK "
    "--master-addr=MASTER_ADDR --master-port=MASTER_PORT --dry-run -- TIER/RECIPE",
    "resume": "train --resume --base=BASE --data=DATA --set=SET --force --gpus=GPUS --nodes=NODES "
    "--node-rank=NODE_RANK --master-addr=MASTER_ADDR --master-port=MASTER_PORT --dry-run -- TIER/RECIPE",
    "slurm": "submit slurm --base=BASE --data=DATA --set=SET --gpus=GPUS --nodes=NODES -- TIER/RECIPE",
    "ray": "submit ray --base=BASE --data=DATA --set=SET --gpus=GPUS --nodes=NODES -- TIER/RECIPE",
    "gguf": "gguf --quant=QUANTS --base=BASE --imatrix --adapter-only -- TIER/RECIPE",
    "ollama": "ollama --quant=QUANT --base=BASE --name=NAME --force --adapter-only --from=FROM -- TIER/RECIPE",
    "parity": "parity --quant=QUANT --base=BASE --name=NAME --no-greedy --json -- TIER/RECIPE",
    "quality": "quality --quants=QUANTS --base=BASE --imatrix --data=HELD_OUT -- TIER/RECIPE",
    "merge": "merge --base=BASE -- TIER/RECIPE",
    "export": "export --quant=QUANT --base=BASE --name=NAME --to=TO -- TIER/RECIPE",
    "eval": "eval --quant=QUANT --rooms=ROOMS --base=BASE --name=NAME -- TIER/RECIPE",
    "demo": "demo --quant=QUANT --base=BASE --name=NAME -- TIER/RECIPE",
    "ollama-run": "ollama-run --base=BASE --name=NAME -- TIER/RECIPE",
    "ollama-rm": "ollama-rm -- NAME",
    "clean-ollama": "clean-ollama",
}


@pytest.mark.parametrize(
    ("given", "meant"), [("TYER=24gb", "TIER"), ("RECIPES=x", "RECIPE"), ("SETS=a=1 RECIPE=b", "SET")]
)
def test_a_misspelt_variable_is_refused_with_the_nearest(given: str, meant: str) -> None:
    done = make("list", given)
    name = given.partition("=")[0]
    assert done.returncode == 2 and f"{name}=: no such variable; did you mean {meant}=?" in done.stderr


def test_a_variable_that_is_the_programs_own_reaches_it() -> None:
    assert "qwen7b TYER=1: no such model" in make("list", "MODEL=qwen7b TYER=1").stderr  # a value, not a variable
    assert "qwen7b" in make("list", "HF_HUB_OFFLINE=1", "CXXFLAGS=-O2", "MODEL=qwen7b").stdout


def test_every_target_that_calls_the_program_is_tested() -> None:
    assert {*ARGUMENTS} == {*TARGETS} - {"help", "test", "test-fast", "docs", "lock", "clean"}
    used = {name for words in ARGUMENTS.values() for name in re.findall(NAMES, words)}
    switches = {"ADAPTER", "ADAPTER_ONLY", "DRY_RUN", "FORCE", "GREEDY", "IMATRIX", "JSON"}
    assert used | switches == {*VARIABLES}


@pytest.mark.parametrize("target", ARGUMENTS)
def test_a_target_hands_on_its_variables(tmp_path: Path, told: Any, target: str) -> None:
    value = {name: f'{name.lower()} it\'s "a"; touch {tmp_path}/made\n`b` $(c) é # \\' for name in VARIABLES}
    value |= {"ADAPTER": "", "GREEDY": "0"}
    wanted = [re.sub(rf"\b({NAMES})\b", lambda found: value[found[0]], word) for word in ARGUMENTS[target].split()]
    assert told(target, *(f"{name}={text}" for name, text in value.items()))[-1] == wanted
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["lint"], ["lint", "--", "data/train.jsonl", "data/test.jsonl"]),
        (["split"], ["split", "--out=outputs/split", "--", "data/train.jsonl", "data/test.jsonl"]),
        # The page in outputs/ is ours to replace; another is replaced when FORCE says so.
        (["stats", "DATA=a b"], ["stats", "--html=outputs/stats.html", "--force", "--", "a b"]),
        (["stats", "DATA=a b", "HTML=my page.html"], ["stats", "--html=my page.html", "--", "a b"]),
        (["convert"], ["convert", "--to=", "--", "", ""]),
        (["train"], ["train", "--", "smollm2-135m-lora"]),
        (["train", "RECIPE=my recipe.yaml"], ["train", "--", "my recipe.yaml"]),
        (["train", "RECIPE=my recipe.yml", "TIER=2x 24gb"], ["train", "--tier=2x 24gb", "--", "my recipe.yml"]),
        (["plan", "RECIPE=a.yaml/b c", "TIER=cpu"], ["plan", "--", "cpu/a.yaml/b c"]),
        (["gguf"], ["gguf", "--quant=Q8_0", "--", "smollm2-135m-lora"]),
        (["gguf", "QUANT=F16", "QUANTS=Q4_K_M Q8_0"], ["gguf", "--quant=Q4_K_M Q8_0", "--", "smollm2-135m-lora"]),
        (["gguf", "ADAPTER=my folder", "BASE=b c"], ["gguf", "--quant=Q8_0", "--base=b c", "--adapter=my folder"]),
        (["parity", "GREEDY=1"], ["parity", "--quant=Q8_0", "--", "smollm2-135m-lora"]),
        (["eval"], ["eval", "--quant=Q8_0", "--rooms=48", "--", "smollm2-135m-lora"]),
    ],
)
def test_what_is_not_given_has_its_default(told: Any, arguments: list[str], wanted: list[str]) -> None:
    assert told(*arguments)[-1] == wanted


def test_an_adapter_of_another_origin_is_not_trained_first(told: Any) -> None:
    assert [call[0] for call in told("ollama", "ADAPTER=a b")] == ["setup", "gguf", "ollama"]
    assert [call[0] for call in told("demo")] == ["setup", "train", "gguf", "ollama", "eval", "demo"]


def test_no_text_of_a_person_stands_in_a_command() -> None:
    """Make puts none into a command, where the shell would read it; the shell expands each inside double quotes."""
    code = re.sub(r"^#.*|## .*", "", WHOLE, flags=re.MULTILINE)
    asked = re.sub(rf"\$\((if|filter 0,|lastword) ?\$\(({NAMES})\)", "", code)  # whether it is given, no more
    assert asked.count("$(") > 100
    assert not re.findall(rf"(?<!\$)\$[({{]({NAMES})\b.*", asked)
    quoted = re.findall(r'"[^"\n]*"', code)
    assert sum("$$RECIPE" in each for each in quoted) >= 2
    assert not re.findall(r"\$\$\{?[A-Z].*", re.sub(r'"[^"\n]*"', "", code))
    assert {*re.findall(r"\$\$\{?([A-Z_]+)", code)} <= {*VARIABLES, "OWN_UV", "UV", "UV_VERSION"}
    assert {*re.findall(r"\b([A-Z_]+)=", "".join(re.findall("## .*", TEXT)))} <= set(VARIABLES)


def test_a_dry_run_and_help_run_nothing(tmp_path: Path) -> None:
    text = f"$(shell touch '{tmp_path}/made');`touch '{tmp_path}/made'`"
    shown = make("--dry-run", "demo", f"RECIPE={text}")
    assert shown.returncode == 0 and "tools train" in shown.stdout and "touch" not in shown.stdout
    helped = make("help", f"RECIPE={text}")
    assert helped.returncode == 0 and f"RECIPE={text} QUANT=Q8_0" in helped.stdout
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
        (["convert", "OUT=out.json", "TO=alpaca"], "name the episodes to read (DATA= or IN=)"),
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


def test_one_argument_may_name_several_places_to_export_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(serving, "write_exports", lambda *arguments: told.append(arguments[-1]))
    for to in (["vllm  huggingface"], ["vllm", "huggingface"], []):
        cli.export("smollm2-135m-lora", to=to)
    assert told == [["vllm", "huggingface"], ["vllm", "huggingface"], []]


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
