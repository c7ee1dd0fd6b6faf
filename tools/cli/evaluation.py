"""Commands that play, score and compare models."""

from typing import Annotated

import click
import typer

from tools.cli.options import (
    Backend,
    Base,
    Folder,
    HeldOut,
    Json,
    Name,
    NameThere,
    NumCtx,
    Prompting,
    Proof,
    Quant,
    Replace,
    Rooms,
    Shots,
    Temperature,
    TierName,
    Tuned,
    Url,
    WorldName,
    as_messages,
    prices,
)

app = typer.Typer()


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
