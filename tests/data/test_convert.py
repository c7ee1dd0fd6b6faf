"""Converting files: every way in and out, bad input in one line, nothing half-written, little memory."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.parts.said import said
from tools import BadInput, Failed
from tools.core import chunks, run_folder
from tools.data import convert, formats
from tools.data.formats.worker import Task

DATA = run_folder.ROOT / "data" / "test.jsonl"
LINES = DATA.read_bytes().splitlines(keepends=True)
TOOLS = [sys.executable, "-m", "tools"]


def to(out: Path, *inputs: Path | str, **how: Any) -> convert.Counts:
    """Convert inputs to a file, to messages unless told otherwise."""
    settings = ("steps", "drop", "on_error", "trim", "roles", "wanted", "calls")
    task = Task(how.pop("target", "messages"), **{key: how.pop(key) for key in settings if key in how})
    return convert.convert_files([str(each) for each in inputs], str(out), task, **how)


def command(*arguments: str | Path, **how: Any) -> subprocess.CompletedProcess[bytes]:
    """`python -m tools convert` with these arguments."""
    line = [*TOOLS, "convert", *map(str, arguments)]
    return subprocess.run(line, cwd=run_folder.ROOT, capture_output=True, **how)


def large(folder: Path, name: str = "large.jsonl") -> Path:
    """A file that is large enough for several processes, each line known by its id."""
    episode, path = orjson.loads(LINES[0]), folder / name
    rows = [orjson.dumps(episode | {"id": number}) for number in range(4000)]
    assert sum(map(len, rows)) > convert.LARGE
    path.write_bytes(b"[" + b", ".join(rows) + b"]" if name.endswith(".json") else b"\n".join(rows) + b"\n")
    return path


@pytest.mark.parametrize("end", ["jsonl", "json", "jsonl.gz", "json.gz", "jsonl.zst", "json.zst"])
@pytest.mark.parametrize("target", formats.JSON)
def test_lines_and_arrays_plain_and_packed_go_there_and_back(tmp_path: Path, end: str, target: str) -> None:
    there = tmp_path / f"there.{end}"
    counts = to(there, DATA, target=target)
    assert (counts.read, counts.written, counts.bad) == (48, 48, 0)
    assert counts.extra == {"id": 48, "task": 48}
    to(tmp_path / "back.jsonl", there)
    assert (tmp_path / "back.jsonl").read_bytes() == DATA.read_bytes()


@pytest.mark.parametrize("end", ["jsonl", "json", "jsonl.gz", "json.zst"])
def test_what_is_packed_or_an_array_is_so_to_others(tmp_path: Path, end: str) -> None:
    path = tmp_path / f"made.{end}"
    to(path, DATA)
    data = path.read_bytes()
    if end.endswith("gz"):
        data = gzip.decompress(data)
    if end.endswith("zst"):
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    rows = json.loads(data) if ".json." in f"{path}." else [json.loads(line) for line in data.splitlines()]
    assert rows == [json.loads(line) for line in LINES]


@pytest.mark.parametrize("name", ["large.jsonl", "large.json"])
@pytest.mark.parametrize("end", ["jsonl", "json", "jsonl.gz", "jsonl.zst"])
def test_several_processes_make_the_same_bytes_in_the_same_order(tmp_path: Path, name: str, end: str) -> None:
    path = large(tmp_path, name)
    out = tmp_path / f"out.{end}"
    assert to(out, path, target="sharegpt").written == 4000
    to(tmp_path / "back.jsonl", out)
    assert [orjson.loads(line)["id"] for line in (tmp_path / "back.jsonl").open("rb")] == list(range(4000))


def test_folders_globs_and_mixed_formats_are_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name, target, line in (("a.json", "alpaca", 0), ("b/c.jsonl.gz", "sharegpt", 1), ("d.jsonl", "messages", 2)):
        one = tmp_path / "one.jsonl"
        one.write_bytes(LINES[line])
        to(folder / name, one, target=target)
    to(tmp_path / "all.jsonl", folder)
    assert (tmp_path / "all.jsonl").read_bytes() == b"".join([LINES[0], LINES[1], LINES[2]])
    to(tmp_path / "some.jsonl", f"{folder}/**/*.json*")
    assert (tmp_path / "some.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n"])
@pytest.mark.parametrize("last", [True, False])
def test_windows_line_ends_a_bom_and_empty_lines_do_no_harm(
    tmp_path: Path, mark: bytes, end: bytes, last: bool
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(mark + end.join(line.rstrip() for line in LINES) + (end if last else b""))
    to(tmp_path / "out.jsonl", path)
    assert (tmp_path / "out.jsonl").read_bytes() == DATA.read_bytes()


@pytest.mark.parametrize("indent", [None, 2])
def test_arrays_as_others_write_them_are_read(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "in.json"
    path.write_text("\n " + json.dumps([json.loads(line) for line in LINES], indent=indent) + "\n\n")
    to(tmp_path / "out.jsonl", path)
    assert (tmp_path / "out.jsonl").read_bytes() == DATA.read_bytes()


def test_rows_of_steps_are_joined_again_across_the_file(tmp_path: Path) -> None:
    for name in ("steps.json", "steps.jsonl.gz"):
        counts = to(tmp_path / name, DATA, target="alpaca", steps=True)
        assert counts.rows > 4 * counts.written == 4 * 48
        to(tmp_path / f"{name}.back.jsonl", tmp_path / name)
        assert (tmp_path / f"{name}.back.jsonl").read_bytes() == DATA.read_bytes()


@pytest.mark.parametrize("target", formats.TEXT)
def test_text_is_written_and_recognised(tmp_path: Path, target: str) -> None:
    with pytest.raises(BadInput, match=r"test.jsonl:1: .* no place for id, task, system; --drop-extra"):
        to(tmp_path / "played.txt", DATA, target=target)
    counts = to(tmp_path / "played.txt", DATA, target=target, drop=True)
    assert counts.extra == {"the system turn": 48, "id": 48, "task": 48}
    assert to(tmp_path / "back.jsonl", tmp_path / "played.txt").read == 48


def test_stdin_and_stdout(tmp_path: Path) -> None:
    done = command("-", "-", "--to", "sharegpt", "--json", input=DATA.read_bytes())
    assert done.returncode == 0
    counts = orjson.loads(done.stderr)
    assert (counts["read"], counts["written"], counts["bad"]) == (48, 48, 0) and counts["seconds"] > 0
    back = command("-", "-", "--to", "messages", "--from", "sharegpt", input=done.stdout)
    assert back.stdout == DATA.read_bytes()


def test_the_counts_and_the_choice_are_told(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert command(DATA, out, "--to", "alpaca").stdout.decode().splitlines()[2] == "kept in `extra`: id 48, task 48"
    assert (
        command(DATA, out, "--to", "alpaca", "--drop-extra", "--force").stdout.decode().splitlines()[2]
        == "left out: id 48, task 48"
    )
    assert "extra" not in orjson.loads(out.read_bytes())[0]


def test_the_classic_file_set_comes_from_one_command(tmp_path: Path) -> None:
    folder = tmp_path / "LLaMA-Factory" / "data"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"identity": {"file_name": "identity.json"}}')
    done = command(run_folder.ROOT / "data", folder, "--to", "llamafactory", "--json")
    assert done.returncode == 0 and orjson.loads(done.stdout)["written"] == 240 + 48
    files = {f"react_{split}_{kind}.json" for split in ("train", "test") for kind in ("alpaca", "sharegpt")}
    assert {item.name for item in folder.iterdir()} == files | {"dataset_info.json", "axolotl.yaml"}
    info = orjson.loads((folder / "dataset_info.json").read_bytes())
    assert info["identity"] == {"file_name": "identity.json"}
    assert info["react_training"]["columns"]["prompt"] == "instruction"
    assert info["react_testing_sharegpt"]["tags"]["user_tag"] == "human"
    with pytest.raises(BadInput, match="needs files for training and, named test, for testing"):
        convert.file_set([str(DATA)], str(tmp_path / "x"), Task("llamafactory"))


def test_the_classic_file_set_is_read_back_with_each_episode_once(tmp_path: Path) -> None:
    folder, back = tmp_path / "set", tmp_path / "back.jsonl"
    convert.file_set([str(run_folder.ROOT / "data")], str(folder), Task(convert.FILE_SET))
    copies = [str(folder / f"react_{split}_alpaca.json") for split in ("test", "train")]
    done = command(folder, back, "--to", "messages")
    assert f"not read: {', '.join(copies)}; the ShareGPT files beside them hold the same" in done.stdout.decode()
    both = [(run_folder.ROOT / "data" / f"{split}.jsonl").read_bytes() for split in ("test", "train")]
    assert back.read_bytes() == b"".join(both)
    assert to(tmp_path / "again.jsonl", *sorted(folder.glob("*.json"))[1:]).not_read == copies
    assert to(tmp_path / "one.jsonl", copies[0]).read == 48


GOOD = LINES[0]


def nested(depth: int) -> bytes:
    """An episode that carries something so deep."""
    return b'{"messages":[{"role":"user","content":"Hi"}],"a":' + b"[" * depth + b"]" * depth + b"}\n"


SAID = b'{"messages":[{"role":"user","content":'
PACKED = gzip.compress(GOOD * 50)
FRAME = zstandard.compress(GOOD * 50)
BAD: list[tuple[str, bytes, str]] = [
    ("empty", b"", "1: the file is empty"),
    ("blank", b"\n \n", "1: the file is empty"),
    ("cut short", GOOD + GOOD[:-20], "2: not JSON ("),
    ("an array cut short", b"[" + GOOD + b",\n" + GOOD[:-20], "3: the array does not end: the file is cut short"),
    ("an array without its end", b"[" + GOOD + b",", "2: the array does not end: the file is cut short"),
    ("two arrays", b"[" + GOOD + b"]\n[]", "3: something stands after the array's end"),
    ("no comma", b"[" + GOOD + GOOD + b"]", "2: no comma between two elements"),
    ("a comma too many", b"[" + GOOD + b",\n," + GOOD + b"]", "3: a comma too many"),
    ("a comma at the end", b"[" + GOOD + b",]", "2: a comma before the array's end"),
    ("numbers", b"[1, 2]", "1: an element is no object"),
    ("an empty array", b"[ ]\n", "1: no episode in it"),
    ("a number", GOOD + b"7\n", "2: no object"),
    ("UTF-16", GOOD.decode().encode("utf-16"), "1: UTF-16 text; save the file as UTF-8"),
    ("Latin-1", GOOD + '{"messages":[{"role":"user","content":"Käse"}]}\n'.encode("latin-1"), "2: not UTF-8 text"),
    ("Latin-1 text", "You are in a room\n> go to Käse 1\n".encode("latin-1"), "1: not UTF-8 text"),
    ("binary", bytes(range(256)) * 9, "1: not a known format"),
    ("prose", b"This is no episode.\n", "1: not a known format"),
    ("other JSON", b'{"text":"Hi"}\n', "1: not a known format: an episode has"),
    ("NaN", GOOD + b'{"score": NaN,"messages":[{"role":"user","content":"Hi"}]}\n', "2: NaN is not JSON"),
    ("deep", GOOD + nested(10_000), "2: nested too deep"),
    ("a deep array", b"[" + nested(10_000) + b"]", "1: nested too deep"),
    ("so deep that it could not be written", nested(500), "1: nested too deep"),
    ("a doubled key", GOOD + SAID + b'"a","content":"b"}]}\n', '2: the key "content" stands twice'),
    ("a doubled key in an array", b"[\n" + SAID + b'"\\\\","content":""}]}]', '2: the key "content" stands'),
    ("gzip cut short", PACKED[:-30], ": the gzip data are cut short"),
    ("gzip damaged", PACKED[:40] + b"\xff\xff\xff\xff" + PACKED[44:], ": the gzip data are damaged"),
    ("zstd cut short", FRAME[:-30], ": the zstd data are cut short"),
    ("zstd damaged", FRAME[:8] + b"\xff\xff\xff\xff" + FRAME[12:], ": the zstd data are damaged"),
    ("no turns", GOOD + b'{"messages":[]}\n', "2: no turns"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "why"), [each[1:] for each in BAD], ids=[each[0] for each in BAD])
def test_bad_input_is_one_line_with_its_place_and_the_old_file_stays(tmp_path: Path, data: bytes, why: str) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(data)
    out.write_bytes(b"old")
    with pytest.raises(BadInput) as error:
        to(out, path, force=True)
    said = str(error.value)
    assert said.startswith(f"{path}:") and why in said and "\n" not in said
    assert out.read_bytes() == b"old" and {item.name for item in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_a_fault_far_into_a_large_file_has_its_line(tmp_path: Path) -> None:
    path = large(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3210] = lines[3210][:-5] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(BadInput, match="large.jsonl:3211: not JSON"):
        to(tmp_path / "out.jsonl", path)


def test_paths_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(BadInput, match="none.jsonl: cannot be read .No such file"):
        to(out, tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="no file has such a name"):
        to(out, tmp_path / "*.jsonl")
    with pytest.raises(BadInput, match="a folder without a file of episodes"):
        to(out, tmp_path)
    with pytest.raises(BadInput, match="a folder; name a file in it"):
        to(tmp_path, DATA)
    with pytest.raises(BadInput, match="cannot be written"):
        to(DATA / "out.jsonl", DATA)
    assert list(tmp_path.iterdir()) == []


def test_a_path_without_permission_is_one_line(tmp_path: Path) -> None:
    closed, sealed = tmp_path / "closed", tmp_path / "sealed"
    for folder in (closed, sealed):
        folder.mkdir()
        (folder / "in.jsonl").write_bytes(GOOD)
        (folder / "in.jsonl").chmod(0)
    closed.chmod(0o555)
    sealed.chmod(0)
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    me = os.geteuid()
    if me == 0:  # To root everything is permitted.
        os.seteuid(65534)
    try:
        for folder in (closed, sealed):
            with pytest.raises(BadInput, match="in.jsonl: cannot be read .Permission denied"):
                to(tmp_path / "out.jsonl", folder / "in.jsonl")
            with pytest.raises(BadInput, match="out.jsonl: cannot be written .Permission denied"):
                to(folder / "out.jsonl", DATA)
    finally:
        os.seteuid(me)
        sealed.chmod(0o700)


def test_a_wrong_name_of_a_format_is_one_line() -> None:
    for words in (("--to", "parquet"), ("--to", "alpaca", "--from", "csv"), ("--to", "alpaca", "--per", "word")):
        done = command(DATA, "out.json", *words)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == b""


MEASURE = """
import sys
from tools import BadInput; from tools.data import convert
from tools.data.formats.worker import Task
try:
    convert.convert_files([sys.argv[1]], sys.argv[2], Task("messages"))
