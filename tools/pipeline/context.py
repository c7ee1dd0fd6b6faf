"""How many tokens a served model remembers (num_ctx), and why: by its training's episodes, itself and this machine."""

from dataclasses import dataclass
from pathlib import Path

import psutil

from tools import BadInput
from tools.core import catalog, files, hf_folder, machine
from tools.core.catalog import Model
from tools.pipeline.trained import Tuned
from tools.recipes import memory, plan
from tools.recipes.memory import GROWTH, LEAST

# A smaller figure for want of memory is a multiple of this.
STEP = 256


@dataclass(frozen=True)
class Context:
    """`tokens` that a conversation may have, and in words `why` so many."""

    tokens: int
    why: str


@dataclass(frozen=True)
class Limits:
    """What a context depends on: tokens of the longest episode (0: not known), and of the model's own context.

    `sizes`: the model's, None where they are not known. `room`: GiB for the keys and values of all `conversations` that
    a server answers at a time.
    """

    longest: int
    own: int
    sizes: Model | None
    room: float
    conversations: int


def choose(limits: Limits, asked: int = 0) -> Context:
    """The context to serve: twice the longest episode, at least LEAST, as far as model and memory hold it.

    `asked`: what a person wants in its place (NUM_CTX=), 0 for nothing. Raises BadInput where the model has less.
    Where this machine does not even hold the weights, its memory says nothing: Ollama may run on another.
    """
    if asked > limits.own:
        raise BadInput(f"NUM_CTX={asked} (--num-ctx): the model's own context is {limits.own} tokens")
    growing = GROWTH * limits.longest
    wanted, why = max((growing, f"{GROWTH} x the longest episode's {limits.longest}"), (LEAST, f"at least {LEAST}"))
    if wanted > limits.own:
        wanted, why = limits.own, "the model's own"
    held = held_tokens(limits, wanted)
    if asked:
        wanted, why = asked, "as asked"
    elif not held:
        why += "; the weights alone take more than this machine's memory"
    elif held < wanted:
        wanted, why = held, f"what {limits.room:.1f} GiB hold for {limits.conversations} conversations at a time"
    if wanted < limits.longest:
        why += f", less than the longest episode's {limits.longest}"
    if limits.sizes:
        why += f"; KV cache {memory.kv_cache(limits.sizes, wanted):.2f} GiB a conversation"
    return Context(wanted, why)


def held_tokens(limits: Limits, most: int) -> int:
    """The most tokens, up to `most`, whose keys and values fit the room; `most` where the model's sizes are unknown."""
    each = limits.room / limits.conversations
    if limits.sizes is None or memory.kv_cache(limits.sizes, most) <= each:
        return most
    fewer = range(most // STEP * STEP, 0, -STEP)
    return next((tokens for tokens in fewer if memory.kv_cache(limits.sizes, tokens) <= each), 0)


def limits_of(model: Tuned, gguf: Path) -> Limits:
    """The limits of a tuned model that is served on this machine from a GGUF, there or not yet.

    Raises BadInput for a base whose config.json has a wrong context.
    """
    from tools.serving import ollama

    path = model.base / "config.json"
    config = files.read_object(path)
    known = catalog.model_of(model.base_name) or described(config, str(path))
    own = hf_folder.text_settings(config).get("max_position_embeddings", known.context if known else LEAST)
    if type(own) is not int or own < 1:
        raise hf_folder.wrong(path, "max_position_embeddings", own, "a number of tokens")
    weights = gguf.stat().st_size / memory.GIB if gguf.exists() else 0.0
    room = memory_gib(weights) * (1 - plan.HOST_SPARE) - weights
    # While its tokens are proven, llama-server has one conversation beside Ollama's.
    return Limits(model.longest, own, known, room, ollama.PARALLEL + 1)


def described(config: hf_folder.Settings, name: str) -> Model | None:
    """A model's sizes by its config.json; None for an architecture that the catalog does not know."""
    try:
        return catalog.described(config, "", name)
    except BadInput:
        return None


def memory_gib(weights: float) -> float:
    """GiB that this machine has for a model: its GPUs', where they hold the weights (GiB) as Ollama spreads them.

    All that there is, not what is free now: the same model has the same context each time.
    """
    gpus = sum(each.gib for each in machine.devices())
    return gpus if gpus > weights else psutil.virtual_memory().total / memory.GIB
