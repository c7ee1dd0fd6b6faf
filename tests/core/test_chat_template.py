"""A stranger's chat template: what it makes is transformers' own text, and what it costs has limits."""

import datetime
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
import psutil
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from tools import BadInput, Failed
from tools.core import chat_template, run_folder
from tools.gguf import base, find_base

TALK = [
    {"role": "system", "content": "Act."},
    {"role": "user", "content": "Find a \U0001f642 & <b>."},
    {"role": "assistant", "content": "Thought: é\nAction: look"},
    {"role": "user", "content": "  Observation: {{ x }}\n"},
]
PLAIN = "{% for each in messages %}[{{ each.role }}]{{ each.content }}{% endfor %}"
DEEP = "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"
FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module", autouse=True)
def as_it_was() -> Iterator[None]:
    """transformers without us, after these tests."""
    kept = dict(vars(chat_template_utils))
    yield
    vars(chat_template_utils).update(kept)
    chat_template.SANDBOX.stop()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of bytes, and a chat template."""
    folder = tmp_path_factory.mktemp("small") / "base"
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    whole = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    whole.chat_template = PLAIN + "{% if add_generation_prompt %}{{ eos_token }}{% endif %}"
    whole.save_pretrained(folder)
    return folder


def rendered(template: str, **variables: Any) -> str:
    """What the sandbox makes of a template."""
    return chat_template.Template(template).render(**{"messages": TALK, **variables})


@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen3"])
def test_the_text_is_transformers_own(family: str) -> None:
    text = (run_folder.ROOT / "templates" / "chat" / f"{family}.jinja").read_text()
    for asked in (False, True):
        given = {"messages": TALK[1:], "tools": [chat_template.TOOL], "bos_token": "<s>", "eos_token": "</s>"}
        given |= {"add_generation_prompt": asked, "documents": None}
        own = chat_template_utils._cached_compile_jinja_template(text).render(**given)
        assert rendered(text, **given) == own


def test_a_tokenizer_renders_in_the_sandbox(small: Path) -> None:
    whole: Any = AutoTokenizer.from_pretrained(small)
    text = whole.apply_chat_template(TALK, tokenize=False)
    ids = whole.apply_chat_template([TALK, TALK[:2]], return_dict=False, add_generation_prompt=True)
    marked = "{% for each in messages %}{% generation %}{{ each.content }}{% endgeneration %};{% endfor %}"
    options: Any = {"chat_template": marked, "return_assistant_tokens_mask": True, "return_dict": True}
    mask = whole.apply_chat_template(TALK[1:3], **options)["assistant_masks"]
    going_on = whole.apply_chat_template(TALK[:3], tokenize=False, continue_final_message=True)

    here = chat_template.tokenizer(small)
    chat_template.SANDBOX.stop()
    assert here.apply_chat_template(TALK, tokenize=False) == text
    assert chat_template.SANDBOX.process
    assert here.apply_chat_template([TALK, TALK[:2]], return_dict=False, add_generation_prompt=True) == ids
    encoded: Any = here.apply_chat_template(TALK[1:3], **options)
    assert encoded["assistant_masks"] == mask
    assert here.apply_chat_template(TALK[:3], tokenize=False, continue_final_message=True) == going_on
    assert 0 in mask and 1 in mask


def test_axolotl_finds_the_same_keys_of_a_message() -> None:
    from axolotl.prompt_strategies.chat_template import ChatTemplatePrompter

    kept = ChatTemplatePrompter.get_chat_template_msg_variables
    text = (run_folder.ROOT / "templates" / "chat" / "qwen3.jinja").read_text()
    asked = Any, text, "messages"
    own = kept(*asked)  # type: ignore[arg-type]
    chat_template.install_in_axolotl()
    try:
        assert ChatTemplatePrompter.get_chat_template_msg_variables(*asked) == own  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="nested too deep"):
            ChatTemplatePrompter.get_chat_template_msg_variables(Any, DEEP, "messages")  # type: ignore[arg-type]
    finally:
        vars(sys.modules[ChatTemplatePrompter.__module__])[
            "ChatTemplatePrompter"
        ].get_chat_template_msg_variables = kept


TOO_LONG = {
    "loops": FOREVER,
    "calls": "{% macro f(x) %}{% if x %}{{ f(x-1) }}{{ f(x-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "number": "{{ 10**(10**9) }}",
}
TOO_LARGE = {
    "text": "{% set x = 'x' %}{{ (messages[0].content * 3 * 10**9)|length }}",
    "list": "{{ ([messages] * 10**9)|length }}",
    "centred": "{{ messages[0].content|center(10**10) }}",
    "format": "{{ '%1000000000d'|format(messages|length) * 3 }}",
    "doubled": "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
}
TOO_MUCH = {
    "repeated": "{{ 'x' * 10**7 }}",
    "looped": "{% for i in range(99999) %}{{ messages }}{% endfor %}",
}
NOT_ITS_OWN = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "format": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "file": "{% include '/etc/passwd' %}",
    "module": "{% import 'os' as os %}",
}
TOO_FAR = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "repeated": "{{ 'x' * 10**30 }}",
}
ENDLESS = {
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "nested": DEEP,
}


@pytest.mark.parametrize(
    ("template", "why"),
    [
        pytest.param(template, why, id=f"{why}, {name}")
        for why, templates in {
            "does not end": TOO_LONG,
            "more than 1 GiB of memory": TOO_LARGE,
            "writes far more": TOO_MUCH,
            "does what no template may": NOT_ITS_OWN,
            "counts too far": TOO_FAR,
            "calls itself without end": ENDLESS,
        }.items()
        for name, template in templates.items()
    ],
)
def test_a_limit_that_is_broken_is_one_line(template: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 3.0)
    rendered(PLAIN)
    assert chat_template.SANDBOX.process
    begin = time.monotonic()
    with pytest.raises(BadInput, match=why) as refused:
        rendered(template)
    assert not isinstance(refused.value, jinja2.TemplateError)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - begin < 20
    assert rendered(PLAIN).startswith("[system]Act.[user]Find")


def test_a_process_that_is_stopped_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.5)
    rendered(PLAIN)
    assert chat_template.SANDBOX.process
    keeper = psutil.Process(chat_template.SANDBOX.process.pid)
    family = [keeper, *keeper.children(recursive=True)]
    assert len(family) == 3  # the keeper, the sandbox, and the shell that waits for the keeper's end
    with pytest.raises(BadInput, match="does not end"):
        rendered(FOREVER)
    assert not any(each.is_running() for each in family)


@pytest.mark.parametrize(
    ("template", "said", "kind"),
    [
        ("{{ raise_exception('roles take turns') }}", "refuses a conversation: roles take turns", "TemplateError"),
        ("{{ raise_exception('') }}", "refuses a conversation: it does not say why", "TemplateError"),
        ("{{ raise_exception('\x1b[31mred\nline') }}", r"refuses a conversation: \x1b[31mred\nline", "TemplateError"),
        ("{{ none.x.y }}", "fails on a conversation: 'None' has no attribute 'x'", "UndefinedError"),
        ("{% if %}", "fails on a conversation: Expected an expression", "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "fails on a conversation: ZeroDivisionError: division by zero", "ZeroDivisionError"),
        ("{{ 1 + 'x' }}", "fails on a conversation: TypeError", "TypeError"),
        (r"{{ '\ud800' }}", "fails on a conversation: UnicodeEncodeError", "UnicodeEncodeError"),
    ],
)
def test_what_a_template_says_is_jinjas_error_and_bad_input(template: str, said: str, kind: str) -> None:
    with pytest.raises(jinja2.TemplateError) as refused:
        rendered(template)
    again = pickle.loads(pickle.dumps(refused.value))  # as from a process of datasets
    for error in (refused.value, again):
        assert isinstance(error, BadInput)
        assert str(error).startswith(f"the chat template {said}")
        assert "\n" not in str(error)
        assert error.kind == kind  # type: ignore[attr-defined]


def test_values_of_other_classes_are_given_as_pythons_own() -> None:
    class Words(str):
        """A text of a class of its own."""

    class Settings(dict[str, Any]):
        """A dictionary of a class of its own."""

    given = [{"role": "user", "content": Words("hi"), "more": Settings(a=(1, 2.5, None)), "on": datetime.date.min}]
    shown = str([{"role": "user", "content": "hi", "more": {"a": (1, 2.5, None)}, "on": datetime.date.min}])
    assert rendered("{{ messages }}", messages=given) == shown
    with pytest.raises(BadInput, match="is given a Process"):
        rendered("{{ x }}", x=psutil.Process())
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(BadInput, match="nested too deep"):
        rendered(PLAIN, messages=deep)


def test_a_long_conversation_is_rendered_whole() -> None:
    text = "x\U0001f642" * 2**20
    assert rendered(PLAIN, messages=[{"role": "user", "content": text}]) == f"[user]{text}"


def test_threads_and_forks_render_too() -> None:
    def differing(number: int) -> list[int]:
        return [each for each in range(50) if rendered("{{ x }}", x=f"{number} {each}") != f"{number} {each}"]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(differing, range(4))) == [[]] * 4
    assert chat_template.SANDBOX.process
    ours = chat_template.SANDBOX.process.pid
    with multiprocessing.get_context("fork").Pool(2) as forks:
        others = forks.map(in_a_fork, range(8))
    assert {text for text, _ in others} == {"[user]hi"}
    assert ours not in {process for _, process in others}
    rendered(PLAIN)
    assert chat_template.SANDBOX.process.pid == ours


def in_a_fork(_: int) -> tuple[str, int]:
    """What a process that was forked renders, and the process that it has for that."""
    text = rendered(PLAIN, messages=[{"role": "user", "content": "hi"}])
    assert chat_template.SANDBOX.process
    return text, chat_template.SANDBOX.process.pid


def test_a_process_that_was_killed_is_started_again() -> None:
    rendered(PLAIN)
    assert chat_template.SANDBOX.process
    child = psutil.Process(chat_template.SANDBOX.process.pid).children()[0]
    child.kill()
    chat_template.SANDBOX.process.wait()
    assert rendered("{{ 1 }}") == "1"


def test_it_ends_with_whoever_asked_for_it() -> None:
    script = f"""
