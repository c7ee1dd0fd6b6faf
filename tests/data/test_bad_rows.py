"""Bad rows of a large file: stopped at, left out or set apart, and told by cause."""

import gzip
from pathlib import Path

import orjson
import pytest

from tests.data.test_convert import LINES, command, large, to
from tools import BadInput
from tools.core import chunks

GOOD = orjson.loads(LINES[0])
NO_TURNS = b'{"conversations":[]}'
LAST_IS_USER = orjson.dumps({"messages": [*GOOD["messages"], {"role": "user", "content": "Observation: Done."}]})
CUT = LINES[1][:-20]
ROWS = [LINES[0].rstrip(), NO_TURNS, LAST_IS_USER, CUT, LINES[1].rstrip(), LAST_IS_USER, b"K\xe4se"]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(ROWS) + b"\n")
    return path


def test_the_first_bad_row_stops_and_the_message_names_how_to_see_all(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="in.jsonl:2: no turns; .*--on-error skip. .ON_ERROR=skip. leaves such rows out"):
        to(tmp_path / "out.jsonl", damaged, target="alpaca")


def test_bad_rows_are_counted_by_cause_with_the_first_place_of_each(damaged: Path, tmp_path: Path) -> None:
    done = command(damaged, tmp_path / "out.jsonl", "--to", "alpaca", "--on-error", "skip")
    said = done.stdout.decode().splitlines()
    assert done.returncode == 0 and "7 episodes read, 2 written" in said[0]
    table = {" ".join(line.split()) for line in said[said.index("5 bad rows left out, by cause:") + 1 :]}
    assert table == {
        f"last turn is the user's 2 first {damaged}:3",
        f"no turns 1 first {damaged}:2",
        f"not JSON 1 first {damaged}:4",
        f"not UTF-8 text 1 first {damaged}:7",
    }


def test_bad_rows_are_set_apart_as_they_were_with_place_and_cause(damaged: Path, tmp_path: Path) -> None:
    apart = tmp_path / "apart.jsonl"
    counts = to(tmp_path / "out.jsonl", damaged, target="alpaca", on_error="apart", apart=str(apart))
    assert (counts.read, counts.written, counts.bad) == (7, 2, 5)
    kept = [orjson.loads(line) for line in apart.read_bytes().splitlines()]
    assert [each["where"] for each in kept] == [f"{damaged}:{line}" for line in (2, 3, 4, 6, 7)]
    assert [each["row"] for each in kept[:3]] == [{"conversations": []}, orjson.loads(LAST_IS_USER), CUT.decode()]
    assert LAST_IS_USER in apart.read_bytes() and kept[4]["row"] == "K\\xe4se"
    assert kept[1]["cause"] == "alpaca cannot hold this: last turn is the user's; --trim (TRIM=1) cuts it"


def test_a_bad_element_of_an_array_over_several_lines_has_its_place(tmp_path: Path) -> None:
    path, apart = tmp_path / "in.json", tmp_path / "apart.jsonl"
    rows = [GOOD, {"messages": []}, GOOD]
    path.write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
    to(tmp_path / "out.jsonl", path, on_error="apart", apart=str(apart))
    (kept,) = [orjson.loads(line) for line in apart.read_bytes().splitlines()]
    place = path.read_text().splitlines().index('    "messages": []')  # counted from 0: the line before it
    assert kept == {"where": f"{path}:{place}", "cause": "no turns; drop the row", "row": {"messages": []}}


def test_bad_rows_far_into_a_large_file_have_their_lines(tmp_path: Path) -> None:
    path = large(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for place in (7, 3210, 3999):
        lines[place] = lines[place][:-5] + b"\n"
    path.write_bytes(b"".join(lines))
    apart = tmp_path / "apart.jsonl"
    counts = to(tmp_path / "out.jsonl", path, target="sharegpt", on_error="apart", apart=str(apart))
    assert (counts.read, counts.written) == (4000, 3997)
    where = [orjson.loads(line)["where"] for line in apart.read_bytes().splitlines()]
    assert where == [f"{path}:{line}" for line in (8, 3211, 4000)]


def test_a_line_that_is_too_long_costs_that_line_alone(tmp_path: Path) -> None:
    data = b"".join([LINES[0], b'{"a":"' + b"x" * (chunks.LIMIT + 9) + b'"}\n', LINES[1], CUT])
    for name, written in (("in.jsonl", data), ("in.jsonl.gz", gzip.compress(data, 1))):
        path = tmp_path / name
        path.write_bytes(written)
        counts = to(tmp_path / "out.jsonl", path, on_error="skip", force=True)
        assert (counts.read, counts.written) == (4, 2)
        assert [(cause, each["first"]) for cause, each in counts.causes.items()] == [
            ("an episode of more than 16 MiB", f"{path}:2"),
            ("not JSON", f"{path}:4"),
        ]


def test_trim_cuts_the_turns_after_the_last_answer(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(LAST_IS_USER + b"\n" + LINES[1])
    counts = to(tmp_path / "out.jsonl", path, trim=True)
    made = [orjson.loads(line)["messages"] for line in (tmp_path / "out.jsonl").open("rb")]
    assert counts.trimmed == 1 and made == [GOOD["messages"], orjson.loads(LINES[1])["messages"]]


def test_a_file_without_one_good_row_says_why(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(NO_TURNS + b"\n" + NO_TURNS + b"\n{\n")
    with pytest.raises(BadInput, match="in.jsonl:1: none of 3 rows could be converted: no turns 2, not JSON 1"):
        to(tmp_path / "out.jsonl", path, on_error="skip")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--on-error", "ignore"), "--on-error ignore: it must be one of stop, skip, apart"),
        (("--on-error", "apart"), "--on-error apart: name the file"),
        (("--role", "bot=robot"), "--role bot=robot: it must be NAME=ROLE"),
    ],
)
def test_options_that_are_none_are_one_line(words: tuple[str, ...], why: str, tmp_path: Path) -> None:
    done = command("data/test.jsonl", tmp_path / "out.jsonl", "--to", "alpaca", *words)
    assert done.returncode == 2 and why in done.stderr.decode() and len(done.stderr.splitlines()) == 1


def test_a_broken_step_costs_its_episode_and_no_other(tmp_path: Path) -> None:
    file, apart = tmp_path / "steps.jsonl", tmp_path / "apart.jsonl"
    several = {"messages": [*GOOD["messages"][:3], *GOOD["messages"][1:3], *GOOD["messages"][1:3]]}  # of three steps
    (tmp_path / "in.jsonl").write_bytes(b"".join(orjson.dumps(several | {"id": n}) + b"\n" for n in range(5)))
    to(file, tmp_path / "in.jsonl", target="alpaca", steps=True)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[4] = b'{"instruction": "cut\n'  # the second step of the second episode
    del lines[9]  # the first step of the fourth
    file.write_bytes(b"".join(lines))
    with pytest.raises(BadInput, match=r"steps\.jsonl:5: not JSON"):
        to(tmp_path / "out.jsonl", file)
    counts = to(tmp_path / "out.jsonl", file, on_error="apart", apart=str(apart))
    assert (counts.read, counts.written, counts.bad) == (5, 3, 2)
    assert [orjson.loads(line)["id"] for line in (tmp_path / "out.jsonl").open()] == [0, 2, 4]
    first, second = (orjson.loads(line) for line in apart.read_bytes().splitlines())
    assert (first["where"], second["where"]) == (f"{file}:5", f"{file}:10")
    assert first["row"].encode() == b"".join(lines[3:6]).rstrip()
    assert second["row"].encode() == b"".join(lines[9:11]).rstrip()
