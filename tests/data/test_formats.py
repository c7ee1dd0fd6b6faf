"""Formats: what each reads and writes, that nothing is lost on the way, and what a target cannot hold."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools import BadInput
from tools.core.chunks import Lines
from tools.data import formats
from tools.data.formats import alpaca, columns, messages, messages_of, sharegpt, transcript, worker
from tools.data.formats.source import steps
from tools.data.formats.worker import Task

SYSTEM = {"role": "system", "content": "Solve the task."}
ROOM = {"role": "user", "content": "You are in the middle of a room.\n\nYour task is to: put some mug on desk."}
STEP = {"role": "assistant", "content": "Thought: I see a mug 1.\nAction: take mug 1 from desk 1"}
SEEN = {"role": "user", "content": "Observation: You pick up the mug 1."}
LAST = {"role": "assistant", "content": "Thought: It goes there.\nAction: move mug 1 to desk 2"}
GAME: dict[str, Any] = {"id": "game-0", "messages": [SYSTEM, ROOM, STEP, SEEN, LAST]}


def made(source: str, episodes: list[Any], task: Task) -> worker.Made:
    """What the episodes, one a line in the format `source`, become."""
    return worker.convert_chunk(source, Lines(b"".join(orjson.dumps(each) + b"\n" for each in episodes)), task)


def fault(found: worker.Made) -> str:
    """Why the first bad row of a chunk is bad; empty without one."""
    return found.bad[0][1] if found.bad else ""


def rows(source: str, episode: dict[str, Any], to: str, **how: Any) -> list[Any]:
    """The rows that one episode becomes."""
    found = made(source, [episode], Task(to, **how))
    assert not found.bad
    return [orjson.loads(line) for line in found.data.splitlines()]


def back(data: bytes, source: str) -> bytes:
    """What was written in a format, as messages again."""
    if source in formats.TEXT:
        chunk = worker.Episodes([*transcript.episodes(data.decode().split("\n"))])
        found = worker.convert_chunk(source, chunk, Task("messages"))
    else:
        lines: Any = Lines(data)
        if alpaca.is_step(orjson.loads(data.partition(b"\n")[0] or b"null")):
            lines = next(steps(iter([lines])))
        found = worker.convert_chunk(source, lines, Task("messages"))
    assert not found.bad
    return found.data


# Text as it really occurs, and as it should not: what separates things in one format or another, and anything at all.
AWKWARD = (
    *("", " ", "\n", "\r\n", "\ufeff", "OK.", "> go", "> think: ", "Observation: ", "Thought: ", "Action: ", "#####"),
    *("\nAction Input: {}", "```python\nprint('\\n')\n```", '{"role":"user","content":"', "\u2028", "\x00", "mug 1"),
    *(
        "STATUS: OK",
        "Environment #1:",
        "You are in the middle of a room",
        "<think>\n",
        "\n</think>\n\n",
        "\\",
        '"',
        "想",
    ),
)
TEXT = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=8), max_size=5).map("".join)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1, max_size=12)
ANSWER = st.one_of(
    TEXT,
    st.builds("Thought: {}\nAction: {}".format, TEXT, WORDS),
    st.builds("Action: {}".format, WORDS),
    st.builds('Thought: {}\nAction: {}\nAction Input: {{"a": {}}}'.format, TEXT, WORDS, st.integers()),
)
SCALAR = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=6)
VALUE = SCALAR | st.lists(SCALAR, max_size=2) | st.dictionaries(st.text(max_size=4), SCALAR, max_size=2)
NAMES = st.sampled_from(("id", "task", "images", "extra", "input", "step", "系")) | st.text(max_size=6)
RESERVED = {"messages", "conversations", "system", "tools", alpaca.STEP, "role", "content", "from", "value"}


@st.composite
def ordered(draw: st.DrawFn, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """An episode of these turns with other keys before and after them."""
    others = draw(st.dictionaries(NAMES.filter(lambda name: name not in RESERVED), VALUE, max_size=3))
    keys = list(others)
    keys.insert(draw(st.integers(0, len(keys))), "messages")
    return {key: turns if key == "messages" else others[key] for key in keys}


@st.composite
def episodes(draw: st.DrawFn) -> dict[str, Any]:
    """Episodes of one to 200 exchanges, with system turn or without, flags of training, other keys anywhere."""
    turns: list[dict[str, Any]] = []
    if draw(st.booleans()):
        turns.append({"role": "system", "content": draw(TEXT.filter(bool))})
    count = draw(st.sampled_from((1, 1, 2, 3, 5)))
    for _ in range(count):
        turns.append({"role": "user", "content": draw(TEXT | TEXT.map("Observation: {}".format))})
        turns.append({"role": "assistant", "content": draw(ANSWER)})
    if draw(st.integers(0, 9)) == 0:
        turns += turns[-2:] * (200 - count)
    others: tuple[dict[str, Any], ...] = ({"train": False}, {"train": True}, {"name": "x", "train": False})
    flag = st.sampled_from(others)
    return draw(ordered([turn | draw(flag) if draw(st.integers(0, 4)) == 0 else turn for turn in turns]))


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("messages", {}),
    ("messages", {"calls": True}),
    ("sharegpt", {}),
    ("sharegpt", {"calls": True}),
    ("agentinstruct", {}),
    ("agentinstruct", {"calls": True}),
    ("alpaca", {}),
    ("alpaca", {"steps": True}),
]


@pytest.mark.parametrize(("to", "how"), WAYS)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(episode=episodes())
def test_every_episode_comes_back_the_same_bytes(to: str, how: dict[str, Any], episode: dict[str, Any]) -> None:
    if to == "alpaca":  # refuses what says that an answer is not trained
        for turn in episode["messages"]:
            turn |= {"train": turn["role"] == "assistant"} if "train" in turn else {}
    line = orjson.dumps(episode) + b"\n"
    there = worker.convert_chunk("messages", Lines(line), Task(to, **how))
    assert not there.bad and there.read == there.written == 1
    assert back(there.data, to) == line


PLAY = st.lists(st.tuples(TEXT, WORDS, TEXT), min_size=1, max_size=4)


@pytest.mark.parametrize("to", formats.TEXT)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(task=TEXT, played=PLAY)
def test_what_text_can_hold_comes_back_the_same_and_the_rest_is_refused(
    to: str, task: str, played: list[tuple[str, str, str]]
) -> None:
    turns = [{"role": "user", "content": task}]
    for thought, action, seen in played:
        turns.append({"role": "assistant", "content": f"Thought: {thought}\nAction: {action}"})
        turns.append({"role": "user", "content": f"Observation: {seen}"})
    there = made("messages", [{"messages": turns[:-1]}], Task(to))
    if there.bad:
        assert there.bad[0][1].startswith(f"{to} cannot hold this: ")
    else:
        (again,) = back(there.data, to).splitlines()
        assert orjson.loads(again)["messages"] == turns[:-1]


def test_the_committed_episodes_are_held_by_every_format() -> None:
    data = Path("data/test.jsonl").read_bytes()
    for to, how in WAYS:
        assert back(worker.convert_chunk("messages", Lines(data), Task(to, **how)).data, to) == data
    plain = worker.convert_chunk("messages", Lines(data), Task("messages", drop=True)).data.splitlines()
    for to in formats.TEXT:
        again = back(worker.convert_chunk("messages", Lines(data), Task(to, drop=True)).data, to).splitlines()
        for line, other in zip(plain, again, strict=True):
            assert orjson.loads(other)["messages"] == orjson.loads(line)["messages"][1:]


def test_alpaca_has_a_row_an_episode_with_its_history() -> None:
    assert rows("messages", GAME, "alpaca") == [
        {
            "instruction": SEEN["content"],
            "input": "",
            "output": LAST["content"],
            "system": SYSTEM["content"],
            "history": [[ROOM["content"], STEP["content"]]],
            "extra": {"id": "game-0"},
        }
    ]


def test_alpaca_has_a_row_a_step_that_stands_by_itself() -> None:
    first, second = rows("messages", GAME, "alpaca", steps=True)
    assert (first["instruction"], first["input"], first["output"]) == (ROOM["content"], "", STEP["content"])
    assert second["instruction"] == ROOM["content"] and second["output"] == LAST["content"]
    assert second["input"] == f"{STEP['content']}\n{SEEN['content']}"
    assert first["history"] == second["history"] == []


def test_alpaca_of_others_is_read() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["Hi", "Hello"]], "system": None, "id": 7}
    assert rows("alpaca", row, "messages") == [
        {
            "id": 7,
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Add.\n1 2"},
                {"role": "assistant", "content": "3"},
            ],
        }
    ]


def test_sharegpt_has_its_own_tags_and_keeps_other_keys_in_place() -> None:
    row: dict[str, Any] = {"id": "game-0"}
    tags = ("system", "human", "gpt", "human", "gpt")
    row["conversations"] = [
        {"from": tag, "value": turn["content"]} for tag, turn in zip(tags, GAME["messages"], strict=True)
    ]
    assert rows("messages", GAME, "sharegpt") == [row]


def test_sharegpt_with_observations_calls_and_a_system_column_is_read() -> None:
    row = {
        "system": "Solve the task.",
        "tools": "[]",
        "conversations": [
            {"from": "human", "value": "Where is it?"},
            {"from": "function_call", "value": '{"name": "search", "arguments": {"q": "mug"}}'},
            {"from": "observation", "value": "desk 1"},
            {"from": "gpt", "value": "Thought: I know.\nAction: finish"},
        ],
    }
    (episode,) = rows("sharegpt", row, "messages")
    assert [(turn["role"], turn["content"]) for turn in episode["messages"]] == [
        ("system", "Solve the task."),
        ("user", "Where is it?"),
        ("assistant", 'Action: search\nAction Input: {"q":"mug"}'),
        ("user", "Observation: desk 1"),
        ("assistant", "Thought: I know.\nAction: finish"),
    ]
    assert episode["tools"] == "[]"


def test_the_flags_of_agentinstruct_say_what_is_trained() -> None:
    row = {
        "id": "os_0",
        "conversations": [
            {"from": "human", "loss": None, "value": "List the files."},
            {"from": "gpt", "loss": False, "value": "Thought: Hm.\nAction: bash"},
            {"from": "human", "loss": None, "value": "a b"},
            {"from": "gpt", "loss": True, "value": "Thought: Two.\nAction: answer(2)"},
        ],
    }
    (episode,) = rows("sharegpt", row, "messages")
    assert [turn.get("train") for turn in episode["messages"]] == [None, False, None, None]
    assert rows("messages", episode, "agentinstruct") == [row]


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("messages", [{"weight": 0}, {"weight": 1}]),
        ("messages", [{"loss": False}, {"loss": True}]),
        ("messages", [{"train": False, "loss": None}, {}]),
        ("sharegpt", [{"weight": 0}, {"weight": 1.0}]),
        ("sharegpt", [{"train": False, "weight": 0}, {"weight": None}]),
    ],
)
def test_every_flag_of_training_becomes_train(source: str, flags: list[dict[str, Any]]) -> None:
    turns = [ROOM | {flag: None for flag in flags[0]}, STEP | flags[0], SEEN, LAST | flags[1]]
    if source == "sharegpt":
        tags = {"user": "human", "assistant": "gpt"}
        names = {"role": "from", "content": "value"}
        turns = [{names.get(key, key): tags.get(value, value) for key, value in turn.items()} for turn in turns]
    row = {"messages" if source == "messages" else "conversations": turns}
    masked = {"messages": [ROOM, STEP | {"train": False}, SEEN, LAST]}
    assert rows(source, row, "messages") == [masked]
    assert rows(source, row, "messages", drop=True) == [masked]
    (again,) = rows("messages", masked, "agentinstruct")
    assert [turn["loss"] for turn in again["conversations"]] == [None, False, None, True]
    assert fault(made("messages", [masked], Task("sharegpt", untrained=False))).startswith(
        "sharegpt cannot hold this: message 2 (assistant) has train: false, and LLaMA-Factory trains every"
    )


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ({"weight": 0.5}, "message 2 has the weight 0.5; a turn is trained or not: true or false, 1 or 0 (no trainer"),
        ({"train": "no"}, "message 2 has the train 'no'; a turn is trained or not"),
        ({"weight": 0, "train": True}, "message 2 has weight and train, which differ; keep one of them"),
    ],
)
def test_a_flag_that_no_trainer_can_follow_is_refused(flag: dict[str, Any], why: str) -> None:
    assert why in fault(made("messages", [{"messages": [ROOM, STEP | flag]}], Task("messages")))


TOOL = '{"type":"function","function":{"name":"search"}}'
CALLED: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Where is the mug?"},
        {
            "role": "assistant",
            "content": "I search.",
            "tool_calls": [
                {"id": "abc", "type": "function", "function": {"name": "search", "arguments": '{"q": "mug"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "abc", "content": "desk 1"},
        {"role": "assistant", "content": "Thought: There it is.\nAction: finish"},
    ],
    "tools": [{"type": "function", "function": {"name": "search"}}],
}


def test_calls_of_tools_become_thought_action_observation_and_come_back() -> None:
    (episode,) = rows("messages", CALLED, "messages")
    assert [turn["content"] for turn in episode["messages"]][2:4] == [
        'Thought: I search.\nAction: search\nAction Input: {"q": "mug"}',
        "Observation: desk 1",
    ]
    assert episode["messages"][0] == {"role": "system", "content": f"{columns.TOLD}\n{TOOL}"}
    assert "tools" not in episode
    (again,) = rows("messages", episode, "messages", calls=True)
    assert again["messages"][:3] == CALLED["messages"][:3] and again["tools"] == CALLED["tools"]


def test_actions_become_calls_that_openai_and_llamafactory_know() -> None:
    (chat,) = rows("messages", GAME, "messages", calls=True)
    assert chat["messages"][2:4] == [
        {
            "role": "assistant",
            "content": "I see a mug 1.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "act", "arguments": '{"action":"take mug 1 from desk 1"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "You pick up the mug 1."},
    ]
    (shared,) = rows("messages", GAME, "sharegpt", calls=True)
    assert [turn["from"] for turn in shared["conversations"]] == [
        "system",
        "human",
        "function_call",
        "observation",
        "function_call",
    ]


PAPER = """You are in the middle of a room. Looking quickly around you, you see a desk 1, and a shelf 1.
Your task is to: put some mug on shelf.
> think: First I need to find a mug.
OK.
> go to desk 1
On the desk 1, you see a mug 1.
> take mug 1 from desk 1
You pick up the mug 1 from the desk 1.
> think: Now I put it there.
OK.
> put mug 1 in/on shelf 1
You put the mug 1 in/on the shelf 1.
"""
PLAYED = [
    "You are in the middle of a room. Looking quickly around you, you see a desk 1, and a shelf 1.\n"
    "Your task is to: put some mug on shelf.",
    "Thought: First I need to find a mug.\nAction: go to desk 1",
    "Observation: On the desk 1, you see a mug 1.",
    "Action: take mug 1 from desk 1",
    "Observation: You pick up the mug 1 from the desk 1.",
    "Thought: Now I put it there.\nAction: put mug 1 in/on shelf 1",
    "Observation: You put the mug 1 in/on the shelf 1.",
]


def texts(text: str) -> list[list[object]]:
    """The turns' texts of each episode of a text."""
    return [[turn["content"] for turn in messages_of(each)] for _, each in transcript.episodes(text.split("\n"))]


