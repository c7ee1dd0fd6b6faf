"""A model on trial in Ollama, before it gets its name: its prompts are training's, and its answers end."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tools import Failed
from tools.core.trajectory import Message
from tools.serving import ollama
from tools.serving.ollama import Spec

if TYPE_CHECKING:
    from ollama import Client
    from transformers import PreTrainedTokenizerBase

# Tokens that an answer may take to end by itself.
ANSWER = 256
# What Ollama says when it breaks off an answer that is one token over and over (0.34: more than 100 times in a row).
REPEATED = "token repeat limit"
# White space around and other scripts: what chat templates treat differently.
ODD = ("  Observation: Nothing happens.\n", "\n\u00e9 \u4f60\u597d \U0001f642 <b> & {{ x }} ")


def create_with_right_prompts(
    client: "Client", spec: Spec, tokenizer: "PreTrainedTokenizerBase", episode: list[Message]
) -> Spec:
    """Create the model so that its prompts are right: with its family's template in Go, or with the one in the GGUF.

    `tokenizer`: training's, with its chat template. Ollama before 0.30 reads Go's templates alone; a later one prefers
    the GGUF's to Go's where that one alone tells of tools or thoughts, and for some models finds one in Go by itself.
    So the Ollama that is here is asked, rather than its version. Returns the spec whose prompts were right most often.
    """
    wanted = list(prompts(tokenizer, probes(episode, spec.system)))
    best, most = spec, -1
    for way in (replace(spec, family=family) for family in dict.fromkeys((spec.family, None))):
        ollama.create(client, way, force=True)
        right = sum(ollama.render(client, way.name, messages) == prompt for messages, prompt in wanted)
        if right == len(wanted):
            return way
        if right > most:
            best, most = way, right
    ollama.create(client, best, force=True)
    return best


def prompts(
    tokenizer: "PreTrainedTokenizerBase", conversations: Iterable[list[Message]]
) -> Iterator[tuple[list[Message], str]]:
    """Each conversation with the prompt that training's template makes of it; what it refuses is left out.

    Without the token that begins a text: llama.cpp's tokenizer adds it.
    """
    from jinja2 import TemplateError

    for messages in conversations:
        with contextlib.suppress(TemplateError):
            prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            yield messages, prompt.removeprefix(tokenizer.bos_token or "")


def probes(episode: list[Message], system: str | None) -> list[list[Message]]:
    """Conversations that tell chat templates apart: parts of a real episode, then odd ones.

    Each begins with `system`, which Ollama would put before it.
    """
    begun = [{"role": "system", "content": system}] if system else []
    asked = next(turn for turn in episode if turn["role"] == "user")
    turns = [turn for turn in episode if turn["role"] != "system"]
    odd = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), ODD, strict=True)]
    empty = {"role": "assistant", "content": ""}
    return [begun + each for each in (turns[:1], turns[:3], turns[:-1], [asked, empty, odd[0]], [*odd, asked])]


def answers_end(client: "Client", name: str, asked: Mapping[str, list[Message]], force: bool = False) -> bool:
    """Whether a model in Ollama ends each answer with its end token: a stop text, which may be spelled, is no help.

    `asked`: conversations by what they are. Raises Failed, or with `force` says on the screen, which answer did not end
    within ANSWER tokens.
    """
    for what, messages in asked.items():
        try:
            answer = ollama.chat(client, name, messages, ANSWER, 0.0, token_alone=True)
            if answer.done_reason == "stop":
                continue
            found = f"no end token in {answer.tokens} tokens"
        except Failed as error:
            if REPEATED not in str(error):
                raise
            found = "the same token again and again"
        why = f"{name}: {found} of answer to {what}: it has not learned to stop"
        if not force:
            raise Failed(f"{why}, so it gets no name; train it longer, or make ollama FORCE=1 takes it as it is")
        print(f"warning: {why}", file=sys.stderr)
        return False
    return True
