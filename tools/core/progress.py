"""Progress on stderr: a bar or a spinner on a terminal; elsewhere a plain line now and then, and none for short work.

A thread writes it, so that a long import or a call into C is shown too. Work within other work is shown in its place.
Only the process and thread of the outermost work write: a fork shows nothing of its own.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

# Off a terminal: seconds after which work gets its first line, so that short work gets none; seconds between lines.
FIRST = 2.0
EVERY = 30.0
# The work that is going on, the innermost last: that one is shown.
GOING: list["Work"] = []


class Work:
    """One piece of work: its title, how much of it is done, since when."""

    def __init__(self, title: str, total: float | None, unit: str) -> None:
        self.title, self.total, self.unit = plain(title), total, unit
        self.began, self.told = time.monotonic(), False
        # When something was first known to be done and when last, and how much.
        self.first: tuple[float, float] | None = None
        self.last = (self.began, 0.0)

    def update(
        self,
        completed: float | None = None,
        total: float | None = None,
        title: str | None = None,
        unit: str | None = None,
    ) -> None:
        """What is known now; what is not given stays. A total of 0: none is known."""
        self.title = self.title if title is None else plain(title)
        self.total = self.total if total is None else total
        self.unit = self.unit if unit is None else unit
        if completed is not None and completed != self.last[1]:
            self.last = (time.monotonic(), completed)
            self.first = self.first or self.last

    def advance(self, by: float = 1) -> None:
        """So much more is done."""
        self.update(completed=self.last[1] + by)

    def words(self, ended: bool = False) -> str:
        """The work in one line: "llama.cpp: building, 120 of 210, 3 min 10 s"."""
        return ", ".join((self.title, *self.facts(ended)))

    def facts(self, ended: bool = False) -> Iterator[str]:
        """How far it is, for how long it has been going on, and how long the rest takes at the speed so far."""
        now, total, (then, done) = time.monotonic(), self.total, self.last
        if done or total:
            yield amount(done, total, self.unit)
        if self.unit == "bytes" and done:
            yield f"{done / 1e6 / max(then - self.began, 0.1):,.1f} MB/s"
        if total and done >= total and not ended:
            yield "finishing"
        yield lasting(now - self.began)
        if total and self.first and self.first[1] < done < total:
            begun, before = self.first
            left = (total - done) * (then - begun) / (done - before) - (now - then)
            if left > 1:
                yield f"about {lasting(left)} left"


def amount(done: float, total: float | None, unit: str) -> str:
    """How much of a total (None or 0: unknown) is done: "120 of 210", "3.1 of 271.0 MB", "45 %", "1,200 episodes"."""
    if unit == "%":
        return f"{done:.0f} %"
    if unit == "bytes":
        return f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB" if total else f"{done / 1e6:,.1f} MB"
    return " ".join(part for part in (f"{done:,.0f}" + (f" of {total:,.0f}" if total else ""), unit) if part)


def lasting(seconds: float) -> str:
    """A time in words: "40 s", "3 min 10 s", "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, rest_of_hour = divmod(minutes, 60)
    return f"{hours} h {rest_of_hour} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plain(text: str) -> str:
    """A text without control characters, which a program's own words may have."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def terminal() -> bool:
    """Whether stderr is a terminal that can draw over what it has shown."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


@contextlib.contextmanager
def bar(title: str, total: float | None = None, unit: str = "") -> Iterator[Work]:
    """Show some work for as long as the `with` lasts; what it yields is told how far the work is.

    `total`: None where it is not known (yet). `unit`: a word that follows the numbers; "bytes", "%" as such. When all
    of the total is done and the work goes on, it is said to be finishing.
    """
    work = Work(title, total, unit)
    with contextlib.ExitStack() as stack:
        GOING.append(work)
        stack.callback(GOING.remove, work)
        if len(GOING) == 1:
            stack.enter_context(drawn() if terminal() else in_lines())
        yield work
    if work.total and time.monotonic() - work.began >= FIRST and terminal():
        say(work.words(ended=True))  # what took long stays on the screen


@contextlib.contextmanager
def step(title: str) -> Iterator[Work]:
    """Show work of which nobody knows how far it is: see `bar`."""
    with bar(title) as work:
        yield work


@contextlib.contextmanager
def in_lines() -> Iterator[None]:
    """Write lines about the innermost work, while this lasts."""
    ended = threading.Event()

    def speak() -> None:
        before = time.monotonic()
        while not ended.wait(min(0.5, FIRST / 4)):
            now = time.monotonic()
            work = GOING[-1] if GOING else None
            if work and (now - before >= EVERY or (not work.told and now - work.began >= FIRST)):
                before, work.told = now, True
                say(work.words())

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(1.0)  # not for ever: whoever reads stderr may have stopped reading


def say(line: str) -> None:
    """Write one line to stderr, if there is anyone to read it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def drawn() -> Iterator[None]:
    """Draw the innermost work on the terminal, while this lasts."""
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    spinner = Spinner("line")

    def line() -> "RenderableType":
        if not GOING:
            return ""
        work, row = GOING[-1], Table.grid(padding=(0, 1))
        mark = ProgressBar(work.total, work.last[1], width=min(24, console.width // 4)) if work.total else spinner
        row.add_row(mark, Text(work.words(), no_wrap=True, overflow="ellipsis"))
        return row

    console = Console(stderr=True, force_terminal=True)
    # Where stdout is another file, what is printed there must reach it.
    shared = sys.stdout.isatty()
    with Live(get_renderable=line, console=console, refresh_per_second=4, transient=True, redirect_stdout=shared):
        yield
