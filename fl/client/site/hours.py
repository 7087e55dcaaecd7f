"""The hours at which a site works for others, as its policy file writes them: what the clock on its wall shows.

    zone = "Europe/Vienna"
    open = ["mon-fri 18:00-06:00", "sat,sun 00:00-24:00"]

A span over midnight belongs to the day on which it begins: Friday's ends on Saturday morning. Without days it is of
every day. Whatever daylight saving does, the site is open when the time that its clock shows is within a span: an hour
that the clock shows twice counts twice, one that it skips is no time at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fl.client.errors import BadInput

MOST_SPANS = 64
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_MINUTE_S = 60
_LOOK_AHEAD_MINUTES = 15 * _DAY_MINUTES
"""A span comes once a week, and daylight saving may swallow it once."""
_SPAN = re.compile(r"(?:([a-z,-]+) +)?(\d\d):(\d\d) ?- ?(\d\d):(\d\d)")


@dataclass(frozen=True, slots=True)
class Span:
    """Minutes of the day from `start` on, before `end`: of the next day, if that is no later."""

    days: frozenset[int]
    start: int
    end: int

    def holds(self, weekday: int, minute: int) -> bool:
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        return (weekday in self.days and minute >= self.start) or ((weekday - 1) % 7 in self.days and minute < self.end)


@dataclass(frozen=True, slots=True)
class Hours:
    """With `finish`, a training that is under way when they end may finish, and its update is sent."""

    zone_name: str
    zone: tzinfo
    spans: tuple[Span, ...]
    finish: bool = True

    def is_open(self, now_s: float) -> bool:
        shown = datetime.fromtimestamp(now_s, self.zone)
        return any(span.holds(shown.weekday(), shown.hour * 60 + shown.minute) for span in self.spans)

    def wait_s(self, now_s: float) -> float:
        """Until they begin; 0 while they last."""
        if self.is_open(now_s):
            return 0.0
        # Offsets of zones are whole minutes, so spans begin with a minute.
        minute = int(now_s // _MINUTE_S)
        for ahead in range(1, _LOOK_AHEAD_MINUTES):
            begins_s = (minute + ahead) * _MINUTE_S
            if self.is_open(begins_s):
                return begins_s - now_s
        return _LOOK_AHEAD_MINUTES * _MINUTE_S

    def shown(self, at_s: float) -> str:
        """What the clock on the wall shows then."""
        return f"{datetime.fromtimestamp(at_s, self.zone):%a %Y-%m-%d %H:%M} {self.zone_name}"


def zone_of(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadInput(
            "BAD_HOURS",
            f"This machine knows no time zone {name!r}.",
            'Give one as in "Europe/Vienna" or "UTC"; the names come with the system\'s tzdata.',
        ) from None


def span_of(text: str) -> Span:
    """As in "mon-fri 18:00-06:00"."""
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None:
        raise _bad(text, "it is not of the form DAYS HH:MM-HH:MM")
    days, *numbers = found.groups()
    hour, minute, end_hour, end_minute = map(int, numbers)
    start, end = hour * 60 + minute, end_hour * 60 + end_minute
    if minute > 59 or end_minute > 59 or start >= _DAY_MINUTES or end > _DAY_MINUTES:
        raise _bad(text, "no clock shows such a time")
    if start == end:
        raise _bad(text, "it ends when it begins; a whole day is 00:00-24:00")
    return Span(_days(text, days), start, end)


def _days(text: str, days: str | None) -> frozenset[int]:
    if days is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in days.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS or part.endswith("-"):
            raise _bad(text, f"{part!r} is no day of the week")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(found)


def _bad(text: str, reason: str) -> BadInput:
    return BadInput("BAD_HOURS", f"The span {text!r} cannot be read: {reason}.", 'As in "mon-fri 18:00-06:00".')