except BadInput as error:
    print(error)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@pytest.mark.parametrize(
    "begin", [b'{"messages":"', b'[{"messages":"', b'["', b"> ", b'{"messages":[' + b'{"a":1},' * 99]
)
def test_a_line_of_100_mb_is_refused_in_little_memory(tmp_path: Path, begin: bytes) -> None:
    path = tmp_path / "line.jsonl"
    with path.open("wb") as file:
        file.write(begin)
        for _ in range(100):
            file.write(b"x" * 10**6)
    line = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "out.jsonl")]
    said, peak = subprocess.run(
        line, cwd=run_folder.ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said.startswith(f"{path}:1: ") and ("more than 16 MiB" in said or "no object" in said)
    assert int(peak) < 120_000


def test_a_small_gzip_file_that_unpacks_to_much_is_read_in_little_memory(tmp_path: Path) -> None:
    for name, data in (("bomb.gz", gzip.compress(b" " * 10**8, 9)), ("bomb.zst", zstandard.compress(b" " * 10**8))):
        (tmp_path / name).write_bytes(data)
        line = [sys.executable, "-c", MEASURE, str(tmp_path / name), str(tmp_path / "out.jsonl")]
        said, peak = subprocess.run(
            line, cwd=run_folder.ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert said.startswith(f"{tmp_path / name}:1: ") and int(peak) < 120_000


def test_a_full_disk_is_a_clear_error_and_the_old_file_stays(tmp_path: Path) -> None:
    for path in (large(tmp_path), DATA):
        out = tmp_path / "out.jsonl"
        out.write_bytes(b"old")
        limit = path.stat().st_size // 2
        line = f'ulimit -f {limit // 1024}; exec "$@" convert "{path}" "{out}" --to sharegpt --force'
        done = subprocess.run(
            ["bash", "-c", line, "-", *TOOLS],
            cwd=run_folder.ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and "no space left on the disk" in done.stderr
        assert len(said(done.stderr)) == 1 and out.read_bytes() == b"old"
        assert not list(tmp_path.glob(".*"))


def test_an_interrupted_conversion_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"old")
    line = [*TOOLS, "convert", "-", str(out), "--to", "sharegpt", "--force"]
    with subprocess.Popen(line, cwd=run_folder.ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stderr
        process.stdin.write(b"".join(LINES) * 40)
        process.stdin.flush()
        while not list(tmp_path.glob(".*")):
            time.sleep(0.05)
        time.sleep(1)  # until it waits for more
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert said(process.stderr.read().decode()) == ["react-recipes: stopped; run the same command again to go on"]
    assert out.read_bytes() == b"old" and {item.name for item in tmp_path.iterdir()} == {"out.jsonl"}


def test_ctrl_c_while_several_processes_convert_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C goes to all processes of the terminal's group, at whatever moment."""
    path = large(tmp_path)
    path.write_bytes(path.read_bytes() * 20)
    before = {item.name for item in tmp_path.iterdir()}
    for _ in range(3):
        out = tmp_path / "out.jsonl"
        line = [*TOOLS, "convert", str(path), str(out), "--to", "sharegpt"]
        with subprocess.Popen(line, cwd=run_folder.ROOT, stderr=subprocess.PIPE, text=True, process_group=0) as process:
            while not list(tmp_path.glob(".*.partial*")) and process.poll() is None:
                time.sleep(0.001)
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert said(errors) == ["react-recipes: stopped; run the same command again to go on"]
        assert {item.name for item in tmp_path.iterdir()} == before


def test_processes_that_are_killed_fail_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "START", "{!r}; import sys; sys.stdin.buffer.read(100); sys.exit(3)")
    with pytest.raises(Failed, match="status 3"):
        to(tmp_path / "out.jsonl", large(tmp_path))
    assert not (tmp_path / "out.jsonl").exists()


def test_progress_is_shown_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    path = large(tmp_path)
    line = [*TOOLS, "convert", str(path), str(tmp_path / "out.jsonl"), "--to", "sharegpt"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        line, cwd=run_folder.ROOT, stderr=theirs, stdout=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # so ends a terminal on Linux
            pass
        assert process.wait() == 0
    os.close(ours)
    assert b"MB/s" in shown and b":" in shown


# Pieces of files, whole and broken, and what stands between them.
PIECES = st.sampled_from(
    (
        *(b"[", b"]", b"{", b"}", b",", b"\n", b'"', b"\\", b":", b"\xef\xbb\xbf", b"\xff", b"\x00", b"NaN", b"1e999"),
        *(b"\\ud800", b"null", b"-", b'{"messages":[', b'{"role":"user","content":"Hi"}', b'{"conversations":['),
        *(
            b'{"from":"gpt","value":"x","loss":1}',
            b'{"from":"function_call","value":"[{}]"}',
            b'"extra":{"messages":[{}]}',
        ),
        *(b'{"instruction":"a","output":"b"', b'"extra":{"step_of":[1,2]}', b'"history":[["a"]]', b'"tool_calls":[{}]'),
        *(b'{"role":"tool","content":"x"}', b'{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}'),
        *(
            b"> think: x\n",
            b"OK.\n",
            b"> go\n",
            b"#####\n",
            b"Environment #0:\n",
            b"STATUS: OK\n",
            b"Act 1: go\n",
            b"Obs 1: x\n",
        ),
        *(gzip.compress(GOOD)[:60], b"\x28\xb5\x2f\xfd", b"\x1f\x8b", LINES[1][:300], b"[" * 300),
    )
)
SEEDS = st.sampled_from((GOOD, b"[" + GOOD + b"," + GOOD + b"]", gzip.compress(GOOD), zstandard.compress(GOOD), b""))


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A good file with a few pieces of it gone, doubled, or replaced; or a heap of pieces."""
    data = draw(SEEDS) or b"".join(draw(st.lists(PIECES | st.binary(max_size=4), max_size=12)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(PIECES | st.binary(max_size=4)) + data[at + draw(st.integers(0, 40)) :]
    return data


@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=files(),
    target=st.sampled_from((*formats.JSON, *formats.TEXT)),
    wanted=st.sampled_from(("", "", *formats.JSON, *formats.TEXT)),
    how=st.integers(0, 7),
)
def test_whatever_a_file_holds_it_is_converted_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, target: str, wanted: str, how: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(data)
    task = Task(target, calls=bool(how & 1), steps=bool(how & 2), drop=bool(how & 4), wanted=wanted)
    try:
        counts = convert.convert_files([str(path)], os.devnull, task)
    except BadInput as error:
        assert str(error).startswith(f"{path}:") and len(str(error).splitlines()) == 1
    else:
        assert counts.read == counts.written > 0


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(
        st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)).map(
            lambda value: {"a": value}
        ),
        min_size=1,
    ),
    indent=st.sampled_from((None, 1)),
    size=st.integers(1, 50),
)
def test_an_array_in_any_pieces_is_cut_into_its_elements(
    rows: list[dict[str, Any]], indent: int | None, size: int
) -> None:
    data = json.dumps(rows, indent=indent, ensure_ascii=False).encode()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found = []
    for chunk in chunks.array(iter(pieces)):
        assert not isinstance(chunk, chunks.Fault)
        if isinstance(chunk, chunks.Elements):
            found += [json.loads(chunk.data[begin:end]) for begin, end in chunk.spans]
    assert found == rows


def test_a_set_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "set"
    source.mkdir()
    (source / "train.jsonl").write_bytes(b"".join(LINES))
    (source / "test.jsonl").write_bytes(b"{no json\n")
    for _ in range(2):
        with pytest.raises(BadInput, match="test.jsonl:1"):
            convert.file_set([str(source)], str(out), Task(convert.FILE_SET))
        assert not list(out.iterdir())
    (source / "test.jsonl").write_bytes(LINES[0])
    convert.file_set([str(source)], str(out), Task(convert.FILE_SET))
    before = {item: item.read_bytes() for item in out.iterdir()}
    assert len(before) == 6
    with pytest.raises(BadInput, match="is there already"):
        convert.file_set([str(source)], str(out), Task(convert.FILE_SET))
    assert {item: item.read_bytes() for item in out.iterdir()} == before
    convert.file_set([str(source)], str(out), Task(convert.FILE_SET), force=True)
