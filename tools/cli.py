"""The command line: names, help, exit codes. Heavy modules are imported by the command that needs them."""

import logging
import math
import os
import signal
import sys
import warnings
from typing import Annotated

import click
import typer

from tools import BadInput, Failed, __version__
from tools.core import make_variables, quote

ABOUT = "From agent trajectories to a model that answers in Ollama: check, train, convert, prove, serve, play."
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=ABOUT,
)


def one_quant(text: str) -> str:
    """A quantisation as llama-quantize spells it. Raises BadInput for what is none."""
    from tools.gguf import convert

    if len(text.split()) > 1:
        raise BadInput(f"{text}: one quantisation here; make gguf and make quality take several")
    return convert.check_quant(text)


def as_messages(data: str) -> str:
    """A file of episodes in any format as one of messages; see data.convert."""
    from tools.data import convert

    return convert.as_messages(data) if data else ""


def quants(text: str) -> str:
    """Several quantisations, each as `one_quant`."""
    return " ".join(map(one_quant, text.split()))


def prices(text: str) -> str:
    """Two prices as the option has them. Raises BadInput for what is none."""
    try:
        read, written = map(float, text.split()) if text else (0.0, 0.0)
    except ValueError:
        read = -1.0
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise BadInput(f"{text}: PRICE= (--price) takes two numbers of dollars, such as '0.15 0.60'")
    return text


