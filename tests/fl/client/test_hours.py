"""Hours of a site: what the clock on its wall shows, around midnight and around daylight saving."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.client.errors import BadInput
from fl.client.site.hours import Hours, Span, span_of, zone_of

TURNS = {
    "Europe/Vienna": ["2026-03-29T01:00", "2026-10-25T01:00"],
    "America/New_York": ["2026-03-08T07:00", "2026-11-01T06:00"],
    "Australia/Lord_Howe": ["2026-04-04T15:00", "2026-10-03T15:30"],
    "UTC": ["2026-01-01T00:00"],
}
"""Zones and the moments, in UTC, at which their clocks are put forward or back."""
MINUTE_S = 60


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def hours(zone: str, *spans: str) -> Hours:
    return Hours(zone, zone_of(zone), tuple(map(span_of, spans)))


def open_minutes(site: Hours, first: str, count: int) -> int:
    return sum(site.is_open(at(first) + minute * MINUTE_S) for minute in range(count))


def wall(site: Hours, now_s: float) -> datetime:
    return datetime.fromtimestamp(now_s, site.zone).replace(tzinfo=None)


def covers(span: Span, shown: datetime) -> bool:
    """The same said with dates: the span of this day or of the day before holds what the clock shows."""
    for day in (shown.date(), shown.date() - timedelta(days=1)):
        midnight = datetime.combine(day, datetime.min.time())
        ends = span.end if span.end > span.start else span.end + 24 * 60
        begins = midnight + timedelta(minutes=span.start)
        if day.weekday() in span.days and begins <= shown < midnight + timedelta(minutes=ends):
            return True
    return False


moments = st.sampled_from([(zone, turn) for zone, turns in TURNS.items() for turn in turns]).flatmap(
    lambda place: st.tuples(
        st.just(place[0]),
        st.integers(-36 * 3600, 36 * 3600).map(lambda offset_s: at(place[1]) + offset_s),
    )
)
spans = st.builds(
    Span,
    st.frozensets(st.integers(0, 6), min_size=1),
    st.integers(0, 24 * 60 - 1),
    st.integers(0, 24 * 60),
).filter(lambda span: span.start != span.end)


@settings(max_examples=150, deadline=None)
@given(moments, st.lists(spans, min_size=1, max_size=3))
def test_a_site_is_open_when_the_time_that_its_clock_shows_is_within_a_span(
    moment: tuple[str, float], of: list[Span]
) -> None:
    zone, now_s = moment
    site = Hours(zone, zone_of(zone), tuple(of))
    assert site.is_open(now_s) == any(covers(span, wall(site, now_s)) for span in of)


@settings(max_examples=60, deadline=None)
@given(moments, st.lists(spans, min_size=1, max_size=2))
def test_the_wait_ends_with_the_first_minute_that_is_open(moment: tuple[str, float], of: list[Span]) -> None:
    zone, now_s = moment
    site = Hours(zone, zone_of(zone), tuple(of))
    wait_s = site.wait_s(now_s)
    assert (wait_s == 0) == site.is_open(now_s)
    if wait_s:
        assert site.is_open(now_s + wait_s)
        assert not any(
            covers(span, wall(site, now_s + passed * MINUTE_S))
            for passed in range(int(wait_s // MINUTE_S))
            for span in of
        )


def test_an_hour_that_the_clock_shows_twice_counts_twice_and_a_skipped_one_not_at_all() -> None:
    site = hours("Europe/Vienna", "02:00-03:00")
    assert open_minutes(site, "2026-10-24T12:00", 24 * 60) == 120
    assert open_minutes(site, "2026-03-28T12:00", 24 * 60) == 0
    assert open_minutes(site, "2026-03-29T12:00", 24 * 60) == 60
    # The span of that night is skipped: the next one is a day and an hour less away than clocks would say.
    assert site.wait_s(at("2026-03-28T23:00")) == 25 * 3600


def test_a_span_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    site = hours("UTC", "fri 18:00-06:00")
    assert not site.is_open(at("2026-11-20T17:59"))
    assert site.is_open(at("2026-11-20T18:00")) and site.is_open(at("2026-11-21T05:59"))
    assert not site.is_open(at("2026-11-21T06:00")) and not site.is_open(at("2026-11-21T18:00"))
    assert not site.is_open(at("2026-11-20T05:00")), "Thursday's night is no Friday's"


def test_days_run_over_the_end_of_the_week() -> None:
    assert span_of("sat-mon 08:00-09:00").days == {5, 6, 0}
    assert span_of("mon,wed-thu 00:00-24:00") == Span(frozenset({0, 2, 3}), 0, 1440)
    assert span_of(" Mon 08:00 - 09:00").days == {0}
    assert span_of("22:00-00:00").days == frozenset(range(7))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "night",
        "8:00-9:00",
        "08:00-08:00",
        "08:60-09:00",
        "24:00-06:00",
        "08:00-24:01",
        "mo 08:00-09:00",
        "mon- 08:00-09:00",
        "mon,,tue 08:00-09:00",
        "mon-tue-wed 08:00-09:00",
    ],
)
def test_a_span_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        span_of(text)
    assert refused.value.code == "BAD_HOURS" and "mon-fri" in refused.value.todo


@pytest.mark.parametrize("name", ["Europe/Wien", "../etc/passwd", "", "/etc/localtime"])
def test_a_zone_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="time zone"):
        zone_of(name)
