"""What is told of long work: on a pipe plain lines at set times, on a terminal a bar; nothing of short work."""

import http.server
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from tools import Failed
from tools.core import files, progress, run_folder
from tools.gguf import llamacpp
from tools.pipeline.model import f16_told, make_gguf
from tools.pipeline.trained import tuned

# Quick: a line after 0.4 s, then one a second.
QUICK = "import sys, time\nfrom tools.core import progress\nprogress.FIRST, progress.EVERY = 0.4, 1.0\n"
RUN = [sys.executable, "-c"]


def on_a_pipe(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with stderr on a pipe. Not a carriage return or an escape code may be in it, whatever happens."""
    given = os.environ | environment
    done = subprocess.run([*RUN, QUICK + code], cwd=run_folder.ROOT, capture_output=True, env=given, timeout=120)
    said = done.stderr.decode()
    assert "\r" not in said and "\x1b" not in said, said
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), said)


def on_a_terminal(code: str, stop_at: bytes = b"", **environment: str) -> tuple[str, str, int]:
    """Run Python code with stderr on a terminal and stdout on a pipe: what each got, and the exit status.

    `stop_at`: press Ctrl-C when this is on the screen.
    """
    ours, theirs = os.openpty()
    given = os.environ | {"TERM": "xterm", "COLUMNS": "100"} | environment
    with subprocess.Popen(
        [*RUN, QUICK + code], cwd=run_folder.ROOT, stdout=subprocess.PIPE, stderr=theirs, env=given
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # so ends a terminal on Linux
                break
            if stop_at and stop_at in shown:
                process.send_signal(signal.SIGINT)
                stop_at = b""
        assert process.stdout
        out = process.stdout.read().decode()
    os.close(ours)
    return shown.decode(), out, process.returncode


def test_nothing_is_said_of_short_work() -> None:
    done = on_a_pipe("""
for number in range(5):
    with progress.bar("short", 10) as shown:
        shown.update(5)
        time.sleep(0.1)
print("result", "rich" in sys.modules)
""")
    assert (done.stderr, done.stdout) == ("", "result False\n")


def test_long_work_is_told_when_it_has_lasted_and_then_now_and_again() -> None:
    done = on_a_pipe("""
began = time.monotonic()
with progress.bar("llama.cpp: building", 210) as shown:
    for number in range(30):
        time.sleep(0.1)
        shown.update(number * 7)
print(time.monotonic() - began)
""")
    lines = done.stderr.splitlines()
    assert 2 <= len(lines) <= 1 + float(done.stdout)
    assert all(re.match(r"llama\.cpp: building, \d+ of 210, \d s", line) for line in lines)


def test_it_speaks_while_a_module_is_imported(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text("import time\ntime.sleep(2)\n")
    done = on_a_pipe(f"""
sys.path.insert(0, {str(tmp_path)!r})
with progress.step("loading heavy"):
    import heavy
""")
    assert done.stderr.splitlines()[0] == "loading heavy, 0 s" and "loading heavy, 1 s" in done.stderr


def test_work_within_work_takes_its_place_meanwhile() -> None:
    done = on_a_pipe("""
with progress.step("outer"):
    time.sleep(0.7)
    with progress.bar("inner", 2, "pieces") as shown:
        shown.advance()
        time.sleep(0.8)
    time.sleep(2)
""")
    names = [re.sub(r", \d s$", "", line) for line in done.stderr.splitlines()]
    assert [name for name, _ in itertools.groupby(names)] == ["outer", "inner, 1 of 2 pieces", "outer"]


def test_many_short_steps_in_a_long_one_are_not_silent() -> None:
    done = on_a_pipe("""
with progress.step("outer"):
    for number in range(20):
        with progress.step(f"inner {number}"):
            time.sleep(0.15)
""")
    assert len(done.stderr.splitlines()) >= 2


def test_work_that_goes_on_after_its_total_is_finishing() -> None:
    done = on_a_pipe("""
with progress.bar("scoring", 2) as shown:
    shown.update(2)
    time.sleep(0.7)
""")
    assert re.fullmatch(r"(scoring, 2 of 2, finishing, \d s\n)+", done.stderr)


def test_an_error_ends_it() -> None:
    done = on_a_pipe("""
import threading
try:
    with progress.step("outer"), progress.step("inner"):
        time.sleep(0.6)
        raise ValueError("broken")
except ValueError:
    before = threading.active_count(), list(progress.GOING)
time.sleep(1.5)
print(*before)
""")
    assert re.fullmatch(r"(inner, \d s\n)+", done.stderr) and done.stdout == "1 []\n"


def test_control_characters_of_others_do_not_come_through() -> None:
    done = on_a_pipe(
        r"""
with progress.step("Ollama:\r\x1b[31m pulling\n[bold]") as shown:
    time.sleep(0.6)
""",
        FORCE_COLOR="1",
        TTY_COMPATIBLE="1",
    )
    assert re.fullmatch(r"(Ollama:  \[31m pulling \[bold\], \d s\n)+", done.stderr)


def test_nobody_who_reads_is_no_error() -> None:
    code = QUICK + "with progress.step('work'):\n    time.sleep(2)\nprint('result')"
    with subprocess.Popen([*RUN, code], cwd=run_folder.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stderr.close()
        assert process.stdout.read() == b"result\n"


def test_on_a_terminal_there_is_a_bar_and_stdout_is_left_alone() -> None:
    shown, out, status = on_a_terminal("""
with progress.step("outer"):
    with progress.bar("model.gguf: converting [f16]", 4, "tensors") as shown:
        for number in range(4):
            time.sleep(0.2)
            shown.advance()
        print("result")
""")
    assert (out, status) == ("result\n", 0)
    assert re.search(r"━.* model\.gguf: converting \[f16\], [123] of 4 tensors, \d s", shown)
    # What took long stays, as a line of its own.
    assert re.search(r"model\.gguf: converting \[f16\], 4 of 4 tensors, \d s\r\n", shown)
    assert shown.rstrip().endswith("\x1b[2K") and "\x1b[?25h" in shown


def test_ctrl_c_gives_the_terminal_back() -> None:
    shown, _, status = on_a_terminal(
        """
try:
    with progress.bar("work", 9):
        time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    sys.exit(130)
""",
        stop_at=b"work",
    )
    assert status == 130 and shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


def test_a_terminal_that_cannot_draw_gets_lines() -> None:
    shown, _, _ = on_a_terminal("with progress.bar('work', 9):\n    time.sleep(0.6)", TERM="dumb")
    assert re.match(r"work, 0 of 9, \d s\r\n", shown)  # a terminal makes this of a line's end
    assert "\x1b" not in shown and "━" not in shown


@pytest.mark.parametrize(("mark", "told"), [("[$n/8]", r"\d of 8 files"), ("[ $((n * 12))%]", r"\d+ %")])
def test_a_build_is_told_by_ninjas_and_by_makes_numbers(mark: str, told: str, tmp_path: Path) -> None:
    loop = f'for n in 1 2 3 4 5 6 7 8; do echo "{mark} Building"; sleep 0.2; done'
    done = on_a_pipe(f"""
from pathlib import Path
from tools.core import files; from tools.gguf import llamacpp
with files.log(Path({str(tmp_path / "build.log")!r})) as log:
    llamacpp.follow(["sh", "-c", {loop!r}, "--build"], log)
""")
    lines = done.stderr.splitlines()
    assert len(lines) >= 2 and all(re.match(rf"llama\.cpp: building, {told}, \d s", line) for line in lines)
    assert (tmp_path / "build.log").read_text().count("Building") == 8


def test_a_build_that_fails_ends_the_telling(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, pytest.raises(Failed, match=r"main\.c:1: error: no"):
        llamacpp.follow(["sh", "-c", "echo '[1/2] main'; echo 'main.c:1: error: no'; exit 1"], log)
    assert not progress.GOING


def test_the_rest_of_the_time_follows_from_the_speed_so_far() -> None:
    work, now = progress.Work("train", 10, "steps"), time.monotonic()
    work.began, work.first, work.last = now - 100, (now - 20, 1), (now - 10, 2)
    assert work.words() == "train, 2 of 10 steps, 1 min 40 s, about 1 min 10 s left"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (190, "3 min 10 s"), (7500, "2 h 5 min")]
)
def test_times_are_in_words(seconds: float, words: str) -> None:
    assert progress.lasting(seconds) == words


@pytest.mark.parametrize(
    ("done", "total", "unit", "words"),
    [
        (120, 210, "", "120 of 210"),
        (1200, None, "episodes", "1,200 episodes"),
        (45, 100, "%", "45 %"),
        (3.1e6, 271e6, "bytes", "3.1 of 271.0 MB"),
    ],
)
def test_amounts_are_in_words(done: float, total: float | None, unit: str, words: str) -> None:
    assert progress.amount(done, total, unit) == words


def test_large_files_are_told_of_while_they_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.1)
    with (tmp_path / "model.gguf").open("wb") as file:
        file.truncate(2**29)
    files.sha256(tmp_path / "model.gguf")
    assert capfd.readouterr().err.startswith("model.gguf: computing its SHA-256, ")
    monkeypatch.setattr(files, "LARGE", 2**30)
    files.sha256(tmp_path / "model.gguf")
    assert capfd.readouterr().err == ""


def test_f16_files_that_stay_are_told_of_with_path_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    this = run_folder.Run(tmp_path)
    this.gguf("F16").write_bytes(bytes(1_000_000))
    with f16_told(this):
        pass
    assert capsys.readouterr().err == ""
    with pytest.raises(Failed), f16_told(this):  # also when what followed fails
        this.gguf("F16", "base").write_bytes(bytes(2_000_000))
        raise Failed("the disk is full")
    line = f"{tmp_path}/base-f16.gguf: 2 MB, kept for the next quantisation; you may remove it"
    assert capsys.readouterr().err.splitlines() == [line]


class Hub(http.server.BaseHTTPRequestHandler):
    """A model hub with one model, whose weights come slowly."""

    protocol_version = "HTTP/1.1"
    files: ClassVar = {"config.json": b"{}", "model.safetensors": bytes(4_000_000)}

    def do_GET(self) -> None:
        name = self.path.split("?")[0].rpartition("/")[2]
        listed = {"id": "org/name", "sha": "a" * 40, "siblings": [{"rfilename": each} for each in self.files]}
        data = self.files[name] if "/resolve/" in self.path else json.dumps(listed).encode()
        kind = "application/octet-stream" if "/resolve/" in self.path else "application/json"
        self.send_response(200)
        headers = {"Content-Type": kind, "Content-Length": len(data), "ETag": f'"{name}"', "X-Repo-Commit": "a" * 40}
        for header, value in headers.items():
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:1000])
            time.sleep(len(data) / 1e6)
            self.wfile.write(data[1000:])

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_a_download_from_the_hub_is_told_of_in_bytes(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
        done = on_a_pipe(
            "from tools.gguf import base\nprint(base.from_hub('org/name').name)",
            **place,
            HF_HUB_OFFLINE="0",
            NO_PROXY="127.0.0.1",
            no_proxy="127.0.0.1",
        )
        server.shutdown()
    assert done.stdout == "a" * 40 + "\n", done.stderr
    assert "org/name: downloading from the model hub, 0.0 of 4.0 MB" in done.stderr


def test_all_of_it_is_shown_in_one_way() -> None:
    drawing = re.compile(r"rich\.(progress|status|live)|\.status\(\"|import tqdm|tqdm\(")
    found = {path.name for path in (run_folder.ROOT / "tools").rglob("*.py") if drawing.search(path.read_text())}
    # base.py silences the hub's own bars; ask.py draws no progress, but answers as they grow.
    assert found <= {"progress.py", "base.py", "ask.py"}


@pytest.mark.slow
def test_a_dry_run_says_that_axolotl_is_loaded(tmp_path: Path) -> None:
    done = on_a_pipe(
        "from tools import cli\nsys.argv[1:] = ['train', 'cpu/smollm2-135m-lora', '--dry-run']\ncli.main()",
        REACT_RECIPES_OUTPUTS=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "axolotl train" in done.stdout
    said = done.stderr.splitlines()
    assert said[0] == "loading Axolotl, which checks the recipe, 0 s" and len(said) > 2


@pytest.mark.slow
def test_an_f16_on_the_way_to_other_types_is_told_of(
    small_base: Path,
    small_adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(progress, "FIRST", 0.2)
    make_gguf(tuned("", str(small_base), str(small_adapter)), "Q8_0 Q4_0")
    said = capfd.readouterr().err.splitlines()
    kept = [re.search(r"/(\w+)-f16\.gguf: \d\d MB, kept for the next quantisation", line) for line in said[-2:]]
    assert [found and found[1] for found in kept] == ["model", "base"]
    assert any(line.startswith("model-f16.gguf: converting, ") for line in said) and not progress.GOING
