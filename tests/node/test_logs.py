"""The log: one JSON object a line, whole at the end, never in the way."""

from __future__ import annotations

import io
import json
import logging

from node import logs
from node.logs import logging_to

log = logging.getLogger("quorate.test")


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_holds_the_message_and_its_extras() -> None:
    stream = io.StringIO()
    with logging_to(stream, "info", "json"):
        log.info("round %d closed", 3, extra={"job": b"\x01\x02", "height": 7})
    (line,) = lines(stream)
    assert line["message"] == "round 3 closed"
    assert line["logger"] == "quorate.test"
    assert (line["job"], line["height"]) == ("0102", 7)
    assert str(line["time"]).endswith("Z")


def test_an_exception_is_in_its_line() -> None:
    stream = io.StringIO()
    with logging_to(stream, "info", "json"):
        try:
            raise ValueError("torn")
        except ValueError:
            log.exception("it broke")
    assert "ValueError: torn" in str(lines(stream)[0]["exception"])


def test_what_is_below_the_level_is_not_written() -> None:
    stream = io.StringIO()
    with logging_to(stream, "warning", "json"):
        log.info("quiet")
        log.warning("loud")
    assert [line["message"] for line in lines(stream)] == ["loud"]


def test_text_lines_hold_the_same() -> None:
    stream = io.StringIO()
    with logging_to(stream, "info", "text"):
        log.error("no room", extra={"free_bytes": 5})
    assert stream.getvalue().rstrip().endswith("ERROR    quorate.test no room free_bytes=5")


def test_lines_beyond_the_queue_are_dropped_and_counted() -> None:
    lost = logs._Queued(logs.queue.Queue(2))
    for number in range(5):
        lost.enqueue(logging.makeLogRecord({"msg": str(number)}))
    taken = lost.queue
    assert [taken.get_nowait().msg, taken.get_nowait().msg] == ["0", "1"]
    lost.enqueue(logging.makeLogRecord({"msg": "5"}))
    report = taken.get_nowait()
    assert report.msg == "lines of the log were dropped"
    assert report.lines == 3
    assert taken.get_nowait().msg == "5"


def test_logging_ends_though_nobody_reads() -> None:
    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            import time

            time.sleep(30)
            return 0

    with logging_to(Stuck(), "info", "json"):
        log.info("into a full pipe")
