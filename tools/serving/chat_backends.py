"""A conversation answered token by token: by Ollama, by llama-server, or by transformers without any server."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import orjson

from tools import Failed
from tools.core.trajectory import Message
from tools.gguf import llamacpp
from tools.serving import ollama
from tools.serving.ollama import Answer

if TYPE_CHECKING:
    from ollama import Client
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tokens that an answer may have.
LONGEST = 512
# The answer to a conversation, again and again as it grows; `done_reason` is empty until it has ended. Always the
# likeliest token is taken, so the same conversation gets the same answer. Raises Failed when it cannot be answered.
Stream = Callable[[Sequence[Message]], Iterator[Answer]]


def of_ollama(client: "Client", name: str) -> Stream:
    """The answers of a model in Ollama. What it thinks before it answers is part of the answer."""

    def stream(messages: Sequence[Message]) -> Iterator[Answer]:
        text, tokens, start = "", 0, 0.0
        options = {"num_predict": LONGEST, "temperature": 0.0}
        with ollama.failures(client, name):
            for part in client.chat(name, messages, options=options, stream=True):
                start = start or time.monotonic()
                text += (part.message.thinking or "") + (part.message.content or "")
                tokens = part.eval_count or tokens + 1  # the last part counts, and says how long it took
                seconds = part.eval_duration / 1e9 if part.eval_duration else time.monotonic() - start
                yield Answer(text, tokens, seconds, part.done_reason or "")

    return stream


def of_llama_server(url: str) -> Stream:
    """The answers of llama-server at `url`. What its model thinks before it answers is part of the answer."""
    import httpx

    def stream(messages: Sequence[Message]) -> Iterator[Answer]:
        text, tokens, reason, seconds = "", 0, "", 0.0
        body = {"messages": list(messages), "max_tokens": LONGEST, "temperature": 0, "stream": True}
        body |= {"timings_per_token": True}
        try:
            with llamacpp.connection().stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    raise Failed(f"{url}: {answer.status_code} {answer.read().decode().strip()[:300]}")
                for line in answer.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    part = orjson.loads(line.removeprefix("data: "))
                    timings = part.get("timings") or {}
                    tokens = timings.get("predicted_n", tokens)
                    seconds = timings.get("predicted_ms", 1000 * seconds) / 1000
                    for choice in part.get("choices") or []:
                        text += choice["delta"].get("reasoning_content") or ""
                        text += choice["delta"].get("content") or ""
                        reason = choice.get("finish_reason") or reason
                    yield Answer(text, tokens, seconds, reason)
        except httpx.HTTPError as error:
            raise Failed(f"{url}: no answer ({error})") from error

    return stream


def of_transformers(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", ends: Sequence[str]) -> Stream:
    """The answers of a model in this process. `ends`: the tokens that end one, by their texts."""
    stops = {token for text, token in tokenizer.get_vocab().items() if text in ends}

    def stream(messages: Sequence[Message]) -> Iterator[Answer]:
        import torch

        prompt = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        made: list[int] = []
        read, cache, start, text = torch.tensor([prompt], device=model.device), None, 0.0, ""
        while len(made) < LONGEST:
            with torch.inference_mode():
                result = model(input_ids=read, past_key_values=cache, use_cache=True, logits_to_keep=1)
            start = start or time.monotonic()
            cache, read = result.past_key_values, result.logits[:, -1:].argmax(-1)
            made.append(int(read))
            if made[-1] in stops:
                yield Answer(text, len(made), time.monotonic() - start, "stop")
                return
            text = str(tokenizer.decode(made, skip_special_tokens=True)).rstrip("\ufffd")  # half a letter waits
            yield Answer(text, len(made), time.monotonic() - start, "")
        yield Answer(text, len(made), time.monotonic() - start, "length")

    return stream
