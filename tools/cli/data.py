"""Commands that read and write episodes."""

from typing import Annotated

import typer

from tools.cli.options import Base, Files, Json, Replace

app = typer.Typer()


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
