"""Lint: each kind of fault is named with its line, what is good is not, and what is repaired is repaired safely."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tools import BadInput, Failed
from tools.core import run_folder, trajectory
from tools.data import lint
from tools.data.formats import messages_of
from tools.gguf import base, find_base
from tools.worlds.household import episodes, grammar, rooms, world

Episode = dict[str, Any]
Command = Callable[..., tuple[int, str, str]]
WORDS = "river stone lamp paper cloud garden window letter bread horse music winter bridge silver forest".split()  # noqa: SIM905


def good(*said: tuple[str, str], seed: int = 0, **more: Any) -> Episode:
    """An episode without a fault, about what no other seed is about; `said`: other (role, content) at its end."""
    rng = random.Random(seed)
    topic = " ".join(rng.choices(WORDS, k=40))
    turns = [
        ("user", topic),
        ("assistant", "Thought: I look it up.\nAction: Search[it]"),
        ("user", "Observation: It is."),
    ]
    turns += said or [("assistant", "Thought: I know it now.\nAction: Finish[it]")]
    return {"messages": [{"role": role, "content": content} for role, content in turns]} | more


def answer(content: str) -> Episode:
    """A good episode but for its last turn."""
    return good(("assistant", content))


def steps(*pairs: tuple[str, str]) -> Episode:
    """An episode of these actions and observations, and a good end."""
    said = []
    for action, seen in pairs:
        said += [("assistant", f"Thought: so.\nAction: {action}"), ("user", f"Observation: {seen}")]
    return good(*said, ("assistant", "Thought: I know it now.\nAction: Finish[it]"))


def household(*answers: str) -> Episode:
    """A short game, put a mug in desk, that ends with these actions."""
    episode = {"messages": [{"role": "user", "content": ROOM.format("put a mug in desk")}]}
    for action in ("go to shelf 1", "take mug 1 from shelf 1", *answers):
        episode["messages"] += [
            {"role": "assistant", "content": f"Thought: so.\nAction: {action}"},
            {"role": "user", "content": f"Observation: After {action}."},
        ]
    return episode | {"messages": episode["messages"][:-1]}


ROOM = (
    "You are in the middle of a room. Looking quickly around you, you see a desk 1, and a shelf 1.\n\n"
    "Your task is to: {}."
)
KEY = "gh" + "p_" + "a1B2" * 9  # in two, so that nobody takes it for one


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_bytes(b"".join(each if isinstance(each, bytes) else orjson.dumps(each) + b"\n" for each in rows))
    return path


def kinds(*rows: Any, **limits: Any) -> list[str]:
    """The kinds of what is found in these rows."""
    counts: Counter[str] = Counter()
    named = [(f"d:{number}", row) for number, row in enumerate(rows, 1)]
    return [each.kind for each in lint.examine(named, lint.Limits(**limits), counts)]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, in this process: its exit status and what it prints and says when it ends badly."""

    def call(*paths: object, fail_on: str = "error", fix: object = "", as_json: bool = False) -> tuple[int, str, str]:
        status, why = 0, ""
        try:
            lint.lint_files(list(map(str, paths)), "auto", "", 2048, fail_on, str(fix), as_json)
        except (BadInput, Failed) as error:
            status, why = (2 if isinstance(error, BadInput) else 1), str(error)
        return status, capsys.readouterr().out, why

    return call


