"""Untrusted text in what we write: quoted by the rule of each format, or refused where the format cannot hold it.

Names, titles, prompts, tasks and answers come from others. The functions here are also filters of our templates:
`cd {{ root | shell }}`.
"""

import re
import shlex
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from tools import BadInput

if TYPE_CHECKING:
    from rich.text import Text

# Unicode's categories of what no one sees and a terminal may obey: controls, formats, halves of a pair, separators.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Not hidden: the zero-width non-joiner, which is part of the spelling of Persian and other words.
ALLOWED = "\u200c"


def visible(text: object, keep: str = "") -> str:
    r"""A text for people to read, on one line: hidden characters are shown as escapes (\n, \x1b), except `keep`."""
    return "".join(
        repr(each)[1:-1] if unicodedata.category(each) in HIDDEN and each not in ALLOWED + keep else each
        for each in str(text)
    )


def cell(text: object) -> "Text":
    """A text as the cell of a rich table: hidden characters shown as escapes, markup not interpreted."""
    from rich.text import Text

    return Text(visible(text))


def plain_name(text: str, what: str) -> str:
    """A name, unchanged. Raises BadInput if it holds a hidden character, such as a line feed."""
    if visible(text) != text:
        raise BadInput(f"{visible(text)}: {what} with a hidden character in its name; rename it")
    return text


def shell(text: object) -> str:
    """A word for sh and bash."""
    return shlex.quote(str(text))


def sbatch(text: object) -> str:
    """A value on an #SBATCH line. Raises BadInput for a line feed or another hidden character.

    Within quotes a backslash escapes the next character: get_argument in src/sbatch/opt.c of Slurm.
    """
    return '"' + re.sub(r'(["\\])', r"\\\1", plain_name(str(text), "a Slurm job or log")) + '"'


def sbatch_log(folder: object) -> str:
    """A job's log in `folder`, slurm-%j.log, on an #SBATCH line. Raises BadInput as `sbatch`, and for a backslash.

    A backslash anywhere in the path turns `%j` off: expand_stdio_fields in src/common/print_fields.c of Slurm.
    """
    if "\\" in str(folder):
        raise BadInput(f"{folder}: the path of a Slurm log cannot hold a backslash; rename the folder")
    return sbatch(str(folder).replace("%", "%%") + "/slurm-%j.log")


def modelfile_value(text: object, what: str = "a value") -> str:
    """A value of a Modelfile, quoted where needed. Raises BadInput for a text that Ollama would read differently.

    From parser/parser.go of Ollama 0.34.2: there are no escapes; a value ends at the first line end where its quotes
    are closed; characters that are not printable (Go and Python mean the same ones) are dropped, except tabs and line
    ends within quotes.
    """
    value = str(text)
    if why := not_in_modelfile(value):
        raise BadInput(f"a Modelfile cannot hold {why}: {what}, {value[:80]!r}; remove it")
    if re.fullmatch(r"[\w./:@+-]+", value):
        return value
    quotes = '"""' if re.search(r'["\r\n]', value) else '"'
    return f"{quotes}{value}{quotes}"


def not_in_modelfile(value: str) -> str:
    """What of a text a Modelfile cannot hold, see modelfile_value; empty where it can."""
    lost = next((each for each in value if not each.isprintable() and each not in "\t\r\n"), None)
    return "three quotes" if '"""' in value else "" if lost is None else f"{lost!r}, which Ollama drops"


def yaml_scalar(text: object) -> str:
    """A text as a YAML scalar on one line, in quotes unless it is a plain word or path."""
    return yaml_text(str(text))


@cache  # a recipe is full of the same few words; by their text, since True == 1
def yaml_text(value: str) -> str:
    """`yaml_scalar` of a text."""
    from yaml import safe_dump, safe_load

    if re.fullmatch(r"[\w./-]+", value, re.ASCII) and safe_load(value) == value:
        return value
    return str(safe_dump(value, default_style='"', width=float("inf"), allow_unicode=True)).rstrip("\n")


def markdown(text: object) -> str:
    """A text within a line or a table cell of Markdown: nothing in it is taken for Markdown or HTML.

    It must not begin the line: what starts a list or a heading is not escaped. Nor is an underscore within a word,
    which is no emphasis.
    """
    return re.sub(r"[\\`*\[\]<>&|~#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", visible(text).strip(" "))


def code(text: object) -> str:
    """A text as a code span in a line of Markdown."""
    shown = visible(text)
    ticks = "`" * (longest_ticks(shown) + 1)
    space = " " if shown.strip(" ") and shown.strip("` ") != shown else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def fenced(text: object) -> str:
    """A text as a code block of Markdown, without indentation."""
    fence = "`" * max(3, longest_ticks(str(text)) + 1)
    return f"{fence}\n{text}\n{fence}"


def longest_ticks(text: str) -> int:
    """The length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


FILTERS: Mapping[str, Callable[..., str]] = {
    "python": repr,
    "visible": visible,
    "shell": shell,
    "sbatch": sbatch,
    "sbatch_log": sbatch_log,
    "modelfile": modelfile_value,
    "yaml": yaml_scalar,
    "markdown": markdown,
    "code": code,
    "fenced": fenced,
}
