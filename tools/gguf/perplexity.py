"""What a quantisation costs: perplexity, and how far it is from f16, on conversations that training never saw."""

import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

from tools import BadInput, Failed
from tools.core import files, progress, quote
from tools.core.trajectory import Episode
from tools.gguf import header, imatrix, llamacpp

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

# Pieces of imatrix.CONTEXT tokens that are read; the second half of each is scored.
CHUNKS = 32
# llama-perplexity's words for what it found, and ours.
FIGURES = {
    "perplexity": r"Mean PPL\(Q\) *: *(\S+)",
    "perplexity_error": r"Mean PPL\(Q\) *: *\S+ ± *(\S+)",
    "mean_kld": r"Mean +KLD: *(\S+)",
    "mean_kld_error": r"Mean +KLD: *\S+ ± *(\S+)",
    "kld_99_9": r"99\.9% +KLD: *(\S+)",
    "max_kld": r"Maximum KLD: *(\S+)",
    "same_top_percent": r"Same top p: *(\S+)",
}


class Score(TypedDict):
    """One GGUF: its size, and how it does; all but perplexity stands against f16, and is not there for f16 itself.

    `imatrix`: whether an importance matrix guided it. `mean_kld`: Kullback-Leibler divergence, nats a token.
    `kld_99_9`: 99.9 % of the tokens are below. `same_top_percent`: of the tokens, those whose likeliest is f16's.
    """

    quant: str
    bytes: int
    imatrix: bool
    perplexity: float
    perplexity_error: float
    mean_kld: NotRequired[float]
    mean_kld_error: NotRequired[float]
    kld_99_9: NotRequired[float]
    max_kld: NotRequired[float]
    same_top_percent: NotRequired[float]


class Quality(TypedDict):
    """quality.json: pieces (`chunks`) of `context` tokens were read, `tokens` of them scored."""

    context: int
    chunks: int
    tokens: int
    models: list[Score]