import threading
from tools.core import chat_template
chat_template.Template("").render()
threading.Timer(0.5, lambda: print(chat_template.SANDBOX.process.pid, flush=True)).start()
chat_template.Template({FOREVER!r}).render()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=run_folder.ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        keeper = psutil.Process(int(process.stdout.readline()))
        family = [keeper, *keeper.children(recursive=True)]
        process.kill()
    psutil.wait_procs(family, 3)
    assert len(family) == 3  # the keeper, the sandbox, and the shell that waits for the keeper's end
    assert not any(each.is_running() for each in family)


def test_secrets_are_kept_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_ours")
    chat_template.SANDBOX.stop()
    rendered(PLAIN)
    assert chat_template.SANDBOX.process
    child = psutil.Process(chat_template.SANDBOX.process.pid).children()[0]
    assert "HF_TOKEN" not in child.environ()


def base_with(template: str, small: Path, folder: Path) -> Path:
    """A base's folder, its tokenizer alone, with this chat template."""
    shutil.copytree(small, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% if tools %}{{ ''.__class__.__mro__ }}{% endif %}", "does what no template may"),
        ("{% for i in range(99999) %}{% for j in range(99) %}{% endfor %}{% endfor %}", "is too slow"),
        ("{% if %}", "cannot be used: Expected an expression"),
        ("{{ 1 + 'x' }}", "cannot be used: TypeError"),
    ],
)
def test_a_base_whose_template_cannot_be_used_is_refused(template: str, why: str, small: Path, tmp_path: Path) -> None:
    folder = base_with(template, small, tmp_path / "base")
    with pytest.raises(BadInput, match=why) as refused:
        find_base.tokenizer(str(folder))
    assert str(refused.value).startswith(f"{folder}: its chat template")
    assert chat_template.tokenizer(folder, trial=False)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('never') }}",
        "{% if messages|length < 4 %}{{ raise_exception('too short') }}{% endif %}{{ 1 / 0 }}",
        "{% if tools %}{{ 1 / 0 }}{% endif %}x",
        "",
    ],
)
def test_a_base_whose_template_refuses_some_is_taken(template: str, small: Path, tmp_path: Path) -> None:
    assert chat_template.tokenizer(base_with(template, small, tmp_path / "base"))


