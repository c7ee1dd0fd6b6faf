"""The command line: names, help, exit codes. Heavy modules are imported by the command that needs them."""

import logging
import os
import signal
import sys
import warnings
from typing import Annotated

import click
import typer

from tools import BadInput, Failed, __version__
from tools.core import quote

ABOUT = "From agent trajectories to a model that answers in Ollama: check, train, convert, prove, serve, play."
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=ABOUT,
)

Recipe = Annotated[str, typer.Argument(help="a recipe's name (smollm2-135m-lora) or its path")]
Base = Annotated[str, typer.Option("--base", help="another base model: a folder or a hub name")]
Name = Annotated[str, typer.Option("--name", help="the model's name in Ollama (react-...)")]
TierName = Annotated[str, typer.Option("--tier", help="24gb, 8x80gb ...; by default this machine's")]
Set = Annotated[list[str], typer.Option("--set", help="key=value in place of the recipe's own; as often as needed")]
Data = Annotated[str, typer.Option("--data", help="other training data: messages, one episode a line")]
Files = Annotated[list[str], typer.Argument(help="JSONL files of messages, one episode a line")]
Gpus = Annotated[int, typer.Option(min=0, help="processes on each machine; 0: as the tier has")]
Nodes = Annotated[int, typer.Option(min=1, help="machines")]
Force = Annotated[
    bool, typer.Option("--force", help="go on in spite of what a check finds; replace another training's results")
]
Replace = Annotated[bool, typer.Option("--force", help="replace what is there already")]
Json = Annotated[bool, typer.Option("--json", help="for machines")]
Adapter = Annotated[str, typer.Option("--adapter", help="in place of a recipe: any PEFT adapter's folder")]
Guided = Annotated[bool, typer.Option("--imatrix", help="guide it by what the training conversations use most")]
AdapterOnly = Annotated[bool, typer.Option("--adapter-only", help="the adapter alone, for a base that is there")]
Quant = Annotated[str, typer.Option("--quant", help="F16, Q8_0, Q4_K_M ...")]
Quants = Annotated[str, typer.Option("--quant", help="any of llama-quantize's types, or several: 'Q4_K_M Q8_0'")]


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
    """Build llama.cpp and install Ollama into the cache, where they are missing."""
    from tools.gguf import llamacpp
    from tools.serving import ollama

    llamacpp.build()
    ollama.install()


@app.command()
def doctor() -> None:
    """Show what this machine has and lacks, and the command that mends it."""
    from rich.console import Console

    from tools.core import machine
    from tools.gguf import llamacpp
    from tools.serving import ollama

    programs = {name: llamacpp.find(name) for name in llamacpp.PROGRAMS} | {"ollama": ollama.find()}
    findings = machine.examine(programs)
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


@app.command()
def lint(
    data: Files,
    base: Base = "",
    sequence_len: Annotated[int, typer.Option(min=1, help="tokens that an episode may have, with --base")] = 2048,
    world: Annotated[
        str, typer.Option(help="household, none, or auto: household where the text is ALFWorld's")
    ] = "auto",
    fail_on: Annotated[str, typer.Option(help="exit 1 at error, warning, advice or never")] = "error",
    fix: Annotated[str, typer.Option(help="write the episodes to this file, with what is safe to mend mended")] = "",
    as_json: Json = False,
    force: Replace = False,
) -> None:
    """Find what is wrong with episodes, each with its file:line."""
    from tools.core import trajectory
    from tools.data import lint

    lint.lint_files(trajectory.paths(data), world, base, sequence_len, fail_on, fix, as_json, force)


@app.command()
def split(
    data: Files,
    out: Annotated[str, typer.Option(help="the folder to write train.jsonl, validation.jsonl and test.jsonl into")],
    validation: Annotated[float, typer.Option(help="its share")] = 0.1,
    test: Annotated[float, typer.Option(help="its share")] = 0.1,
    seed: Annotated[int, typer.Option(help="another seed, another split")] = 0,
    as_json: Json = False,
    force: Replace = False,
) -> None:
    """Part episodes in train, validation and test, the same room never in two of them."""
    from tools.core import trajectory
    from tools.data import split

    ratios = {"train": 1 - validation - test, "validation": validation, "test": test}
    split.split_files(trajectory.paths(data), out, ratios, seed, as_json, force)


@app.command()
def stats(
    data: Files,
    base: Annotated[
        str, typer.Option(help="whose tokenizer counts: a folder or a hub name; by default the demo's model")
    ] = "",
    html: Annotated[str, typer.Option(help="write a page with plots to this file")] = "",
    as_json: Json = False,
    force: Replace = False,
) -> None:
    """Say what episodes are made of: tokens, turns, tasks, actions."""
    from tools.core import trajectory
    from tools.data import stats

    stats.print_stats(trajectory.paths(data), base, html, as_json, force)


