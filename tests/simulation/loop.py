"""An event loop on which time is a number: instead of waiting, it moves the number to the next timer.

Ordinary asyncio code runs on it unchanged, and twice in the same order: nothing is ready because a socket
was, nothing because a thread was. Both are refused. What runs forever at one instant, or waits for what can
never come, ends in an error that says so.
"""

from __future__ import annotations

import asyncio
import gc
import random
import selectors
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from hashlib import sha256
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

_T = TypeVar("_T")

STEPS = 50_000_000
STEPS_AT_ONE_INSTANT = 200_000
START_SECONDS = 1_000.0
"""Not 0: code that takes 0 for "never" shall not get away with it."""


OWNER: ContextVar[object] = ContextVar("OWNER", default=None)
"""To whom the tasks belong that are created here: a crash ends those of one incarnation and no others."""


class Stuck(Exception):
    """The simulation cannot go on, or would never end."""


class Crash(BaseException):
    """The machine lost its power in the middle of an operation. No code of a node may catch it."""


def drawn_from(seed: int, *concern: object) -> random.Random:
    """A source of chance of its own for every concern, so that one that draws more does not disturb the
    others."""
    text = "/".join(str(part) for part in (seed, *concern))
    return random.Random(int.from_bytes(sha256(text.encode()).digest(), "big"))


class _NoSelector(selectors.BaseSelector):
    """Never waits and never finds anything ready: tells the loop that the time has come."""

    def __init__(self) -> None:
        self.loop: VirtualLoop | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert self.loop is not None
        self.loop.advance(timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        raise Stuck("a simulated node tried to open a socket")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)

    def get_map(self) -> Any:
        return {}


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, steps: int = STEPS) -> None:
        selector = _NoSelector()
        super().__init__(selector)
        selector.loop = self
        self._now = START_SECONDS
        # Above the rounding of a float that counts the seconds of years: a timer due at `_now` must be seen as due.
        self._clock_resolution = 1e-7
        self._steps_left = steps
        self._steps_here = 0
        self.failures: list[BaseException] = []
        """What tasks and callbacks raised and nobody awaited."""
        self._births = 0
        self._born: WeakKeyDictionary[asyncio.Task[Any], tuple[int, object]] = WeakKeyDictionary()
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self._now

    def advance(self, timeout: float | None) -> None:
        self._steps_left -= 1
        self._steps_here += 1
        if self._steps_left < 0:
            raise Stuck(f"still running after all its steps, at {self._now:.3f} s")
        if timeout == 0:
            if self._steps_here > STEPS_AT_ONE_INSTANT:
                raise Stuck(f"{self._steps_here} steps without any time passing, at {self._now:.3f} s")
            return
        if timeout is None:
            raise Stuck(f"everybody waits for somebody, at {self._now:.3f} s: {_names(self.running_tasks())}")
        # To the timer itself, for now + (when - now) may fall short of when by a rounding.
        timer = self._scheduled[0].when()  # type: ignore[attr-defined]
        self._now = min(timer, self._now + timeout) if timeout >= _LONGEST_WAIT_SECONDS else timer
        self._steps_here = 0

    def allow(self, steps: int) -> None:
        """So many from here on, whatever was used before."""
        self._steps_left, self._steps_here = steps, 0

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = super().create_task(coro, **options)
        self._births += 1
        self._born[task] = (self._births, OWNER.get())
        return task

    def running_tasks(self, owner: object = None) -> list[asyncio.Task[Any]]:
        """Oldest first; those that descend from the tasks of one owner, or all."""
        born = [(birth, task) for task, birth in self._born.items() if not task.done()]
        mine = [(birth[0], task) for birth, task in born if owner is None or birth[1] is owner]
        return [task for _, task in sorted(mine, key=lambda each: each[0])]

    def _note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failure = context.get("exception")
        if isinstance(failure, Crash):
            return
        self.failures.append(failure or RuntimeError(str(context.get("message"))))

    def _make_self_pipe(self) -> None:
        """Wakes a loop that waits in its selector; this one never does."""

    def _close_self_pipe(self) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        raise Stuck("a simulated node tried to start a thread; there is a port for that")


_LONGEST_WAIT_SECONDS = 24 * 3600
"""asyncio waits no longer than this at once."""


def simulate(main: Callable[[], Coroutine[Any, Any, _T]], steps: int = STEPS, collected: bool = False) -> _T:
    """Runs `main` to its end on a loop of its own. What a task raised and nobody awaited fails the run
    too: surely if what is left of it is `collected`, which takes time, else as far as it has been thrown away."""
    loop = VirtualLoop(steps)
    if collected and not gc.get_freeze_count():
        # What is there before the first run is not looked at in the collections of all others.
        gc.freeze()
    try:
        result = loop.run_until_complete(main())
    finally:
        try:
            _end_tasks(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            if collected:
                gc.collect()
        finally:
            loop.close()
    if loop.failures:
        raise loop.failures[0]
    return result


def _end_tasks(loop: VirtualLoop) -> None:
    for _ in range(100):
        tasks = loop.running_tasks()
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        loop.allow(STEPS_AT_ONE_INSTANT)
        loop.run_until_complete(_turns(10))
    raise Stuck(f"tasks refuse to end: {_names(tasks)}")


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def _names(tasks: list[asyncio.Task[Any]]) -> str:
    return ", ".join(task.get_name() for task in tasks)
