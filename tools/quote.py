"""A stranger's text in what we write: quoted by the rule of each format, or refused where the format cannot hold it.

Its functions are filters of our templates too, by FILTERS: `cd {{ root | shell }}`.
"""

import re
import shlex
import unicodedata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tools import BadInput

if TYPE_CHECKING:
    from rich.text import Text

# Unicode's categories of what no one sees and a terminal may obey: controls, formats, halves of a pair, separators.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# A format that words are written with, Persian ones say: the zero-width non-joiner.
SPELT = "\u200c"


def visible(text: object, keep: str = "") -> str:
    r"""A text to be read, in one line: what cannot be seen is shown as Python writes it (\n, \x1b), but for `keep`."""
    return "".join(
        repr(each)[1:-1] if unicodedata.category(each) in HIDDEN and each not in SPELT + keep else each
        for each in str(text)
    )


def cell(text: object) -> "Text":
    """A text for a table that rich draws: visible, and no markup."""
    from rich.text import Text

    return Text(visible(text))


def plain_name(text: str, what: str) -> str:
    """A name, as it is. Raises BadInput where it holds what cannot be seen, such as a line feed."""
    if visible(text) != text:
        raise BadInput(f"{visible(text)}: {what} with a character that cannot be seen in its name; rename it")
    return text


def shell(text: object) -> str:
    """A word for sh and bash."""
    return shlex.quote(str(text))


def sbatch(text: object) -> str:
    r"""A value on an #SBATCH line. Raises BadInput for more than one line, which there is no way to write.

    In quotes a backslash takes the next letter as it is: get_argument in src/sbatch/opt.c of Slurm.
    """
    return '"' + re.sub(r'(["\\])', r"\\\1", plain_name(str(text), "for Slurm, a file")) + '"'


def sbatch_log(folder: object) -> str:
    """The pattern of a job's log in `folder`, slurm-%j.log, on an #SBATCH line. Raises BadInput for a backslash too.

    A backslash anywhere in it would turn `%j` off: expand_stdio_fields in src/common/print_fields.c of Slurm.
    """
    if "\\" in str(folder):
        raise BadInput(f"{folder}: Slurm takes no backslash in the path of a log; give the folder another name")
    return sbatch(str(folder).replace("%", "%%") + "/slurm-%j.log")


def modelfile_value(text: object, what: str = "a value") -> str:
    """A value of a Modelfile, in quotes where it needs them. Raises BadInput for what Ollama would read otherwise.

    Read in parser/parser.go of Ollama 0.34.2: there are no escapes; a value ends with the first line at whose end its
    quotes are closed; a character that is not printable (as in Python, so in Go), and no tab or line feed in quotes,
    is dropped.
    """
    value = str(text)
    if '"""' in value:
        raise BadInput(f"a Modelfile cannot hold three quotes: {what}, {value[:80]!r}")
    lost = next((each for each in value if not each.isprintable() and each not in "\t\r\n"), None)
    if lost is not None:
        raise BadInput(f"a Modelfile cannot hold {lost!r}, which Ollama drops: {what}, {value[:80]!r}; take it out")
    if re.fullmatch(r"[\w./:@+-]+", value):
        return value
    quotes = '"""' if re.search(r'["\r\n]', value) else '"'
    return f"{quotes}{value}{quotes}"


def yaml_scalar(text: object) -> str:
    """A text as a YAML scalar on one line."""
    from yaml import safe_dump

    return str(safe_dump(str(text), default_style='"', width=float("inf"), allow_unicode=True)).rstrip("\n")


def markdown(text: object) -> str:
    """A text in a line or a table's cell of Markdown, with nothing in it that Markdown or HTML would obey.

    It does not begin the line: what lists and headings begin with is left. An underscore within a word is no emphasis.
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
    """How many backticks stand in a row, at most."""
    return max(map(len, re.findall("`+", text)), default=0)


FILTERS: Mapping[str, Callable[..., str]] = {
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
