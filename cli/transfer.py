"""How commands show that bytes are on their way."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cli.output import Exit, console
from fl.client.errors import QuorateError

if TYPE_CHECKING:
    from fl.client.transfer.blobs import Progress

_STEPS = {"hash": "Hashing", "send": "Sending", "check": "Checking what is here", "fetch": "Fetching"}


class Broken(QuorateError):
    """Ctrl-C, where that loses nothing."""

    exit_code = Exit.INTERRUPTED

    def __init__(self) -> None:
        super().__init__("INTERRUPTED", "Interrupted.", "The same command goes on where this one was.")


@contextmanager
def transferring(*, resumes: bool = True) -> Iterator[Progress]:
    """A bar for each step of the work, on a terminal; in pipes nothing."""
    try:
        with _bars() if sys.stderr.isatty() else nullcontext(_silent) as tell:
            yield tell
    except KeyboardInterrupt:
        if resumes:
            raise Broken from None
        raise


def _silent(what: str, done: int, total: int) -> None:
    pass


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.progress import BarColumn, DownloadColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Speed(ProgressColumn):
        """In the units of the sizes beside it."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{size_text(int(speed))}/s" if speed else "", style="progress.data.speed")

    class Sizes(DownloadColumn):
        def render(self, task: Task) -> Text:
            return super().render(task) if task.total is not None else Text()

    columns = (TextColumn("{task.description}"), BarColumn(), Sizes(binary_units=True), Speed())
    tasks: dict[str, TaskID] = {}
    lock = threading.Lock()
    with Bars(*columns, TimeRemainingColumn(), console=console(stderr=True), transient=True) as shown:
        first = shown.add_task("Asking the nodes", total=None)

        def tell(what: str, done: int, total: int) -> None:
            # Hashing tells from a thread of its own.
            with lock:
                shown.update(first, visible=False)
                if what not in tasks:
                    tasks[what] = shown.add_task(_STEPS.get(what, what), total=total)
                shown.update(tasks[what], completed=done, total=total)

        yield tell


def size_text(size_bytes: int) -> str:
    size, unit = float(size_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size_bytes} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def time_text(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
