"""ReAct trajectories to a model that answers in Ollama. Run as `python -m tools COMMAND`."""

__version__ = "0.1.0"


class BadInput(Exception):
    """What the user gave cannot be used: one line that says what is wrong, where and how to fix it. Exit status 2."""


class Failed(Exception):
    """The input was good and the work failed: one line that says what happened and what to do. Exit status 1."""
