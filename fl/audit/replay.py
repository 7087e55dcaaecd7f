"""Rounds again without a member, and first of all with everybody, which has to give what the chain has.

What this is and is not: the updates of the others are those that they computed against the models of the time, and
their weights are those of the time. So the result is the model that the rules make of the recorded updates when some
are left out, not the model that would have come about had the member never been there: then the others would have
trained from other models from the second round on. Where the rule cannot do with so few updates, or none is left, the
model stays as it is for that round.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from fl.aggregation import Spread
from fl.audit.measures import Difference, arrays_of, difference
from fl.audit.recompute import Keep, Recomputed, Told, recompute
from fl.audit.recorded import Recorded
from fl.audit.steps import Finding, differing
from fl.kernels import KERNEL_VERSION
from fl.rules import rule_of
from fl.rules.rule import settings_of
from fl.tensors.layout import Bytes

TOO_FEW = "TOO_FEW_UPDATES"
"""The rule cannot do with those that are left."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a course of rounds has come to: the model, what the rule keeps beside it, and how many were closed."""

    model: Bytes
    moments: Bytes | None
    cid: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """A round in both courses, and how far apart they are after it."""

    number: int
    updates: int
    left_out: int
    code: str
    """Why the model stayed as it was without them; empty if it did not."""
    actual: bytes
    other: bytes
    """CIDs."""
    apart: Difference
    tensors: Mapping[str, Difference]


class Diverged(Exception):
    """With everybody, the round does not give what the chain has."""

    def __init__(self, number: int, findings: list[Finding]) -> None:
        self.number = number
        self.findings = findings
        said = (f"{each.where}: {each.expected} recomputed, {each.found} certified" for each in findings)
        super().__init__(f"round {number}: {'; '.join(said)}")


class Courses:
    """Consecutive rounds in two courses side by side: with everybody, and without some members."""

    def __init__(self, without: Set[bytes], spread: Spread, told: Told) -> None:
        self._without = without
        self._spread = spread
        self._told = told
        self.begun: Standing | None = None
        """What the first round that has a result began with."""
        self.actual: Standing
        self.other: Standing
        self.rounds: list[Replayed] = []

    def play(self, recorded: Recorded, keep: Keep) -> Replayed:
        """A round that has a result. `keep` holds blobs for as long as they are read. Raises Diverged."""
        current = recorded.round
        if self.begun is None:
            self.begun = Standing(recorded.base, recorded.moments, current.base, current.version)
            self.actual = self.other = self.begun
        kept = [each for each in recorded.contributions if each.member not in self._without]
        left_out = len(recorded.contributions) - len(kept)
        following, code = self._checked(recorded, self.actual, keep), current.code
        if not left_out and self.other is self.actual:
            self.other = following
        else:
            self.other, code = self._fewer(replace(recorded, contributions=kept), self.other, keep)
        self.actual = following
        schema = recorded.rules.schema
        blobs = (self.actual.model, self.other.model, self.begun.model)
        apart, tensors = difference(*(arrays_of(schema, each) for each in blobs))
        cids = (self.actual.cid, self.other.cid)
        played = Replayed(current.number, len(recorded.contributions), left_out, code, *cids, apart, tensors)
        self.rounds.append(played)
        return played

    def _checked(self, recorded: Recorded, standing: Standing, keep: Keep) -> Standing:
        current = recorded.round
        if current.kernel_version != KERNEL_VERSION:
            raise Diverged(current.number, list(differing("kernels", KERNEL_VERSION, current.kernel_version)))
        made = self._made(recorded, standing, keep)
        findings = [
            *differing("why there is no new model", made.outcome.code, current.code),
            *differing("new model", made.outcome.model_cid, current.model),
            *differing("new optimiser state", made.outcome.optimizer_cid, current.optimizer),
            *differing("closing record", made.outcome.record_cid, current.record),
        ]
        if findings:
            raise Diverged(current.number, findings)
        return _after(standing, made)

    def _fewer(self, recorded: Recorded, standing: Standing, keep: Keep) -> tuple[Standing, str]:
        rule = rule_of(recorded.rules.rule)
        if len(recorded.contributions) < rule.fewest(settings_of(rule, recorded.rules.settings)):
            return standing, TOO_FEW
        made = self._made(recorded, standing, keep)
        return _after(standing, made), made.outcome.code

    def _made(self, recorded: Recorded, standing: Standing, keep: Keep) -> Recomputed:
        current = replace(recorded.round, base=standing.cid, version=standing.version)
        own = replace(recorded, round=current, base=standing.model, moments=standing.moments)
        return recompute(own, current.updates.root(), keep, keep, self._spread, self._told)


def _after(standing: Standing, made: Recomputed) -> Standing:
    if not made.outcome.ok:
        return standing
    return Standing(made.model, made.moments, made.outcome.model_cid, standing.version + 1)
