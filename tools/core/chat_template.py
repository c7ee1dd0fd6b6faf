"""Chat templates are untrusted programs: each runs in a process of its own, within limits of time, memory and text.

`install` has transformers render there, whoever asks it to, Axolotl too. The text is the same: template_sandbox.py runs
transformers' own code. A template that breaks a limit raises BadInput. So does one that refuses a conversation or
fails, and that error is a jinja2.TemplateError too, as it is without us, for those who go on without the text.
"""

import atexit
import importlib.util
import io
import json
import os
import pickle
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from tools import BadInput, Failed
from tools.core import hf_folder, progress, template_sandbox
from tools.core.process import Program, without_secrets
from tools.core.quote import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Seconds that a template may run, and seconds more for each MiB that it is given. A conversation of 16 turns, 2 kB,
# takes the templates of SmolLM2, Qwen 3 and Llama 3 0.00004 s.
SECONDS, SECONDS_PER_MIB = 5.0, 1.0
# Seconds of the processor that the short conversations of a trial may take together.
TRIAL_SECONDS = 0.5
# Seconds that the process may take to start.
START = 60.0
# What to do about a template that cannot be used.
FIX = "replace it with the template of its model's family, or use another base model"

# Short conversations to try a template on: a question, an answer, a system message, a tool.
USER, ANSWER = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call00000", "type": "function", "function": {"name": "look", "arguments": {}}}
USED = [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call00000", "name": "look", "content": "A desk."},
]
TRIALS = [
    {"messages": talk, "tools": [TOOL] if talk[-1] in USED else None, "documents": None, "add_generation_prompt": asked}
    for talk in (
        [USER],
        [USER, ANSWER],
        [{"role": "system", "content": "Be brief."}, USER, ANSWER, USER],
        [USER, *USED],
    )
    for asked in (False, True)
]
# The templates that were tried, and whose they are.
known: dict[str, str] = {}


class Unrendered(jinja2.TemplateError, BadInput):
    """A template refuses a conversation, or fails.

    `said`: why, in the template's own words. `kind`: the error's class by name, TemplateError for a refusal.
    """

    def __init__(self, message: str, said: str = "", kind: str = "TemplateError") -> None:
        super().__init__(message)
        self.said, self.kind = said, kind


class Ended(Exception):
    """The process that renders ended."""


