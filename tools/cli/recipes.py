"""Commands that choose, plan and write recipes."""

from typing import Annotated

import typer

from tools.cli.options import GpuName, Json, Recipe, Replace, Seq, Set, TierName, as_messages

app = typer.Typer()


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
