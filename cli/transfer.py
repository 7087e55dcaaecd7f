"""How commands show that bytes are on their way."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cli.output import console

if TYPE_CHECKING:
    from fl.client.blobs import Progress

_STEPS = {"hash": "Hashing", "send": "Sending", "check": "Checking what is here", "fetch": "Fetching"}


@contextmanager
def transferring() -> Iterator[Progress]:
    """A bar for each step of the work, on a terminal; in pipes nothing."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as SpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), SpeedColumn())
    bars: dict[str, TaskID] = {}
    lock = threading.Lock()
    with Progress(*columns, TimeRemainingColumn(), console=console(stderr=True), transient=True) as shown:

        def tell(what: str, done: int, total: int) -> None:
            # Hashing tells from a thread of its own.
            with lock:
                if what not in bars:
                    bars[what] = shown.add_task(_STEPS.get(what, what), total=total)
                shown.update(bars[what], completed=done, total=total)

        yield tell


def size_text(size_bytes: int) -> str:
    size, unit = float(size_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size_bytes} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
