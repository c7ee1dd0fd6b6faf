"""The same answers from training's weights and from the server's: greedy continuations, token by token."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tools import BadInput, Failed
from tools.core import progress
from tools.gguf import base, header, llamacpp, lora
from tools.parity.diagnose import text

PROMPTS = 20
STEPS = 64
# Two tokens are a near tie when, on both sides, their log-probabilities lie no further apart than this: ten
# times the largest gap seen between the two for a token that both chose (0.009; llama.cpp rounds what it multiplies to
# 16 bits). A merge, a rope or a norm gone wrong moves them by whole units.
TIE = 0.1
# Tokens shown before a divergence.
AROUND = 24
# Probabilities that llama-server gives with each token: enough to hold both sides' choices.
CHOICES = 10


def model(folder: Path, adapter: Path | None) -> Any:
    """The base with its adapter merged by peft, on the CPU in float32, its weights rounded to bfloat16 first.

    Raises BadInput when memory is too short for it, Failed when transformers cannot read it or the adapter does not
    fit.
    """
    base.check(folder)
    if adapter:
        lora.check_patterns(lora.check(adapter), lora.shapes(folder), adapter)
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    need = 2 * sum(item.stat().st_size for item in folder.glob("*.safetensors"))  # 16 bits there, 32 here
    if need * 1.2 > psutil.virtual_memory().available:
        raise BadInput(
            f"{folder}: {need / 2**30:.0f} GiB of memory needed to compare answers; --no-greedy leaves it out"
        )
    logging.disable_progress_bar()
    try:
        whole: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # the settings of a model of any origin, in the hands of a class of any
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise Failed(f"{folder}: transformers cannot read the model: {first}") from error
    if adapter:
        from peft import PeftModel

        try:
            whole = PeftModel.from_pretrained(whole, str(adapter)).merge_and_unload()
        except (RuntimeError, ValueError, TypeError) as error:
            raise Failed(f"{adapter} does not fit {folder}: {str(error).splitlines()[0]}") from error
        whole = whole.to(torch.bfloat16).to(torch.float32)
    return whole.eval()


def check(whole: Any, url: str, prompts: Sequence[list[int]], tokenizer: Any, steps: int = STEPS) -> dict[str, Any]:
    """Compare the answers that a model and llama-server at `url`, with its f16 GGUF, give to the same prompts.

    Returns {"equal", "prompts", "steps", "same" (prompts with the same answer), "ties", "tokens" (found the same),
    "tolerance", "largest_gap" (between the two log-probabilities of a token that both chose), "first_divergence"}. A
    near tie, see TIE, ends a prompt's comparison and is no failure; any other divergence is.
    """
    found: dict[str, Any] = {"equal": True, "prompts": len(prompts), "steps": steps, "same": 0, "ties": 0, "tokens": 0}
    found |= {"tolerance": TIE, "largest_gap": 0.0, "first_divergence": None}
    with progress.bar("parity: greedy answers of both sides", 2 * len(prompts), "answers") as shown:
        for number, prompt in enumerate(prompts, 1):
            served = answer(url, prompt, steps)
            shown.advance()
            one = follow(whole, prompt, served, tokenizer)
            shown.advance()
            found["tokens"] += one["same"]
            found["largest_gap"] = max(found["largest_gap"], one["gap"])
            parted = one["divergence"]
            found["same"] += parted is None
            found["ties"] += bool(parted and parted["near_tie"])
            worse = parted and not parted["near_tie"] and found["equal"]
            if parted and (worse or found["first_divergence"] is None):
                found["first_divergence"] = {"prompt": number} | parted
            found["equal"] = found["equal"] and (parted is None or parted["near_tie"])
    return found


def unquantised(gguf: Path) -> bool:
    """Whether a GGUF holds its weights in 16 or 32 bits, so that its answers can be compared token by token."""
    from gguf import LlamaFileType

    kind = header.read(gguf).get("general.file_type")
    return kind in (LlamaFileType.ALL_F32, LlamaFileType.MOSTLY_F16, LlamaFileType.MOSTLY_BF16)


def answer(url: str, prompt: list[int], steps: int) -> list[dict[int, float]]:
    """llama-server's greedy answer: at each step its likeliest tokens, the chosen one first, with log-probabilities.

    The token that ends the answer is among them. llama-server keeps back the probabilities of a token that is a part of
    a letter: its step has that token alone, with NaN.
    """
    body = {"prompt": prompt, "n_predict": steps, "n_probs": CHOICES, "temperature": 0, "top_k": 1}
    body |= {"repeat_penalty": 1.0, "cache_prompt": False, "return_tokens": True}
    given = llamacpp.post(f"{url}/completion", body)
    likely = [
        {step["id"]: step["logprob"]} | {each["id"]: each["logprob"] for each in step["top_logprobs"]}
        for step in given["completion_probabilities"]
    ]
    made = []
    for token in given["tokens"]:
        known = bool(likely) and next(iter(likely[0])) == token
        made.append(likely.pop(0) if known else {token: math.nan})
    return made + likely


def follow(whole: Any, prompt: list[int], said: Sequence[Mapping[int, float]], tokenizer: Any) -> dict[str, Any]:
    """Hold a model to an answer: up to where they part the two have read the same, so one pass tells all its choices.

    Returns {"same": steps alike, "gap": the largest between log-probabilities of a token both chose, "divergence"}.
    """
    import torch

    chosen = [next(iter(step)) for step in said]
    with torch.inference_mode():
        read = torch.tensor([[*prompt, *chosen[:-1]]])
        logits = whole(input_ids=read, logits_to_keep=len(chosen)).logits[0]
    own = torch.log_softmax(logits.float(), dim=-1)
    gap = 0.0
    for step, (token, theirs) in enumerate(zip(chosen, said, strict=True)):
        mine = int(own[step].argmax())
        if mine != token:
            apart = [float(own[step, mine] - own[step, token])]
            if not math.isnan(theirs[token]):
                apart.append(theirs[token] - theirs.get(mine, -math.inf))
            divergence = {
                "step": step,
                "near_tie": max(apart) <= TIE,
                "before": text(tokenizer, [*prompt, *chosen[:step]][-AROUND:]),
                "transformers": chance(mine, float(own[step, mine]), theirs.get(mine), tokenizer),
                "llama-server": chance(token, float(own[step, token]), theirs[token], tokenizer),
            }
            return {"same": step, "gap": round(gap, 4), "divergence": divergence}
        if not math.isnan(theirs[token]):
            gap = max(gap, abs(float(own[step, token]) - theirs[token]))
    return {"same": len(chosen), "gap": round(gap, 4), "divergence": None}


def chance(token: int, mine: float, theirs: float | None, tokenizer: Any) -> dict[str, Any]:
    """A side's choice and the probability that each side gives it (None: not among llama-server's likeliest)."""
    served = None if theirs is None or math.isnan(theirs) else round(math.exp(theirs), 4)
    both = {"transformers": round(math.exp(mine), 4), "llama-server": served}
    return {"id": token, "text": text(tokenizer, [token]), "probability": both}


def words(found: Mapping[str, Any]) -> str:
    """What was found, in one line."""
    line = f"{found['same']} of {found['prompts']} greedy answers the same for {found['steps']} tokens"
    parted = found["first_divergence"]
    if parted is None:
        return line
    told = [
        f"{side} says {each['text']!r} (probability {each['probability']['transformers']} in transformers, "
        f"{each['probability']['llama-server']} in llama-server)"
        for side, each in ((side, parted[side]) for side in ("transformers", "llama-server"))
    ]
    kind = "a near tie" if parted["near_tie"] else "not a near tie"
    where = f"prompt {parted['prompt']}, step {parted['step']}, after {parted['before']!r}"
    return f"{line}, {found['ties']} near ties; first divergence, {kind}: {where}: {'; '.join(told)}"
