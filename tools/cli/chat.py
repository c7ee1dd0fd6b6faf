"""Commands that show and talk to a finished model, and remove it."""

from typing import Annotated

import typer

from tools.cli.options import Backend, Base, Folder, Name, NumCtx, Proof, Quant, TierName, Tuned

app = typer.Typer()


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