class Sandbox:
    """The process that renders, one for all threads; started when first needed, and again after a breach or a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: Program | None = None
        self.seconds = 0.0  # of the processor, for the last answer

    def ask(self, what: str, template: str, *given: object) -> Any:
        """What a function of the sandbox makes of a template: a text, or any JSON value.

        Raises Unrendered for what the template says or fails with, BadInput for a limit that it breaks.
        """
        whose = f"{known[template]}: its chat template" if template in known else "the chat template"
        request = pickled((what, (template, *given)))
        limit = SECONDS + SECONDS_PER_MIB * len(request) / 2**20
        with self.lock:
            try:
                made = self.asked(request, limit)
                if made.startswith(template_sandbox.ERROR):
                    raise error_of(whose, *json.loads(made[1:]))
            except TimeoutError:
                self.stop()
                raise BadInput(f"{whose} does not end: stopped after {limit:.0f} s; {FIX}") from None
            except Ended:
                raise BadInput(f"{whose} breaks the process that renders it ({self.stop()}); {FIX}") from None
            except Unrendered:
                raise
            except BaseException:
                self.stop()  # Else the answer to this request would be taken for that to the next.
                raise
        body = made[1:]
        return json.loads(body) if made.startswith(template_sandbox.VALUE) else body.decode()

    def asked(self, request: bytes, limit: float) -> bytes:
        """The answer to a request, within `limit` seconds. Raises TimeoutError, Ended."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.start()
        assert self.process and self.process.stdin
        send(self.process.stdin.fileno(), template_sandbox.REQUEST.pack(len(request)) + request)
        return self.answer(limit, template_sandbox.most(request))

    def answer(self, limit: float, most: int) -> bytes:
        """The next answer, within `limit` seconds and `most` bytes. Raises TimeoutError, Ended."""
        assert self.process and self.process.stdout
        stream, deadline = self.process.stdout.fileno(), time.monotonic() + limit
        size, self.seconds = template_sandbox.ANSWER.unpack(receive(stream, template_sandbox.ANSWER.size, deadline))
        if size > most:
            raise Ended
        return receive(stream, size, deadline)

    def start(self) -> None:
        """Start the process and wait until it is ready. Raises Failed."""
        theirs = importlib.util.find_spec("transformers")  # It is not imported: that takes 5 s.
        if not theirs or not theirs.origin:
            raise ModuleNotFoundError(name="transformers")
        code = Path(theirs.origin).parent / "utils" / "chat_template_utils.py"
        # Byte code is kept where ours is, or not at all.
        kept = [f"-Xpycache_prefix={sys.pycache_prefix}"] if sys.pycache_prefix else ["-B"]
        command = [sys.executable, "-I", "-Wignore", *kept, str(template_sandbox.__file__), str(code)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = Program(command, env=without_secrets(), bufsize=0, **pipes)
        try:
            self.answer(START, template_sandbox.BYTES)
        except (Ended, TimeoutError) as error:
            raise Failed(f"the process that renders chat templates did not start: {self.stop()}") from error

    def stop(self) -> str:
        """End the process, if there is one; how it ended."""
        process, self.process = self.process, None
        if process is None:
            return ""
        process.stop(0)
        assert process.stdin and process.stdout and process.stderr
        said = process.stderr.read(2**16).decode(errors="replace").strip().rpartition("\n")[2]
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
        return visible(said) or f"status {process.returncode}"

    def forget(self) -> None:
        """In a fork: leave the process and the lock to the parent."""
        if self.process:
            self.process.let_go()
            self.process.returncode = 0
        self.process, self.lock = None, threading.Lock()


SANDBOX = Sandbox()
atexit.register(SANDBOX.stop)
os.register_at_fork(after_in_child=SANDBOX.forget)


def error_of(whose: str, kind: str, said: str) -> BadInput:
    """The exception for an error in the sandbox."""
    said = visible(said.strip())
    if kind == "MemoryError":
        return BadInput(f"{whose} wants more than {template_sandbox.ROOM >> 30} GiB of memory; {FIX}")
    if kind == "TooMuch":
        return BadInput(f"{whose} writes far more than it is given; {FIX}")
    if kind == "OverflowError":
        return BadInput(f"{whose} counts too far: {said.rstrip('.')}; {FIX}")
    if kind == "RecursionError":
        return BadInput(f"{whose} calls itself without end, or is nested too deep; {FIX}")
    if kind == "SecurityError" or said.startswith("no loader"):
        what = said.rstrip(".") if kind == "SecurityError" else "it asks for another file"
        return BadInput(f"{whose} does what no template may: {what}; {FIX}")
    if not hasattr(jinja2.exceptions, kind):
        said = f"{kind}: {said}"
    does = "refuses a conversation" if kind == "TemplateError" else "fails on a conversation"
    return Unrendered(f"{whose} {does}: {said or 'it does not say why'}", said or does, kind)


class Plain(pickle.Pickler):
    """Writes each dictionary, list, tuple and text as Python's own: the sandbox has no other classes of them."""

    def reducer_override(self, value: object) -> Any:
        """How to write what pickle has no way of its own for. Raises BadInput for what the sandbox cannot have."""
        for kind in (dict, list, tuple):
            if isinstance(value, kind):
                return kind, (kind(value),)
        if isinstance(value, str):
            return str, (str.__str__(value),)
        home = getattr(value, "__module__", None) or type(value).__module__
        if home.partition(".")[0] not in sys.stdlib_module_names:
            raise BadInput(
                f"a chat template is given a {type(value).__name__}; it takes texts, numbers and lists of them"
            )
        return NotImplemented


def pickled(value: object) -> bytes:
    """A request. Raises BadInput for what is nested too deep, or has a type that the sandbox does not know."""
    body = io.BytesIO()
    try:
        Plain(body, pickle.HIGHEST_PROTOCOL).dump(value)
    except RecursionError as error:
        raise BadInput("a conversation is nested too deep for any chat template") from error
    return body.getvalue()


def send(stream: int, data: bytes) -> None:
    """Write all of `data`. Raises Ended where no one reads it."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(stream, rest) :]
    except BrokenPipeError as error:
        raise Ended from error


def receive(stream: int, size: int, deadline: float) -> bytes:
    """Read `size` bytes. Raises TimeoutError where they are not there by the deadline (time.monotonic()), Ended."""
    poll, got = select.poll(), bytearray()
    poll.register(stream, select.POLLIN)
    while len(got) < size:
        if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            raise TimeoutError
        piece = os.read(stream, min(size - len(got), 2**20))
        if not piece:
            raise Ended
        got += piece
    return bytes(got)


class Template:
    """A template in the place of one that transformers compiled."""

    def __init__(self, text: str) -> None:
        self.text = text

    def render(self, **variables: object) -> str:
        """The text that it makes. Raises as Sandbox.ask does."""
        return str(SANDBOX.ask("render", self.text, variables))

    @property
    def environment(self) -> jinja2.Environment:
        """The environment that transformers compiles in, for those who only parse."""
        from transformers.utils import chat_template_utils

        compiled: jinja2.Template = chat_template_utils._cached_compile_jinja_template("")
        return compiled.environment


def marked(
    compiled_template: Template,
    messages: object,
    tools: object,
    documents: object,
    add_generation_prompt: bool,
    **others: object,
) -> tuple[str, list[tuple[int, int]]]:
    """The text that a template makes, and where the assistant's parts are in it, by its `generation` tags.

    Raises as Sandbox.ask does.
    """
    variables = {"messages": messages, "tools": tools, "documents": documents, **others}
    variables["add_generation_prompt"] = add_generation_prompt
    text, marks = SANDBOX.ask("marked", compiled_template.text, variables)
    return str(text), [(begin, end) for begin, end in marks]


def install() -> None:
    """Have transformers render chat templates in the sandbox, in this process and in those that it forks."""
    from transformers.utils import chat_template_utils

    theirs = {"_compile_jinja_template": Template, "_render_with_assistant_indices": marked}
    vars(chat_template_utils).update(theirs)


def install_in_axolotl() -> None:
    """`install`, and have Axolotl look in the sandbox for the keys of a message that a template reads."""
    from axolotl.prompt_strategies import chat_template, jinja_template_analyzer

    def read(_: object, template: str, field: str) -> set[str]:
        return set(SANDBOX.ask("message_variables", template, str(jinja_template_analyzer.__file__), field))

    install()
    vars(chat_template)["ChatTemplatePrompter"].get_chat_template_msg_variables = read


def tokenizer(where: str | Path, trial: bool = True) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder or of a model on the hub; no code of theirs is run, and their templates in the sandbox.

    `trial`: try its chat templates first, see `check_templates`; False where another template takes their place. Raises
    BadInput for a folder that holds none, Failed when the hub cannot give it.
    """
    if trial:
        check_templates(written(Path(where)), str(where), {})  # One that breaks a limit is not waited for.
    with progress.step("loading transformers"):  # 5 to 10 s, the first time
        from transformers import AutoTokenizer

    install()
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Broken files make it raise anything; a panic of Rust's is no Exception.
        why = visible((str(error).strip() or type(error).__name__).splitlines()[0])
        if Path(where).is_dir():
            raise BadInput(f"{where}: holds no tokenizer that can be read: {why}") from error
        raise Failed(f"{where}: its tokenizer cannot be had from the model hub: {why}; give a folder") from error
    templates = getattr(found, "chat_template", None) or {}  # A tokenizer of mistral-common has no such thing.
    named = templates if isinstance(templates, dict) else {"default": templates}
    if not all(isinstance(each, str) for each in named.values()):
        raise BadInput(f"{where}: its chat template is no text; {FIX}")
    if trial:
        check_templates(named, str(where), found.special_tokens_map)
    return found


def written(folder: Path) -> dict[str, str]:
    """The chat template in the files of a folder, if there is one, by its file's name."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return {file.name: file.read_text(encoding="utf-8", errors="replace")}
    text = hf_folder.settings(folder / "tokenizer_config.json").get("chat_template")
    return {"tokenizer_config.json": text} if isinstance(text, str) else {}


def default_text(folder: Path) -> str | None:
    """The chat template that the files of a folder have for a conversation; None where there is none.

    Raises BadInput where it has several by name, and none of them is the default.
    """
    if found := written(folder):
        return next(iter(found.values()))
    listed = hf_folder.settings(folder / "tokenizer_config.json").get("chat_template")
    named = {str(each.get("name")): each.get("template") for each in listed} if isinstance(listed, list) else {}
    named |= {path.stem: path.read_text() for path in folder.glob("additional_chat_templates/*.jinja")}
    text = named.get("default")
    if named and not isinstance(text, str):
        raise BadInput(
            f"{folder}: its chat templates are named {', '.join(sorted(named))}, and none is the default; write the "
            "one that training used into it as chat_template.jinja"
        )
    return text if isinstance(text, str) else None


def check_templates(templates: Mapping[str, str], whose: str, tokens: Mapping[str, str]) -> None:
    """Try chat templates, by name, on short conversations.

    `whose`: a folder, file or model, for the error. `tokens`: the special tokens by name. Raises BadInput for a
    template that breaks a limit, and for a default one that fails on each conversation, and not by refusing it.
    """
    for name, template in templates.items():
        known[template] = whose
        try:
            failed = tried(template, tokens)
            if name == "default" and len(failed) == len(TRIALS) and "TemplateError" not in {one.kind for one in failed}:
                raise BadInput(f"{whose}: its chat template cannot be used: {failed[0].said}; {FIX}")
        except BaseException:
            del known[template]
            raise


def tried(template: str, tokens: Mapping[str, str]) -> list[Unrendered]:
    """What a template has against TRIALS. Raises BadInput for a limit that it breaks."""
    failed, seconds = [], 0.0
    for number, each in enumerate(TRIALS):
        try:
            Template(template).render(**{**tokens, **each})
        except Unrendered as error:
            failed.append(error)
        seconds += SANDBOX.seconds if number else 0.0  # The first compiles it too.
        if seconds > TRIAL_SECONDS:
            slow = f"{seconds:.1f} s for short conversations"
            raise BadInput(f"{known[template]}: its chat template is too slow, {slow}; {FIX}")
    return failed


def check_gguf(header: Mapping[str, object], whose: str) -> None:
    """Try the chat templates in a GGUF's metadata (see gguf/header.py). Raises BadInput for one that breaks a limit.

    One that fails with transformers may still do for llama.cpp.
    """
    found = {key: text for key, text in header.items() if key.startswith("tokenizer.chat_template")}
    texts = {key: text for key, text in found.items() if isinstance(text, str)}
    check_templates(texts, whose, {"bos_token": "<s>", "eos_token": "</s>"})