def test_the_paper_s_transcripts_are_read() -> None:
    assert texts(PAPER) == [PLAYED]
    assert texts(f"{PAPER}\n{PAPER}") == texts(PAPER + PAPER) == [PLAYED, PLAYED]
    assert texts(PAPER.replace("\n", "\r\n")) == [PLAYED]
    assert texts(f"Interact with a household to solve a task.\n{PAPER}\nHere is the task:\n{PAPER}")[1] == PLAYED


def test_alfworld_s_logs_are_read() -> None:
    log = f"\n#####\n\nEnvironment #4:\n{PAPER}\n\nSTATUS: FAIL\n\n#####\n\n#####\n\nEnvironment #5: Success\n\n#####\n"
    ((line, episode),) = transcript.episodes(log.split("\n"))
    assert (line, episode["environment"], episode["status"]) == (4, 4, "FAIL")
    assert [turn["content"] for turn in messages_of(episode)] == PLAYED


def test_the_paper_s_runs_print_acts_and_observations() -> None:
    head, *turns = PAPER.split("\n> ")
    printed = [head]
    for number, turn in enumerate(turns, 1):
        act, _, seen = turn.rstrip("\n").partition("\n")
        printed.append(f"Act {number}: {act}\nObs {number}: {seen}")
    assert texts("\n".join(printed)) == [PLAYED]


