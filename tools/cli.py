"""The command line: names, help, exit codes. Heavy modules are imported by the command that needs them."""

import logging
import signal
import sys
import warnings
from typing import Annotated

import click
import typer

from tools import BadInput, Failed

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

Recipe = Annotated[str, typer.Argument(help="a recipe's name (smollm2-135m-lora) or its path")]
Base = Annotated[str, typer.Option("--base", help="another base model: a folder or a hub name")]
Name = Annotated[str, typer.Option("--name", help="the model's name in Ollama (react-...)")]
Quant = Annotated[str, typer.Option("--quant", help="F16, Q8_0, Q4_K_M ...")]


@app.command()
def setup() -> None:
    """Build llama.cpp and install Ollama into the cache, where they are missing."""
    from tools import llamacpp, ollama

    llamacpp.build()
    ollama.install()


@app.command()
def doctor() -> None:
    """Show what this machine has and lacks, and the command that mends it."""
    from rich.console import Console

    from tools import doctor, llamacpp, ollama

    programs = {name: llamacpp.find(name) for name in llamacpp.PROGRAMS} | {"ollama": ollama.find()}
    findings = doctor.examine(programs)
    Console().print(doctor.table(findings))
    if any(finding.needed and not finding.found for finding in findings):
        raise typer.Exit(1)


@app.command()
def data() -> None:
    """Write the committed household episodes again: the same bytes."""
    import orjson

    from tools import run
    from tools.household import episodes

    for name, made in (("train", episodes.train_episodes()), ("test", episodes.test_episodes())):
        lines = [orjson.dumps(each) + b"\n" for each in made]
        run.write(run.ROOT / "data" / f"{name}.jsonl", b"".join(lines))
        print(f"data/{name}.jsonl: {len(lines)} episodes")


@app.command()
def check(recipe: Recipe, base: Base = "") -> None:
    """Check a recipe and its data with the parts that train."""
    from tools import chain

    chain.check(recipe, base)


@app.command()
def train(
    recipe: Recipe,
    base: Base = "",
    steps: Annotated[int, typer.Option(help="stop after so many optimizer steps; 0: all")] = 0,
    save_steps: Annotated[int, typer.Option(help="optimizer steps between checkpoints; 0: the recipe's")] = 0,
) -> None:
    """Train a recipe to an adapter; goes on where it was interrupted."""
    from tools import chain

    chain.train(recipe, base, {"max_steps": steps, "save_steps": save_steps})


@app.command()
def gguf(recipe: Recipe, quant: Quant = "Q8_0", base: Base = "") -> None:
    """Merge, convert and quantise the tuned model and its base."""
    from tools import chain

    chain.gguf(recipe, base, quant)


@app.command()
def ollama(recipe: Recipe, quant: Quant = "Q8_0", base: Base = "", name: Name = "") -> None:
    """Give the model to Ollama, after proof that it sees the tokens of training."""
    from tools import chain

    chain.ollama(recipe, base, quant, name)


@app.command()
def eval(
    recipe: Recipe,
    quant: Quant = "Q8_0",
    rooms: Annotated[int, typer.Option(min=1, help="rooms to play")] = 48,
    base: Base = "",
    name: Name = "",
) -> None:
    """Let the base and the tuned model play the same unseen rooms."""
    from tools import chain

    chain.evaluate(recipe, base, quant, rooms, name)


@app.command()
def demo(recipe: Recipe, quant: Quant = "Q8_0", name: Name = "") -> None:
    """Sum up a whole run: demo.json, the table, a game, and what to do next."""
    from tools import chain

    chain.demo(recipe, quant, name)


@app.command()
def ollama_run(recipe: Recipe, name: Name = "") -> None:
    """Talk to the model in Ollama."""
    from tools import chain

    chain.talk(recipe, name)


@app.command()
def clean_ollama() -> None:
    """Remove our models from Ollama."""
    from tools import chain

    chain.clean()


def main() -> None:
    """Run the command line. Exit status 2 for bad use, 1 for a failed run, 130 after Ctrl-C, 143 after SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # What the libraries warn of while they are imported is not for those who read our lines.
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    try:
        sys.exit(app(standalone_mode=False))
    except BadInput as error:
        stop(error, 2)
    except Failed as error:
        stop(error, 1)
    except click.ClickException as error:
        stop(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        stop("stopped; the same command goes on from here", 130)


def stop(why: object, status: int) -> None:
    """Print one line on stderr and exit."""
    print(f"react-recipes: {' '.join(str(why).split())}", file=sys.stderr)
    sys.exit(status)