FAULTY: list[tuple[str, Any, Any]] = [
    ("roles", good(("user", "More."), ("assistant", "Thought: a\nAction: b")), good()),
    ("roles", good(("tool", "More."), ("assistant", "Thought: a\nAction: b")), good()),
    ("no-text", answer(" "), answer("Thought: a\nAction: b")),
    ("no-thought", answer("Action: Finish[it]"), answer("Thought: a Action: b")),
    ("no-thought", answer("Thought:\nAction: Finish[it]"), answer("Well. Thought: a\nAction: b")),
    ("no-thought", answer("Action: b\nThought: too late"), answer("Thought: a\nAction: b\nThought: more")),
    ("no-action", answer("Thought: I know it."), answer("Thought: I know it.\nAction: Finish[it]")),
    (
        "observation",
        answer("Thought: a\nAction: b\nObservation: c"),
        answer("Thought: the last Observation: a\nAction: b"),
    ),
    ("observation", answer("Thought: a Action: b Observation: c"), answer("Thought: a\nAction: Say['Observation:']")),
    ("observation", answer("Observation: c\nThought: a\nAction: b"), answer("Thought: no Observation\nAction: b")),
    ("action", household("fly to the moon", "move mug 1 to desk 1"), household("move mug 1 to desk 1")),
    ("action", household("go to desk", "move mug 1 to desk 1"), household("go to desk 1", "move mug 1 to desk 1")),
    (
        "action",
        household("open sinkbasin 1", "move mug 1 to desk 1"),
        household("open drawer 1", "move mug 1 to desk 1"),
    ),
    ("action", household("heat mug 1 with fridge 1", "move mug 1 to desk 1"), household("move mug 1 to desk 1")),
    ("loop", steps(("a", "1"), ("a", "1")), steps(("a", "1"), ("a", "2"))),
    (
        "loop",
        steps(("a", "1"), ("b", "2"), ("a", "1"), ("b", "2")),
        steps(("a", "1"), ("b", "2"), ("a", "1"), ("c", "2")),
    ),
    ("loop", steps(*[("a", "1"), ("b", "2"), ("c", "3")] * 2), steps(("a", "1"), ("b", "2"), ("c", "3"), ("a", "1"))),
    ("cut", good(("assistant", "Thought: a\nAction: b"), ("user", "Observation: c")), good()),
    ("cut", answer("Thought: a\nAction: Finish[it"), answer("Thought: a\nAction: Finish[it]")),
    ("cut", answer("Thought: a\nAction:"), answer("Thought: a\nAction: b")),
    ("cut", {"messages": []}, good()),
    ("unfinished", household("go to desk 1"), household("go to desk 1", "move mug 1 to desk 1")),
    ("unfinished", household("move mug 1 to shelf 1"), household("move mug 1 to desk 2")),
    ("unfinished", good(success=False), good(success=True)),
    ("unfinished", good(reward=0.0), good(reward=1)),
    ("secret", answer(f"Thought: I use {KEY}.\nAction: b"), answer("Thought: I use ghp_ as a prefix.\nAction: b")),
    (
        "secret",
        answer("Thought: a\nAction: get[https://me:hunter22@host.org/x]"),
        answer("Thought: a\nAction: get[https://a.org:80/b@c]"),
    ),
    (
        "mail",
        answer("Thought: a\nAction: write[ada@lovelace.org]"),
        answer("Thought: a\nAction: write[ada@mail.example.com]"),
    ),
]


@pytest.mark.parametrize(("kind", "bad", "fine"), FAULTY)
def test_a_fault_is_found_and_its_like_is_not(kind: str, bad: Episode, fine: Episode) -> None:
    assert kind in kinds(bad)
    assert kinds(fine) == []


CHAT = [
    ("user", "Time in Ulm and Bern?"),
    ("assistant", 'Action: get_time\nAction Input: {"town": "Ulm"}'),
    ("user", "Observation: 09:10"),
    ("assistant", 'Action: get_time\nAction Input: {"town": "Bern"}'),
    ("user", "Observation: 09:10"),
    ("assistant", "Ten past nine in both."),
]


def turns(*said: tuple[str, str]) -> Episode:
    """An episode of these turns alone."""
    return {"messages": [{"role": role, "content": content} for role, content in said]}


@pytest.mark.parametrize(
    "episode",
    [
        turns(*CHAT),
        turns(*CHAT, ("user", "Thanks."), ("assistant", "You are welcome.")),
        turns(("user", "2+2?"), ("assistant", "Thought: I know that.\nFinal Answer: 4")),
        answer("Thought: I know it now.\nFinal Answer: it [sic"),
        answer("<think>\nI know it.\n</think>\n\nAction: Finish[it]"),
    ],
)
def test_react_that_ends_in_an_answer_and_chats_with_tools_are_clean(episode: Episode) -> None:
    assert kinds(episode) == [] and trajectory.fault(episode) is None


def test_the_same_tool_asked_the_same_again_is_a_loop() -> None:
    assert kinds(turns(*CHAT[:3], *CHAT[1:3], CHAT[-1])) == ["loop"]


def test_every_kind_is_known_and_says_how_to_mend() -> None:
    tried = {kind for kind, _, _ in FAULTY} | {"unreadable", "duplicate", "near-duplicate", "long"}
    assert tried == set(lint.KINDS)
    assert all(level in lint.LEVELS and fix for level, fix in lint.KINDS.values())


def test_the_household_is_judged_by_its_text_or_as_told() -> None:
    odd = good(("assistant", "Thought: a\nAction: fly to the moon"))
    assert kinds(odd) == [] and "action" in kinds(odd, world="household")
    assert "action" not in kinds(household("fly to the moon"), world="none")