@pytest.mark.parametrize(
    ("episode", "to", "why"),
    [
        ({"messages": [ROOM, ROOM, STEP]}, "alpaca", "turns out of order"),
        ({"messages": [ROOM, STEP, SEEN]}, "alpaca", "last turn is the user's; --trim"),
        ({"messages": [{"role": "system", "content": ""}, ROOM, STEP]}, "alpaca", "an empty system turn"),
        ({"conversations": [], "messages": [ROOM, STEP]}, "sharegpt", 'a key "conversations" of its own'),
        ({"messages": [ROOM | {"from": "x"}, STEP]}, "sharegpt", 'a key "from"'),
        ({"messages": [ROOM, STEP | {"train": False}]}, "alpaca", "message 2 (assistant) has train: false"),
        ({"messages": [ROOM | {"train": True}, STEP]}, "alpaca", "message 1 (user) has train: true"),
        ({"messages": [ROOM, STEP | {"train": False}]}, "react", "and what reads react trains every answer"),
        (GAME, "react", "no place for id, system"),
        (
            {"messages": [ROOM, {"role": "assistant", "content": "I do not know."}]},
            "react",
            "message 2 is not `Thought",
        ),
    ],
)
def test_what_a_target_cannot_hold_is_refused_with_the_reason_or_set_aside(
    episode: dict[str, Any], to: str, why: str
) -> None:
    ((_, said, raw),) = made("messages", [episode], Task(to)).bad
    assert said.startswith(f"{to} cannot hold this: ") and why in said and raw == b""
    aside = made("messages", [episode, GAME], Task(to, on_error="apart", drop=to == "react"))
    assert (aside.read, aside.written) == (2, 1 if aside.bad else 2)
    assert [orjson.loads(raw) for _, _, raw in aside.bad] == [episode] * len(aside.bad)