Recipe = Annotated[str, typer.Argument(help="a recipe by name (smollm2-135m-lora) or path")]
Tuned = Annotated[str, typer.Argument(help="a recipe by name or path; or give --adapter or --model")]
Base = Annotated[str, typer.Option("--base", help="another base model: a folder or a hub name")]
Name = Annotated[str, typer.Option("--name", help="the model's name in Ollama (react-...)")]
TierName = Annotated[str, typer.Option("--tier", help="24gb, 8x80gb ...; by default this machine's")]
GpuName = Annotated[str, typer.Option("--gpu", help="a GPU by name (rtx4090) to take the tier from, with --gpus")]
Set = Annotated[list[str], typer.Option("--set", help="key=value in place of the recipe's; may be repeated")]
Seq = Annotated[int, typer.Option("--seq", min=0, help="sequence length in tokens, planned to fit; 0: the recipe's")]
Data = Annotated[str, typer.Option("--data", help="training data in place of the recipe's, in any format")]
Files = Annotated[list[str], typer.Argument(help="files of episodes, in any format")]
Gpus = Annotated[int, typer.Option(min=0, help="processes on each machine; 0: as many as the tier has devices")]
Nodes = Annotated[int, typer.Option(min=1, help="machines")]
Force = Annotated[bool, typer.Option("--force", help="train in spite of errors found; replace another run's results")]
Replace = Annotated[bool, typer.Option("--force", help="replace what is there already")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Folder = Annotated[
    str,
    typer.Option(
        "--adapter", "--model", help="in place of a recipe: a PEFT adapter's folder or a whole model's, or a hub name"
    ),
]
Imatrix = Annotated[
    bool, typer.Option("--imatrix", help="quantise with an importance matrix computed from the training data")
]
AdapterOnly = Annotated[bool, typer.Option("--adapter-only", help="a GGUF of the adapter alone, without the base")]
Quant = Annotated[str, typer.Option("--quant", callback=one_quant, help="F16, Q8_0, Q4_K_M ...")]
Quants = Annotated[
    str, typer.Option("--quant", callback=quants, help="one or more of llama-quantize's types: 'Q4_K_M Q8_0'")
]
NumCtx = Annotated[
    int, typer.Option("--num-ctx", min=0, help="tokens that the model remembers; 0: chosen by data and memory")
]
Proof = Annotated[
    str,
    typer.Option(
        "--proof", click_type=click.Choice(["weights", "tokens"]), help="what is proven before it gets its name"
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        click_type=click.Choice(["auto", "ollama", "llama-server", "transformers"]),
        help="what answers; auto: Ollama, else llama-server; transformers: the weights as trained, whatever --quant",
    ),
]
Url = Annotated[
    str, typer.Option(help="in place of a recipe: an OpenAI-compatible server's address; its key in OPENAI_API_KEY")
]
Rooms = Annotated[int, typer.Option(min=1, help="number of rooms (tasks) to play")]
NameThere = Annotated[
    str, typer.Option("--name", help="the model's name in Ollama (react-...); with --url: its name there")
]
WorldName = Annotated[
    str, typer.Option(help="what is played: household, household:large, alfworld:valid_unseen, my_env.py:MyWorld ...")
]
Prompting = Annotated[
    str,
    typer.Option(
        click_type=click.Choice(["trained", "zero-shot", "few-shot"]),
        help="how a model is asked that was not tuned: as if it were, or told the form of an answer",
    ),
]
Shots = Annotated[int, typer.Option(min=1, help="episodes of the training set that few-shot shows")]
Temperature = Annotated[float, typer.Option(min=0, help="of the answers; 0: always the likeliest token")]
HeldOut = Annotated[str, typer.Option("--held-out", help="a file of episodes in place of data/test.jsonl")]


def tell_version(asked: bool) -> None:
    """Print the version and exit."""
    if asked:
        print(f"react-recipes {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take what stands before a command."""


@app.command()
def setup() -> None:
    """Have llama.cpp and Ollama here; nothing is compiled where an Ollama brings its own llama.cpp."""
    from tools.gguf import llamacpp
    from tools.serving import ollama

    llamacpp.set_up()
    ollama.install()


@app.command()
def doctor() -> None:
    """Show what this machine has and lacks, and the command that fixes it."""
    from rich.console import Console

    from tools.core import machine
    from tools.gguf import llamacpp
    from tools.serving import ollama

    programs = {name: llamacpp.find(name) for name in llamacpp.PROGRAMS} | {"ollama": ollama.find()}
    findings = machine.examine(programs, llamacpp.described())
    Console().print(machine.table(findings))
    if any(finding.needed and not finding.found for finding in findings):
        raise typer.Exit(1)


@app.command()
def data(force: Replace = False) -> None:
    """Write the committed household episodes again: the same bytes."""
    from tools.core import run_folder
    from tools.worlds.household import episodes

    run_folder.refuse_installed("data/")
    episodes.write_committed(force)


@app.command(epilog="Example: lint my.jsonl --fix clean.jsonl")
def lint(
    data: Files,
    base: Base = "",
    seq: Annotated[int, typer.Option(min=1, help="tokens that an episode may have; counted with --base")] = 2048,
    world: Annotated[
        str, typer.Option(help="household, none, or auto: household if the text looks like ALFWorld's")
    ] = "auto",
    fail_on: Annotated[str, typer.Option(help="exit with 1 on error, warning, advice or never")] = "error",
    fix: Annotated[str, typer.Option(help="write the episodes to this file, with safe repairs made")] = "",
    as_json: Json = False,
    force: Replace = False,
) -> None:
    """Report problems in episodes, each with its file:line."""
    from tools.core import trajectory
    from tools.data import lint

    lint.lint_files(trajectory.paths(data), world, base, seq, fail_on, fix, as_json, force)


@app.command(epilog="Example: split my.jsonl --out parts")
def split(
    data: Files,
    out: Annotated[
        str, typer.Option(help="the folder for train.jsonl, validation.jsonl and test.jsonl")
    ] = "outputs/split",
    validation: Annotated[float, typer.Option(help="share of the episodes for validation")] = 0.1,
    test: Annotated[float, typer.Option(help="share of the episodes for test")] = 0.1,
    seed: Annotated[int, typer.Option(help="seed of the random split")] = 0,
    as_json: Json = False,
    force: Replace = False,
) -> None:
    """Split into train, validation and test; no room appears in two of them."""
    from tools.core import trajectory
    from tools.data import split

    ratios = {"train": 1 - validation - test, "validation": validation, "test": test}
    split.split_files(trajectory.paths(data), out, ratios, seed, as_json, force)


@app.command(epilog="Example: stats my.jsonl --html stats.html")
def stats(
    data: Files,
    base: Annotated[
        str, typer.Option(help="the model whose tokenizer counts: a folder or hub name; default: the demo's")
    ] = "",
    html: Annotated[str, typer.Option(help="write a page with plots to this file")] = "",
    as_json: Json = False,
    force: Replace = False,
) -> None:
    """Show tokens, turns, tasks and actions of episodes."""
    from tools.core import trajectory
    from tools.data import stats

    stats.print_stats(trajectory.paths(data), base, html, as_json, force)


@app.command(epilog="Example: convert my.json my.jsonl --to messages")
def convert(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IN...", help="files, folders, globs, - (stdin), a hub data set")
    ],
    out: Annotated[str, typer.Argument(help="- or a file: .json an array, .jsonl lines, .parquet; .gz, .zst")],
    to: Annotated[
        str,
        typer.Option("--to", help="messages (openai), sharegpt, agentinstruct, alpaca, react, alfworld, llamafactory"),
    ],
    wanted: Annotated[
        str, typer.Option("--from", help="the rows' format, as in --to; by default each row is recognised")
    ] = "",
    per: Annotated[str, typer.Option(help="Alpaca: a row per episode (with history) or step")] = "episode",
    calls: Annotated[bool, typer.Option("--calls", help="write actions as tool calls")] = False,
    drop: Annotated[bool, typer.Option("--drop-extra", help="keep only roles, texts, what is trained")] = False,
    role: Annotated[list[str], typer.Option("--role", help="whose turns a role names: bot=assistant")] = [],  # noqa: B006
    trim: Annotated[bool, typer.Option("--trim", help="cut the turns after the assistant's last")] = False,
    on_error: Annotated[str, typer.Option(help="at a bad row: stop, skip, or set it apart")] = "stop",
    apart: Annotated[str, typer.Option(help="the file for bad rows: place, cause, row")] = "",
    test: Annotated[float, typer.Option(help="llamafactory: share of the episodes for its test set")] = 0.0,
    as_json: Json = False,
    force: Replace = False,
) -> None:
    """Convert episodes from any format to any other; llamafactory writes its usual files into a folder."""
    from tools.core import trajectory
    from tools.data import convert
    from tools.data.formats import variants
    from tools.data.formats.worker import Task

    task = Task(to, calls, convert.per_step(per), drop, on_error, trim, wanted, variants.parse_roles(role))
    convert.convert_and_report(trajectory.paths(inputs), out, task, apart, as_json, force, test)


@app.command(epilog="Example: episodes my.jsonl --count 1000")
def episodes(
    out: Annotated[str, typer.Argument(help="the JSONL file to write: messages, one episode per line")],
    count: Annotated[int, typer.Option(min=1, help="episodes")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="seed of the rooms; the same seed gives the same bytes")] = 0,
    tasks: Annotated[
        str, typer.Option(help="tasks to take in turn: put, look, clean, heat, cool, two, or all")
    ] = "all",
    places: Annotated[
        str, typer.Option(help="kinds of room: kitchen, livingroom, bedroom, bathroom, all, or large kitchens")
    ] = "all",
    style: Annotated[
        str, typer.Option(help="thoughts: full restates what was seen, terse gives only the next step")
    ] = "full",
    slip: Annotated[
        float, typer.Option(min=0, max=1, help="share of games in which the expert errs and recovers")
    ] = 0.0,
    steps: Annotated[int, typer.Option(min=1, help="most actions in an episode")] = 30,
    alfworld: Annotated[
        str, typer.Option(help="play ALFWorld's own games: train, valid_seen ... in $ALFWORLD_DATA, or a folder")
    ] = "",
    force: Replace = False,
) -> None:
    """Let the expert play household rooms, or ALFWorld's own games, and write its episodes."""
    from tools.worlds.household import episodes

    counts = episodes.make(out, count, seed, tasks, places, style, slip, steps, alfworld, force)
    print(f"{out}: {', '.join(f'{number} {what}' for what, number in counts.items())}")


