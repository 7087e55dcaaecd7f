"""Verdicts: what one step of an audit has found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from chain.cid import CidError, cid_text

FINDINGS_TOLD = 100
"""Of one step; the others are counted."""
SHOWN = 200
"""Characters of a value."""


class Verdict(StrEnum):
    OK = "ok"
    FAILED = "failed"
    MISSING = "missing"
    """What the step looks at could not be had, so that it says nothing."""
    SKIPPED = "skipped"
    """It rests on a step that did not succeed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference: where, what should have been there, what was."""

    where: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    verdict: Verdict
    sentence: str
    findings: tuple[Finding, ...] = ()
    more: int = 0
    """Findings beyond those that are told."""


def judged(name: str, sentence: str, findings: Iterable[Finding]) -> Step:
    """Failed if anything was found; `sentence` says what holds if not."""
    told: list[Finding] = []
    more = 0
    for each in findings:
        if len(told) < FINDINGS_TOLD:
            told.append(each)
        else:
            more += 1
    if not told:
        return Step(name, Verdict.OK, sentence)
    count = len(told) + more
    return Step(
        name, Verdict.FAILED, f"{count} thing{'s' if count > 1 else ''} differ{'s' * (count == 1)}", tuple(told), more
    )


def skipped(name: str, because: str) -> Step:
    return Step(name, Verdict.SKIPPED, f"rests on {because}")


def differing(where: str, expected: object, found: object) -> Iterable[Finding]:
    """A finding, if they differ; of two lists of one length, one for each place that does."""
    if expected == found:
        return
    if isinstance(expected, tuple) and isinstance(found, tuple) and len(expected) == len(found):
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differing(f"{where}[{place}]", one, other)
        return
    yield Finding(where, shown(expected), shown(found))


def shown(value: object) -> str:
    """Digests and keys in hex, CIDs as text; nothing beyond a line."""
    if isinstance(value, bytes):
        return _named(value) or "nothing"
    if isinstance(value, tuple):
        return f"{len(value)} of them"
    return str(value)[:SHOWN] or "nothing"


def _named(value: bytes) -> str:
    try:
        return cid_text(value)
    except CidError:
        return value.hex()
