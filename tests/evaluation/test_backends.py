"""What an agent is asked through: real servers, servers that are busy or away, and transformers in this process."""

import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.parts.players import TASKS, played
from tests.parts.web import says, serving
from tools import Failed
from tools.core import chat_template
from tools.evaluation import backends, in_process
from tools.evaluation.backends import Refused, Reply, Sampling
from tools.gguf import base, llamacpp
from tools.serving import ollama
from tools.worlds.household.world import Room

HI = [{"role": "user", "content": "Hi"}]
BUSY: dict[str, Any] = {"error": {"message": "too many requests"}}


def test_a_server_is_asked_as_openai_has_it() -> None:
    with serving(lambda number, body: says("Action: look", "length")) as (url, asked):
        for address in (url, f"{url}/v1/"):
            reply = backends.openai_chat(address, "mine", "secret", Sampling(0.5, 11))(HI, 42)
            assert (reply.text, reply.tokens, reply.ended) == ("Action: look", 7, "length")
        assert backends.only_model(url, "none") == "only-model"
    for each in asked:
        assert each["path"] == "/v1/chat/completions" and each["headers"]["authorization"] == "Bearer secret"
        assert (each["model"], each["temperature"], each["max_tokens"], each["seed"]) == ("mine", 0.5, 11, 42)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_waited_for_as_long_as_it_asks(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    busy = status, {"Retry-After": "0.2"}, BUSY
    with serving(lambda number, body: busy if number < 3 else says("ok")) as (url, asked):
        start = time.monotonic()
        assert backends.openai_chat(url)(HI, 0).text == "ok"
        assert time.monotonic() - start >= 0.6
    assert len(asked) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "too many requests" in said and "waiting for it" in said


def test_a_server_that_asks_for_too_long_a_wait_fails_at_once() -> None:
    with serving(lambda number, body: (429, {"Retry-After": "3600"}, BUSY)) as (url, asked):
        with pytest.raises(Failed, match="too many requests.*asks to wait 3600 s"):
            backends.openai_chat(url)(HI, 0)
        assert len(asked) == 1


def test_retry_after_may_be_a_date() -> None:
    assert backends.retry_after({"retry-after": "1.5"}) == 1.5
    found = backends.retry_after({"retry-after": formatdate(time.time() + 100, usegmt=True)})
    assert found is not None and 90 < found <= 100
    assert backends.retry_after({"retry-after": "soon"}) is None and backends.retry_after({}) is None


@pytest.mark.parametrize(
    ("status", "kind", "says_what"),
    [(401, Failed, "no such key"), (404, Failed, "no such key"), (400, Refused, "no such key")],
)
def test_a_refusal_is_one_line_and_not_asked_again(status: int, kind: type[Failed], says_what: str) -> None:
    refusal: Any = status, {}, {"error": {"message": "no such\nkey"}}
    with serving(lambda number, body: refusal) as (url, asked):
        with pytest.raises(Failed, match=says_what.replace(" ", ".{1,3}")) as raised:
            backends.openai_chat(url)(HI, 0)
        assert type(raised.value) is kind and "\n" not in str(raised.value)
        assert len(asked) == 1


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{}]}, {"choices": "no"}, [], "<html>"])
def test_an_answer_of_another_kind_is_one_line(body: Any) -> None:
    with (
        serving(lambda number, asked: (200, {}, body)) as (url, _),
        pytest.raises(Refused, match="no answer of") as what,
    ):
        backends.openai_chat(url)(HI, 0)
    assert "\n" not in str(what.value)


def test_a_context_that_is_full_is_no_failure() -> None:
    full: Any = 400, {}, {"error": {"message": "the request exceeds the available context size"}}
    with serving(lambda number, body: full) as (url, _):
        game = played(backends.openai_chat(url), TASKS[0])
    assert (game.end, game.steps) == ("context full", 0)


def test_a_server_that_is_gone_fails_in_one_line() -> None:
    chat = backends.openai_chat(f"http://127.0.0.1:{llamacpp.free_port()}", patience=0)
    with pytest.raises(Failed, match="Connection error"):
        chat(HI, 0)