@app.command()
def recipes(force: Replace = False) -> None:
    """Write recipes/ from catalog/ and templates/; a recipe that you edited is never touched."""
    from tools.core import run_folder
    from tools.recipes import render

    run_folder.refuse_installed("recipes/")
    counts = render.write(force)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))


@app.command("list", epilog="Example: list --tier 24gb")
def list_recipes(
    tier: TierName = "", model: Annotated[str, typer.Option(help="a model's key, or part of it")] = ""
) -> None:
    """List the models and the smallest tier for each method; with --tier, that tier's recipes."""
    from tools.recipes import commands

    commands.show(tier, model)


@app.command(epilog="Example: recommend --gpu rtx4090 --gpus 2")
def recommend(
    gpu: Annotated[str, typer.Option(help="a GPU by name (rtx4090, 'RTX 4090'); by default this machine's")] = "",
    gpus: Annotated[int, typer.Option(min=0, help="how many of them; 0: one, or all of this machine")] = 0,
) -> None:
    """Show which models this machine, or a GPU, can train, and how."""
    from tools.recipes import commands

    commands.recommend(gpu, gpus)


@app.command(epilog="Example: plan qwen7b-lora --gpu rtx4090 --seq 4096")
def plan(
    recipe: Recipe,
    tier: TierName = "",
    gpu: Annotated[str, typer.Option(help="a GPU by name in place of the tier (rtx4090, 'RTX 4090')")] = "",
    gpus: Annotated[int, typer.Option(min=0, help="devices; 0: as many as the tier has")] = 0,
    seq: Seq = 0,
    micro_batch: Annotated[int, typer.Option(min=0, help="episodes in one forward pass; 0: the recipe's")] = 0,
    change: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Show the memory a recipe takes, part by part, whether it fits, and what to change first if it does not."""
    from tools.recipes import commands

    asked = {"sequence_len": seq, "micro_batch_size": micro_batch}
    commands.plan_of(recipe, tier, gpu, gpus, {key: value for key, value in asked.items() if value}, change, as_json)


@app.command(epilog="Example: new qwen7b qlora my.yaml --tier 24gb")
def new(
    model: Annotated[str, typer.Argument(help="a model's key (qwen7b)")],
    method: Annotated[str, typer.Argument(help="lora, qlora, full, lora-regularised")],
    out: Annotated[str, typer.Argument(help="the file to write")],
    tier: TierName = "",
    seq: Seq = 0,
    force: Replace = False,
) -> None:
    """Copy a recipe to a file of your own, to edit; with --seq, planned anew for sequences of that length."""
    from tools.recipes import commands

    commands.new(model, method, tier, out, force, seq)


@app.command(epilog="Example: fit my.jsonl qwen7b my.yaml --gpu rtx4090")
def fit(
    data: Annotated[str, typer.Argument(help="a JSONL file of messages, one episode per line")],
    model: Annotated[str, typer.Argument(help="a model's key (qwen7b)")],
    out: Annotated[str, typer.Argument(help="the recipe to write")],
    method: Annotated[
        str, typer.Option(help="lora, qlora, full, lora-regularised; by default lora, or qlora where that does not fit")
    ] = "",
    tier: TierName = "",
    gpu: GpuName = "",
    gpus: Annotated[int, typer.Option(min=0, help="how many of them; 0: one, or all of this machine")] = 0,
    base: Annotated[str, typer.Option("--base", help="a folder or hub name whose tokenizer counts the tokens")] = "",
    seq: Annotated[int, typer.Option("--seq", min=0, help="sequence length in tokens; 0: by the data")] = 0,
    force: Replace = False,
) -> None:
    """Write a recipe that fits your episodes: sequence, batch, epochs; say what it cuts and takes."""
    from tools.pipeline import fit

    fit.fit_recipe(as_messages(data), model, out, method, tier, gpu, gpus, base, seq, force)


@app.command(epilog="Example: diff qwen7b-lora my.yaml")
def diff(a: Recipe, b: Recipe) -> None:
    """Show what differs between two recipes."""
    from tools.recipes import commands

    commands.diff(a, b)


@app.command(epilog="Example: add-model org/name")
def add_model(
    hub: Annotated[str, typer.Argument(help="a model on the hub, or a folder with its config.json")],
    key: Annotated[str, typer.Option(help="its part of a recipe's name; by default made from the model's name")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be written, and write nothing")] = False,
) -> None:
    """Add a model to the catalog from its config.json, and render its recipes."""
    from tools.core import run_folder
    from tools.recipes import new_model

    run_folder.refuse_installed("catalog/")
    new_model.add_model(hub, key, dry_run)


@app.command(epilog="Example: check qwen7b-qlora --data my.jsonl")
def check(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or its path")] = "",
    tier: TierName = "",
    gpu: GpuName = "",
    gpus: Gpus = 0,
    base: Base = "",
    change: Set = [],  # noqa: B006
    seq: Seq = 0,
    data: Data = "",
    force: Force = False,
    all_of_them: Annotated[bool, typer.Option("--all", help="every recipe, against Axolotl's schema")] = False,
    as_json: Json = False,
) -> None:
    """Check a recipe and its data with the code that trains."""
    from tools.pipeline.training import check_all_recipes, check_recipe
    from tools.recipes import commands

    if all_of_them:
        check_all_recipes(as_json)
    elif not recipe:
        raise click.UsageError("check: name a recipe, or --all", click.get_current_context())
    else:
        check_recipe(commands.open_asked(recipe, tier, gpu, gpus, base, change, seq, as_messages(data)), force, as_json)


@app.command(epilog="Example: train qwen7b-qlora --data my.jsonl")
def train(
    recipe: Recipe,
    tier: TierName = "",
    gpu: GpuName = "",
    base: Base = "",
    change: Set = [],  # noqa: B006
    seq: Seq = 0,
    data: Data = "",
    gpus: Gpus = 0,
    nodes: Nodes = 1,
    rank: Annotated[int, typer.Option("--node-rank", min=0, help="this machine's number, from 0")] = 0,
    master: Annotated[str, typer.Option("--master-addr", help="the first machine's address")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--master-port", help="the first machine's port")] = 29500,
    resume: Annotated[bool, typer.Option("--resume", help="resume from a checkpoint; fail if there is none")] = False,
    force: Force = False,
    trainer: Annotated[
        str | None,
        typer.Option(
            click_type=click.Choice(["axolotl", "llamafactory", "trl", "unsloth"]),
            help="what trains; by default what began this training, else axolotl",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="write what the trainer reads, print its command")] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="on a GPU: the demo's thousands of episodes, and epochs for minutes")
    ] = False,
) -> None:
    """Train a recipe to an adapter; an interrupted training resumes."""
    from tools.pipeline.demo import on_gpu
    from tools.pipeline.training import submit_recipe, train_recipe, write_for_trainer
    from tools.recipes import commands
    from tools.training.run_axolotl import Launch

    asked = commands.open_asked(recipe, tier, gpu, gpus, base, change, seq, as_messages(data))
    asked = on_gpu(asked) if demo else asked
    launch = Launch(gpus, nodes, rank, master, port)
    if dry_run and trainer not in (None, "axolotl"):
        write_for_trainer(trainer, asked)
    elif dry_run:
        submit_recipe(asked, launch, "dry-run")
    else:
        train_recipe(asked, launch, force, resume, trainer)


@app.command(epilog="Example: webui qwen7b-qlora --data my.jsonl")
def webui(
    recipe: Recipe,
    tier: TierName = "",
    base: Base = "",
    change: Set = [],  # noqa: B006
    seq: Seq = 0,
    data: Data = "",
    port: Annotated[int, typer.Option(min=1, max=65535, help="the page's port on 127.0.0.1")] = 7860,
) -> None:
    """Open LLaMA-Factory's web page with a recipe and its data filled in, for this machine alone."""
    from tools.recipes import commands
    from tools.training import llamaboard

    llamaboard.open_page(commands.open_asked(recipe, tier, "", 0, base, change, seq, as_messages(data)), port)


@app.command(epilog="Example: ui --lang zh")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="the page's port")] = 7870,
    host: Annotated[
        str, typer.Option(help="whose requests are taken; another than this machine's needs REACT_RECIPES_UI_PASSWORD")
    ] = "127.0.0.1",
    lang: Annotated[str, typer.Option(click_type=click.Choice(["en", "zh"]), help="the page's language")] = "en",
) -> None:
    """Open a page over these commands: choose, edit, train, watch, convert, ask, play; for this machine alone."""
    from tools.board import serve

    serve.open_page(port, host, lang)


