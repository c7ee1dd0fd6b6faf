"""The variables that a person gives make: a misspelt one is refused, since make itself passes over it in silence."""

import difflib
import re
from collections.abc import Iterator

from tools import BadInput
from tools.core import run_folder

# How alike two names must be for one to be the other misspelt: TYER and TIER are 0.75.
NEAR = 0.7


def refuse_misspelt(flags: str) -> None:
    """Raise BadInput for a variable on make's command line that is nearly one of the Makefile's.

    `flags`: MAKEFLAGS as make hands it on. Another name is left alone: it reaches the programs as their environment.
    """
    if run_folder.INSTALLED:  # called by a Makefile of somebody else
        return
    known = list(names(run_folder.ROOT.joinpath("Makefile").read_text(encoding="utf-8")))
    # Values have their spaces behind a backslash.
    for name in re.findall(r"(?<!\\) (\w+)=", flags.partition("--")[2]):
        near = difflib.get_close_matches(name, known, n=1, cutoff=NEAR)
        if near and name not in known:
            raise BadInput(f"{name}=: no such variable; did you mean {near[0]}=?")


def names(makefile: str) -> Iterator[str]:
    """The names in the Makefile's list VARIABLES."""
    found = re.search(r"^VARIABLES := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    yield from re.findall(r"\w+", found[1]) if found else ()
