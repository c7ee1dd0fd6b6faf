"""Every command reads any format: with the places of the file as it is, or from a copy in messages."""

from pathlib import Path

import orjson
import pytest

from tests.data.test_convert import DATA, LINES, to
from tests.parts.said import said
from tools import BadInput
from tools.core import run_folder
from tools.data import convert, reader, split
from tools.data.formats.worker import Task

EPISODES = [orjson.loads(line) for line in LINES]


@pytest.mark.parametrize("name", ["in.json", "in.jsonl.zst", "in.parquet"])
@pytest.mark.parametrize("target", ["messages", "sharegpt", "alpaca"])
def test_any_format_gives_the_same_episodes(tmp_path: Path, name: str, target: str) -> None:
    to(tmp_path / name, DATA, target=target)
    assert [episode for _, episode in reader.rows([tmp_path / name])] == EPISODES


def test_episodes_of_a_pretty_array_have_their_own_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(orjson.dumps([{"conversations": []}, *EPISODES[:2]], option=orjson.OPT_INDENT_2))
    (first, why), (second, _), (third, _) = reader.rows([path])
    text = path.read_text().splitlines()
    assert (first, why) == (f"{path}:2", "no turns; drop the row")
    assert [text[int(where.rpartition(":")[2]) - 1] for where in (second, third)] == ["  {", "  {"]
    assert EPISODES[1]["id"] in text[int(third.rpartition(":")[2])]
    assert capsys.readouterr().err == ""  # what is read as messages needs no word


def test_what_was_recognised_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to(tmp_path / "in.json", DATA, target="sharegpt")
    split.split_files([str(tmp_path / "in.json")], str(tmp_path / "parts"), {"train": 0.9, "test": 0.1}, 0, True)
    assert said(capsys.readouterr().err) == [f"{tmp_path}/in.json: recognised sharegpt"]
    both = [(tmp_path / "parts" / f"{part}.jsonl").read_bytes() for part in ("train", "test")]
    assert sorted(b"".join(both).splitlines(keepends=True)) == sorted(LINES)


def test_a_file_of_another_format_is_converted_once_for_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REACT_RECIPES_CACHE", str(tmp_path / "cache"))
    assert convert.as_messages(str(DATA)) == str(DATA)
    to(tmp_path / "in.json", DATA, target="alpaca")
    made = convert.as_messages(str(tmp_path / "in.json"))
    assert Path(made).read_bytes() == DATA.read_bytes() and Path(made).is_relative_to(run_folder.cache())
    assert said(capsys.readouterr().err) == [f"{tmp_path}/in.json: recognised alpaca; read as messages from {made}"]
    assert convert.as_messages(str(tmp_path / "in.json")) == made and capsys.readouterr().err == ""
    assert convert.as_messages(str(tmp_path / "none.jsonl")) == str(tmp_path / "none.jsonl")


def test_a_file_set_of_one_file_has_no_room_in_both_parts(tmp_path: Path) -> None:
    counts = convert.file_set([str(DATA)], str(tmp_path / "set"), Task(convert.FILE_SET), test=0.25)
    parts = {}
    for part in ("train", "test"):
        for kind in ("alpaca", "sharegpt"):
            path = tmp_path / "set" / f"react_{part}_{kind}.json"
            parts[part, kind] = [episode for _, episode in reader.rows([path]) if not isinstance(episode, str)]
        assert parts[part, "alpaca"] == parts[part, "sharegpt"]
    train, test = parts["train", "alpaca"], parts["test", "alpaca"]
    assert counts.written == 48 == len(train) + len(test) and 6 <= len(test) <= 18
    assert not {split.room(each) for each in train} & {split.room(each) for each in test}
    with pytest.raises(BadInput, match="--test 1.5: it must be a share"):
        convert.file_set([str(DATA)], str(tmp_path / "other"), Task(convert.FILE_SET), test=1.5)


def test_a_bad_row_of_a_file_set_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    turns = EPISODES[0]["messages"]
    path.write_bytes(DATA.read_bytes() + orjson.dumps({"messages": [*turns, turns[1]]}) + b"\n")
    with pytest.raises(BadInput, match="in.jsonl:49: llamafactory cannot hold this: last turn is the user's"):
        convert.file_set([str(path)], str(tmp_path / "set"), Task(convert.FILE_SET), test=0.25)
    counts = convert.file_set([str(path)], str(tmp_path / "set"), Task(convert.FILE_SET, on_error="skip"), test=0.25)
    assert (counts.read, counts.written, counts.bad) == (49, 48, 1)
