"""The node's log: one JSON object a line, with whatever was given as `extra`.

Lines are written by a thread of their own, so that a full pipe or a slow terminal never holds the event loop. Its
queue is bounded: beyond it lines are dropped and counted, and the count is the next line that gets through.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TextIO

QUEUED_LINES = 10_000
LAST_LINES_S = 2.0
"""How long the end waits for whoever reads the log."""

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; all else was given as `extra`."""


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: _plain(value) for name, value in vars(record).items() if name not in _OWN}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {name}={value}" for name, value in _extra(record).items())
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{_time(record)} {record.levelname:<8} {record.name} {record.getMessage()}{extra}{trace}"


class _Queued(logging.handlers.QueueHandler):
    """Drops what finds no room; says how much, as soon as there is some."""

    def __init__(self, lines: queue.Queue[logging.LogRecord | None]) -> None:
        super().__init__(lines)
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # The thread formats the record itself; unlike the inherited method this keeps its extras and exception.
        record.msg, record.args = record.getMessage(), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped:
                lost = logging.makeLogRecord(
                    {"name": "quorate.log", "levelno": logging.WARNING, "levelname": "WARNING"}
                    | {"msg": "lines of the log were dropped", "lines": self._dropped}
                )
                self.queue.put_nowait(lost)
                self._dropped = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1


class _Writer(logging.handlers.QueueListener):
    """Ends in a moment even if nobody reads what it writes."""

    def __init__(self, lines: queue.Queue[logging.LogRecord | None], target: logging.Handler) -> None:
        super().__init__(lines, target)
        self._lines = lines

    def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            with suppress(queue.Full):
                self._lines.put(None, timeout=LAST_LINES_S)
                thread.join(LAST_LINES_S)


@contextmanager
def logging_to(stream: TextIO | None, level: str, form: str) -> Iterator[None]:
    """Logs of the whole process go to `stream` (standard error if None) until the end; then all is flushed."""
    writer = logging.StreamHandler(stream or sys.stderr)
    writer.setFormatter(JsonLines() if form == "json" else TextLines())
    lines: queue.Queue[logging.LogRecord | None] = queue.Queue(QUEUED_LINES)
    queued, listener = _Queued(lines), _Writer(lines, writer)
    root = logging.getLogger()
    before = root.level
    root.addHandler(queued)
    root.setLevel(level.upper())
    # What other libraries say below a warning concerns their authors.
    for library in ("asyncio", "aiohttp", "numba"):
        logging.getLogger(library).setLevel(logging.WARNING)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(queued)
        root.setLevel(before)
        listener.stop()