def test_columns_of_null_are_absent() -> None:
    nulls = {"tool_calls": None, "tool_call_id": None, "name": None, "train": None}
    row = {"messages": [ROOM | nulls, STEP | nulls], "tools": None, "system": None}
    assert rows("messages", row, "messages") == rows("messages", row, "messages", calls=False, drop=True)
    assert rows("messages", row, "messages") == [{"messages": [ROOM, STEP]}]
    (shared,) = rows("messages", {"messages": [ROOM, STEP]}, "sharegpt")
    turns = [turn | {"weight": None, "name": None} for turn in shared["conversations"]]
    row = {"conversations": turns, "tools": None, "system": None, "messages": None}
    assert rows("sharegpt", row, "messages") == [{"messages": [ROOM, STEP]}]
    assert rows("messages", {"messages": [ROOM, STEP], "conversations": None}, "sharegpt") == [shared]


def test_a_system_column_is_the_first_turn_or_stops_the_conversion() -> None:
    for row in (
        {"system": "S", "messages": [ROOM, STEP]},
        {"system": "S", "messages": [SYSTEM | {"content": "S"}, ROOM, STEP]},
    ):
        assert rows("messages", row, "messages") == [{"messages": [{"role": "system", "content": "S"}, ROOM, STEP]}]
    for source, key in (("messages", "messages"), ("sharegpt", "conversations")):
        (turns,) = rows("messages", {"messages": [SYSTEM, ROOM, STEP]}, source)
        said = fault(made(source, [{"system": "S", key: turns[key]}], Task("messages")))
        assert said == '"system" says something else than the system turn; keep one of them'


