"""Episodes: what is read, what is refused and where, and the tokens and mask that Axolotl makes of them."""

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from tools import BadInput
from tools.core import run_folder, trajectory
from tools.gguf import find_base
from tools.recipes import recipe
from tools.training import tokens

USER = {"role": "user", "content": "Your task is to: put some mug on desk."}
ANSWER = {"role": "assistant", "content": "Thought: I see a mug 1.\nAction: take mug 1 from desk 1"}
GOOD: dict[str, Any] = {"messages": [{"role": "system", "content": "Solve the task."}, USER, ANSWER]}


def lines(*episodes: object) -> bytes:
    return b"".join(orjson.dumps(each) + b"\n" for each in episodes)


def turns(*messages: object) -> dict[str, list[object]]:
    return {"messages": list(messages)}


def test_the_committed_episodes_are_read_one_by_one() -> None:
    for name in ("train", "test"):
        path = run_folder.ROOT / "data" / f"{name}.jsonl"
        assert [orjson.dumps(each) + b"\n" for each in trajectory.read(path)] == path.read_bytes().splitlines(True)


def test_reading_streams(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(lines(GOOD) + b"no JSON\n")
    assert next(trajectory.read(tmp_path / "data.jsonl")) == GOOD


def test_the_beginning_of_a_file_is_checked_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(lines(GOOD, GOOD) + b"no JSON\n")
    trajectory.check_beginning(path, 2)
    with pytest.raises(BadInput, match=re.escape(f"{path}:3: not JSON (")):
        trajectory.check_beginning(path)


@pytest.mark.parametrize(
    ("data", "line", "why"),
    [
        (b"", 1, "the file is empty; it must hold one episode a line"),
        (lines(GOOD) + b'{"messages": [', 2, "not JSON ("),
        (lines(GOOD, GOOD) + b"\n", 3, "not JSON ("),
        (b'{"messages": "\xff"}\n', 1, "not JSON ("),
        (lines(GOOD, [1]), 2, 'no "messages"; an episode is'),
        (lines({"conversations": [USER, ANSWER]}), 1, 'no "messages"; an episode is'),
        (lines(turns({"role": "human", "content": "Hi"}, ANSWER)), 1, "message 1 has no known role; it must be"),
        (lines(turns("Hi", ANSWER)), 1, "message 1 has no known role; it must be"),
        (lines(turns(USER, {"role": "assistant"})), 1, 'message 2 (assistant) has no text; give it as "content"'),
        (lines(turns(ANSWER)), 1, "message 1 is the assistant's and must be the user's"),
        (lines(turns(USER, USER)), 1, "message 2 is the user's and must be the assistant's"),
        (lines(turns(USER, ANSWER, GOOD["messages"][0])), 1, "message 3 is the system's and must be the user's"),
        (lines(turns(USER, ANSWER, USER)), 1, "the last message must be the assistant's; drop what follows it"),
        (
            lines(GOOD, GOOD, turns(USER, {"role": "assistant", "content": "Thought: I see a mug 1."})),
            3,
            "an episode with no Action: message 2 needs a line `Action: ...`",
        ),
    ],
)
def test_what_is_no_episode_is_named_with_its_line(tmp_path: Path, data: bytes, line: int, why: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=f"^{re.escape(f'{path}:{line}: {why}')}") as error:
        list(trajectory.read(path))
    assert len(str(error.value).splitlines()) == 1


def said(*texts: str) -> dict[str, list[object]]:
    """An episode of these texts, the user's and the assistant's by turns."""
    return turns(*({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)))


CALL = "Action: get_time\nAction Input: {}"


@pytest.mark.parametrize(
    "episode",
    [
        said("Time?", f"Thought: I ask.\n{CALL}", "Observation: 9", "Thought: done\nFinal Answer: Nine."),
        said("Time?", f"Thought: I ask.\n{CALL}", "Observation: 9", "Thought: done\nAction: finish[nine]"),
        said("Time?", CALL, "Observation: 9", "It is nine."),
        said("Time?", CALL, "Observation: 9", "<think>\nOh.\n</think>\n\nIt is nine."),
        said("Time?", CALL, "Observation: 9", "It is nine.", "And now?", CALL, "Observation: 10", "It is ten."),
        said("2+2?", "Thought: I know that.\nFinal Answer: 4"),
    ],
)
def test_an_episode_may_end_in_an_answer(episode: dict[str, Any]) -> None:
    assert trajectory.fault(episode) is None


@pytest.mark.parametrize(
    ("episode", "number"),
    [
        (said("Time?", "I look it up.", "Observation: 9", CALL), 2),
        (said("Time?", CALL, "Observation: 9", "Final Answer: 9", "Observation: 10", CALL), 4),
        (said("Time?", CALL, "Observation: 9", "Thought: Now I know."), 4),
        (said("Time?", CALL, "Observation: 9", "Thought: Now I act.\nAction:"), 4),
        (said("Time?", CALL, "Observation: 9", "Thought: Now I know.\nFinal Answer:"), 4),
        (said("Hi", "Hello", "Bye", "Bye"), 2),
    ],
)
def test_a_turn_that_should_act_and_does_not_is_named(episode: dict[str, Any], number: int) -> None:
    assert str(trajectory.fault(episode)).startswith(f"an episode with no Action: message {number} needs a line")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=re.escape(f"{tmp_path / 'none.jsonl'}: cannot be read (No such file")):
        list(trajectory.read(tmp_path / "none.jsonl"))
    with pytest.raises(BadInput, match=re.escape(f"{tmp_path}: cannot be read (Is a directory)")):
        list(trajectory.read(tmp_path))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Thought: I look.\nAction: go to fridge 1", "go to fridge 1"),
        ("Thought: I look. Action:  go to fridge 1 \nObservation: Nothing.\nAction: open fridge 1", "go to fridge 1"),
        ("Thought: Reaction: none.", None),
        ("Action:\nAction: look", None),
        ("go to fridge 1", None),
        ("", None),
    ],
)
def test_an_answer_does_what_its_first_action_says(text: str, found: str | None) -> None:
    assert trajectory.action(text) == found


@pytest.fixture(scope="module")
def folder() -> Path:
    return find_base.resolve("smollm2-135m")


def test_axolotl_makes_the_tokens_and_the_mask(folder: Path) -> None:
    from transformers import AutoTokenizer

    asked = recipe.open_recipe("smollm2-135m-lora")
    made = tokens.tokenise(folder, asked.dataset, [GOOD, GOOD], 2048, asked.settings)
    assert made[0] == made[1]
    ids, labels = made[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert ids == tokenizer.apply_chat_template(GOOD["messages"], return_dict=False)
    trained = [token for token, label in zip(ids, labels, strict=True) if label != -100]
    assert tokenizer.decode(trained) == f"{ANSWER['content']}<|im_end|>"


def test_the_keys_of_a_recipe_that_decide_on_tokens_are_followed(folder: Path) -> None:
    entry = recipe.open_recipe("smollm2-135m-lora").dataset
    template = "{% for turn in messages %}{{ turn.content }}<|im_end|>{% endfor %}"
    settings = {"chat_template": "jinja", "chat_template_jinja": template, "lora_r": 16}
    ids, labels = tokens.tokenise(folder, entry, [turns(USER, ANSWER)], 2048, settings)[0]
    from transformers import AutoTokenizer

    said = AutoTokenizer.from_pretrained(folder).decode(ids)
    assert said == f"{USER['content']}<|im_end|>{ANSWER['content']}<|im_end|>"
    assert labels[-1] == ids[-1]