@app.command(epilog="Example: submit slurm qwen72b-full --tier 2x8x80gb --nodes 2")
def submit(
    to: Annotated[str, typer.Argument(help="slurm or ray")],
    recipe: Recipe,
    tier: TierName = "",
    gpu: GpuName = "",
    base: Base = "",
    change: Set = [],  # noqa: B006
    seq: Seq = 0,
    data: Data = "",
    gpus: Gpus = 0,
    nodes: Nodes = 1,
) -> None:
    """Submit a training to Slurm or Ray."""
    from tools.pipeline.training import submit_recipe
    from tools.recipes import commands
    from tools.training.run_axolotl import Launch

    asked = commands.open_asked(recipe, tier, gpu, gpus, base, change, seq, as_messages(data))
    submit_recipe(asked, Launch(gpus, nodes), to)


@app.command(epilog="Example: gguf qwen7b-qlora --quant 'Q4_K_M Q8_0' --imatrix")
def gguf(
    recipe: Tuned = "",
    tier: TierName = "",
    quant: Quants = "Q8_0",
    base: Base = "",
    adapter: Folder = "",
    imatrix: Imatrix = False,
    adapter_only: AdapterOnly = False,
) -> None:
    """Make GGUFs of a tuned model and its base, in one pass: of a recipe's, or of any adapter and base."""
    from tools.pipeline.model import make_adapter_gguf, make_gguf
    from tools.pipeline.trained import tuned

    model = tuned(recipe, base, adapter, tier)
    if adapter_only:
        make_adapter_gguf(model)
    else:
        make_gguf(model, quant, imatrix)


