"""Commands that check a recipe and train it."""

from typing import Annotated

import click
import typer

from tools.cli.options import Base, Data, Force, GpuName, Gpus, Json, Nodes, Recipe, Seq, Set, TierName, as_messages

app = typer.Typer()


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