def test_what_breaks_a_limit_later_is_no_refusal(small: Path, tmp_path: Path) -> None:
    late = "{% if messages|length > 6 %}{{ ''.__class__.__mro__ }}{% endif %}" + PLAIN
    tokenizer = chat_template.tokenizer(base_with(late, small, tmp_path / "base"))
    assert base.tokens(tokenizer, TALK[:2]) == len(tokenizer.encode("[system]Act.[user]Find a \U0001f642 & <b>."))
    with pytest.raises(BadInput, match=f"{tmp_path}.*does what no template may"):
        base.tokens(tokenizer, TALK * 2)


def test_a_template_that_breaks_a_limit_is_refused_before_transformers_is_loaded(small: Path, tmp_path: Path) -> None:
    folder = base_with("{{ 'x' * 10**7 }}", small, tmp_path / "base")
    script = """
import sys
from tools import BadInput; from tools.core import chat_template
try: chat_template.tokenizer(sys.argv[1])
except BadInput as error: print(error, [name for name in ("torch", "transformers") if name in sys.modules])
"""
    (tmp_path / "older").mkdir()  # with the template where transformers 4 has it
    (tmp_path / "older" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 'x' * 10**7 }}"}))
    for each in (folder, tmp_path / "older"):
        command = [sys.executable, "-c", script, str(each)]
        done = subprocess.run(command, cwd=run_folder.ROOT, stdout=subprocess.PIPE, text=True)
        assert done.stdout.startswith(f"{each}: its chat template writes far more")
        assert done.stdout.endswith("[]\n")