def score_quants(
    f16: Path,
    quants: Mapping[str, Path],
    episodes: Iterable[Episode],
    tokenizer: "PreTrainedTokenizerBase",
    chunks: int = CHUNKS,
) -> Quality:
    """Score GGUFs of one model against its f16 on episodes; what quality.json holds.

    `quants`: name to file. `tokenizer`: training's. Its own tokens are what is scored: llama-perplexity's must be the
    same ones. Raises BadInput when the episodes are too few, Failed when a file cannot be scored or tokens differ.
    """
    wanted = chunks * imatrix.CONTEXT
    with progress.step("quality: reading the held-out episodes"):
        text, ids = held_out(tokenizer, episodes, wanted)
    if len(ids) < 2 * imatrix.CONTEXT:
        least = 2 * imatrix.CONTEXT
        raise BadInput(f"the held-out episodes have {len(ids)} tokens; {least} are the least to score, so give more")
    chunks = min(chunks, len(ids) // imatrix.CONTEXT)
    vocabulary = int(header.metadata(f16).get("tokenizer.ggml.tokens", 0))
    files.need_space(f16.parent, chunks * imatrix.CONTEXT * vocabulary / 2**30)  # two bytes for each, of half of them
    with files.scratch(f16.with_name("quality")) as folder:
        (folder / "text").write_text(text, encoding="utf-8")
        found = run_perplexity(f16, folder, ["--file", "text"], chunks)
        check_tokens(folder / "logits", ids)
        ppl = re.search(r"Final estimate: PPL = (\S+) \+/- (\S+)", found)
        if re.search(r"\[\d+\]-?nan\b", found):  # of each piece, and no estimate then
            raise nan("perplexity", f16)
        if ppl is None:
            raise Failed(f"{f16}: llama-perplexity gave no perplexity; its last words: {found.strip()[-200:]}")
        models = [score("F16", f16, {"perplexity": float(ppl[1]), "perplexity_error": float(ppl[2])})]
        for name, path in quants.items():
            found = run_perplexity(path, folder, ["--kl-divergence"], chunks)
            models.append(score(name, path, {key: figure(found, key, path) for key in FIGURES}))
    scored = chunks * (imatrix.CONTEXT - 1 - imatrix.CONTEXT // 2)
    return {"context": imatrix.CONTEXT, "chunks": chunks, "tokens": scored, "models": models}


def held_out(tokenizer: "PreTrainedTokenizerBase", episodes: Iterable[Episode], wanted: int) -> tuple[str, list[int]]:
    """The text of as many episodes as `wanted` tokens take, and training's tokens of it."""
    taken: list[Episode] = []
    count = 0
    for episode in episodes:
        taken.append(episode)
        count += len(tokenizer(imatrix.rendered(tokenizer, [episode]), add_special_tokens=False).input_ids)
        if count >= wanted:
            break
    text = imatrix.rendered(tokenizer, taken)
    return text, list(tokenizer(text, add_special_tokens=False).input_ids)


def run_perplexity(gguf: Path, folder: Path, options: list[str], chunks: int) -> str:
    """What llama-perplexity says of a GGUF; `folder` keeps the logits of f16 from one call to the next."""
    command = [str(llamacpp.built("llama-perplexity")), "--model", str(gguf.resolve()), *options]
    # One piece at a time: as fast as four (its own choice), the same figures, and a quarter of the memory for logits.
    command += ["--kl-divergence-base", "logits", "--chunks", str(chunks), "--batch-size", str(imatrix.CONTEXT)]
    return imatrix.measure(command, f"{gguf.name}: scoring", chunks, folder)


def check_tokens(logits: Path, ids: list[int]) -> None:
    """Raise Failed unless the tokens that llama-perplexity scored, which its file begins with, are training's.

    An older llama-perplexity than ours reads a control token as the letters it is written in.
    """
    with logits.open("rb") as file:
        _, context, _, chunks = struct.unpack("<8sIii", file.read(20))
        scored = list(struct.unpack(f"<{context * chunks}i", file.read(4 * context * chunks)))
    if ids[: len(scored)] != scored and ids[: len(scored) - 1] != scored[1:]:  # it may begin with a token of its own
        place = next((i for i, pair in enumerate(zip(ids, scored, strict=False)) if pair[0] != pair[1]), len(ids))
        raise Failed(
            f"llama-perplexity reads other tokens than training: the first is {place}, {ids[place : place + 8]} in "
            f"training and {scored[place : place + 8]} there; `make setup` builds one that does not"
        )


def score(name: str, path: Path, figures: dict[str, float]) -> Score:
    """The score of a GGUF, of its `figures` and what is known without running it. Raises BadInput for no GGUF."""
    guided = "quantize.imatrix.chunks_count" in header.metadata(path)
    known = {"quant": name, "bytes": path.stat().st_size, "imatrix": guided}
    return cast(Score, known | figures)


def figure(found: str, key: str, path: Path) -> float:
    """One figure of what llama-perplexity wrote. Raises Failed where it is not there, or NaN."""
    value = re.search(FIGURES[key], found)
    if value is None:
        raise Failed(f"{path}: llama-perplexity gave no {key}; its last words: {found.strip()[-200:]}")
    if math.isnan(number := float(value[1].rstrip("%"))):
        raise nan(key, path)
    return number


def nan(key: str, path: Path) -> Failed:
    """The failure of a model that computes NaN."""
    return Failed(f"{path}: its {key} is NaN: its weights are broken; check the loss in train.log and train again")


def table(models: Sequence[Score], won: Mapping[str, str] | None = None) -> "Table":
    """The figures to choose by: size, perplexity, and how far from f16; `models` as quality.json has them.

    Same token: how often the likeliest one is f16's. `won`: rooms won by quantisation, of those that were played.
    """
    from rich import box
    from rich.table import Table

    # Without lines between, so that no figure is cut off on 80 columns.
    title = "What each quantisation costs, on held-out episodes"
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    drawn.add_column("", no_wrap=True)
    for head in ("MB", "perplexity", "mean KL", "99.9 % KL", "max KL", "same token", *(["rooms"] if won else [])):
        drawn.add_column(head, justify="right", no_wrap=True)
    for each in models:
        name = f"{each['quant']}{' +imatrix' if each['imatrix'] else ''}"
        row = [f"{each['bytes'] / 1e6:,.0f}", f"{each['perplexity']:.4g} ± {each['perplexity_error']:.2g}"]
        if "mean_kld" in each:
            row += [f"{each[key]:.4f}" for key in ("mean_kld", "kld_99_9", "max_kld")]
            row += [f"{each['same_top_percent']:.2f} %"]
        if won:
            row += [""] * (6 - len(row)) + [won.get(each["quant"], "")]
        drawn.add_row(quote.cell(name), *row)
    return drawn