@app.command()
def convert(
    paths: Annotated[
        list[str], typer.Argument(metavar="IN... OUT", help="files, folders, globs or -; then one file, or -")
    ],
    to: Annotated[
        str, typer.Option("--to", help="messages, sharegpt, agentinstruct, alpaca, react, alfworld, llamafactory")
    ],
    wanted: Annotated[str, typer.Option("--from", help="the input's format, where it is not recognised")] = "",
    per: Annotated[str, typer.Option(help="Alpaca: a row an episode (history filled), or a row a step")] = "episode",
    calls: Annotated[
        bool, typer.Option("--calls", help="actions as calls of tools: tool_calls, function_call")
    ] = False,
    drop: Annotated[bool, typer.Option("--drop-extra", help="leave out all but the turns' roles and texts")] = False,
    apart: Annotated[str, typer.Option(help="a file for episodes that the target cannot hold; else they stop it")] = "",
    as_json: Json = False,
    force: Replace = False,
) -> None:
    """Convert episodes from any format to any other; llamafactory writes the classic set of files into a folder."""
    from tools.core import trajectory
    from tools.data import convert
    from tools.data.formats.worker import Task

    if len(paths) < 2:
        raise BadInput("name the files to convert, and then the one to write: convert IN OUT --to sharegpt")
    if per not in ("episode", "step"):
        raise BadInput(f"--per {per}: it must be episode or step")
    inputs, task = trajectory.paths(paths[:-1]), Task(to, calls, per == "step", drop)
    convert.convert_and_report(inputs, paths[-1], task, wanted, apart, as_json, force)


@app.command()
def episodes(
    out: Annotated[str, typer.Argument(help="the JSONL file to write: messages, one episode a line")],
    count: Annotated[int, typer.Option(min=1, help="episodes")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="another seed, other rooms; the same seed, the same bytes")] = 0,
    tasks: Annotated[str, typer.Option(help="by turns; all: put, look, clean, heat, cool, two")] = "all",
    rooms: Annotated[str, typer.Option(help="all: kitchen, livingroom, bedroom, bathroom")] = "all",
    style: Annotated[
        str, typer.Option(help="thoughts: full restates what was seen, terse is the next step alone")
    ] = "full",
    slip: Annotated[float, typer.Option(min=0, max=1, help="share of games with an error that is mended")] = 0.0,
    steps: Annotated[int, typer.Option(min=1, help="most actions in an episode")] = 30,
    alfworld: Annotated[
        str, typer.Option(help="ALFWorld's own games: train, valid_seen ... of ALFWORLD_DATA, or a folder")
    ] = "",
    force: Replace = False,
) -> None:
    """Let the expert play household rooms, or ALFWorld's own games, and write its episodes."""
    from tools.worlds.household import episodes

    counts = episodes.make(out, count, seed, tasks, rooms, style, slip, steps, alfworld, force)
    print(f"{out}: {', '.join(f'{number} {what}' for what, number in counts.items())}")


@app.command()
def recipes(force: Replace = False) -> None:
    """Write recipes/ anew from catalog/ and templates/; what a person edited is never touched."""
    from tools.core import run_folder
    from tools.recipes import render

    run_folder.refuse_installed("recipes/")
    counts = render.write(force)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))


@app.command("list")
def list_recipes(
    tier: TierName = "", model: Annotated[str, typer.Option(help="a model's key, or a part of it")] = ""
) -> None:
    """List the models and the smallest tier for each method; with --tier, that tier's recipes."""
    from tools.recipes import commands

    commands.show(tier, model)


@app.command()
def recommend(
    gpu: Annotated[str, typer.Option(help="a GPU by name (rtx4090, 'RTX 4090'); by default this machine's")] = "",
    gpus: Annotated[int, typer.Option(min=0, help="how many of them; 0: one, or all of this machine")] = 0,
) -> None:
    """Say which models this machine, or a GPU, can train, and how."""
    from tools.recipes import commands

    commands.recommend(gpu, gpus)


