"""The command line, as a person calls it."""

import contextlib
import io
import logging
import os
import resource
import signal
import subprocess
import sys
import warnings
from typing import Any

import pytest

from tools import cli
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


def tools_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m tools` with these arguments in this process, which loads torch and Axolotl once for many calls."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    logged = logging.root.manager.disable
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr("sys.argv", ["react-recipes", *arguments])
            with pytest.raises(SystemExit) as ended:
                cli.main()
    finally:
        logging.disable(logged)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())
