"""Ollama: found, started, stopped; a model created, rendered, asked, removed."""

import contextlib
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import psutil
import pytest
from gguf import GGUFReader

from tools import BadInput, Failed
from tools.core import files, run_folder
from tools.core.process import Program
from tools.gguf import llamacpp
from tools.pipeline.serving import forget
from tools.serving import ollama

pytestmark = pytest.mark.heavy

# What SmolLM2's own template puts first when a conversation brings no system message.
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SYSTEM = {"role": "system", "content": 'Solve the task.\n\n Use "Thought:" and {{ .Action }}.\n'}
USER = {"role": "user", "content": "You are in the middle of a room.\nYour task is to: put some mug on desk."}
ASSISTANT = {"role": "assistant", "content": "Thought: I look <around> & 'search'.\nAction: go to desk 1"}
OBSERVATION = {"role": "user", "content": "  Observation: Nothing happens. é 你好 🙂 "}
CONVERSATIONS = [
    [SYSTEM, USER],
    [SYSTEM, USER, ASSISTANT, OBSERVATION],
    [SYSTEM, USER, ASSISTANT, OBSERVATION, ASSISTANT, OBSERVATION],
    [USER],
    [USER, ASSISTANT, OBSERVATION],
    [USER, ASSISTANT],
]
# Uses an Ollama of its own until it is told to end; a model is loaded, so that its llama-server runs too.
SESSION = """import os, sys, time
from tools.serving import ollama
with ollama.session() as here:
    ollama.chat(here.client, sys.argv[1], [{"role": "user", "content": "Hi"}], 4, 0.0)
    print(here.url, flush=True)
    time.sleep(60)
"""
# Gives a model to the Ollama at a URL.
CREATE = """import sys
from pathlib import Path
from tests.serving.test_ollama import spec_of
from tools.serving import ollama
ollama.create(ollama.connect(sys.argv[1]), spec_of(Path(sys.argv[2])))
"""


