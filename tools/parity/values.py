"""The weights in a GGUF against those of training: what both expect next, at places of conversations held out.

Equal tokens prove nothing of the weights. Here llama-server and training's own model, the base with its adapter beside
it, read the same tokens; how far apart their distributions over the next token may be belongs to the quantisation
(catalog/value_bounds.yaml). A tensor of zeros may move them little: it is looked for in the file itself.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from tools import BadInput, Failed
from tools.core import catalog, files, progress
from tools.gguf import convert, header, llamacpp, lora
from tools.parity import training_model
from tools.parity.greedy import TIE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from gguf import GGUFReader

# Conversations and places in each: 40 in all. The tokens of a conversation that are read, at most, and the first place.
CONVERSATIONS, PLACES = 5, 8
LONGEST, FIRST = 192, 40
# Likeliest tokens of the server at each place; the rest counts as one more.
CHOICES = 40
# Rows of a tensor that are looked at first to see whether it is all zeros.
ROWS = 8


class Bound(catalog.Part):
    """What a right file of some quantisations keeps to.

    `kl`: nats of KL divergence, on average, at most. `agree`: the share of places with one likeliest token, at least.
    `tensor`: how far one tensor may be from training's, at most, as a share of its norm. `measured`: of right files.
    """

    quants: list[str]
    kl: float
    agree: float
    tensor: float
    measured: str


class Values(TypedDict):
    """What parity.json holds of the weights: see `compare_values`. KL in nats; `cause`: what is wrong, where it is."""

    equal: bool
    places: int
    quant: str
    kl: float
    largest_kl: float
    agree: float
    bound_kl: float
    bound_agree: float
    cause: str | None


@cache
def bounds() -> list[Bound]:
    """catalog/value_bounds.yaml, the strictest first. Raises BadInput where it breaks its schema."""
    return catalog.content("value_bounds", list[Bound])


def bound_of(gguf: Path) -> tuple[str, Bound]:
    """The quantisation of a GGUF, and its bound: the loosest for one that the catalog does not name."""
    from gguf import LlamaFileType

    kind = header.metadata(gguf).get("general.file_type")
    names = {int(each): each.name.partition("_")[2] for each in LlamaFileType}
    quant = names.get(kind, "") if isinstance(kind, int) else ""
    return quant or "unknown", next((each for each in bounds() if quant in each.quants), bounds()[-1])


def compare_values(folder: Path, adapter: Path | None, gguf: Path, talks: Sequence[list[int]], log: Path) -> Values:
    """Compare what training's model and a GGUF expect next at places of conversations, given as token ids.

    `folder`: the weights that the adapter is added to, or a whole model's. `log`: of the server. A matrix of zeros that
    is none in training is a difference by itself. Where the two differ, `cause` says by what. Raises BadInput without a
    conversation that is long enough, Failed when the server or transformers fails, or training's model computes NaN.
    """
    quant, bound = bound_of(gguf)
    read = [ids[:LONGEST] for ids in talks if len(ids) > FIRST + PLACES][:CONVERSATIONS]
    if not read:
        raise BadInput(f"no conversation has more than {FIRST + PLACES} tokens, which a proof of the weights needs")
    where = [places(len(ids)) for ids in read]
    served = served_choices(gguf, read, where, log)
    with progress.step("parity: loading the model of training"):
        model = training_model.load(folder, adapter)
    own = training_model.log_probabilities(model, read, where)
    del model
    found = [apart(mine, theirs) for mine, theirs in zip(own, served, strict=True) if theirs]
    if len(found) * 2 < len(served):  # too little is known of this file to say that it is right
        found = [(math.inf, False)]
    kl = sum(each for each, _ in found) / len(found)
    agree = sum(same for _, same in found) / len(found)
    within = math.isfinite(kl) and kl <= bound.kl and agree >= bound.agree
    why = cause(folder, adapter, gguf, bound.tensor, within)
    return {
        "equal": within and why is None,
        "places": len(found),
        "quant": quant,
        "kl": round(kl, 6),
        "largest_kl": round(max(each for each, _ in found), 6),
        "agree": round(agree, 4),
        "bound_kl": bound.kl,
        "bound_agree": bound.agree,
        "cause": why,
    }


def places(length: int) -> list[int]:
    """Places of a conversation after which the next token is asked for, spread evenly up to its end."""
    step = (min(length, LONGEST) - 1 - FIRST) / (PLACES - 1)
    return [round(FIRST + number * step) for number in range(PLACES)]


def served_choices(
    gguf: Path, talks: Sequence[list[int]], where: Sequence[list[int]], log: Path
) -> list[dict[int, float]]:
    """What llama-server with a GGUF expects after so many tokens of each talk, see `expected_next`."""
    total = sum(len(each) for each in where)
    found = []
    with (
        progress.bar("parity: what the GGUF expects next", total, "places") as shown,
        llamacpp.server(gguf, LONGEST + 1, log=log) as url,
    ):
        for ids, wanted in zip(talks, where, strict=True):
            for place in wanted:
                found.append(expected_next(url, ids[:place]))
                shown.advance()
    return found


def expected_next(url: str, ids: list[int]) -> dict[int, float]:
    """The CHOICES tokens that llama-server finds likeliest after these, with their log-probabilities, likeliest first.

    A model that computes NaN has none: then NaN for no token. llama-server keeps back what it expects where the
    likeliest token is a part of a letter: then nothing.
    """
    body = {"prompt": ids, "n_predict": 1, "n_probs": CHOICES, "temperature": 0, "top_k": 1, "cache_prompt": True}
    given = llamacpp.post(f"{url}/completion", body | {"repeat_penalty": 1.0, "return_tokens": True})
    if "completion_probabilities" not in given:
        return {}
    steps = given["completion_probabilities"]
    likely = steps[0]["top_logprobs"] if steps else []
    if not likely or any(each["logprob"] is None for each in likely):  # JSON has no NaN
        return {-1: math.nan}
    return {each["id"]: float(each["logprob"]) for each in likely}


def apart(mine: "torch.Tensor", theirs: Mapping[int, float]) -> tuple[float, bool]:
    """KL divergence in nats of the server's distribution from training's, and whether both have one likeliest token.

    Over the server's likeliest tokens, all others counted as one: at most the divergence of the whole distributions.
    Two tokens that training's model finds as likely as greedy.TIE count as one.
    """
    ids = list(theirs)
    if not all(math.isfinite(value) for value in theirs.values()):
        return math.inf, False
    own = mine[ids].double().exp()
    given = [math.exp(theirs[each]) for each in ids]
    pairs = [*zip(own.tolist(), given, strict=True), (1 - float(own.sum()), 1 - sum(given))]
    kl = sum(p * math.log(p / max(q, 1e-9)) for p, q in pairs if p > 1e-12)
    return max(kl, 0.0), float(mine.max() - mine[ids[0]]) <= TIE


def cause(folder: Path, adapter: Path | None, gguf: Path, most: float, within: bool) -> str | None:
    """What is wrong in a GGUF: its first tensor that is not as the conversion makes it; None for nothing.

    `most`: how far a tensor may be off, see Bound. It is made again in 16 bits, beside the file and for as long as this
    takes: where what it expects is not `within` its bound, or it has a matrix of zeros.
    """
    from gguf import GGUFReader

    served = GGUFReader(gguf)
    if within and not has_zeros(served):
        return None
    with files.scratch(gguf) as work, progress.step("parity: looking for the tensor that is wrong"):
        right = work / "right.gguf"
        try:
            weights = sum(math.prod(shape) for shape in lora.shapes(folder).values())
            files.need_space(work, weights * convert.UNQUANTISED["F16"] / 2**30)
            convert.to_gguf(folder, right, adapter=adapter)
        except (BadInput, Failed) as why:
            return None if within else f"which tensor is wrong could not be looked for: {why}"
        return next(tensors_apart(GGUFReader(right), served, most), None)


def has_zeros(served: "GGUFReader") -> bool:
    """Whether a matrix in a GGUF is all zeros."""
    for tensor in served.tensors:
        if len(tensor.shape) < 2:
            continue
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        some = rows[:: max(1, len(rows) // ROWS)]
        if not any(widened(each, tensor.tensor_type).any() for each in (some, rows)):
            return True
    return False


def tensors_apart(right: "GGUFReader", served: "GGUFReader", most: float) -> Iterator[str]:
    """How a GGUF's tensors differ from the right ones, in the order in which a model uses them."""
    import numpy as np

    have = {each.name: each for each in served.tensors}
    for tensor in sorted(right.tensors, key=lambda each: layer(each.name)):
        if tensor.name not in have:
            yield f"{tensor.name} is not in the GGUF"
            continue
        wanted, values = (widened(each.data, each.tensor_type) for each in (tensor, have[tensor.name]))
        if wanted.shape != values.shape:
            yield f"{tensor.name} is {list(values.shape)} in the GGUF and {list(wanted.shape)} in training"
        elif not np.isfinite(values).all():
            yield f"{tensor.name} has values that are not numbers (NaN or infinite)"
        elif (off := distance(wanted, values)) > most:
            zeros = ", it is all zeros" if not values.any() else ""
            yield f"{tensor.name} differs from training's by {off:.0%} of its norm{zeros}"


def layer(name: str) -> tuple[int, str]:
    """A tensor's place in the order of the model: its layer, before the first and after the last."""
    parts = name.split(".")
    if parts[0] == "blk":
        return int(parts[1]), name
    return (-1, name) if name.startswith("token_embd") else (2**31, name)


def widened(data: "npt.NDArray[np.generic]", kind: int) -> "npt.NDArray[np.float32]":
    """A tensor's values in float32."""
    import gguf

    values: npt.NDArray[np.float32] = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind))
    return values


def distance(wanted: "npt.NDArray[np.float32]", values: "npt.NDArray[np.float32]") -> float:
    """The norm of the difference of two tensors, as a share of that of the first."""
    import numpy as np

    size = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(wanted - values)) / size if size else float(np.linalg.norm(values))


def words(found: Values) -> str:
    """What was found, in one line, what is wrong first."""
    allowed = f"{found['quant']}: {found['bound_kl']:g} at most, {found['bound_agree']:.0%} at least"
    line = (
        f"at {found['places']} places of held-out conversations the KL is {found['kl']:.4f} nats on average, and the "
        f"likeliest token the same at {found['agree']:.0%} ({allowed})"
    )
    return f"{found['cause']}; {line}" if found["cause"] else line