@app.command(epilog="Example: quality qwen7b-qlora --quant 'Q4_K_M Q8_0'")
def quality(
    recipe: Tuned = "",
    tier: TierName = "",
    quant: Quants = "Q4_K_M Q8_0",
    base: Base = "",
    adapter: Folder = "",
    imatrix: Imatrix = False,
    chunks: Annotated[int, typer.Option(min=2, help="pieces of 512 tokens to read")] = 32,
    held_out: HeldOut = "",
) -> None:
    """Show what quantising costs: size, perplexity and KL against f16 on held-out episodes."""
    from tools.pipeline.model import score_quality
    from tools.pipeline.trained import tuned

    score_quality(tuned(recipe, base, adapter, tier), quant, imatrix, chunks, as_messages(held_out))


@app.command(epilog="Example: merge qwen7b-qlora")
def merge(recipe: Tuned = "", tier: TierName = "", base: Base = "", adapter: Folder = "") -> None:
    """Merge the adapter into its base, as a Hugging Face folder."""
    from tools.pipeline.model import merge_adapter
    from tools.pipeline.trained import tuned

    merge_adapter(tuned(recipe, base, adapter, tier))


@app.command(epilog="Example: export qwen7b-qlora --to vllm")
def export(
    recipe: Tuned = "",
    tier: TierName = "",
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            help="lmstudio, vllm, llama-server, huggingface; all by default. "
            "llamafactory, trl, unsloth: the recipe, to train there",
        ),
    ] = [],  # noqa: B006
    quant: Quant = "Q8_0",
    base: Base = "",
    adapter: Folder = "",
    name: Name = "",
    num_ctx: NumCtx = 0,
) -> None:
    """Write folders for other servers, for the hub or for another trainer, each with its exact commands."""
    if " ".join(to) in ("llamafactory", "trl", "unsloth"):
        from tools.pipeline.training import write_for_trainer
        from tools.recipes.recipe import open_recipe

        write_for_trainer(" ".join(to), open_recipe(recipe, tier, base))
        return
    from tools.pipeline.serving import write_exports
    from tools.pipeline.trained import tuned

    write_exports(tuned(recipe, base, adapter, tier, num_ctx), quant, name, to)


