"""Environments of their own for other people's programs that only tests need, each made once from its lock."""

from pathlib import Path

from tools.core import run_folder
from tools.training import environments

LOCKS = run_folder.ROOT / "tests" / "parts" / "locks"


def programs(package: str, name: str) -> Path:
    """The folder with the programs of locks/NAME.lock, made in the cache where it is missing or of another lock."""
    return environments.installed(package, LOCKS / f"{name}.lock")
