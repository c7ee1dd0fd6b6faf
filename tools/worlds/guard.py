"""A world that may raise, hang or answer nonsense: each ends its game in one line that says where, and nothing else."""

import ctypes
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

from tools import BadInput, Failed
from tools.core import quote
from tools.worlds.world import Task, World

# A step of a world is text made from text; one that takes longer than this waits for something that does not come.
SECONDS = 60.0
LONGEST_SAID = 300
METHODS = ("tasks", "reset", "step")
TEXTS = ("system_prompt", "nothing")
PROPERTIES = ("won", "done")
T = TypeVar("T")


class WorldFailed(Failed):
    """A world raised, took too long, or answered something that is no observation: one line with file:line."""


class _Answer(NamedTuple):
    value: object
    error: BaseException | None


_Calls = SimpleQueue[tuple[Callable[[], object], SimpleQueue[_Answer]] | None]


def _work(calls: _Calls) -> None:
    """Do what is asked for until told to end."""
    while job := calls.get():
        call, answers = job
        try:
            answers.put(_Answer(call(), None))
        except BaseException as error:  # a world may also call sys.exit
            answers.put(_Answer(None, error))
        del job, call, answers  # a queue that waits must not keep the last game's world alive


class Guarded:
    """A world of which each call has a time limit and each error says where it was made.

    `make`: makes the world; `name`: as the user wrote it; `file`: where its code is; `seconds`: the limit of one call.
    The world lives in a thread of its own. A thread that hangs is told to end and left behind; the next reset makes a
    new world. Raises BadInput when the world does not follow the protocol, WorldFailed when it cannot be made.
    """

    def __init__(
        self, make: Callable[[], World], name: str, file: Path | None = None, seconds: float = SECONDS
    ) -> None:
        self.make, self.name, self.file, self.seconds = make, name, file, seconds
        self.won = self.done = False
        self._start()
        world = self._alive()
        self.system_prompt, self.nothing = world.system_prompt, world.nothing

    def tasks(self, split: str) -> Iterator[Task]:
        """The world's tasks of a split."""
        world, told = self._alive(), set[str]()
        each = self._do("tasks", lambda: iter(world.tasks(split)))
        while (task := self._do("tasks", lambda: next(each, None))) is not None:
            texts = [getattr(task, part, None) for part in Task._fields]
            if not all(isinstance(text, str) for text in texts):
                raise WorldFailed(f"{self.name}: tasks gave {_short(repr(task))}, no Task(id, kind, goal) of texts")
            if task.id in told:
                raise WorldFailed(f"{self.name}: tasks gave the id {_short(task.id)} twice; results are kept by it")
            told.add(task.id)
            yield Task(task.id, task.kind, task.goal)

    def reset(self, task: Task) -> str:
        """Start a task; its first observation."""
        if self.world is None:
            self._start()
        world = self._alive()
        return self._observed("reset", lambda: world.reset(task))

    def step(self, action: str) -> str:
        """Do an action; what is observed then."""
        world = self._alive()
        return self._observed("step", lambda: world.step(action))

    def _start(self) -> None:
        """A thread with a new world in it."""
        self.calls: _Calls = SimpleQueue()
        self.thread = threading.Thread(target=_work, args=(self.calls,), daemon=True, name=self.name)
        self.thread.start()
        weakref.finalize(self, self.calls.put, None)
        self.world: World | None = None
        world = self._do("its constructor", self.make)
        if fault := self._do("its constructor", lambda: fault_of(world)):
            raise BadInput(f"{self.name}: {fault}; docs/worlds.md shows a complete world")
        self.world = world

    def _alive(self) -> World:
        if self.world is None:
            raise WorldFailed(f"{self.name}: it hung before; reset starts it anew")
        return self.world

    def _observed(self, what: str, call: Callable[[], str]) -> str:
        """The observation of a call; what the world says of won and done is asked in the same turn."""
        world = self._alive()
        said, won, done = self._do(what, lambda: (call(), world.won, world.done))
        if not isinstance(said, str):
            raise WorldFailed(f"{self.name}: {what} gave {_short(repr(said))}, no text")
        self.won, self.done = bool(won), bool(done)
        return said

    def _do(self, what: str, call: Callable[[], T]) -> T:
        """Call in the world's thread. Raises WorldFailed for an error or after the time limit, BadInput as it is."""
        answers: SimpleQueue[_Answer] = SimpleQueue()
        self.calls.put((call, answers))
        try:
            answer = answers.get(timeout=self.seconds)
        except Empty:
            where = self._hangs_at()
            self._leave()
            raise WorldFailed(
                f"{where}: {self.name} did not come back from {what} within {self.seconds:g} s; that game is lost"
            ) from None
        error = answer.error
        if isinstance(error, BadInput | WorldFailed):
            raise error
        if error is not None:
            where = place(traceback.extract_tb(error.__traceback__), self.file)
            raise WorldFailed(f"{where}: {self.name} raised {described(error)} in {what}") from error
        return answer.value  # type: ignore[return-value]

    def _hangs_at(self) -> str:
        frame = sys._current_frames().get(self.thread.ident or 0)
        return place(traceback.extract_stack(frame), self.file) if frame else self.name

    def _leave(self) -> None:
        """Leave the thread behind. Python code in it ends at once, one that waits outside Python when that ends."""
        self.world = None
        self.calls.put(None)
        thread = ctypes.c_ulong(self.thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))


def fault_of(world: World) -> str | None:
    """What a world lacks of the protocol, in words; None when it follows it."""
    own = {name: getattr(type(world), name, None) for name in PROPERTIES}
    lacks = [name for name in METHODS if not callable(getattr(world, name, None))]
    lacks += [name for name in PROPERTIES if own[name] is None and name not in getattr(world, "__dict__", {})]
    lacks += [name for name in TEXTS if not isinstance(getattr(world, name, None), str)]
    if lacks:
        texts = [name for name in lacks if name in TEXTS]
        return f"it lacks {', '.join(lacks)}" + (f" ({' and '.join(texts)}: a text)" if texts else "")
    methods = [name for name in PROPERTIES if callable(own[name])]
    return f"{', '.join(methods)}: a method where a property is wanted; write @property above it" if methods else None


def described(error: BaseException) -> str:
    """An error's type and what it says, in one short line."""
    said = _short(str(error))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _short(text: str) -> str:
    said = quote.visible(" ".join(text.split()))
    return said if len(said) <= LONGEST_SAID else f"{said[:LONGEST_SAID]}..."


def place(frames: traceback.StackSummary, file: Path | None) -> str:
    """file:line of the innermost frame in the world's file, or of the innermost one."""
    own = [frame for frame in frames if file and frame.filename == str(file)]
    found = (own or list(frames))[-1]
    path = os.path.relpath(found.filename)
    return f"{found.filename if path.startswith('..') else path}:{found.lineno}"