@app.command(epilog="Example: ollama qwen7b-qlora --quant Q4_K_M --name react-mine")
def ollama(
    recipe: Tuned = "",
    tier: TierName = "",
    quant: Quant = "Q8_0",
    base: Base = "",
    adapter: Folder = "",
    name: Name = "",
    force: Annotated[
        bool, typer.Option("--force", help="replace another model of that name; accept one whose answers do not end")
    ] = False,
    adapter_only: AdapterOnly = False,
    ollama_base: Annotated[str, typer.Option(help="with --adapter-only: a base model that Ollama already has")] = "",
    num_ctx: NumCtx = 0,
    proof: Proof = "weights",
) -> None:
    """Import the model into Ollama, once its tokens and weights are proven to be training's, and its answers to end."""
    from tools.pipeline.serving import give_adapter_to_ollama, give_to_ollama
    from tools.pipeline.trained import tuned

    model = tuned(recipe, base, adapter, tier, num_ctx)
    if adapter_only:
        give_adapter_to_ollama(model, quant, name, ollama_base, force)
    else:
        give_to_ollama(model, quant, name, force, proof)


@app.command(epilog="Example: parity qwen7b-qlora --quant Q4_K_M")
def parity(
    recipe: Annotated[str, typer.Argument(help="a recipe by name or path; or give --adapter or --gguf")] = "",
    tier: TierName = "",
    quant: Quant = "Q8_0",
    base: Base = "",
    name: Annotated[str, typer.Option("--name", help="the model's name in Ollama; with --gguf, compare it too")] = "",
    gguf: Annotated[str, typer.Option(help="any GGUF, to compare with --base")] = "",
    held_out: HeldOut = "",
    adapter: Annotated[
        str,
        typer.Option(
            "--adapter",
            "--model",
            help="in place of a recipe: an adapter's or a whole model's folder; with --gguf: the one in it",
        ),
    ] = "",
    greedy: Annotated[
        bool | None, typer.Option(help="compare weights and answers too; by default with a recipe, not with --gguf")
    ] = None,
    as_json: Json = False,
    num_ctx: NumCtx = 0,
) -> None:
    """Compare tokens, weights and answers of training and of serving; show the first difference and its cause."""
    from tools.pipeline.serving import check_file_parity, check_parity
    from tools.pipeline.trained import tuned

    held_out = as_messages(held_out)
    if gguf:
        check_file_parity(gguf, recipe, base, held_out, adapter, name, bool(greedy), as_json)
    else:
        check_parity(tuned(recipe, base, adapter, tier, num_ctx), quant, name, greedy is not False, as_json, held_out)