@pytest.mark.parametrize("seed", range(30))
def test_no_action_that_the_household_answers_is_called_never_admitted(seed: int) -> None:
    """The expert's actions with its slips, and all that a random player got an answer to."""
    room = rooms.make_room(seed)
    played, rng = world.World(room), random.Random(seed)
    game = episodes.episode(room, slip=1)
    names = [*room.receptacles, *(thing for things in room.receptacles.values() for thing in things)]
    verbs = ["go to {}", "open {}", "close {}", "take {} from {}", "move {} to {}", "examine {}", "look", "inventory"]
    verbs += [f"{verb} {{}} with {{}}" for verb in ("heat", "cool", "clean")]
    answered = 0
    for _ in range(300):
        action = rng.choice(verbs).format(*rng.choices(names, k=2))
        if played.step(action) != world.NOTHING:
            answered += 1
            assert grammar.refusal(action) is None, action
    assert answered
    assert game is None or kinds(game) == []


def test_the_same_messages_again_are_a_duplicate_of_the_first() -> None:
    rows = [("d:1", good(id=1)), ("d:2", good(seed=1)), ("d:3", good(id=2)), ("d:4", good(id=3))]
    found = list(lint.examine(rows, lint.Limits(), Counter()))
    assert [(each.kind, each.where, each.what) for each in found] == [
        ("duplicate", "d:3", "the same messages as d:1"),
        ("duplicate", "d:4", "the same messages as d:1"),
    ]


def test_a_word_changed_is_a_near_duplicate_and_other_words_are_not() -> None:
    near = orjson.loads(orjson.dumps(good()).replace(b"know it now", b"have it now"))
    found = list(lint.examine([("d:1", good()), ("d:2", good(seed=1)), ("d:3", near)], lint.Limits(), Counter()))
    assert [(each.kind, each.level, each.where) for each in found] == [("near-duplicate", "advice", "d:3")]
    assert found[0].what.endswith("as d:1")


def test_near_duplicates_come_in_the_order_of_the_file() -> None:
    rng = random.Random(0)
    texts = [[str(rng.randrange(1000)) for _ in range(80)] for _ in range(12)]
    rows = []
    for number in range(36):
        words = list(texts[number % 12])
        words[rng.randrange(80)] = "other"
        row = good(("assistant", f"Thought: {' '.join(words)}\nAction: Finish[it]"), seed=number % 12)
        rows.append((f"d:{number}", row))
    found = [each for each in lint.examine(rows, lint.Limits(), Counter()) if each.kind == "near-duplicate"]
    places = [(int(each.where[2:]), int(each.what.rpartition(":")[2])) for each in found]
    assert len(places) > 12 and places == sorted(places)


def test_an_episode_longer_than_the_models_sequence_is_named() -> None:
    tokenizer = find_base.tokenizer("")
    length = len(tokenizer.apply_chat_template(good()["messages"], return_dict=False))

    def count(messages: list[dict[str, Any]]) -> int:
        return base.tokens(tokenizer, messages)

    assert kinds(good(), count=count, sequence_len=length) == []
    assert kinds(good(), count=count, sequence_len=length - 1) == ["long"]