@pytest.fixture(scope="module")
def url(smollm2_gguf: Path) -> Iterator[str]:
    with llamacpp.server(smollm2_gguf, 512) as url:
        yield url


@pytest.mark.heavy
def test_the_base_model_plays_through_llama_server(url: str) -> None:
    """Without training it wins no room; what it says and what that took is counted."""
    from tools.evaluation.play import Rules

    game = played(backends.openai_chat(url), TASKS[0], Rules(steps=1))
    assert not game.won and game.steps == 1
    assert 0 < game.tokens <= backends.ANSWER_TOKENS and game.seconds > 0
    answer = game.transcript[2]["content"]
    assert answer and "<|im_end|>" not in answer


@pytest.mark.heavy
def test_llama_server_says_that_a_context_is_full(url: str) -> None:
    room = Room(0, "put", "mug", "desk", "put some mug on desk", {f"drawer {number}": () for number in range(200)})
    reply = backends.openai_chat(url)([{"role": "user", "content": room.introduction}], 0)
    assert (reply.ended, reply.tokens) == ("context", 0)


@pytest.mark.heavy
def test_transformers_answer_a_batch_as_they_answer_one(small_base: Path, small_adapter: Path) -> None:
    """Whoever waits beside it, a conversation gets its own answer, at a temperature by its own seed."""
    from concurrent.futures import ThreadPoolExecutor

    tokenizer = chat_template.tokenizer(small_base)
    ends = base.end_texts(small_base)
    talks = [[{"role": "user", "content": "put a mug on the desk. " * (each + 1)}] for each in range(4)]
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature, 12)
        with in_process.transformers_chat(small_base, small_adapter, tokenizer, ends, sampling) as chat:
            alone = [chat(talk, seed) for seed, talk in enumerate(talks)]
            with ThreadPoolExecutor(4) as pool:
                beside: list[Reply] = list(pool.map(chat, talks, range(4)))
            assert [each.text for each in alone] == [each.text for each in beside]
            assert all(0 < each.tokens <= 12 and each.ended in ("stop", "length") for each in alone)
            other = chat(talks[0], 99).text
            assert (other == alone[0].text) == (temperature == 0)


@pytest.mark.heavy
def test_a_draw_is_from_the_softmax() -> None:
    """Of many seeds each token comes as often as its probability says, within four standard errors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, initializer_range=0.5, **sizes)).eval()

    class Letters:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "".join(map(str, ids))

    asked: list[Any] = [in_process.Asked([1, 2, 3], seed, None) for seed in range(2000)]  # type: ignore[arg-type]
    letters: Any = Letters()
    replies = in_process.answers(model, asked, [7], letters, Sampling(0.7, 1))
    chances = torch.softmax(model(torch.tensor([[1, 2, 3]])).logits[0, -1] / 0.7, -1).tolist()
    for token, chance in enumerate(chances[:7]):
        share = sum(reply.text == str(token) for reply in replies) / len(replies)
        assert abs(share - chance) < 4 * (chance * (1 - chance) / len(replies)) ** 0.5


@pytest.mark.slow
def test_the_base_model_plays_through_ollama(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.evaluation.play import Rules

    if ollama.install() is None:
        pytest.skip("neither Ollama nor Go is installed")
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{llamacpp.free_port()}")  # no Ollama of the user's
    spec = ollama.Spec("react-test", smollm2_gguf, "smollm2-135m-lora", "0", "Apache-2.0", {"num_ctx": 2048})
    with ollama.session() as session:
        ollama.create(session.client, spec)
        chat = backends.ollama_chat(session.client, "react-test")
        game = played(chat, TASKS[0], Rules(steps=1))
        cut = backends.ollama_chat(session.client, "react-test", Sampling(tokens=2))(HI, 0)
    assert not game.won and game.steps == 1
    assert 0 < game.tokens <= backends.ANSWER_TOKENS
    assert (cut.ended, cut.tokens) == ("length", 2)
    gone = backends.ollama_chat(session.client, "react-test", patience=0)
    with pytest.raises(Failed, match="does not answer"):
        gone(HI, 0)