def test_a_template_under_a_name_is_tried_too(small: Path, tmp_path: Path) -> None:
    folder = base_with(PLAIN, small, tmp_path / "base")
    (folder / "additional_chat_templates").mkdir()
    rag = folder / "additional_chat_templates" / "rag.jinja"
    rag.write_text("{{ documents|length }}")
    assert set(chat_template.tokenizer(folder).chat_template) == {"default", "rag"}
    rag.write_text("{{ 'x' * 10**7 }}")
    with pytest.raises(BadInput, match="writes far more"):
        chat_template.tokenizer(folder)


def test_a_template_in_a_gguf_is_tried() -> None:
    good = {"general.name": "x", "tokenizer.chat_template": PLAIN, "tokenizer.chat_template.odd": "{{ 1 + bos_token }}"}
    chat_template.check_gguf(good, "a.gguf")
    for name in ("tokenizer.chat_template", "tokenizer.chat_template.tool_use"):
        with pytest.raises(BadInput, match=r"^b\.gguf: its chat template writes far more"):
            chat_template.check_gguf({name: "{{ 'x' * 10**7 }}"}, "b.gguf")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"chat_template": 5}'),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_one_line(name: str, text: str, small: Path, tmp_path: Path) -> None:
    folder = base_with(PLAIN, small, tmp_path / "base")
    if name == "tokenizer_config.json":
        (folder / "chat_template.jinja").unlink()
    (folder / name).write_text(text)
    with pytest.raises((BadInput, Failed)) as refused:
        chat_template.tokenizer(folder)
    assert str(refused.value).startswith(str(folder))
    assert "\n" not in str(refused.value)


def test_a_command_ends_with_one_line_and_status_2(small: Path, tmp_path: Path) -> None:
    folder = base_with(FOREVER, small, tmp_path / "base")
    command = [sys.executable, "-m", "tools", "lint", "data/test.jsonl", "--base", str(folder)]
    done = subprocess.run(command, cwd=run_folder.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"react-recipes: {folder}: its chat template does not end")
    assert "Traceback" not in done.stderr