def test_the_committed_episodes_are_clean() -> None:
    files = [str(run_folder.ROOT / "data" / f"{name}.jsonl") for name in ("train", "test")]
    line = [sys.executable, "-m", "tools", "lint", *files, "--fail-on", "advice"]
    done = subprocess.run(line, cwd=run_folder.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "288 episodes, 0 of level error, 0 of level warning, 0 of level advice\n"


def test_findings_are_lines_with_their_place_and_a_level_fails(tmp_path: Path, command: Command) -> None:
    rows = [good(), b"{no json\n", answer("Action: b"), [1], answer("Thought: only")]
    data = write(tmp_path / "d.jsonl", rows)
    status, shown, why = command(data)
    assert (status, why) == (1, "3 episodes looked at: 4 of level error")
    assert f"{data}:2: error: unreadable: not JSON" in shown
    assert f"{data}:3: warning: no-thought: message 4 has no Thought before its action" in shown
    assert f"{data}:4: error: unreadable: turn 1 is no object" in shown
    assert f"{data}:5: error: no-action: message 4 has no Action" in shown
    assert command(data, fail_on="never")[0] == 0
    only_thought = write(tmp_path / "w.jsonl", [answer("Action: b")])
    assert command(only_thought)[0] == 0
    assert command(only_thought, fail_on="warning")[0] == 1
    assert command(only_thought, fail_on="grave")[0] == 2


def test_json_has_a_line_for_each_finding_and_their_sum(tmp_path: Path, command: Command) -> None:
    data = write(tmp_path / "d.jsonl", [answer("Action: b"), good(seed=1, success=False)])
    status, shown, _ = command(data, as_json=True)
    assert status == 0
    lines = [orjson.loads(line) for line in shown.splitlines()]
    assert [(each["kind"], each["level"], each["where"]) for each in lines[:-1]] == [
        ("no-thought", "warning", f"{data}:1"),
        ("unfinished", "warning", f"{data}:2"),
    ]
    assert lines[-1] == {
        "episodes": 2,
        "error": 0,
        "warning": 2,
        "advice": 0,
        "kinds": {"no-thought": 1, "unfinished": 1},
    }


def test_fix_repairs_what_is_safe_says_so_and_leaves_the_rest(tmp_path: Path, command: Command) -> None:
    rows = [
        answer("Thought: a\nAction: b\nObservation: c\nThought: d\nAction: e"),
        good(id="kept", seed=1),
        good(id="again", seed=1),
        good(("assistant", "Thought: x\nAction: y"), ("user", "z"), seed=2),
        {"messages": [{"role": "user", "content": "alone"}]},
        b"{no json\n",
        good(("assistant", "Observation: c\nThought: a\nAction: b"), seed=3),
    ]
    data, out = write(tmp_path / "d.jsonl", rows), tmp_path / "out.jsonl"
    status, shown, why = command(data, fix=out)
    assert [orjson.loads(line) for line in out.read_bytes().splitlines()] == [
        answer("Thought: a\nAction: b"),
        rows[1],
        good(("assistant", "Thought: x\nAction: y"), seed=2),
        rows[6],
    ]
    assert f"{out}: 4 episodes written, 2 of them repaired; " in shown
    assert f"{out}: 1 of its episodes still have errors, named above" in shown
    assert why.endswith(f"; {out} is written, with 1 episodes that have errors")
    for did in (
        "1 made-up observations cut off",
        "1 exact duplicates left out",
        "1 turns after the last answer dropped",
        "1 episodes without an answer left out",
        "1 unreadable lines left out",
    ):
        assert did in shown
    assert status == 1
    assert f"{data}:6: error: unreadable" in shown and f"{data}:7: error: observation" in shown
    assert f"{data}:1:" not in shown
    # Never over itself; and what is good stays as it is, byte by byte.
    write(data, [rows[1]])
    before = data.read_bytes()
    assert command(data, fix=data)[0] == 2 and command(data, fix=out)[0] == 2
    assert data.read_bytes() == before
    assert command(data, fix=tmp_path / "again.jsonl")[0] == 0
    assert (tmp_path / "again.jsonl").read_bytes() == before


def test_a_file_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path, command: Command) -> None:
    for name, said in (("none.jsonl", "cannot be read"), (".", "a folder without a file of episodes")):
        status, _, why = command(tmp_path / name, fix=tmp_path / "out.jsonl")
        assert status == 2 and said in why and "\n" not in why
    assert list(tmp_path.iterdir()) == []


TURNS = some.fixed_dictionaries(
    {},
    optional={
        "role": some.sampled_from(["system", "user", "assistant", "tool", None]) | some.integers(0, 9),
        "content": some.sampled_from(["Thought: a\nAction: b", "Action: b\nObservation: c", "x", ""])
        | some.text("aT: \n", max_size=20)
        | some.none()
        | some.lists(some.just("x")),
    },
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.lists(TURNS, max_size=6))
def test_what_training_refuses_is_an_error(messages: list[Episode]) -> None:
    found = kinds({"messages": messages})
    errors = [kind for kind in found if lint.KINDS[kind][0] == "error"]
    if trajectory.fault({"messages": messages}):
        assert errors


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.lists(TURNS, max_size=6))
def test_repairing_keeps_every_action_and_is_done_once(messages: list[Episode]) -> None:
    better, done = lint.repaired({"messages": messages})
    kept = [trajectory.action(text) for _, text in lint.answers(messages)]
    assert [trajectory.action(text) for _, text in lint.answers(messages_of(better))] == kept
    assert lint.repaired(better) == (better, Counter())
    assert bool(done) == (better != {"messages": messages})
