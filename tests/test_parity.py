"""Parity: equal with real servers, and each way to break it is caught and named."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tools import Failed, base, gguf, llamacpp, ollama, parity, recipe, run, trajectory

COUNT = 3
USER = {"role": "user", "content": "  Your task is to: put some mug on desk. "}
ANSWER = {"role": "assistant", "content": "Thought: I see <it> & 'go'. é 你好 🙂\nAction: go to desk 1"}
# No system message: SmolLM2's template puts a default one before it. Spaces at both ends.
BARE = {"messages": [USER, ANSWER, {"role": "user", "content": " Observation: Nothing happens.\n"}, ANSWER]}
DEFAULT = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"

Check = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder() -> Path:
    return base.resolve("smollm2-135m", gguf.convert)


@pytest.fixture(scope="module")
def url(smollm2_gguf: Path) -> Iterator[str]:
    with llamacpp.server(smollm2_gguf, 512) as url:
        yield url


@pytest.fixture(scope="module")
def side(url: str) -> parity.Side:
    return parity.llama_server(url)


@pytest.fixture(scope="module")
def check(folder: Path) -> Check:
    """The check of conversations (by default the bare one alone), which Axolotl tokenises once for all tests."""
    from transformers import AutoTokenizer

    path = recipe.find("smollm2-135m-lora")
    committed = [each for each, _ in zip(trajectory.read(run.ROOT / "data" / "test.jsonl"), range(COUNT), strict=False)]
    conversations = [BARE, *committed]
    trained = trajectory.tokenise(folder, recipe.dataset(path), conversations, 2048, recipe.load(path))
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def compare(*sides: parity.Side, which: slice = slice(1)) -> dict[str, Any]:
        return parity.check(conversations[which], trained[which], sides, tokenizer)

    return compare


def broken(check: Check, side: parity.Side, **wrong: Any) -> dict[str, Any]:
    """The first difference when one part of a real server is replaced."""
    found = check(replace(side, **wrong))
    assert found["equal"] is False
    assert len(parity.words(found["first_difference"]).splitlines()) == 1
    return dict(found["first_difference"])


def test_llama_server_sees_the_tokens_of_training(check: Check, side: parity.Side) -> None:
    found = check(side, which=slice(None))
    assert found["equal"] is True and found["first_difference"] is None
    assert (found["conversations"], found["sides"]) == (COUNT + 1, ["llama-server"])
    assert found["tokens"] > 1000


def test_a_default_system_message_dropped(check: Check, side: parity.Side) -> None:
    found = broken(check, side, render=lambda messages: side.render(messages).removeprefix(DEFAULT))
    assert found["cause"].startswith("the default system message")
    assert (found["side"], found["conversation"], found["turn"], found["position"]) == ("llama-server", 1, 2, 1)
    assert (found["trained"]["text"], found["served"]["text"]) == ("system", "user")
    assert "You are a helpful AI assistant" in found["trained"]["around"]
    assert "training has 'system' and the server 'user'" in parity.words(found)


def test_the_end_token_lost_at_the_end(check: Check, side: parity.Side) -> None:
    """As when the file's end token is another one than the template's."""
    found = broken(check, side, end="")
    assert found["cause"] == "the end token lost: the server has no <|im_end|> here"
    assert (found["turn"], found["trained"]["text"], found["served"]["id"]) == (4, "<|im_end|>", None)
    assert "the server nothing" in parity.words(found)
    found = broken(check, side, end="<|endoftext|>")
    assert found["cause"].startswith("the end token lost")


def test_the_end_token_lost_after_each_answer(check: Check, side: parity.Side) -> None:
    said = ANSWER["content"]
    found = broken(check, side, render=lambda messages: side.render(messages).replace(f"{said}<|im_end|>", said))
    assert found["cause"] == "the end token lost: the server has no <|im_end|> here"
    assert found["turn"] == 4 and said.endswith(found["trained"]["around"].split("<|im_end|>")[0][-10:])


def test_control_tokens_spelled_out(check: Check, side: parity.Side, url: str) -> None:
    found = broken(check, side, tokenise=lambda text: llamacpp.tokenize(url, text, special=False))
    assert found["cause"] == "a control token spelled out: the server reads <|im_start|> as ordinary text"
    assert (found["position"], found["trained"]["text"], found["served"]["text"]) == (0, "<|im_start|>", "<")


def test_a_space_stripped(check: Check, side: parity.Side) -> None:
    def strip(messages: list[dict[str, str]]) -> str:
        return side.render([turn | {"content": turn["content"].strip()} for turn in messages])

    assert broken(check, side, render=strip)["cause"] == "white space stripped or added by one side's template"


def test_the_beginning_twice(check: Check, side: parity.Side) -> None:
    begin = side.tokenise("<|im_start|>")
    found = broken(check, side, tokenise=lambda text: begin + side.tokenise(text))
    assert found["cause"].startswith("the beginning-of-sequence token twice")


def test_a_prompt_that_ends_elsewhere(check: Check, side: parity.Side) -> None:
    found = broken(check, side, render=lambda messages: side.render(messages).removesuffix("\n"))
    assert found["cause"].startswith("the end of the prompt: the server's opens the assistant's turn with less")
    found = broken(check, side, render=lambda messages: f"{side.render(messages)}Thought:")
    assert found["cause"].startswith("the end of the prompt: the server's goes on where the trained answer begins")


def test_another_text_and_other_tokens(check: Check, side: parity.Side) -> None:
    found = broken(check, side, render=lambda messages: side.render(messages).replace("mug", "cup"))
    assert found["cause"].startswith("unknown") and found["served"]["text"] == " cup"

    def cut(text: str) -> list[int]:
        before, word, after = text.partition("put")
        return [i for part in (before, word[:1], word[1:], after) for i in side.tokenise(part)]

    assert broken(check, side, tokenise=cut)["cause"].startswith("the same text in other tokens")


def test_a_mask_without_trained_tokens(side: parity.Side, folder: Path) -> None:
    from transformers import AutoTokenizer

    trained = ([1, 2, 3], [-100, -100, -100])
    found = parity.check([BARE], [trained], [side], AutoTokenizer.from_pretrained(folder))
    assert "the loss mask: 0 trained parts for 2 assistant turns" in parity.words(found["first_difference"])


def test_a_server_that_is_gone() -> None:
    with pytest.raises(Failed, match="no answer"):
        parity.llama_server(f"http://127.0.0.1:{llamacpp.free_port()}")


@pytest.mark.slow
def test_ollama_sees_the_tokens_of_training(
    check: Check, url: str, smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With our template; without it Ollama finds one of its own, which drops SmolLM2's default system message."""
    if ollama.install() is None:
        pytest.skip("neither Ollama nor Go is installed")
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{llamacpp.free_port()}")  # no Ollama of the user's
    spec = ollama.Spec("react-test", smollm2_gguf, "smollm2-135m-lora", "0", "Apache-2.0", {"num_ctx": 2048})
    with ollama.session() as session:
        ollama.create(session.client, spec)
        served = parity.ollama(session.client, "react-test", url)
        found = check(parity.llama_server(url), served, which=slice(1, None))
        assert found["equal"] is True and found["sides"] == ["llama-server", "Ollama"]
        ollama.create(session.client, replace(spec, family=None))
        found = check(served)
        assert found["first_difference"]["cause"].startswith("the default system message")
