"""The weights in a GGUF against those of training: what both expect next, at places of conversations held out.

Equal tokens prove nothing of the weights. Here llama-server and training's own model, the base with its adapter beside
it, read the same tokens; how far apart their distributions over the next token may be belongs to the quantisation
(catalog/value_bounds.yaml).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import psutil

from tools import BadInput, Failed
from tools.core import catalog, files, progress
from tools.gguf import convert, header, llamacpp, merge
from tools.parity.greedy import BROKEN

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from gguf import GGUFReader
    from transformers import PreTrainedModel

# Conversations and places in each: 48 in all. The tokens of a conversation that are read, at most, and the first place.
CONVERSATIONS, PLACES = 6, 8
LONGEST, FIRST = 320, 48
# Likeliest tokens of the server at each place; the rest counts as one more.
CHOICES = 40
# Share of a tensor's values, by their norm, that a quantisation may change: 2-bit ones change some 0.35.
APART = 0.6


class Bound(catalog.Part):
    """Nats of KL divergence, on average at most, and the share of places with one likeliest token, at least.

    `quants`: the quantisations that it is for. `measured`: what was found of a right file.
    """

    quants: list[str]
    kl: float
    agree: float
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

    `folder`: the weights that the adapter is added to, or a whole model's. `log`: of the server. Where they differ, the
    cause is looked for in the file itself, see `cause`. Raises BadInput when memory is too short, Failed when the
    server or transformers fails.
    """
    quant, bound = bound_of(gguf)
    read = [ids[:LONGEST] for ids in talks if len(ids) > FIRST + PLACES][:CONVERSATIONS]
    where = [places(len(ids)) for ids in read]
    with progress.bar("parity: proving the weights", CONVERSATIONS * (PLACES + 1), "places") as shown:
        served = []
        with llamacpp.server(gguf, LONGEST + 1, log=log) as url:
            for ids, wanted in zip(read, where, strict=True):
                for place in wanted:
                    served.append(expected_next(url, ids[:place]))
                    shown.advance()
        trained = training_model(folder, adapter)
        own = []
        for ids, wanted in zip(read, where, strict=True):
            own += log_probabilities(trained, ids, wanted)
            shown.advance()
    found = [apart(mine, theirs) for mine, theirs in zip(own, served, strict=True)]
    kl = sum(each for each, _ in found) / len(found)
    agree = sum(same for _, same in found) / len(found)
    equal = math.isfinite(kl) and kl <= bound.kl and agree >= bound.agree
    why = None if equal else cause(folder, adapter, gguf)
    return {
        "equal": equal,
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


def expected_next(url: str, ids: list[int]) -> dict[int, float]:
    """The CHOICES tokens that llama-server finds likeliest after these, with their log-probabilities, likeliest first.

    A model that computes NaN has none: then NaN for the token that it gives.
    """
    body = {"prompt": ids, "n_predict": 1, "n_probs": CHOICES, "temperature": 0, "top_k": 1, "cache_prompt": True}
    given = llamacpp.post(f"{url}/completion", body | {"repeat_penalty": 1.0, "return_tokens": True})
    steps = given["completion_probabilities"]
    likely = steps[0]["top_logprobs"] if steps else []
    if not likely or any(each["logprob"] is None for each in likely):  # JSON has no NaN
        return {-1: math.nan}
    return {each["id"]: float(each["logprob"]) for each in likely}


def training_model(folder: Path, adapter: Path | None) -> "PreTrainedModel":
    """Training's own model on the CPU, the adapter beside its base, in float32, or bfloat16 where memory is short.

    Raises BadInput where there is too little for either, Failed where transformers cannot read it.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    size = sum(item.stat().st_size for item in folder.glob("*.safetensors"))  # of 16 bits a weight
    free = psutil.virtual_memory().available
    dtype = torch.float32 if 2 * size * 1.2 < free else torch.bfloat16
    if size * 1.2 > free:
        raise BadInput(
            f"{folder}: {size * 1.2 / 2**30:.0f} GiB of memory prove the weights; PROOF=tokens leaves it out"
        )
    logging.disable_progress_bar()
    if adapter:
        tuned: PreTrainedModel = merge.with_adapter(folder, adapter, dtype).eval()  # type: ignore[assignment]
        return tuned
    try:
        whole: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # the settings of a model of any origin, in the hands of a class of any
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise Failed(f"{folder}: transformers cannot read the model: {first}") from error
    return whole.eval()


def log_probabilities(trained: "PreTrainedModel", ids: list[int], where: Sequence[int]) -> "list[torch.Tensor]":
    """What training's model gives each token after `where` tokens of a conversation, float32 [vocabulary] each.

    Raises Failed when it computes NaN.
    """
    import torch

    with torch.inference_mode():
        logits = trained(input_ids=torch.tensor([ids[: max(where)]])).logits[0].float()
    if logits.isnan().any():
        raise Failed(f"the base with its adapter, in transformers, {BROKEN}")
    return [torch.log_softmax(logits[place - 1], dim=-1) for place in where]


def apart(mine: "torch.Tensor", theirs: Mapping[int, float]) -> tuple[float, bool]:
    """KL divergence in nats of the server's distribution from training's, and whether both have one likeliest token.

    Over the server's likeliest tokens, all others counted as one: at most the divergence of the whole distributions.
    """
    ids = list(theirs)
    if not all(math.isfinite(value) for value in theirs.values()):
        return math.inf, False
    own = mine[ids].double().exp()
    given = [math.exp(theirs[each]) for each in ids]
    pairs = [*zip(own.tolist(), given, strict=True), (1 - float(own.sum()), 1 - sum(given))]
    kl = sum(p * math.log(p / max(q, 1e-9)) for p, q in pairs if p > 1e-12)
    return max(kl, 0.0), int(mine.argmax()) == ids[0]


def cause(folder: Path, adapter: Path | None, gguf: Path) -> str | None:
    """What is wrong in a GGUF whose values are: the first setting or tensor that is not as the conversion makes it.

    It is made again, in 16 bits, beside the file and for as long as this takes. None where nothing is found.
    """
    from gguf import GGUFReader

    with files.scratch(gguf) as work, progress.step("parity: looking for what is wrong in the weights"):
        work.mkdir(parents=True, exist_ok=True)
        right = work / "right.gguf"
        convert.to_gguf(folder, right, adapter=adapter)
        return next(differences(GGUFReader(right), GGUFReader(gguf)), None)


def differences(right: "GGUFReader", served: "GGUFReader") -> Iterator[str]:
    """How a GGUF's settings and tensors differ from the right ones, in the order in which a model uses them."""
    import numpy as np

    for key, field in right.fields.items():
        if key.startswith(("GGUF.", "general.", "tokenizer.", "react_recipes.")):
            continue
        wanted, there = field.contents(), served.fields[key].contents() if key in served.fields else None
        if wanted != there:
            yield f"{key} is {there} in the GGUF and {wanted} by training's conversion"
    have = {each.name: each for each in served.tensors}
    for tensor in sorted(right.tensors, key=lambda each: layer(each.name)):
        if tensor.name not in have:
            yield f"{tensor.name} is not in the GGUF"
            continue
        wanted_values, values = (widened(each.data, each.tensor_type) for each in (tensor, have[tensor.name]))
        if wanted_values.shape != values.shape:
            yield f"{tensor.name} has the shape {values.shape} in the GGUF and {wanted_values.shape} by conversion"
        elif not np.isfinite(values).all():
            yield f"{tensor.name} has values in the GGUF that are no numbers"
        elif (off := distance(wanted_values, values)) > APART:
            yield f"{tensor.name} is another in the GGUF: {off:.0%} off training's" + (" (zeros)" * (not values.any()))


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
    """What was found, in one line."""
    allowed = f"{found['quant']}: {found['bound_kl']:g} at most, {found['bound_agree']:.0%} at least"
    line = (
        f"the weights at {found['places']} places: KL {found['kl']:.4f} nats on average, the likeliest token the same "
        f"at {found['agree']:.0%} ({allowed})"
    )
    return line if found["equal"] or not found["cause"] else f"{found['cause']}; {line}"
