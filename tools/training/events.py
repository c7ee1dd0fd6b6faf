"""How a training says what it does: events, a line of JSON each, from the plugin in Axolotl to `train`.

They travel on stdout, marked. torchrun and accelerate pass stdout on and close other descriptors; a file would have to
be watched; and this way each event stands in train.log between what Axolotl wrote before and after it. Other processes
and tqdm write to the same pipe, some without an end of line. So each event begins with a line feed and is one write:
a pipe keeps that in one piece up to PIPE_BUF, at least 512 bytes (POSIX).
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import orjson

MARK = "react-recipes event: "


@dataclass(frozen=True)
class Event:
    """One thing that a training did; None: not known, or of no meaning here.

    event: what. stage: what Axolotl does next, for a person. step, steps: updates done, and in all. loss: of the
    updates since the last one logged. reward: the mean of the games that were played. tokens: read so far by all
    processes, padding included (not of pairs), and how many a second since the first update. device_gib: the most
    reserved so far on this machine's first GPU. checkpoint: the name of its folder.
    """

    event: Literal["stage", "step", "evaluated", "saved", "stopped", "diverged"]
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    reward: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    device_gib: float | None = None
    checkpoint: str | None = None


def emit(event: Event) -> None:
    """Write an event to stdout, from the first process of each machine: each machine has its own reader."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        known = {key: value for key, value in asdict(event).items() if value is not None}
        os.write(1, b"\n%b%b\n" % (MARK.encode(), orjson.dumps(known)))


def read(lines: Iterable[str]) -> Iterator[Event]:
    """The events among the lines that Axolotl writes."""
    for line in lines:
        if line.startswith(MARK):
            yield Event(**orjson.loads(line.removeprefix(MARK)))