def called(content: object, **call: Any) -> list[dict[str, Any]]:
    """A task and an answer that calls a tool."""
    function = {"name": "search", "arguments": '{"q": "mug"}'} | call
    return [
        ROOM,
        {
            "role": "assistant",
            "content": content,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
    ]


CALL = 'Action: search\nAction Input: {"q": "mug"}'


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, CALL),
        ("", CALL),
        ("\n", CALL),
        ("I look.", f"Thought: I look.\n{CALL}"),
        ("<think>\nA mug.\n</think>\n\n", f"<think>\nA mug.\n</think>\n\n{CALL}"),
        ("<think>\nA mug.\n</think>\n\nI look.", f"<think>\nA mug.\n</think>\n\nThought: I look.\n{CALL}"),
        ("<think>A mug.</think>", f"<think>A mug.</think>\n\n{CALL}"),
    ],
)
def test_what_stands_beside_a_call_stays_what_it_is(content: object, text: str) -> None:
    (episode,) = rows("messages", {"messages": called(content)}, "messages")
    assert episode["messages"][1] == {"role": "assistant", "content": text}
    (again,) = rows("messages", episode, "messages", calls=True)
    said = content if str(content).strip() and content else None
    assert again["messages"][1]["content"] == (f"{said}\n\n" if text.startswith("<think>A") else said)
    assert again["messages"][1]["tool_calls"] == called(content)[1]["tool_calls"]
    shared = made("messages", [episode], Task("sharegpt", calls=True))
    if shared.bad:
        assert "message 2 has reasoning in <think> and words beside it" in fault(shared)
    else:
        assert orjson.loads(back(shared.data, "sharegpt")) == episode


