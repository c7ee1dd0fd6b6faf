"""Answers as they grow: each backend's stream ends in what the same model answers at once."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from tools import Failed
from tools.core import chat_template
from tools.gguf import base, llamacpp
from tools.parity import training_model
from tools.serving import chat_backends, ollama
from tools.serving.ollama import Answer, Session

pytestmark = pytest.mark.heavy
ASKED = [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Name a fruit."}]


def grown(answers: list[Answer]) -> Answer:
    """The last of a stream's answers, all of which must continue the one before."""
    for one, two in itertools.pairwise(answers):
        assert two.text.startswith(one.text) and two.tokens >= one.tokens and not one.done_reason
    return answers[-1]


def test_transformers_streams_the_greedy_answer(small_base: Path, small_adapter: Path) -> None:
    model, tokenizer = training_model.load(small_base, small_adapter), chat_template.tokenizer(small_adapter)
    stream = chat_backends.of_transformers(model, tokenizer, base.end_texts(small_adapter, small_base))
    answer = grown(list(itertools.islice(stream(ASKED), 40)))
    prompt: Any = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_tensors="pt")
    (whole,) = model.generate(**prompt, do_sample=False, max_new_tokens=40)  # type: ignore[operator]
    assert answer.tokens == 40 and answer.seconds > 0
    made = tokenizer.decode(whole[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.text == str(made).rstrip("\ufffd") and answer.text


def test_transformers_stops_at_an_end_token_and_at_the_limit(small_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_backends, "LONGEST", 20)
    model, tokenizer = training_model.load(small_base, None), chat_template.tokenizer(small_base)
    first = grown(list(itertools.islice(chat_backends.of_transformers(model, tokenizer, [])(ASKED), 1)))
    ends = [text for text, token in tokenizer.get_vocab().items() if tokenizer.decode([token]) == first.text]
    (ended,) = chat_backends.of_transformers(model, tokenizer, ends)(ASKED)
    assert (ended.text, ended.tokens, ended.done_reason) == ("", 1, "stop")
    cut = list(chat_backends.of_transformers(model, tokenizer, [])(ASKED))[-1]
    assert (cut.tokens, cut.done_reason) == (chat_backends.LONGEST, "length")


def test_llama_server_streams_the_greedy_answer(smollm2_gguf: Path) -> None:
    with llamacpp.server(smollm2_gguf, 1024) as url:
        answer = grown(list(chat_backends.of_llama_server(url)(ASKED)))
        body = {"messages": ASKED, "max_tokens": chat_backends.LONGEST, "temperature": 0}
        said = llamacpp.post(f"{url}/v1/chat/completions", body)
        with pytest.raises(Failed, match=r"400 .*context"):
            list(chat_backends.of_llama_server(url)([{"role": "user", "content": "Name a fruit. " * 1000}]))
    assert answer.text == said["choices"][0]["message"]["content"] and answer.done_reason == "stop"
    assert answer.tokens == said["usage"]["completion_tokens"] and answer.seconds > 0
    with pytest.raises(Failed, match="no answer"):
        list(chat_backends.of_llama_server(url)(ASKED))


def test_ollama_streams_the_greedy_answer(session: Session, smollm2_gguf: Path) -> None:
    spec = ollama.Spec("react-streams", smollm2_gguf, "smollm2-135m-lora", "0", "Apache-2.0", {"num_ctx": 1024})
    ollama.create(session.client, spec)
    answer = grown(list(chat_backends.of_ollama(session.client, spec.name)(ASKED)))
    said = ollama.chat(session.client, spec.name, ASKED, chat_backends.LONGEST, 0.0)
    assert (answer.text, answer.tokens, answer.done_reason) == (said.text, said.tokens, "stop")
    with pytest.raises(Failed, match="react-nowhere"):
        list(chat_backends.of_ollama(session.client, "react-nowhere")(ASKED))
