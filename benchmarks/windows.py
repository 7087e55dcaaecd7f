"""Windows of time over a load that goes on: what validators executed in them, what that cost, what clients felt."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.campaign import LOAD, Outcome
from benchmarks.figures import LESS, MORE, Check, Curve, Figure, Latency
from benchmarks.machine import signature_us
from benchmarks.network import Snapshot
from benchmarks.processes import MIB, Span, Watch

RATE = "updates executed a second, by every validator"
COST = "processor time an update and validator"
LINKS = "received from other validators, an update"

Window = tuple[Snapshot, Snapshot]


def span_of(window: Window) -> Span:
    return Span(window[0].at_s, window[1].at_s)


def used(window: Window) -> dict[str, float]:
    """Processor time by role of whoever was there all the time."""
    before, after = window
    return {role: after.cpu_s[role] - before.cpu_s[role] for role in after.cpu_s if role in before.cpu_s}


def executed(window: Window) -> dict[str, int]:
    before, after = window
    return {name: after.executed[name] - before.executed[name] for name in after.executed if name in before.executed}


def rate(window: Window) -> float:
    """Of the slowest validator: what all of them have executed."""
    before, after = window
    return min(count / (after.told_s[name] - before.told_s[name]) for name, count in executed(window).items())


def cost_us(window: Window, kinds: Sequence[str]) -> float:
    """Microseconds an update and validator, of these kinds of processes."""
    count = sum(executed(window).values())
    seconds = sum(each for role, each in used(window).items() if role.rpartition(" ")[2] in kinds)
    return seconds / max(1, count) * 1e6


def idle(window: Window) -> float:
    """The share of the machine's processors that nobody used."""
    before, after = (each.processors for each in window)
    return (after.idle_s - before.idle_s) / max(1e-9, after.all_s - before.all_s)


def link_bytes(window: Window) -> float:
    """That a validator's links received, for an update that it executed."""
    before, after = window
    done = executed(window)
    each = (
        (after.received[name] - before.received[name]) / max(1, count)
        for name, count in done.items()
        if name in after.received and name in before.received
    )
    return median(each)


def figures_of(windows: Sequence[Window], outcome: Outcome) -> dict[str, Figure]:
    signing, verifying = zip(*(signature_us() for _ in windows), strict=True)
    whole = tuple(cost_us(window, ("core", "data")) for window in windows)
    load = tuple(used(each)[LOAD] / max(1, max(executed(each).values())) * 1e6 for each in windows)
    received = [each for each in windows if each[0].received]
    links = {LINKS: Figure("bytes", tuple(map(link_bytes, received)), LESS)} if received else {}
    return {
        RATE: Figure("1/s", tuple(map(rate, windows)), MORE),
        COST: Figure("µs", whole, LESS),
        "of it the core": Figure("µs", tuple(cost_us(each, ("core",)) for each in windows), LESS),
        "of it the data process": Figure("µs", tuple(cost_us(each, ("data",)) for each in windows), LESS),
        "one signature verified": Figure("µs", verifying),
        "processor time besides one signature": Figure(
            "µs", tuple(each - one for each, one in zip(whole, verifying, strict=True)), LESS
        ),
        "one signature made": Figure("µs", signing),
        **links,
        "load generator, an update": Figure("µs", load),
        "processors idle": Figure("%", tuple(100 * idle(each) for each in windows)),
        "time without an update to send": Figure("%", tuple(100 * starved(outcome, span_of(each)) for each in windows)),
    }


def starved(outcome: Outcome, span: Span) -> float:
    """Of all places for a request, the share of the span in which they had nothing to carry."""
    within = (
        max(0.0, min(from_s + seconds, span.to_s) - max(from_s, span.from_s)) for from_s, seconds in outcome.starved
    )
    return sum(within) / span.seconds / outcome.lanes


def answered(outcome: Outcome, windows: Sequence[Window]) -> Latency:
    """Of whole requests, as their sender felt it."""
    spans = [span_of(each) for each in windows]
    return Latency(
        tuple(
            each.seconds * 1000
            for each in outcome.answers
            if any(span.from_s <= each.at_s <= span.to_s for span in spans)
        )
    )


def rate_curve(outcome: Outcome, span: Span, bin_s: float = 1.0) -> Curve:
    bins = [0.0] * max(1, int(span.seconds / bin_s))
    for each in outcome.answers:
        place = int((each.at_s - span.from_s) // bin_s)
        if 0 <= place < len(bins):
            bins[place] += each.count / bin_s
    return Curve("seconds", "1/s", _middles(range(len(bins)), bin_s), {"updates answered": tuple(bins)})


def memory_curve(watch: Watch, span: Span, bin_s: float = 1.0) -> Curve:
    """The most of all processes of a kind."""
    bins: dict[int, dict[str, float]] = {}
    for each in watch.moments:
        if span.from_s <= each.at_s <= span.to_s:
            kind = each.role.rpartition(" ")[2]
            most = bins.setdefault(int((each.at_s - span.from_s) / bin_s), {})
            most[kind] = max(most.get(kind, 0.0), each.anonymous_bytes / MIB)
    kinds = sorted({kind for most in bins.values() for kind in most})
    places = [place for place in sorted(bins) if len(bins[place]) == len(kinds)]
    lines = {kind: tuple(bins[place][kind] for place in places) for kind in kinds}
    return Curve("seconds", "MiB, anonymous", _middles(places, bin_s), lines)


def _middles(places: Sequence[int], bin_s: float) -> tuple[float, ...]:
    return tuple((place + 0.5) * bin_s for place in places)


def none_refused(outcome: Outcome) -> Check:
    refused = ", ".join(f"{count} {code}" for code, count in outcome.refused.items())
    return Check(f"refused: {refused}" if refused else "none was refused", not refused)