def spec_of(gguf: Path) -> ollama.Spec:
    return ollama.Spec(
        name="react-test",
        gguf=gguf,
        recipe="smollm2-135m-lora",
        recipe_hash="0123abcd",
        license="Apache-2.0",
        parameters={"num_ctx": 512, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repeat_penalty": 1.0},
        system=DEFAULT_SYSTEM,
        stop=["<|im_end|>", "<|im_start|>"],
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No Ollama of the user's, and a store of this test's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("outputs")
        patch.setenv("REACT_RECIPES_OUTPUTS", str(folder))
        # Nothing listens there, even where the user's own Ollama runs on its usual port.
        patch.setenv("OLLAMA_HOST", f"127.0.0.1:{llamacpp.free_port()}")
        yield folder


@pytest.fixture(scope="module")
def session(outputs: Path) -> Iterator[ollama.Session]:
    if ollama.install() is None:
        pytest.skip("neither Ollama nor Go is installed")
    with ollama.session() as here:
        yield here


@pytest.fixture(scope="module")
def spec(session: ollama.Session, smollm2_gguf: Path) -> ollama.Spec:
    """A model that is created in the session."""
    spec = spec_of(smollm2_gguf)
    ollama.create(session.client, spec)
    return spec


@pytest.fixture(scope="module")
def template(smollm2_gguf: Path) -> jinja2.Template:
    """The chat template that the model itself carries."""
    text = GGUFReader(smollm2_gguf).fields["tokenizer.chat_template"].contents()
    # As transformers compiles a chat template.
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_prompt_is_rendered_as_the_models_own_template_does(
    session: ollama.Session, spec: ollama.Spec, template: jinja2.Template, messages: list[dict[str, str]]
) -> None:
    expected = template.render(messages=messages, add_generation_prompt=True)
    assert ollama.render(session.client, spec.name, messages) == expected


def test_system_stands_before_a_conversation_that_has_none(session: ollama.Session, spec: ollama.Spec) -> None:
    other = replace(spec, name="react-test-system", system="Be brief.")
    ollama.create(session.client, other)
    start = "<|im_start|>system\n"
    assert ollama.render(session.client, other.name, [USER]).startswith(f"{start}Be brief.<|im_end|>\n")
    assert ollama.render(session.client, other.name, [SYSTEM, USER]).startswith(f"{start}Solve the task.")
    # With neither, SmolLM2's default is lost: Ollama's template cannot know of it.
    none = replace(other, system=None)
    ollama.create(session.client, none)
    assert ollama.render(session.client, none.name, [USER]).startswith("<|im_start|>user\n")
    assert ollama.remove(session.client, none.name)


def test_a_long_conversation_is_rendered_whole(
    session: ollama.Session, spec: ollama.Spec, template: jinja2.Template
) -> None:
    long = [SYSTEM, *[USER, ASSISTANT] * 30, USER]
    expected = template.render(messages=long, add_generation_prompt=True)
    assert ollama.render(session.client, spec.name, long) == expected


def test_an_answer_ends_by_itself_and_is_cut_at_the_limit(session: ollama.Session, spec: ollama.Spec) -> None:
    question = [{"role": "user", "content": "What is 2+2?"}]
    answer = ollama.chat(session.client, spec.name, question, max_tokens=200, temperature=0.0)
    assert answer.text.strip()
    assert "<|im_" not in answer.text
    assert answer.done_reason == "stop"
    assert 1 < answer.tokens < 200
    assert answer.seconds > 0
    assert ollama.chat(session.client, spec.name, question, 200, 0.0).text == answer.text
    cut = ollama.chat(session.client, spec.name, question, max_tokens=3, temperature=0.0)
    assert (cut.tokens, cut.done_reason) == (3, "length")


def test_the_modelfile_makes_the_same_model_as_the_api(
    session: ollama.Session, spec: ollama.Spec, tmp_path: Path
) -> None:
    text = ollama.modelfile(spec)
    assert "smollm2-135m-lora" in text
    assert "0123abcd" in text
    (tmp_path / "Modelfile").write_text(text)
    (tmp_path / spec.gguf.name).symlink_to(spec.gguf)
    program = ollama.find()
    assert program
    command = [str(program), "create", "react-test-file", "-f", "Modelfile"]
    environment = os.environ | {"OLLAMA_HOST": session.url, "HOME": str(tmp_path)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    ours, theirs = (session.client.show(name) for name in (spec.name, "react-test-file"))
    assert ours.template == theirs.template == spec.template()
    assert ours.license == theirs.license == "Apache-2.0"
    assert sorted(str(ours.parameters).splitlines()) == sorted(str(theirs.parameters).splitlines())
    systems = [re.findall(r'^SYSTEM "*(.*?)"*$', str(model.modelfile), re.MULTILINE) for model in (ours, theirs)]
    assert systems == [[DEFAULT_SYSTEM], [DEFAULT_SYSTEM]]
    assert ollama.remove(session.client, "react-test-file")


def test_a_model_goes_away_and_what_is_not_ours_is_left(session: ollama.Session, spec: ollama.Spec) -> None:
    ollama.create(session.client, replace(spec, name="react-test-gone"))
    names = {model.model for model in session.client.list().models}
    assert "react-test-gone:latest" in names
    assert ollama.remove(session.client, "react-test-gone")
    assert not ollama.remove(session.client, "react-test-gone")
    assert {model.model for model in session.client.list().models} == names - {"react-test-gone:latest"}
    for name in ("llama3", "other/react-x", "react-"):
        with pytest.raises(BadInput, match="no other is touched"):
            ollama.remove(session.client, name)
        with pytest.raises(BadInput, match="no other is touched"):
            ollama.create(session.client, replace(spec, name=name))


def test_a_name_that_is_taken_is_kept(session: ollama.Session, spec: ollama.Spec, tmp_path: Path) -> None:
    theirs = replace(spec, name="react-test-taken", system="Theirs.")
    ollama.create(session.client, theirs)
    mine = replace(theirs, gguf=tmp_path / "other.gguf", name="react-Test-TAKEN", system="Mine.")
    another = bytearray(spec.gguf.read_bytes())
    another[-1] ^= 1  # A weight.
    mine.gguf.write_bytes(another)
    with pytest.raises(BadInput, match=r"is in Ollama, a model of no recipe of ours: .*NAME=.*FORCE=1"):
        ollama.create(session.client, mine)
    assert session.client.show(theirs.name).modelinfo and "Theirs." in str(session.client.show(theirs.name).modelfile)
    ollama.create(session.client, theirs)  # The same file: made again.
    ollama.create(session.client, mine, force=True)
    assert "Mine." in str(session.client.show(theirs.name).modelfile)
    assert ollama.remove(session.client, theirs.name)


def test_a_newer_model_of_the_same_recipe_takes_its_name(session: ollama.Session, tmp_path: Path) -> None:
    from tests.serving.test_ollama_templates import FAMILIES, model

    ours = [model(tmp_path / f"{i}.gguf", FAMILIES[0], ends=i == 1, recipe="a-lora") for i in range(2)]
    first = ollama.Spec("react-test-again", ours[0], "a-lora", "0", "none", {"num_ctx": 512})
    ollama.create(session.client, first)
    ollama.create(session.client, replace(first, gguf=ours[1]))
    assert files.sha256(ours[1]) in str(session.client.show(first.name).modelfile)
    with pytest.raises(BadInput, match="a model of the recipe a-lora"):
        ollama.create(session.client, replace(first, gguf=ours[0], recipe="b-lora"))
    assert ollama.remove(session.client, first.name)


@pytest.mark.parametrize(
    "name",
    ["react-../../x", "react-/etc/passwd", "react-..", "react-x/../y", "react-\n", "react-é", "react-" + 99 * "x"],
)
def test_a_name_is_no_path(session: ollama.Session, spec: ollama.Spec, name: str) -> None:
    for refused in (lambda: ollama.create(session.client, replace(spec, name=name), force=True),
                    lambda: ollama.free(session.client, replace(spec, name=name)),
                    lambda: ollama.remove(session.client, name)):  # fmt: skip
        with pytest.raises(BadInput, match="no other is touched"):
            refused()


def test_a_digest_that_is_not_the_files_is_refused(session: ollama.Session) -> None:
    wrong = f"sha256:{'0' * 64}"
    with pytest.raises(Failed, match="not the file that was read"):
        ollama.upload(session.client, wrong, iter([b"some", b"thing"]), 9)
    assert ollama.http(session.client).head(f"/api/blobs/{wrong}").status_code == 404


def test_an_ollama_that_quantises_no_gguf_says_so(session: ollama.Session, spec: ollama.Spec) -> None:
    with pytest.raises(Failed, match=r"quantization is only supported for safetensors.*make setup"):
        ollama.create(session.client, replace(spec, name="react-test-quantised", quantize="Q4_K_M"))
    assert not ollama.there(session.client, "react-test-quantised")
    assert "ollama create react-test -q Q4_K_M -f Modelfile" in ollama.modelfile(replace(spec, quantize="Q4_K_M"))


@contextlib.contextmanager
def serving(store: Path) -> Iterator[tuple[psutil.Process, Any]]:
    """An Ollama of someone else's, which shares no file with us and may be killed; a client of it.

    Under the keeper: when a test kills Ollama, or fails, its llama-server ends too.
    """
    url = f"http://127.0.0.1:{llamacpp.free_port()}"
    environment = os.environ | {"OLLAMA_HOST": url, "OLLAMA_MODELS": str(store), "HOME": str(store.parent)}
    program = Program([str(ollama.find()), "serve"], env=environment, cwd="/", stderr=subprocess.DEVNULL)
    try:
        while not ollama_answers(url):
            assert program.poll() is None
        process = psutil.Process(program.pid).children()[0]
        yield process, ollama.connect(url)
    finally:
        program.stop()


def ollama_answers(url: str) -> bool:
    try:
        return "version" in ollama.answer_of(f"{url}/api/version")
    except ConnectionError:
        return False


def wait_for_blob(store: Path) -> None:
    """Until the first bytes of an upload are in the store."""
    while not any(item.stat().st_size for item in store.glob("blobs/*")):
        time.sleep(0.001)


def test_a_remote_ollama_needs_none_of_our_files(
    session: ollama.Session, spec: ollama.Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "gone.gguf"
    shutil.copy2(spec.gguf, copy)
    with serving(tmp_path / "store") as (_, client):
        monkeypatch.setenv("OLLAMA_HOST", str(ollama.http(client).base_url))
        with ollama.session() as theirs:
            assert not theirs.own
            ollama.create(theirs.client, replace(spec, gguf=copy))
            copy.unlink()
            assert ollama.chat(theirs.client, spec.name, [USER], 4, 0.0).tokens == 4
        assert ollama_answers(str(ollama.http(client).base_url))


def test_an_ollama_stopped_in_the_middle_of_the_upload(
    session: ollama.Session, spec: ollama.Spec, tmp_path: Path
) -> None:
    def stop() -> None:
        wait_for_blob(tmp_path / "store")
        process.kill()

    with serving(tmp_path / "store") as (process, client):
        killer = threading.Thread(target=stop)
        killer.start()
        with pytest.raises(Failed, match=r"does not answer.*start it, and run the same command again"):
            ollama.create(client, spec)
        killer.join()
    with serving(tmp_path / "store") as (_, client):
        assert not ollama.there(client, spec.name)
        ollama.create(client, spec)
        assert ollama.chat(client, spec.name, [USER], 4, 0.0).tokens == 4


def test_an_ollama_that_is_killed_leaves_no_llama_server(
    session: ollama.Session, spec: ollama.Spec, tmp_path: Path
) -> None:
    with serving(tmp_path / "store") as (process, client):
        ollama.create(client, spec)
        assert ollama.chat(client, spec.name, [USER], 4, 0.0).tokens == 4
        servers = [each for each in process.children(recursive=True) if each.name() == "llama-server"]
        assert servers
        process.kill()
    _, alive = psutil.wait_procs(servers, timeout=10)
    assert alive == []


def test_killed_while_a_model_is_created_leaves_none_of_its_name(
    session: ollama.Session, spec: ollama.Spec, tmp_path: Path
) -> None:
    with serving(tmp_path / "store") as (_, client):
        command = [sys.executable, "-c", CREATE, str(ollama.http(client).base_url), str(spec.gguf)]
        with subprocess.Popen(command, cwd=run_folder.ROOT, stderr=subprocess.DEVNULL) as ours:
            wait_for_blob(tmp_path / "store")
            ours.kill()
        assert not ollama.there(client, spec.name)
        ollama.create(client, spec)
        assert files.sha256(spec.gguf) in {item.name[7:] for item in (tmp_path / "store" / "blobs").iterdir()}
        assert ollama.chat(client, spec.name, [USER], 4, 0.0).tokens == 4


def test_a_model_is_served_by_its_own_template_though_its_file_is_in_use(
    session: ollama.Session, tmp_path: Path
) -> None:
    """Ollama would serve it on by the program that was started without the template in the file."""
    from tests.serving.test_ollama_templates import FAMILIES, expected, model

    llama = next(each for each in FAMILIES if each.name == "llama3")
    file = model(tmp_path / "model.gguf", llama)
    spec = ollama.Spec("react-test-own", file, "none", "0", "none", {"num_ctx": 512}, "chatml")
    ollama.create(session.client, spec)
    assert ollama.render(session.client, spec.name, [USER]).startswith("<|im_start|>user")
    ollama.create(session.client, replace(spec, family=None))
    assert ollama.render(session.client, spec.name, [USER]) == expected(llama, [USER])
    assert ollama.remove(session.client, spec.name)


def test_one_model_is_removed_by_its_name(
    session: ollama.Session, spec: ollama.Spec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", session.url)
    ollama.create(session.client, replace(spec, name="react-test-rm"))
    forget("react-test-rm")
    assert capsys.readouterr().out == "removed react-test-rm\n"
    with pytest.raises(BadInput, match="react-test-rm is not in Ollama; ours there: .*react-test:latest"):
        forget("react-test-rm")
    with pytest.raises(BadInput, match="no other is touched"):
        forget("llama3")


def test_failures_are_one_line(session: ollama.Session, spec: ollama.Spec, tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"react-none.*not found"):
        ollama.chat(session.client, "react-none", [USER], 4, 0.0)
    with pytest.raises(Failed, match=r"react-none.*not found"):
        ollama.render(session.client, "react-none", [USER])
    with pytest.raises(BadInput, match="no such file"):
        ollama.create(session.client, replace(spec, gguf=tmp_path / "none.gguf"))
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with pytest.raises(Failed, match="react-test-broken"):
        ollama.create(session.client, replace(spec, name="react-test-broken", gguf=tmp_path / "broken.gguf"))
    nobody = ollama.connect(f"http://127.0.0.1:{llamacpp.free_port()}")
    with pytest.raises(Failed, match="does not answer"):
        ollama.chat(nobody, spec.name, [USER], 4, 0.0)


def test_a_modelfile_refuses_what_it_cannot_say(smollm2_gguf: Path) -> None:
    with pytest.raises(BadInput, match="three quotes"):
        ollama.modelfile(replace(spec_of(smollm2_gguf), license='Say """.'))
    with pytest.raises(BadInput, match=r"no such chat family.*chatml"):
        ollama.modelfile(replace(spec_of(smollm2_gguf), family="morse"))
    plain = ollama.modelfile(replace(spec_of(smollm2_gguf), family=None, system=None, stop=[]))
    assert not {"TEMPLATE", "SYSTEM", "stop"} & set(plain.split())
    assert f"FROM ./{smollm2_gguf.name}\n" in plain


def test_a_running_ollama_is_used_and_left_as_found(
    session: ollama.Session, spec: ollama.Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", session.url.removeprefix("http://"))
    with ollama.session() as theirs:
        assert (theirs.url, theirs.own) == (session.url, False)
    assert session.own
    assert ollama.render(session.client, spec.name, [USER])


def test_our_own_store_keeps_to_the_outputs(session: ollama.Session, spec: ollama.Spec, outputs: Path) -> None:
    assert list((outputs / "ollama" / "models" / "blobs").iterdir())
    assert "Listening" in (outputs / "ollama" / "serve.log").read_text()
    assert not session.url.endswith(":11434")


@pytest.fixture
def web_server() -> Iterator[int]:
    """A program on a port that is not Ollama."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_port_that_another_program_holds_is_bad_input(web_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{web_server}")
    with pytest.raises(BadInput, match="in use by another program"), ollama.session():
        pass
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(ollama, "ANSWER_SECONDS", 0.5)
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(BadInput, match="in use by another program"), ollama.session():
            pass


def test_no_ollama_at_all_is_its_own_failure(tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("REACT_RECIPES_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ollama.NoOllama, match="llama-server"), ollama.session():
        pass


def test_without_go_the_installation_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("REACT_RECIPES_CACHE", str(tmp_path / "cache"))
    assert ollama.install() is None
    assert "no Go" in capfd.readouterr().err
    assert not ollama.home().exists()


def test_a_go_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if not (go := shutil.which("go")):
        pytest.skip("no Go")
    (tmp_path / "go").symlink_to(go)
    for name, setting in {"PATH": str(tmp_path), "GOPROXY": "off", "GOMODCACHE": str(tmp_path / "modules")}.items():
        monkeypatch.setenv(name, setting)
    monkeypatch.setenv("REACT_RECIPES_CACHE", str(tmp_path / "cache"))
    assert ollama.install() is None
    assert "could not be built" in capfd.readouterr().err
    assert not [*(tmp_path / "cache").iterdir()]


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        (":1234", "http://127.0.0.1:1234"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        ("http://box:5000/", "http://box:5000"),
        ("https://box", "https://box:443"),
        ("http://box", "http://box:80"),
        ("[::]:99", "http://[::1]:99"),
    ],
)
def test_addresses_are_read_as_ollama_reads_them(setting: str, url: str) -> None:
    assert ollama.address(setting) == url


def test_an_address_that_is_none_is_bad_input() -> None:
    with pytest.raises(BadInput, match="not a host and a port"):
        ollama.address("127.0.0.1:eleven")


@pytest.mark.parametrize(
    ("kind", "keeper_too"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGKILL, False), (signal.SIGKILL, True)],
)
def test_our_own_ollama_ends_with_us(
    session: ollama.Session, spec: ollama.Spec, outputs: Path, kind: signal.Signals, keeper_too: bool
) -> None:
    if kind != signal.SIGINT and sys.platform != "linux":
        pytest.skip("only Linux ends a child with its parent")
    command = [sys.executable, "-c", SESSION, spec.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=run_folder.ROOT) as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        assert url != session.url
        family = psutil.Process(process.pid).children(recursive=True)
        names = {member.name() for member in family}
        assert {"ollama", "llama-server"} <= names
        if keeper_too:  # as by a kill -9 of all Python programs
            psutil.Process(process.pid).children()[0].kill()
        process.send_signal(kind)
        assert process.wait(15) != 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    with pytest.raises(ConnectionError):
        ollama.answer_of(f"{url}/api/version")
    assert ollama.render(session.client, spec.name, [USER])  # The other session on the same store goes on.