@app.command()
def plan(
    recipe: Recipe,
    tier: TierName = "",
    gpu: Annotated[str, typer.Option(help="a GPU by name in place of the tier (rtx4090, 'RTX 4090')")] = "",
    gpus: Annotated[int, typer.Option(min=0, help="devices; 0: as the tier has")] = 0,
    seq: Annotated[int, typer.Option(min=0, help="sequence length, tokens")] = 0,
    micro_batch: Annotated[int, typer.Option(min=0, help="episodes in one forward pass")] = 0,
    change: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Say what a recipe takes, part by part, whether it fits, and what to change first when it does not."""
    from tools.recipes import commands

    asked = {"sequence_len": seq, "micro_batch_size": micro_batch}
    commands.plan_of(recipe, tier, gpu, gpus, {key: value for key, value in asked.items() if value}, change, as_json)


@app.command()
def new(
    model: Annotated[str, typer.Argument(help="a model's key (qwen7b)")],
    method: Annotated[str, typer.Argument(help="lora, qlora, full, lora-regularised")],
    out: Annotated[str, typer.Argument(help="the file to write")],
    tier: TierName = "",
    force: Replace = False,
) -> None:
    """Copy a recipe to a file of your own, to edit."""
    from tools.recipes import commands

    commands.new(model, method, tier, out, force)


@app.command()
def diff(a: Recipe, b: Recipe) -> None:
    """Show in words what differs between two recipes."""
    from tools.recipes import commands

    commands.diff(a, b)


@app.command()
def add_model(
    hub: Annotated[str, typer.Argument(help="a model on the hub, or a folder with its config.json")],
    key: Annotated[str, typer.Option(help="its part of a recipe's name; by default made of its name")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be written, and write nothing")] = False,
) -> None:
    """Add a model to the catalog from its config.json, and render its recipes."""
    from tools.core import run_folder
    from tools.recipes import new_model

    run_folder.refuse_installed("catalog/")
    new_model.add_model(hub, key, dry_run)


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or its path")] = "",
    tier: TierName = "",
    base: Base = "",
    change: Set = [],  # noqa: B006
    data: Data = "",
    force: Force = False,
    all_of_them: Annotated[bool, typer.Option("--all", help="every recipe, against Axolotl's schema")] = False,
    as_json: Json = False,
) -> None:
    """Check a recipe and its data with the parts that train."""
    from tools.pipeline.training import check_all_recipes, check_recipe
    from tools.recipes.recipe import open_recipe

    if all_of_them:
        check_all_recipes(as_json)
    elif recipe:
        check_recipe(open_recipe(recipe, tier, base, change, data), force, as_json)
    else:
        raise BadInput("check which recipe? A name or a path, or --all")


@app.command()
def train(
    recipe: Recipe,
    tier: TierName = "",
    base: Base = "",
    change: Set = [],  # noqa: B006
    data: Data = "",
    gpus: Gpus = 0,
    nodes: Nodes = 1,
    rank: Annotated[int, typer.Option("--node-rank", min=0, help="which of the machines this is")] = 0,
    master: Annotated[str, typer.Option("--master-addr", help="the first machine's address")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--master-port", help="the port where they meet")] = 29500,
    resume: Annotated[bool, typer.Option("--resume", help="go on from a checkpoint, or fail")] = False,
    force: Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the command and its environment")] = False,
) -> None:
    """Train a recipe to an adapter; goes on where it was interrupted."""
    from tools.pipeline.training import submit_recipe, train_recipe
    from tools.recipes.recipe import open_recipe
    from tools.training.run_axolotl import Launch

    asked, launch = open_recipe(recipe, tier, base, change, data), Launch(gpus, nodes, rank, master, port)
    if dry_run:
        submit_recipe(asked, launch, "dry-run")
    else:
        train_recipe(asked, launch, force, resume)


@app.command()
def submit(
    to: Annotated[str, typer.Argument(help="slurm or ray")],
    recipe: Recipe,
    tier: TierName = "",
    base: Base = "",
    change: Set = [],  # noqa: B006
    data: Data = "",
    gpus: Gpus = 0,
    nodes: Nodes = 1,
) -> None:
    """Give a training to Slurm or to Ray."""
    from tools.pipeline.training import submit_recipe
    from tools.recipes.recipe import open_recipe
    from tools.training.run_axolotl import Launch

    if to not in ("slurm", "ray"):
        raise BadInput(f"{to}: a training is given to slurm or to ray")
    submit_recipe(open_recipe(recipe, tier, base, change, data), Launch(gpus, nodes), to)


@app.command()
def gguf(
    recipe: Recipe = "",
    quant: Quants = "Q8_0",
    base: Base = "",
    adapter: Adapter = "",
    imatrix: Guided = False,
    adapter_only: AdapterOnly = False,
) -> None:
    """Make GGUFs of a tuned model and its base, in one pass: of a recipe's, or of any adapter and base."""
    from tools.pipeline.model import make_adapter_gguf, make_gguf

    if not recipe and not adapter:
        raise BadInput("gguf of what? A recipe, or --adapter FOLDER and --base")
    if adapter_only:
        make_adapter_gguf(recipe, base, adapter)
    else:
        make_gguf(recipe, base, quant, adapter, imatrix)


@app.command()
def quality(
    recipe: Recipe,
    quants: Annotated[str, typer.Option(help="what to compare with f16, e.g. 'Q4_K_M Q8_0'")] = "Q4_K_M Q8_0",
    base: Base = "",
    imatrix: Guided = False,
    chunks: Annotated[int, typer.Option(min=2, help="pieces of 512 tokens to read")] = 32,
    data: Annotated[str, typer.Option("--data", help="other held-out episodes than data/test.jsonl")] = "",
) -> None:
    """Show what quantising costs: size, perplexity and KL against f16 on held-out episodes."""
    from tools.pipeline.model import score_quality

    score_quality(recipe, base, quants, imatrix, chunks, data)


@app.command()
def merge(recipe: Recipe, base: Base = "") -> None:
    """Merge the adapter into its base, as a Hugging Face folder."""
    from tools.pipeline.model import merge_adapter

    merge_adapter(recipe, base)


@app.command()
def export(
    recipe: Recipe,
    to: Annotated[
        list[str], typer.Option("--to", help="lmstudio, vllm, llama-server, huggingface; all by default")
    ] = [],  # noqa: B006
    quant: Quant = "Q8_0",
    base: Base = "",
    name: Name = "",
) -> None:
    """Write folders for other servers and for the hub, each with its exact command; nothing is sent."""
    from tools.pipeline.serving import write_exports

    write_exports(recipe, base, quant, name, " ".join(to).split())


@app.command()
def ollama(
    recipe: Recipe = "",
    quant: Quant = "Q8_0",
    base: Base = "",
    name: Name = "",
    force: Annotated[bool, typer.Option("--force", help="replace another model; take one that does not stop")] = False,
    adapter_only: AdapterOnly = False,
    over: Annotated[str, typer.Option("--from", help="with --adapter-only: a base model that Ollama has")] = "",
    adapter: Adapter = "",
) -> None:
    """Give the model to Ollama, after proof that it sees the tokens of training and that its answers end."""
    from tools.pipeline.serving import give_adapter_to_ollama, give_to_ollama

    if not recipe and not adapter:
        raise BadInput("ollama of what? A recipe, or --adapter FOLDER and --base")
    if adapter_only:
        give_adapter_to_ollama(recipe, base, quant, name, over, force)
    else:
        give_to_ollama(recipe, base, quant, name, force, adapter)


@app.command()
def parity(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or its path; or give --gguf")] = "",
    quant: Quant = "Q8_0",
    base: Base = "",
    name: Name = "",
    gguf: Annotated[str, typer.Option(help="a GGUF of any origin, checked against --base")] = "",
    data: Annotated[str, typer.Option(help="with --gguf: messages, one conversation a line")] = "data/test.jsonl",
    adapter: Annotated[
        str, typer.Option(help="in place of a recipe: any PEFT adapter's folder; in --gguf if given")
    ] = "",
    in_ollama: Annotated[str, typer.Option("--ollama", help="with --gguf: the model's name in Ollama")] = "",
    greedy: Annotated[
        bool | None, typer.Option(help="compare answers too; by default with a recipe, not with --gguf")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare tokens, and answers, of training and of serving; the first difference, its cause and its mend."""
    from pathlib import Path

    from tools.parity import prove
    from tools.pipeline.serving import check_parity

    if bool(recipe) == bool(gguf or adapter) or (gguf and not base):
        raise BadInput("parity of what? A recipe, --adapter FOLDER --base BASE, or --gguf FILE --base BASE")
    if not gguf:
        check_parity(recipe, base, quant, name, greedy is not False, as_json, adapter)
    else:
        of = Path(adapter) if adapter else None
        prove.print_result(prove.of_file(Path(gguf), base, Path(data), of, in_ollama, bool(greedy)), as_json)


@app.command()
def eval(
    recipe: Recipe,
    quant: Quant = "Q8_0",
    rooms: Annotated[int, typer.Option(min=1, help="rooms to play")] = 48,
    base: Base = "",
    name: Name = "",
) -> None:
    """Let the base and the tuned model play the same unseen rooms."""
    from tools.pipeline.evaluation import play_games

    play_games(recipe, base, quant, rooms, name)


@app.command()
def demo(recipe: Recipe, quant: Quant = "Q8_0", name: Name = "") -> None:
    """Sum up a whole run: demo.json, the table, a game, and what to do next."""
    from tools.pipeline.evaluation import sum_up

    sum_up(recipe, quant, name)


@app.command()
def ollama_run(recipe: Recipe, name: Name = "") -> None:
    """Talk to the model in Ollama."""
    from tools.pipeline.serving import talk

    talk(recipe, name)


@app.command()
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
    try:
        if flags := os.environ.get("MAKEFLAGS"):
            from tools.core import make_variables

            make_variables.refuse_misspelt(flags)
        status = app(standalone_mode=False)
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
    except click.ClickException as error:
        stop(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        stop("stopped; run the same command again to go on", 130)


def stop(why: object, status: int) -> None:
    """Print one line on stderr and exit."""
    print(f"react-recipes: {quote.visible(' '.join(str(why).split()))}", file=sys.stderr)
    sys.exit(status)
