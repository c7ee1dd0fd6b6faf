"""The same answers from training's weights and from the server's: greedy continuations, token by token."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import psutil

from tools import BadInput, Failed
from tools.core import progress
from tools.gguf import base, header, llamacpp, merge
from tools.parity import training_model
from tools.parity.diagnose import text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = 20
STEPS = 64
# Two tokens are a near tie when, on both sides, their log-probabilities lie no further apart than this: ten
# times the largest gap seen between the two for a token that both chose (0.009; llama.cpp rounds what it multiplies to
# 16 bits). A merge, a rope or a norm gone wrong moves them by 1 or more.
TIE = 0.1
# Tokens shown before a divergence.
AROUND = 24
# Probabilities that llama-server gives with each token: enough to hold both sides' choices.
CHOICES = 10


class Choice(TypedDict):
    """A side's token, and the probability that each side gives it (None: not among llama-server's likeliest)."""

    id: int
    text: str
    probability: dict[str, float | None]


# Where two answers to a prompt part; the functional form, for the key with a dash.
Divergence = TypedDict(
    "Divergence",
    {"step": int, "near_tie": bool, "before": str, "transformers": Choice, "llama-server": Choice},
)


class FirstDivergence(Divergence):
    """The same, and the prompt's number from 1."""

    prompt: int


class Compared(TypedDict):
    """One answer: `same` steps alike, `gap` the largest between the log-probabilities of a token that both chose."""

    same: int
    gap: float
    divergence: Divergence | None


class Answers(TypedDict):
    """What parity.json holds of answers: `same` prompts with one answer, `tokens` found the same, see `Compared`."""

    equal: bool
    prompts: int
    steps: int
    same: int
    ties: int
    tokens: int
    tolerance: float
    largest_gap: float
    first_divergence: FirstDivergence | None


def model(folder: Path, adapter: Path | None) -> "PreTrainedModel":
    """The model that was trained, on the CPU in float32, its merged weights rounded to the base's type first.

    Raises BadInput when memory is too short for it, Failed when transformers cannot read it or the adapter does not
    fit.
    """
    base.check_folder(folder)
    need = 2 * sum(item.stat().st_size for item in folder.glob("*.safetensors"))  # 16 bits there, 32 here
    if need * 1.2 > psutil.virtual_memory().available:
        raise BadInput(
            f"{folder}: {need / 2**30:.0f} GiB of memory needed to compare answers; --no-greedy leaves it out"
        )
    loaded = merge.merged_model(folder, adapter) if adapter else training_model.load(folder, None)
    return loaded.float().eval()


def compare_answers(
    trained: "PreTrainedModel",
    url: str,
    prompts: Sequence[list[int]],
    tokenizer: "PreTrainedTokenizerBase",
    steps: int = STEPS,
) -> Answers:
    """Compare the answers that a model and llama-server at `url`, with its f16 GGUF, give to the same prompts.

    A near tie, see TIE, ends a prompt's comparison and is no failure; any other divergence is. Raises Failed when one
    of the two computes NaN, or the server is gone.
    """
    found: Answers = {
        "equal": True,
        "prompts": len(prompts),
        "steps": steps,
        "same": 0,
        "ties": 0,
        "tokens": 0,
        "tolerance": TIE,
        "largest_gap": 0.0,
        "first_divergence": None,
    }
    with progress.bar("parity: greedy answers of both sides", 2 * len(prompts), "answers") as shown:
        for number, prompt in enumerate(prompts, 1):
            served = answer(url, prompt, steps)
            shown.advance()
            one = compare_answer(trained, prompt, served, tokenizer)
            shown.advance()
            found["tokens"] += one["same"]
            found["largest_gap"] = max(found["largest_gap"], one["gap"])
            parted = one["divergence"]
            found["same"] += parted is None
            found["ties"] += parted is not None and parted["near_tie"]
            # The first near tie is shown only as long as there is nothing worse.
            if parted and (found["first_divergence"] is None or (found["equal"] and not parted["near_tie"])):
                found["first_divergence"] = {"prompt": number, **parted}
            found["equal"] = found["equal"] and (parted is None or parted["near_tie"])
    return found


def unquantised(gguf: Path) -> bool:
    """Whether a GGUF holds its weights in 16 or 32 bits, so that its answers can be compared token by token."""
    from gguf import LlamaFileType

    kind = header.metadata(gguf).get("general.file_type")
    return kind in (LlamaFileType.ALL_F32, LlamaFileType.MOSTLY_F16, LlamaFileType.MOSTLY_BF16)