@app.command(epilog="Example: eval qwen7b-qlora --rooms 48")
def eval(
    recipe: Tuned = "",
    tier: TierName = "",
    quant: Quant = "Q8_0",
    rooms: Rooms = 48,
    base: Base = "",
    adapter: Folder = "",
    name: NameThere = "",
    num_ctx: NumCtx = 0,
    proof: Proof = "weights",
    world: WorldName = "household",
    split: Annotated[str, typer.Option(help="unseen, seen, train; by default the world's own choice")] = "",
    backend: Backend = "auto",
    url: Url = "",
    prompting: Prompting = "trained",
    shots: Shots = 3,
    parse: Annotated[
        str,
        typer.Option(
            click_type=click.Choice(["strict", "lenient"]), help="how an answer's action is read; both are counted"
        ),
    ] = "strict",
    temperature: Temperature = 0.0,
    repeat: Annotated[int, typer.Option(min=1, help="games of each room, for pass@k; needs a temperature")] = 1,
    as_json: Json = False,
) -> None:
    """Let the base and the tuned model, or any that is served, play the same unseen rooms."""
    from tools.pipeline.evaluation import Asked, play_games, play_served
    from tools.pipeline.trained import tuned

    asked = Asked(rooms, world, split, backend, prompting, shots, parse, temperature, repeat)
    if url:
        play_served(url, name, asked, as_json)
    else:
        play_games(tuned(recipe, base, adapter, tier, num_ctx), quant, name, proof, asked, as_json)


@app.command(epilog="Example: collect smollm2-135m-lora --rooms 200")
def collect(
    recipe: Tuned = "",
    tier: TierName = "",
    quant: Quant = "Q8_0",
    rooms: Rooms = 200,
    base: Base = "",
    adapter: Folder = "",
    name: NameThere = "",
    num_ctx: NumCtx = 0,
    proof: Proof = "weights",
    world: WorldName = "household",
    split: Annotated[str, typer.Option(help="the tasks that are played: train, or another of the world's")] = "train",
    backend: Backend = "auto",
    url: Url = "",
    teacher: Annotated[
        str | None,
        typer.Option(click_type=click.Choice(["expert"]), help="in place of a recipe: the household's own expert"),
    ] = None,
    slip: Annotated[float, typer.Option(min=0, max=1, help="how often the expert errs and mends that")] = 0.0,
    prompting: Prompting = "trained",
    shots: Shots = 3,
    temperature: Temperature = 0.7,
    repeat: Annotated[int, typer.Option(min=1, help="games of each room: won and lost ones make a pair")] = 4,
    parallel: Annotated[int, typer.Option(min=1, help="games side by side")] = 4,
    price: Annotated[
        str,
        typer.Option(callback=prices, help="'in out': dollars for a million tokens read and written"),
    ] = "",
    budget: Annotated[float, typer.Option(min=0, help="dollars after which it stops; needs --price")] = 0.0,
    out: Annotated[str, typer.Option(help="the folder to write; by default collected/ in the run's")] = "",
    force: Replace = False,
    as_json: Json = False,
) -> None:
    """Let a teacher play training tasks; its wins become episodes, lost games with a won twin preference pairs."""
    from tools.pipeline import collect as stage
    from tools.pipeline.evaluation import Asked
    from tools.pipeline.trained import tuned

    read, written = map(float, price.split()) if price else (0.0, 0.0)
    wanted = stage.Wanted(out, (read, written) if price else None, budget, parallel, force)
    asked = Asked(rooms, world, split, backend, prompting, shots, "strict", temperature, repeat)
    if teacher:
        stage.collect_expert(slip, asked, wanted, as_json)
    elif url:
        stage.collect_served(url, name, asked, wanted, as_json)
    else:
        stage.collect_own(tuned(recipe, base, adapter, tier, num_ctx), quant, name, proof, asked, wanted, as_json)


@app.command(epilog="Example: report smollm2-135m-lora")
def report(recipe: Tuned = "", tier: TierName = "", adapter: Folder = "") -> None:
    """Write report.html: what a run's models won, how they lost, and every game to read."""
    from tools.pipeline.evaluation import write_report

    write_report(recipe, adapter, tier)


@app.command(epilog="Example: compare smollm2-135m-lora outputs/cpu/smollm2-135m-lora/eval-base-q8_0.json")
def compare(
    a: Annotated[str, typer.Argument(help="an eval-*.json, or a recipe or run's folder: its tuned model in --quant")],
    b: Annotated[str, typer.Argument(help="the other, on the same tasks")],
    quant: Quant = "Q8_0",
    as_json: Json = False,
) -> None:
    """Compare two models on the same tasks: what each won, McNemar's exact test, and where they part."""
    from tools.pipeline.evaluation import compare_evaluations

    compare_evaluations(a, b, quant, as_json)


@app.command()
def runs(as_json: Json = False) -> None:
    """List all runs: recipe, date, loss, rooms won, parity."""
    from tools.pipeline.evaluation import show_runs

    show_runs(as_json)


