"""Asking both models: what is asked, what the screen shows, what is refused."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.parts.command import tools
from tools import BadInput
from tools.core import trajectory
from tools.gguf import llamacpp
from tools.pipeline import ask
from tools.pipeline.model import make_gguf
from tools.pipeline.trained import Tuned, tuned
from tools.serving import chat_backends
from tools.serving.ollama import Answer

USER = {"role": "user", "content": "Your task is to: heat some egg."}
ACTS = {"role": "assistant", "content": "Thought: I need an egg.\nAction: open fridge 1"}


@pytest.fixture
def model(small_base: Path, small_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tuned:
    """A small random model and its adapter, of which nothing is made yet."""
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{llamacpp.free_port()}")  # no Ollama of the user's
    monkeypatch.setattr(chat_backends, "LONGEST", 30)
    return tuned("", str(small_base), str(small_adapter))


def test_a_conversation_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    turns = [{"role": "system", "content": "Act."}, USER, ACTS, {"role": "user", "content": "Observation: An egg."}]
    for indent in (None, 2):
        path.write_text(json.dumps({"messages": turns, "task": "heat"}, indent=indent))
        assert ask.read(path) == turns


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("{}", 'no "messages"'),
        ('{"messages": []}', "no messages; give one conversation"),
        (json.dumps({"messages": [USER]}) + "\n" + json.dumps({"messages": [USER]}), "line 2 column 1"),
        (json.dumps({"messages": [USER, ACTS]}), "the last message is the assistant's; the user's must end it"),
        (json.dumps({"messages": [USER, USER]}), "message 2 is the user's and must be the assistant's"),
        (json.dumps({"messages": [{"role": "user", "content": None}]}), "message 1 must have a role"),
        (json.dumps({"messages": [{"role": "robot", "content": "hi"}]}), "message 1 must have a role"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "my.json").write_text(text)
    with pytest.raises(BadInput, match="my.json: ") as error:
        ask.read(tmp_path / "my.json")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere.json: cannot be read"):
        ask.read(tmp_path / "nowhere.json")


def test_a_backend_that_is_none_is_one_line() -> None:
    done = tools("ask", "smollm2-135m-lora", "--backend", "vllm")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "'vllm' is not one of 'auto', 'ollama', 'llama-server', 'transformers'" in done.stderr


def test_the_terminal_shows_both_side_by_side_and_no_control_character() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=70, height=40)
    both = {"base, Q8_0": Answer("I am \x1b[31ma base.\nNo [bold].", 9, 3.0, "length"), "tuned, Q8_0": None}
    told = [Answer("Thought: I look.", 4, 0.0, ""), Answer("Thought: I look.\nAction: look", 8, 2.0, "stop")]
    ask.draw(console, both, "tuned, Q8_0", iter(told))
    assert both["tuned, Q8_0"] == told[-1]
    console.file = io.StringIO()
    console.print(ask.columns(both))
    lines = console.file.getvalue().splitlines()
    assert "\x1b" not in console.file.getvalue()
    for one, two in (
        ("base, Q8_0", "tuned, Q8_0"),
        (r"I am \x1b[31ma base.", "Thought: I look."),
        ("No [bold].", "Action: look"),
        ("9 tokens, 3.0 tokens/s, cut", "8 tokens, 4.0 tokens/s"),
    ):
        assert any(one in line and two in line and line.index(one) < line.index(two) for line in lines), (one, lines)


def test_off_a_terminal_one_follows_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    told = [Answer("a\x07", 1, 0.0, ""), Answer("a\x07b\nc", 2, 0.5, "stop")]
    ask.write("base, Q8_0", iter(told))
    assert capsys.readouterr().out == "base, Q8_0:\na\\x07b\nc\n(2 tokens, 4.0 tokens/s)\n\n"


@pytest.mark.heavy
def test_without_a_server_both_answer_the_guides_kitchen(model: Tuned, capsys: pytest.CaptureFixture[str]) -> None:
    ask.ask(model, "Q8_0", "", backend="transformers")
    said = capsys.readouterr().out
    assert said.startswith("You are in the middle of a room.") and "heat some potato" in said
    asked, base, own = re.split(r"(?:base|tuned), as trained:\n", said)
    assert asked.endswith("using ReAct (Reasoning + Acting) approach.\n\n") and base != own
    for answer in (base, own):
        assert re.search(r".\n\(30 tokens, [\d.]+ tokens/s, cut there\)\n\n$", answer)


@pytest.mark.heavy
def test_without_a_base_the_tuned_model_answers_alone(
    model: Tuned, small_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask.ask(tuned("", "", str(small_base)), "Q8_0", "", prompt="Hi", backend="transformers")
    said = capsys.readouterr().out
    assert said.startswith("Hi\n\nNo base is known to compare with; BASE= names it.\ntuned, as trained:\n")
    assert "base, as trained" not in said


@pytest.mark.heavy
def test_a_prompt_and_a_conversation_are_not_both_asked(model: Tuned) -> None:
    with pytest.raises(BadInput, match="a prompt or a conversation, not both"):
        ask.ask(model, "Q8_0", "", prompt="Hi", conversation="my.json")
    with pytest.raises(BadInput, match=r"base-q8_0.gguf: not there; make gguf ADAPTER="):
        ask.ask(model, "Q8_0", "", prompt="Hi", backend="llama-server")


@pytest.mark.heavy
def test_llama_server_is_asked_what_it_is_told(
    model: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_gguf(model, "F16")
    turns = next(trajectory.test_set())["messages"][:4]
    (tmp_path / "my.json").write_text(json.dumps({"messages": turns}))
    ask.ask(model, "F16", "", conversation=str(tmp_path / "my.json"), backend="llama-server", proof="tokens")
    said = capsys.readouterr().out
    assert said.startswith(turns[-1]["content"]) and said.index("base, F16:") < said.index("tuned, F16:")
    assert len(re.findall(r"\((30|\d+) tokens, [\d.]+ tokens/s", said)) == 2
