"""The command line, as a person calls it."""

import os
import subprocess
import sys

from tools.core import run_folder


def tools(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m tools` with these arguments, from the project's root."""
    return subprocess.run(
        [sys.executable, "-m", "tools", *arguments],
        cwd=run_folder.ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