@pytest.mark.parametrize("given", [{"q": "mug"}, '{"q":"mug"}', '{ "q" :\n"mug" }', "{}", "", None, "[1]", "a mug"])
def test_arguments_are_an_object_for_llamafactory_wherever_they_are_one(given: object) -> None:
    (episode,) = rows("messages", {"messages": called(None, arguments=given)}, "messages")
    shared = made("messages", [episode], Task("sharegpt", calls=True))
    value = orjson.loads(orjson.loads(shared.data)["conversations"][1]["value"])
    whole = given if isinstance(given, dict) else given or "{}"
    expected = orjson.loads(whole) if isinstance(whole, str) and whole[0] == "{" else whole
    assert value == {"name": "search", "arguments": expected}
    assert orjson.loads(back(shared.data, "sharegpt")) == episode


def test_what_cannot_be_written_says_why() -> None:
    chunk = worker.Episodes([(0, {"messages": [{"role": "user", "content": object()}]})])
    said = fault(worker.convert_chunk("messages", chunk, Task("messages")))
    assert said.startswith("cannot be written as JSON (Type is not JSON serializable")


def in_parallel() -> dict[str, Any]:
    """An episode with a turn of two calls, then one of a single call."""
    question, turn, answer, end = CALLED["messages"]
    (call,) = turn["tool_calls"]
    two = turn | {"tool_calls": [call, call | {"id": "call_7"}]}
    single = turn | {"tool_calls": [call | {"id": "call_3"}]}
    answers = [answer, answer | {"tool_call_id": "call_7"}]
    told = {"role": "tool", "tool_call_id": "call_3", "content": "desk 2"}
    return CALLED | {"messages": [question, two, *answers, single, told, end]}


