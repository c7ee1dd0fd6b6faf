"""The command line, as a person calls it."""

import os
import resource
import subprocess
import sys
from typing import Any

from tools.core import run_folder

# Bytes that a command which needs no model may take up; Python and what it loads for one take less than a third of it.
MEMORY = 2 * 2**30


def tools(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m tools` with these arguments, from the project's root."""
    return run(arguments, environment)


def tools_in_little_memory(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`tools` in MEMORY, and within a minute."""
    return run(arguments, environment, timeout=60, preexec_fn=limit)


def limit() -> None:
    """Limit this process to MEMORY."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def run(arguments: tuple[str, ...], environment: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m tools`; its output is kept."""
    command = [sys.executable, "-m", "tools", *arguments]
    told = os.environ | environment
    return subprocess.run(command, cwd=run_folder.ROOT, env=told, capture_output=True, text=True, **options)
