"""Commands that turn an adapter into a model, prove it and hand it to a server."""

from typing import Annotated

import typer

from tools.cli.options import (
    AdapterOnly,
    Base,
    Data,
    Folder,
    HeldOut,
    Imatrix,
    Json,
    Name,
    NumCtx,
    Proof,
    Quant,
    Quants,
    TierName,
    Tuned,
    as_messages,
)

app = typer.Typer()


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
    data: Data = "",
) -> None:
    """Write folders for other servers, for the hub or for another trainer, each with its exact commands."""
    if " ".join(to) in ("llamafactory", "trl", "unsloth"):
        from tools.pipeline.training import write_for_trainer
        from tools.recipes.recipe import open_recipe

        write_for_trainer(" ".join(to), open_recipe(recipe, tier, base, data=as_messages(data)))
        return
    from tools.pipeline.serving import write_exports
    from tools.pipeline.trained import tuned

    write_exports(tuned(recipe, base, adapter, tier, num_ctx), quant, name, to, as_messages(data))


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