def answer(url: str, prompt: list[int], steps: int) -> list[dict[int, float]]:
    """llama-server's greedy answer: at each step its likeliest tokens, the chosen one first, with log-probabilities.

    The token that ends the answer is among them. llama-server keeps back the probabilities of a token that is a part of
    a letter: its step has that token alone, with NaN. Raises Failed when the model computes NaN.
    """
    body = {"prompt": prompt, "n_predict": steps, "n_probs": CHOICES, "temperature": 0, "top_k": 1}
    body |= {"repeat_penalty": 1.0, "cache_prompt": False, "return_tokens": True}
    given = llamacpp.post(f"{url}/completion", body)
    seen = given["completion_probabilities"]
    if any(each["logprob"] is None for step in seen for each in (step, *step["top_logprobs"])):  # JSON has no NaN
        raise Failed(f"the GGUF {training_model.BROKEN}")
    likely = [
        {step["id"]: step["logprob"]} | {each["id"]: each["logprob"] for each in step["top_logprobs"]} for step in seen
    ]
    made = []
    for token in given["tokens"]:
        known = bool(likely) and next(iter(likely[0])) == token
        made.append(likely.pop(0) if known else {token: math.nan})
    return made + likely


def compare_answer(
    trained: "PreTrainedModel",
    prompt: list[int],
    served: Sequence[Mapping[int, float]],
    tokenizer: "PreTrainedTokenizerBase",
) -> Compared:
    """Compare a model with an answer of llama-server's, see `answer`. One pass of the model tells all its choices.

    One pass is enough, since up to the first difference both have read the same tokens. Raises Failed when the model
    computes NaN.
    """
    chosen = [next(iter(step)) for step in served]
    own = log_probabilities(trained, prompt, chosen)
    gap = 0.0
    for step, (token, theirs) in enumerate(zip(chosen, served, strict=True)):
        mine = int(own[step].argmax())
        if mine != token:
            apart = [float(own[step, mine] - own[step, token])]
            if not math.isnan(theirs[token]):
                apart.append(theirs[token] - theirs.get(mine, -math.inf))
            divergence: Divergence = {
                "step": step,
                "near_tie": max(apart) <= TIE,
                "before": text(tokenizer, [*prompt, *chosen[:step]][-AROUND:]),
                "transformers": choice(mine, float(own[step, mine]), theirs.get(mine), tokenizer),
                "llama-server": choice(token, float(own[step, token]), theirs[token], tokenizer),
            }
            return {"same": step, "gap": round(gap, 4), "divergence": divergence}
        if not math.isnan(theirs[token]):
            gap = max(gap, abs(float(own[step, token]) - theirs[token]))
    return {"same": len(chosen), "gap": round(gap, 4), "divergence": None}


def log_probabilities(trained: "PreTrainedModel", prompt: list[int], answer: list[int]) -> "torch.Tensor":
    """What a model gives each token at each step of an answer, float32 (steps, vocabulary).

    Raises Failed when it computes NaN.
    """
    import torch

    with torch.inference_mode():
        read = torch.tensor([[*prompt, *answer[:-1]]])
        logits = trained(input_ids=read, logits_to_keep=len(answer)).logits[0]
    if logits.isnan().any():
        raise Failed(f"the base with its adapter, in transformers, {training_model.BROKEN}")
    return torch.log_softmax(logits.float(), dim=-1)


def choice(token: int, mine: float, theirs: float | None, tokenizer: "PreTrainedTokenizerBase") -> Choice:
    """A token by the log-probabilities that transformers (`mine`) and llama-server (`theirs`) give it."""
    served = None if theirs is None or math.isnan(theirs) else round(math.exp(theirs), 4)
    both: dict[str, float | None] = {"transformers": round(math.exp(mine), 4), "llama-server": served}
    return {"id": token, "text": text(tokenizer, [token]), "probability": both}


def words(found: Answers) -> str:
    """What was found, in one line."""
    line = f"{found['same']} of {found['prompts']} greedy answers the same for {found['steps']} tokens"
    parted = found["first_divergence"]
    if parted is None:
        return line
    told = [
        f"{side} says {each['text']!r} (probability {each['probability']['transformers']} in transformers, "
        f"{each['probability']['llama-server']} in llama-server)"
        for side, each in (("transformers", parted["transformers"]), ("llama-server", parted["llama-server"]))
    ]
    kind = "a near tie" if parted["near_tie"] else "not a near tie"
    where = f"prompt {parted['prompt']}, step {parted['step']}, after {parted['before']!r}"
    return f"{line}, {found['ties']} near ties; first divergence, {kind}: {where}: {'; '.join(told)}"
