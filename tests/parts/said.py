"""What a command said on stderr, less the lines that tell of its progress (on a busy machine there may be some)."""

import re


def said(stderr: str) -> list[str]:
    """The lines of stderr that are not "title, 3 of 5, 1 min 5 s"."""
    return [line for line in stderr.splitlines() if not re.search(r", (\d+ (h|min|s) ?)+$", line)]