@pytest.mark.parametrize("drop", [False, True])
def test_several_calls_in_one_turn_stay_where_messages_hold_calls(drop: bool) -> None:
    (row,) = rows("messages", in_parallel(), "messages", calls=True, drop=drop)
    turns = in_parallel()["messages"]
    assert row["messages"][:6] == turns[:6]
    assert ("tools" in row) != drop


@pytest.mark.parametrize("to", ["messages", "sharegpt", "agentinstruct", "alpaca", "llamafactory", "react", "alfworld"])
def test_several_calls_in_one_turn_are_a_bad_row_of_what_has_one_action_a_turn(to: str) -> None:
    bad = made("messages", [in_parallel(), GAME], Task(to, calls=to != "messages", on_error="apart", drop=True)).bad
    assert [line for line, _, _ in bad] == [0]
    assert "several calls of tools in one turn (search, search)" in bad[0][1]


def test_several_calls_in_a_function_call_of_sharegpt_are_read() -> None:
    value = '[{"name": "search", "arguments": {"q": "a"}}, {"name": "search", "arguments": {"q": "b"}}]'
    turns = [("human", "Where?"), ("function_call", value), ("observation", "desk 1"), ("gpt", "On desk 1.")]
    row = {"conversations": [{"from": tag, "value": text} for tag, text in turns]}
    (held,) = rows("sharegpt", row, "messages", calls=True)
    assert [call["function"]["arguments"] for call in held["messages"][1]["tool_calls"]] == [{"q": "a"}, {"q": "b"}]
    assert held["messages"][2] == {"role": "tool", "content": "desk 1"}


def test_what_travels_beside_the_turns_is_counted() -> None:
    game = GAME | {"messages": [SYSTEM, ROOM, STEP | {"name": "x"}]}
    assert made("messages", [game, GAME], Task("alpaca")).extra == {"id": 2, "messages.name": 1}


def test_rows_of_steps_that_lost_one_are_refused() -> None:
    whole = rows("messages", GAME, "alpaca", steps=True)
    for broken in (whole[:1], whole[1:], [*whole[:1], *whole[:1]], [whole[0], {"instruction": "a", "output": "b"}]):
        with pytest.raises(BadInput, match="keep the rows of one together"):
            alpaca.joined(broken)


@pytest.mark.parametrize(
    ("read", "row", "why"),
    [
        (messages.read, {"messages": []}, 'no "messages"'),
        (messages.read, {"messages": ["Hi"]}, "message 1 is no object"),
        (messages.read, {"messages": [{"role": "human", "content": "Hi"}]}, "message 1 has no known role"),
        (sharegpt.read, {"conversations": [{"from": "bot", "value": "Hi"}]}, "turn 1 has no known tag"),
        (sharegpt.read, {"conversations": [{"from": "gpt", "loss": True}]}, "turn 1 has no text"),
        (sharegpt.read, {"conversations": [{"from": "gpt", "value": "Hi"}], "messages": []}, "keep one of them"),
        (alpaca.read, {"instruction": "Hi"}, "missing required field `output`; a row is {"),
        (
            alpaca.read,
            {"instruction": "Hi", "output": "Ho", "history": [["a"]]},
            "got 1 - at `$.history[0]`; a row is",
        ),
        (alpaca.read, {"instruction": "Hi", "output": "Ho", "extra": {"messages": [1]}}, '"extra" holds "messages"'),
    ],
)
def test_a_row_that_is_none_is_refused_with_the_reason(read: Any, row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput) as error:
        read(row)
    assert why in str(error.value)
