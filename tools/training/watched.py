"""Run by a trainer's own Python: its program, with our callback in every transformers Trainer.

    python -m tools.training.watched MODULE|FILE.py ARGUMENT...

It goes on from the checkpoint that the arguments name, where the program itself does not.
"""

import contextlib
import runpy
import sys
from typing import Any

with contextlib.suppress(ImportError):
    import unsloth  # noqa: F401  where it is, it must come before transformers

from transformers import Trainer

from tools.training.watch import Watch

begin, train = Trainer.__init__, Trainer.train


def begin_watched(trainer: Trainer, *arguments: Any, **named: Any) -> None:
    """Make a Trainer, and watch it."""
    begin(trainer, *arguments, **named)
    trainer.add_callback(Watch())


def train_on(trainer: Trainer, resume_from_checkpoint: Any = None, **named: Any) -> Any:
    """Train from the checkpoint that was named, here or in the arguments."""
    return train(trainer, resume_from_checkpoint or trainer.args.resume_from_checkpoint, **named)


if __name__ == "__main__":
    for name, ours in (("__init__", begin_watched), ("train", train_on)):
        setattr(Trainer, name, ours)
    sys.argv = sys.argv[1:]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