@app.command(epilog="Example: score qwen7b-qlora --quant Q8_0")
def score(
    recipe: Tuned = "",
    tier: TierName = "",
    quant: Quant = "Q8_0",
    base: Base = "",
    adapter: Folder = "",
    name: Name = "",
    num_ctx: NumCtx = 0,
    proof: Proof = "weights",
    backend: Backend = "auto",
    held_out: HeldOut = "",
    as_json: Json = False,
) -> None:
    """Score each answer of the test set, asked for after the true turns before it: action, BLEU-4, ROUGE, loss."""
    from tools.pipeline.evaluation import score_answers
    from tools.pipeline.trained import tuned

    model = tuned(recipe, base, adapter, tier, num_ctx)
    score_answers(model, quant, name, proof, backend, as_messages(held_out), as_json)


@app.command(epilog="Example: ask qwen7b-qlora --prompt 'You are in a kitchen. Your task is to: heat some egg.'")
def ask(
    recipe: Tuned = "",
    tier: TierName = "",
    prompt: Annotated[str, typer.Option(help="what to ask; by default a kitchen, and the task to heat a potato")] = "",
    conversation: Annotated[
        str, typer.Option(help='a JSON file to go on from in place of a prompt: {"messages": [...]}')
    ] = "",
    backend: Backend = "auto",
    quant: Quant = "Q8_0",
    base: Base = "",
    adapter: Folder = "",
    name: Name = "",
    num_ctx: NumCtx = 0,
    proof: Proof = "weights",
) -> None:
    """Show the answers of the base and of the tuned model side by side, as they come."""
    from tools.pipeline.ask import ask as ask_both
    from tools.pipeline.trained import tuned

    ask_both(tuned(recipe, base, adapter, tier, num_ctx), quant, name, prompt, conversation, backend, proof)


@app.command(epilog="Example: demo smollm2-135m-lora")
def demo(recipe: Tuned = "", tier: TierName = "", quant: Quant = "Q8_0", adapter: Folder = "", name: Name = "") -> None:
    """Sum up a whole run: demo.json, the table, a game, and what to do next."""
    from tools.pipeline.evaluation import sum_up

    sum_up(recipe, quant, name, adapter, tier)


@app.command(epilog="Example: ollama-run smollm2-135m-lora")
def ollama_run(recipe: Tuned = "", tier: TierName = "", adapter: Folder = "", name: Name = "") -> None:
    """Talk to the model in Ollama."""
    from tools.pipeline.serving import talk

    talk(recipe, name, adapter, tier)


@app.command(epilog="Example: ollama-rm react-smollm2")
def ollama_rm(name: Annotated[str, typer.Argument(help="a model of ours in Ollama (react-...)")]) -> None:
    """Remove one of our models from Ollama."""
    from tools.pipeline.serving import forget

    forget(name)


@app.command()
def clean_ollama() -> None:
    """Remove our models from Ollama."""
    from tools.pipeline.serving import clean

    clean()


def main() -> None:
    """Run the command line. Exit status 2 for bad use, 1 for a failed run, 130 after Ctrl-C, 143 after SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    # What the libraries warn of while they are imported is not for those who read our lines.
    logging.disable(logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # progress.py says what is downloaded
    warnings.filterwarnings("ignore")
    arguments, target = sys.argv[1:], ""
    try:
        if arguments[:1] == ["--from-make"]:
            target = arguments[1]
            arguments = make_variables.from_make(commands(), target, arguments[2:])
            make_variables.keep_stdout_for_json(target)
        status = app(arguments, standalone_mode=False)
        if status == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        # Who reads us, `| head`, has seen enough; at the exit Python would try to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except BadInput as error:
        stop(error, 2)
    except Failed as error:
        stop(error, 1)
    except OSError as error:
        stop(f"{f'{os.fsdecode(error.filename)}: ' if error.filename else ''}{error.strerror or error}", 1)
    except MemoryError:
        stop("too little memory; close other programs, or give this one more", 1)
    except ModuleNotFoundError as error:
        from tools.core import run_folder

        stop(run_folder.missing(error), 1)
    except ImportError as error:
        stop(f"a library cannot be loaded ({error}): too little memory for it, or `make setup` was interrupted", 1)
    except click.exceptions.NoArgsIsHelpError:
        sys.exit(2)  # the help is shown
    except click.UsageError as error:
        stop(make_variables.explain(error, target), 2)
    except click.ClickException as error:
        stop(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        stop("stopped; run the same command again to go on", 130)


def commands() -> click.Group:
    """All commands, with their options."""
    found = typer.main.get_command(app)
    assert isinstance(found, click.Group)
    return found


def stop(why: object, status: int) -> None:
    """Print one line on stderr and exit."""
    print(f"react-recipes: {quote.visible(' '.join(str(why).split()))}", file=sys.stderr)
    sys.exit(status)
