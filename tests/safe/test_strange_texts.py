"""Untrusted text in every file and line that we write comes back as the same text from the format's real parser.

Names, titles, stop texts, system prompts, tasks and answers may hold anything: quotes, line feeds, markup, commands.
"""

import html.parser
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from tests.parts.command import tools
from tools import BadInput, Failed
from tools.core import catalog, files, quote, run_folder
from tools.data import convert, split, stats
from tools.evaluation import report, scores
from tools.evaluation.play import Game, as_json
from tools.gguf import llamacpp, perplexity
from tools.pipeline.serving import without_adapters
from tools.pipeline.trained import tuned
from tools.recipes import index, plan, recipe, render
from tools.serving import export, ollama
from tools.training import cluster, run_axolotl
from tools.training.run_axolotl import Launch

PIECES = (
    *("\n", "\r", "\n\n", "\t", " ", *"\"'\\#%$`|*_~&:-[]()<>0", '"""', "```", "---", "{{", "}}", "{% raw %}"),
    *("\nFROM evil\n", "\nPARAMETER stop x\n", "$(touch x)", "`touch x`", "; touch x", "[/]", "[red]", ":smile:"),
    *("\x00", "\x1b]0;title\x07", "\x1b[31m", "\x85", "\u2028", "\u200b", "\u200d", "\u202e", "\ufeff", "\xa0"),
    *("\ud800", "é", "你好", "🙂", "https://x.y", "![a](b)", "<b>", "&lt;", "</script><img src=x onerror=alert(1)>"),
)
STRANGE = some.lists(some.sampled_from(PIECES) | some.characters(exclude_categories=["Cs"]), max_size=8).map("".join)
# Names of folders and files.
NAMES = ("my project", 'it\'s "here" $(touch x)', "a`touch x`; #&*? é", "100% %j [1]", "-x", "~", "'", '"', "$HOME")
XSS = "</script><img src=x onerror=alert(1)>\"'<b>"
EVIL = "\x1b]0;owned\x07\x1b[2J[red]x[/]\r\u202e"
quick = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


# --- A Modelfile, read by Ollama's own parser


@pytest.fixture(scope="session")
def reader() -> Path:
    """A program that reads a Modelfile with Ollama's own parser, built once: 1.5 s where Ollama was built before."""
    source = run_folder.ROOT / "tests" / "parts" / "modelfile.go"
    made = run_folder.cache() / f"modelfile-{ollama.VERSION}-{files.sha256(source)[:8]}"
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    if not made.exists():
        module = f"github.com/ollama/ollama@v{ollama.VERSION}"
        asked = ["go", "mod", "download", "-json", module]
        there = Path(json.loads(subprocess.run(asked, cwd="/", capture_output=True, check=True).stdout)["Dir"])
        with files.atomic(made) as partial:
            partial.mkdir()
            shutil.copyfile(source, partial / "main.go")
            shutil.copyfile(there / "go.sum", partial / "go.sum")
            wanted = (there / "go.mod").read_text().replace("module github.com/ollama/ollama", "module reader", 1)
            (partial / "go.mod").write_text(f"{wanted}\nrequire github.com/ollama/ollama v{ollama.VERSION}\n")
            subprocess.run(["go", "build", "-mod=mod", "-o", "reader", "."], cwd=partial, check=True)
    return made / "reader"


