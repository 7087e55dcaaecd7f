"""The order of phases that a job's rounds go through.

    [check-in] ─▶ [drawing] ─▶ [keys ─▶ shares] ─▶ collecting ─▶ [revealing | unmasking] ─▶ aggregating ─▶ closed

A job's rules say which of those in brackets there are: a check-in and a draw by the cohort, the others by its privacy.
From any of them a round may go to `FAILED` instead. `fl.course` says what each phase does, `fl.transitions` when it
ends.
"""

from __future__ import annotations

from fl.records import JobRules, Phase

SECURE_AGGREGATION = "secagg"
SEALED = "sealed"

ENDED = (Phase.CLOSED, Phase.FAILED)


def phases_of(rules: JobRules) -> tuple[Phase, ...]:
    masked, sealed = rules.privacy == SECURE_AGGREGATION, rules.privacy == SEALED
    course = (
        (Phase.CHECK_IN, rules.cohort.check_in_ms > 0),
        (Phase.DRAWING, rules.cohort.size > 0),
        (Phase.KEYS, masked),
        (Phase.SHARES, masked),
        (Phase.COLLECTING, True),
        (Phase.REVEALING, sealed),
        (Phase.UNMASKING, masked),
        (Phase.AGGREGATING, True),
    )
    return tuple(phase for phase, is_there in course if is_there)


def phase_after(rules: JobRules, phase: int) -> Phase:
    """Of a phase that does not end its round."""
    return next(each for each in phases_of(rules) if each > phase)
