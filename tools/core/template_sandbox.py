"""Renders chat templates in a process of its own, for chat_template.py; see there for what it is for.

    python -I template_sandbox.py TRANSFORMERS

TRANSFORMERS is the path of transformers' own utils/chat_template_utils.py: it is loaded alone, since all of
transformers takes 0.8 s and 70 MB, and this one file 0.06 s and 20 MB. Requests come on stdin, pickled; answers go to
stdout, and are never pickled: who reads them does not trust us. The length of each stands before it. We end when stdin
does. How long a template runs is limited by who waits for the answer.
"""

import contextlib
import functools
import importlib.util
import json
import logging
import pickle
import resource
import struct
import sys
import time
import types
from collections.abc import Callable

# Bytes of memory that a template may take beside what we have before it.
ROOM = 2**30
# Bytes that it may write, and bytes more for each byte of the request.
BYTES, BYTES_PER_BYTE = 2**18, 8
# Characters of an error's text.
WORDS = 2000
# Length of a request, in bytes.
REQUEST = struct.Struct(">Q")
# Length of an answer, in bytes, and the processor time that it took, in seconds.
ANSWER = struct.Struct(">Qd")
# How an answer begins: it is a text, a JSON value, or an error: [its class's name, what it says].
TEXT, VALUE, ERROR = b"=", b"#", b"!"


class TooMuch(Exception):
    """A template wrote more than it may."""


def main() -> None:
    """Answer requests until there are no more."""
    theirs = transformers(sys.argv[1])
    work: dict[str, Callable[..., bytes]] = {
        "render": functools.partial(render, theirs),
        "marked": functools.partial(marked, theirs),
        "message_variables": message_variables,
    }
    limit()
    send(VALUE + b"0", 0.0)
    while head := sys.stdin.buffer.read(REQUEST.size):
        request = sys.stdin.buffer.read(*REQUEST.unpack(head))
        begin = time.process_time()
        send(answer(work, request), time.process_time() - begin)


def transformers(path: str) -> types.ModuleType:
    """transformers' module of chat templates, with stand-ins for the modules beside it that it imports."""
    available = {"is_jinja_available": True, "is_torch_available": False, "is_vision_available": False}
    stand_in("transformers")
    stand_in("transformers.utils", __path__=[])
    stand_in("transformers.utils.logging", get_logger=logging.getLogger)
    stand_in("transformers.utils.import_utils", **{name: (lambda so=so: so) for name, so in available.items()})
    return loaded("transformers.utils.chat_template_utils", path)


def stand_in(name: str, **holds: object) -> None:
    """Have a module of this name, that holds this alone, imported already."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(holds)


def loaded(name: str, path: str) -> types.ModuleType:
    """A module out of one file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def limit() -> None:
    """Limit our memory to what we have and ROOM, where the system tells what we have (Linux); leave no core."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm", "rb") as file:
        allowed = int(file.read().split()[0]) * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


def answer(work: dict[str, Callable[..., bytes]], request: bytes) -> bytes:
    """The answer to a request: (what to do, its arguments)."""
    try:
        what, given = pickle.loads(request)
        made = work[what](*given)
        if len(made) > most(request):
            raise TooMuch
    except Exception as error:  # whatever an untrusted program raises
        return ERROR + json.dumps([type(error).__name__, said(error)]).encode()
    return made


def most(request: bytes) -> int:
    """Bytes that the answer to a request may have."""
    return BYTES + BYTES_PER_BYTE * len(request)


def said(error: Exception) -> str:
    """What an error says, which may be an error itself."""
    try:
        return str(error)[:WORDS]
    except Exception:
        return ""


def render(theirs: types.ModuleType, template: str, variables: dict[str, object]) -> bytes:
    """The text of a template."""
    text: str = theirs._compile_jinja_template(template).render(**variables)
    return TEXT + text.encode()


def marked(theirs: types.ModuleType, template: str, variables: dict[str, object]) -> bytes:
    """The text of a template, and where the assistant's parts are, by its `generation` tags."""
    compiled = theirs._compile_jinja_template(template)
    return VALUE + json.dumps(theirs._render_with_assistant_indices(compiled, **variables)).encode()


def message_variables(template: str, path: str, field: str) -> bytes:
    """Which of a message's keys a template reads, as Axolotl's analyzer, the file at `path`, finds them."""
    found = analyzer(path).JinjaTemplateAnalyzer(template).get_message_vars(field)
    return VALUE + json.dumps(sorted(found)).encode()


@functools.cache
def analyzer(path: str) -> types.ModuleType:
    """Axolotl's module that reads templates."""
    return loaded("jinja_template_analyzer", path)


def send(body: bytes, seconds: float) -> None:
    """Send an answer."""
    sys.stdout.buffer.write(ANSWER.pack(len(body), seconds) + body)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