@pytest.fixture(scope="module")
def asked(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What a Modelfile asks of Ollama."""
    folder = tmp_path_factory.mktemp("modelfile")

    def read(text: str, folder: Path = folder) -> dict[str, Any]:
        (folder / "Modelfile").write_bytes(text.encode())
        done = subprocess.run([reader, folder], capture_output=True, text=True)
        assert not done.returncode, f"{done.stderr}\n{text}"
        return dict(json.loads(done.stdout))

    return read


def spec(**facts: Any) -> ollama.Spec:
    usual: dict[str, Any] = {"name": "react-x", "gguf": Path("model.gguf"), "recipe": "x-lora", "recipe_hash": "0"}
    usual |= {"license": "MIT", "parameters": {"num_ctx": 512, "temperature": 0.5}}
    return ollama.Spec(**usual | facts)


@pytest.mark.parametrize("family", [None, *sorted(each.stem for each in ollama.TEMPLATES.glob("*.gotmpl"))])
def test_a_modelfile_has_the_template_as_it_is(asked: Callable[[str], dict[str, Any]], family: str | None) -> None:
    wanted = spec(family=family, stop=["<|im_end|>", "a b"])
    read = asked(ollama.modelfile(wanted))
    assert read.get("template") == wanted.template() and read["from"] == "./model.gguf"
    assert read["parameters"] == {"num_ctx": 512, "temperature": 0.5, "stop": ["<|im_end|>", "a b"]}


@quick
@given(system=STRANGE, stop=some.lists(STRANGE, min_size=1, max_size=2), licence=STRANGE, recipe=STRANGE, name=STRANGE)
@example('say "hi"\n', ['"', '""', '"\nFROM evil\n"', '" \n'], "a \t", "r\nFROM evil", "react-x\nFROM evil")
@example("扮演\u3000助手", ["x"], "MIT", "x-lora", "react-x")
@example('Say """.', ["x"], "MIT", "x-lora", "react-x")
@example("\ud800", ["x"], "MIT", "x-lora", "react-x")
@example(' \n"x\n ', ["\r", "\n", " ", '""\n""'], "", "r\rSYSTEM x", "n")
def test_a_modelfile_says_what_it_was_told(
    asked: Callable[[str], dict[str, Any]], system: str, stop: list[str], licence: str, recipe: str, name: str
) -> None:
    def held(text: str) -> bool:
        return '"""' not in text and re.sub("[\t\r\n]", "", text).isprintable()

    lost = not all(map(held, (licence, *stop)))
    made = spec(system=system, stop=stop, license=licence, recipe=recipe, name=name, family=None)
    if lost:
        with pytest.raises(BadInput, match="^a Modelfile cannot hold") as error:
            ollama.modelfile(made)
        assert quote.visible(str(error.value)) == str(error.value)
        return
    read = asked(ollama.modelfile(made))
    assert read["from"] == "./model.gguf" and read["license"] == [licence]
    assert read.get("system", "") == (system if held(system) else "")
    assert held(system) == ("# The system prompt" not in ollama.modelfile(made))
    assert read["parameters"] == {"num_ctx": 512, "temperature": 0.5, "stop": stop}
    assert not {"template", "messages", "files", "adapters"} & read.keys()


def test_a_modelfile_names_its_files_and_no_others(asked: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    names = [*NAMES, "a b", "a[b]?*", "a\\b", "x[", " ends in space ", "two\nlines", '"both"', "#x", "a"]
    for name in names:
        (tmp_path / f"{name}.gguf").write_text(name)
    for name in names:
        wanted = spec(gguf=tmp_path / f"{name}.gguf", adapter=tmp_path / f"{name}.gguf", family=None)
        read = asked(ollama.modelfile(wanted), tmp_path)
        assert [*read["files"]] == [*read["adapters"]] == [str(tmp_path / f"{name}.gguf")]


# --- A job for Slurm, run with stand-ins for srun and scontrol

# Writes down its folder, two of its variables and its arguments, each with a zero byte after it.
RECORD = '#!/bin/bash\n{ printf "%s\\0" "$PWD" "${MASTER_ADDR-}" "${PYTHONPATH-}" "$@"; } > "$RECORDED"\n'


def directives(text: str) -> list[str]:
    """The words of a script's #SBATCH lines, as sbatch reads them: get_argument in src/sbatch/opt.c of Slurm."""
    found: list[str] = []
    for line in text.split("\n"):
        if not line.startswith("#"):
            break
        if not line.startswith("#SBATCH"):
            continue
        letters, word, mark, began = iter(line.removeprefix("#SBATCH").strip()), "", "", False
        for letter in letters:
            if letter == "\\":
                word += next(letters)
            elif mark:
                mark, word = ("", word) if letter == mark else (mark, word + letter)
            elif letter in "\"'":
                mark = letter
            elif letter == "#":
                break
            elif letter.isspace():
                found, word = [*found, word], ""
                continue
            else:
                word += letter
            began = True
        assert not mark and began
        found.append(word)
    return found


def expanded(pattern: str, job: int) -> str:
    """The file of an --output, as Slurm names it: expand_stdio_fields in src/common/print_fields.c."""
    assert "\\" not in pattern
    return re.sub("%(.)", lambda found: {"%": "%", "j": f"{job}"}[found[1]], pattern)


@pytest.fixture
def strange(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a folder of this name, with programs that write down how they were called."""
    root = tmp_path / request.param
    programs = root / "bin"
    programs.mkdir(parents=True)
    (root / "recipes").mkdir()
    for name in ("torchrun", "axolotl", "accelerate", "vllm", "lms", "llama-server"):
        (programs / name).write_text(RECORD)
    (programs / "srun").write_text('#!/bin/bash\n"$@"\n')
    (programs / "scontrol").write_text("#!/bin/bash\necho first-node\necho other-node\n")
    for each in programs.iterdir():
        each.chmod(0o755)
    monkeypatch.setattr(run_folder, "ROOT", root)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(root / "outputs"))
    monkeypatch.setenv("RECORDED", str(tmp_path / "recorded"))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return root


def recorded(tmp_path: Path) -> list[str]:
    """What the last program wrote down: its folder, MASTER_ADDR, PYTHONPATH, its arguments; then it is forgotten."""
    assert not [*tmp_path.rglob("x")], "a name was run as a command"
    words = (tmp_path / "recorded").read_text().split("\0")[:-1]
    (tmp_path / "recorded").unlink()
    return words


def strange_recipe(root: Path, tier: str = "2x8x80gb") -> recipe.Recipe:
    """A recipe for eight GPUs, in a folder and a file of the project's name."""
    path = root / "recipes" / root.name / f"{root.name}.yaml"
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(recipe.RECIPES / "8x80gb" / "qwen7b-full.yaml", path)
    return recipe.read_recipe(path, catalog.tiers()[tier], "Qwen/X")


@pytest.mark.parametrize("strange", NAMES, indirect=True)
def test_a_slurm_job_runs_what_it_was_told_where_it_was_told(strange: Path, tmp_path: Path) -> None:
    file = cluster.slurm(strange_recipe(strange), Launch(nodes=2))
    folder = strange / "outputs" / strange.name / strange.name
    said = dict(each.removeprefix("--").split("=", 1) for each in directives(file.read_text()) if "=" in each)
    assert said["job-name"] == strange.name and said["nodes"] == "2" and said["signal"] == "TERM@120"
    log = Path(expanded(said["output"], 7))
    assert log == folder / "slurm-7.log"
    log.write_text("what Slurm opened\n")
    here = os.environ | {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NODEID": "1", "SLURM_JOB_ID": "7"}
    subprocess.run(["bash", str(file)], cwd="/", env=here, check=True)
    where, master, pythonpath, *words = recorded(tmp_path)
    assert (where, master, pythonpath) == (str(strange), "first-node", run_axolotl.ENVIRONMENT["PYTHONPATH"])
    meet = ["--nnodes", "2", "--node_rank", "1", "--master_addr", "first-node", "--master_port", "29500"]
    assert words == [*meet, "--nproc_per_node", "8", "-m", "axolotl.cli.train", str(folder / "cluster.yaml")]
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("strange", ["two\nlines", "\x1b[31m", "back\\slash"], indirect=True)
def test_what_no_line_of_slurms_can_hold_is_said_in_one(strange: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"hidden character|backslash"):
        cluster.slurm(strange_recipe(strange, "8x80gb"), Launch())
    assert not [*strange.rglob("train.sbatch")]


@pytest.mark.parametrize("strange", [*NAMES, "two\nlines"], indirect=True)
def test_the_commands_to_copy_are_what_a_shell_takes(strange: Path, tmp_path: Path) -> None:
    asked = strange_recipe(strange)
    folder = strange / "outputs" / strange.name / strange.name
    launch = Launch(nodes=2, rank=1, master="10.0.0.1")
    printed = cluster.dry_run(asked, launch)
    assert shlex.split(printed)[:3] == ["cd", str(strange), "&&"]
    subprocess.run(["bash", "-c", printed], cwd="/", check=True)
    where, _, pythonpath, *words = recorded(tmp_path)
    start, environment = run_axolotl.command(folder / "dry-run.yaml", asked.settings, asked.tier, launch)
    assert (where, pythonpath, words) == (str(strange), environment["PYTHONPATH"], start[1:])
    words = shlex.split(cluster.ray(asked, Launch()))
    assert words[:3] == ["ray", "job", "submit"] and words[-3:] == ["axolotl", "train", str(folder / "ray.yaml")]
    assert orjson.loads(words[words.index("--runtime-env-json") + 1])["env_vars"]["DO_NOT_TRACK"] == "1"


# --- Folders for other servers, their scripts run with stand-ins


def model_in(folder: Path, system: str = "Be brief.", stop: str = "<|im_end|>", **facts: Any) -> export.Model:
    """A finished run in a folder, so far as an export looks at it."""
    this = run_folder.Run(folder)
    this.merged.mkdir(parents=True, exist_ok=True)
    (this.merged / "config.json").write_text("{}")
    this.gguf("Q8_0").write_bytes(b"GGUF")
    shutil.copyfile(recipe.RECIPES / "cpu" / "smollm2-135m-lora.yaml", this.recipe)
    files.write_json(folder / "run.json", {"train": {"inputs": {"recipe": "ab" * 32, "data": "cd" * 32}}})
    usual: dict[str, Any] = {"this": this, "name": "react-x", "merged": this.merged, "quant": "Q8_0"}
    usual |= {"gguf": this.gguf("Q8_0"), "base_hub": "org/base", "context": 512, "sampling": {"temperature": 0.5}}
    return export.Model(**usual | {"system": system, "stop": stop} | facts)


@pytest.mark.parametrize("strange", [*NAMES, "two\nlines", "\x1b[31m"], indirect=True)
def test_an_exported_script_runs_one_command_and_its_server_listens_here_alone(
    strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp, "find", lambda name: strange / "bin" / name)
    model = model_in(strange / "outputs" / strange.name / strange.name, system=f"{XSS}\n{EVIL}\n")
    for place, script in (("vllm", "serve.sh"), ("llama-server", "serve.sh"), ("lmstudio", "import.sh")):
        command = export.export_folder(model, place)
        folder = model.this.folder / "export" / place
        assert (folder / "system.txt").read_bytes().decode() == model.system
        assert subprocess.run([folder / script], cwd="/", check=True, capture_output=True).stderr == b""
        wanted = shlex.split(command)
        assert recorded(tmp_path)[3:] == wanted[1:]
        if place != "lmstudio":
            assert wanted[wanted.index("--host") + 1] == "127.0.0.1"
            assert str(model.merged if place == "vllm" else model.gguf) in wanted


def test_every_server_command_that_we_write_listens_here_alone(tmp_path: Path) -> None:
    said = [export.hub_commands(model_in(tmp_path))]
    wanted = spec(gguf=tmp_path / "b.gguf", adapter=tmp_path / "a.gguf")
    with pytest.raises(Failed) as refused, without_adapters(wanted):
        raise Failed("adapters are no longer supported")
    said.append(str(refused.value))
    places = [
        *run_folder.ROOT.glob("*.md"),
        *(run_folder.ROOT / "templates").rglob("*.j2"),
        *(run_folder.ROOT / "data").glob("*.md"),
    ]
    said += [each.read_text() for each in places]
    lines = [line for text in said for line in text.splitlines() if re.search(r"(vllm serve|llama-server) \S*-", line)]
    assert len(lines) >= 3
    assert [line for line in lines if "--host 127.0.0.1" not in line] == []


@pytest.mark.parametrize("name", ["react-x\nFROM y", "x", "react-$(touch x)", "../react-x", "react-x/y", "react-x y"])
def test_an_exports_name_is_one_that_ollama_would_get(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no other is touched"):
        export.export_folder(model_in(tmp_path, name=name), "vllm")
    assert not (tmp_path / "export").exists()


# --- A model card, read as the hub does and as CommonMark with tables


def text_of(token: Any) -> str:
    """What a reader sees of an inline token."""
    kinds = {"softbreak": "\n", "hardbreak": "\n"}
    return "".join(kinds.get(each.type, each.content) for each in token.children or [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> export.Model:
    return model_in(tmp_path_factory.mktemp("outputs") / "cpu" / "a|b`c`\n<b>_d_")


@quick
@given(system=STRANGE, stop=STRANGE, hub=STRANGE, value=STRANGE, data=STRANGE)
@example("```\n</script>\n````x", "`a``|", "a|b](http://x)<b>/y", "|\n|", "a|b`c")
def test_a_card_says_what_it_was_told(
    finished: export.Model, system: str, stop: str, hub: str, value: str, data: str
) -> None:
    from huggingface_hub import ModelCard

    # What no file in UTF-8 and no Markdown can hold.
    system, stop, hub, value, data = (re.sub("[\r\0\ud800]", "", each) for each in (system, stop, hub, value, data))
    model = replace(finished, system=system, stop=stop, base_hub=hub)
    model.this.recipe.write_text(yaml.safe_dump({"base_model": "x", "adapter": value, "datasets": [{"path": data}]}))
    card: Any = ModelCard(export.card(model))
    assert (card.data.base_model, card.data.pipeline_tag) == (hub, "text-generation")
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    inline = [each for each in tokens if each.type == "inline"]
    inside = [child for each in inline for child in each.children or []]
    assert "html_block" not in {each.type for each in tokens}
    assert {each.type for each in inside} <= {"text", "code_inline", "link_open", "link_close", "softbreak"}
    (link,) = [str(each.attrs["href"]) for each in inside if each.type == "link_open"]
    assert link.startswith("https://huggingface.co/")
    assert [each.content for each in tokens if each.type == "fence"] == [
        f"{system}\n",
        f"{export.hub_commands(model)}\n",
    ]
    cells = [text_of(each) for before, each in itertools.pairwise(tokens) if before.type in ("td_open", "th_open")]
    rows = dict(zip(cells[2::2], cells[3::2], strict=True))
    wanted = {"base model": f"{hub.strip(' ')}, see there", "method": value}
    wanted |= {"recipe": f"cpu/{model.this.folder.name}, sha256 {'ab' * 32}"}
    wanted |= {"training data": f"{Path(data).name.strip(' ')}, sha256 {'cd' * 32}"}
    assert {key: rows[key].strip() for key in wanted} == {
        key: quote.visible(each).strip() for key, each in wanted.items()
    }
    spans = [each.content for each in inside if each.type == "code_inline"]
    assert not stop or quote.visible(stop) in spans


# --- Pages


class Elements(html.parser.HTMLParser):
    """The elements of a page with the names of their attributes, in order, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def episode(text: str) -> dict[str, Any]:
    turns = {"system": text, "user": f"{text} Your task is to: put {text}"}
    turns |= {"assistant": f"Thought: {text}\nAction: {text}"}
    return {"task": text, "messages": [{"role": role, "content": content} for role, content in turns.items()]}


def figures(text: str) -> stats.Stats:
    """What `stats` finds in episodes with this text everywhere, in a file of this name."""
    found = stats.measure([episode(text), episode("plain")], lambda messages: len(messages))
    return {"files": [f"{text}.jsonl"], "tokenizer": text, **found}


@quick
@given(STRANGE)
@example(XSS)
@example("' onload=x ")
def test_a_page_of_figures_has_no_element_but_its_own(text: str) -> None:
    page, plain = (Elements(stats.page(figures(each))) for each in (text, "one"))
    assert page.found == plain.found
    shown = quote.visible(text)
    assert f"{shown}.jsonl; tokens as {shown} counts them" in "".join(page.texts)


def test_the_page_of_recipes_has_no_element_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = list(render.planned())
    plain = index.pages(planned)
    models = dict(catalog.models())
    models["qwen7b"] = models["qwen7b"].model_copy(update={"title": f"{XSS} & | `x`"})
    monkeypatch.setattr(catalog, "models", lambda: models)
    pages = index.pages(planned)
    page, before = Elements(pages["index.html"]), Elements(plain["index.html"])
    assert page.found == before.found
    told = orjson.loads(next(each for each in page.texts if each.startswith('{"sequences"')))
    assert f"{XSS} & | `x`" in [each["title"] for each in told["models"]]
    tokens = MarkdownIt("commonmark").enable("table").parse(pages["README.md"])
    cells = [text_of(each) for each in tokens if each.type == "inline"]
    assert f"{XSS} & | `x`" in cells


# --- A terminal


def drawn(*what: Any) -> str:
    """What a terminal that knows no colour gets."""
    console = Console(width=400, file=io.StringIO(), color_system=None, force_terminal=True)
    for each in what:
        console.print(each)
    return console.file.getvalue()  # type: ignore[attr-defined]


def wide(text: str) -> str:
    """A text without letters of no width, such as a joiner: rich draws them with the letter before, if there is one."""
    return "".join(each for each in text if cell_len(each))


@quick
@given(STRANGE)
@example(EVIL)
@example("[/]")
@example("[red]x :smile: [link=x]")
def test_tables_show_a_text_and_obey_none_of_it(text: str) -> None:
    part = split.Part(episodes=1, wanted=1.0, share=1.0, groups=1, tasks={text: 1}, mean_turns=1.0, mean_characters=1)
    balance: split.Balance = {"seed": 0, "out": "", "groups": 1, "largest": 1, "parts": {"train": part}}
    told = [Game(text, text, text, won=True, transcript=[{"role": "user", "content": text}])]
    game = as_json(told[0])
    played: Any = {"player": text, "quant": "Q8_0", "summary": scores.summary(told), "prompt": "trained"}
    played |= {"backend": "ollama", "parse": "strict", "temperature": 0}
    scored: Any = {"quant": text, "bytes": 1, "imatrix": False, "perplexity": 1.0, "perplexity_error": 0.1}
    shown = {
        "stats": drawn(*stats.tables(figures(text))),
        "split": drawn(split.table(balance)),
        "report": drawn(report.table([played])),
        "game": drawn(report.transcript(game)),
        "quality": drawn(perplexity.table([scored])),
    }
    for what, each in shown.items():
        assert quote.visible(each, keep="\n") == each, what
        if "\n" not in text:
            assert wide(quote.visible(text).strip()) in wide(each), what


def test_what_commands_print_of_data_and_recipes_moves_no_terminal(tmp_path: Path) -> None:
    evil = episode(EVIL)
    evil["messages"] += [{"role": f"user{EVIL}", "content": "x"}, {"role": "assistant", "content": EVIL}]
    data, copy = tmp_path / f"{EVIL}.jsonl".replace("/", ""), tmp_path / "a.yaml"
    data.write_bytes(orjson.dumps(evil) + b"\n")
    made = dict(recipe.open_recipe("qwen7b-qlora", "24gb").settings) | {"optimizer": EVIL}
    copy.write_text(yaml.safe_dump(made))
    for arguments in (
        ("lint", str(data), "--fail-on", "never"),
        ("lint", str(tmp_path / f"{EVIL.replace('/', '')} is not there")),
        ("split", str(data), "--out", str(tmp_path / "out")),
        ("diff", str(copy), str(recipe.RECIPES / "24gb" / "qwen7b-qlora.yaml")),
        ("plan", str(copy), "--tier", EVIL),
        ("convert", str(data), str(tmp_path / "out.json"), "--to", "messages"),
    ):
        done = tools(*arguments)
        printed = done.stdout + done.stderr
        assert quote.visible(printed, keep="\n") == printed and "Traceback" not in printed, printed
        assert r"\x1b]0;owned\x07" in printed, arguments


@given(some.text())
def test_a_visible_text_is_one_line_that_hides_nothing(text: str) -> None:
    shown = quote.visible(text)
    assert len(shown.splitlines()) <= 1 and not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e]", shown)
    assert quote.visible(shown) == shown
    if text.isprintable():
        assert shown == text


# --- Names of what we are given


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "a\u2028b", "a\0b"])
def test_a_recipe_or_an_adapter_with_a_hidden_letter_in_its_name_is_one_line(
    name: str, others: tuple[Path, Path], tmp_path: Path
) -> None:
    source, adapter = others
    asked: list[Callable[[], object]] = [lambda: recipe.find(f"{tmp_path}/{name}.yaml"), lambda: recipe.find(name)]
    if "\0" not in name:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copyfile(recipe.RECIPES / "24gb" / "qwen7b-qlora.yaml", folder / "a.yaml")
        (tmp_path / "link").symlink_to(folder)
        adapter.rename(folder / name)
        asked.append(lambda: recipe.find(str(tmp_path / "link" / "a.yaml")))
        asked.append(lambda: tuned("", str(source), str(folder / name)))
    for ask in asked:
        with pytest.raises(BadInput, match="hidden character in its name; rename it") as error:
            ask()
        assert quote.visible(str(error.value)) == str(error.value)


@quick
@given(title=STRANGE, hub=STRANGE, eos=STRANGE, strip=STRANGE)
@example("x\nplugins: [evil]", "yes", '"\nplugins: [evil]', 'a", "b')
def test_a_recipe_of_a_strange_model_says_what_the_catalog_does(title: str, hub: str, eos: str, strip: str) -> None:
    title, hub, eos, strip = (each.replace("\ud800", "") for each in (title, hub, eos, strip))
    model, method, tier = catalog.models()["smollm2-135m"], catalog.methods()["lora"], catalog.tiers()["cpu"]
    found = plan.choose(model, method, tier)
    assert found
    strange = model.model_copy(update={"title": title, "hub": hub, "eos": eos, "strips": [strip, "b"]})
    text, plain = (render.recipe_text(tier, each, method, found) for each in (strange, model))
    made, usual = (yaml.safe_load(each) for each in (text, plain))
    assert made.keys() == usual.keys() and made["base_model"] == hub
    assert made["special_tokens"] == {"eos_token": eos, "additional_special_tokens": [strip, "b"]}
    assert text.splitlines()[0] == f"# {quote.visible(title)}, {method.title}, {render.tier_words(tier)}."


def test_a_file_set_names_its_folder(tmp_path: Path) -> None:
    for name in [*NAMES, "two\nlines", "a: b", "{x}", "'quoted'"]:
        made = yaml.safe_load(convert.render("axolotl.yaml.j2", f"/{name}"))
        assert made["datasets"][0]["path"] == f"/{name}/react_train_sharegpt.json"
        assert made["test_datasets"][0]["path"] == f"/{name}/react_test_sharegpt.json"
