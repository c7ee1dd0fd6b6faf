"""The board's server: who may open the page, and what is said where it cannot be."""

import re
import socket

import pytest

from tests.parts.command import tools
from tools.board import serve
from tools.core import run_folder


def test_others_may_open_it_by_a_password_alone() -> None:
    done = tools("ui", "--host", "0.0.0.0", REACT_RECIPES_UI_PASSWORD="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "react-recipes: --host 0.0.0.0 opens the page to other machines; set REACT_RECIPES_UI_PASSWORD to the password "
        "they must give\n"
    )
    assert tools("ui", "--host", "my-host").stderr.startswith("react-recipes: --host my-host: not an address; ")


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = tools("ui", "--port", str(port))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"react-recipes: port {port} is in use by another program; choose another one\n"


@pytest.mark.parametrize(
    ("host", "origin", "refused"),
    [
        ("127.0.0.1:7870", None, False),
        ("localhost:7870", "http://localhost:7870", False),
        ("[::1]:7870", None, False),
        ("evil.example:7870", None, True),  # a name that leads here
        ("127.0.0.1:7870", "http://evil.example", True),
        ("127.0.0.1:7870", "http://127.0.0.1:8000", True),
        ("127.0.0.1:7870", "null", True),
        ("[", None, True),
        ("", None, True),
    ],
)
def test_another_sites_page_is_refused(host: str, origin: str | None, refused: bool) -> None:
    assert serve.foreign(host, origin, local=True) is refused


def test_with_a_password_the_page_may_have_any_name_but_no_other_page_speaks_for_it() -> None:
    assert not serve.foreign("my-host:7870", "http://my-host:7870", local=False)
    assert serve.foreign("my-host:7870", "http://evil.example", local=False)


def test_every_text_is_there_in_both_languages_and_is_used() -> None:
    english, chinese = serve.texts("en"), serve.texts("zh")
    assert all(english.values()) and all(chinese.values())
    assert all(re.search(r"[一-鿿]", text) for text in chinese.values() if not re.fullmatch(r"[\w ]*", text))
    code = "".join(path.read_text() for path in (run_folder.ROOT / "tools" / "board").glob("*.py"))
    code += "".join(path.read_text() for path in (run_folder.ROOT / "templates" / "board").glob("*.j2"))
    assert not [name for name in english if f'"{name}"' not in code and f"words.{name}" not in code]
