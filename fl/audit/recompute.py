"""The aggregation of a round again, from what is recorded of it, by the kernels that validators use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from chain.codec import CodecError, decode
from chain.unixfs import Hasher, manifest_cid
from fl.aggregation import Aggregation, AggregationRules, Spread, Update
from fl.audit.checks import closing_differences
from fl.audit.recorded import Contribution, Recorded
from fl.audit.steps import Finding, Step, Verdict, differing, judged, shown
from fl.closing import AggregationOutcome, Closing
from fl.errors import Refused
from fl.kernels import FUSED, KERNEL_VERSION
from fl.records import Round
from fl.rules import rule_of
from fl.rules.rule import Optimising
from fl.tensors.closing import MAX_CLOSING_BYTES, ClosingRecord, payload_fingerprint
from fl.tensors.encodings import Place
from fl.tensors.layout import Bytes
from fl.updates import form_of

Keep = Callable[[Iterable[Bytes]], tuple[bytes, Bytes]]
"""Puts the consecutive parts of a blob somewhere: its CID, and where it can be read."""
Told = Callable[[int, int], None]
"""Hears how many updates of how many are added."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    outcome: AggregationOutcome
    model: Bytes
    """Empty when the round fails."""
    moments: Bytes | None


def named(parts: Iterable[Bytes]) -> tuple[bytes, Bytes]:
    """Keeps nothing but the name."""
    hasher = Hasher()
    for part in parts:
        hasher.update(part)
    return manifest_cid(hasher.finish()), b""


def keeps_moments(rule: str) -> bool:
    return isinstance(rule_of(rule), Optimising)


def recompute(
    recorded: Recorded, log_root: bytes, keep_model: Keep, keep_moments: Keep, spread: Spread, told: Told
) -> Recomputed:
    """Raises Refused for updates that no validator would have added."""
    current = recorded.round
    rules = AggregationRules(recorded.job, current.number, recorded.rules, current.version + 1)
    sums = Aggregation(rules, spread)
    total = len(recorded.contributions)
    for some in _in_groups(recorded.contributions):
        sums.add(*(_update(recorded, index, each) for index, each in some))
        told(sums.count, total)
    closing = sums.finish(log_root, recorded.base, recorded.moments)
    try:
        return _closed(closing, current.base, keep_model, keep_moments)
    except Refused as refused:
        return Recomputed(closing.failed(refused.code, current.base), b"", recorded.moments)


def _closed(closing: Closing, base_cid: bytes, keep_model: Keep, keep_moments: Keep) -> Recomputed:
    parts = closing.moments()
    moments_cid, moments = (b"", None) if parts is None else keep_moments(parts)
    model_cid, model = keep_model(closing.model(moments))
    return Recomputed(closing.closed(model_cid, base_cid, moments_cid), model, moments)


def _in_groups(contributions: Sequence[Contribution]) -> Iterator[list[tuple[int, Contribution]]]:
    """As many at a time as the kernels sum together."""
    for start in range(0, len(contributions), FUSED):
        yield list(enumerate(contributions[start : start + FUSED], start))


def _update(recorded: Recorded, index: int, each: Contribution) -> Update:
    """`index` is its place among those that are added, which is that in the log if nobody is left out."""
    payload = each.payload()
    offset = len(form_of(recorded.rules, each.group).header(Place(recorded.job, each.round, each.member)))
    return Update(
        index=index,
        round=each.round,
        member=each.member,
        weight=each.weight,
        group=each.group,
        payload=payload,
        fingerprint=payload_fingerprint(payload, offset),
    )


# Verifying

MODEL, MOMENTS, RECORD = "model", "optimiser", "closing"


def verified(
    recorded: Recorded, certified: ClosingRecord | None, keep_moments: Keep, spread: Spread, told: Told
) -> Iterator[Step]:
    """Whether the round's recorded result follows from its recorded updates."""
    current = recorded.round
    if current.kernel_version != KERNEL_VERSION:
        sentence = f"kernels of version {current.kernel_version} made it, and here are those of {KERNEL_VERSION}"
        yield Step(MODEL, Verdict.MISSING, sentence)
        return
    try:
        made = recompute(recorded, current.updates.root(), named, keep_moments, spread, told)
    except (Refused, ValueError) as error:
        yield Step(MODEL, Verdict.FAILED, f"the updates cannot be aggregated: {error}")
        return
    yield from _compared(made.outcome, current, certified)


def _compared(outcome: AggregationOutcome, current: Round, certified: ClosingRecord | None) -> Iterator[Step]:
    model = shown(outcome.model_cid) if outcome.ok else f"none: {outcome.code}"
    yield judged(
        MODEL,
        f"recomputed: {model}",
        [
            *differing("why there is no new model", outcome.code, current.code),
            *differing("new model", outcome.model_cid, current.model),
        ],
    )
    if outcome.optimizer_cid or current.optimizer:
        findings = differing("new optimiser state", outcome.optimizer_cid, current.optimizer)
        yield judged(MOMENTS, f"recomputed: {shown(outcome.optimizer_cid)}", findings)
    findings = list(differing("closing record", outcome.record_cid, current.record))
    if findings and certified is not None:
        findings += _record_differences(outcome.record, certified)
    yield judged(RECORD, f"recomputed: {shown(outcome.record_cid)}", findings)


def _record_differences(computed: bytes, certified: ClosingRecord) -> Iterator[Finding]:
    try:
        yield from closing_differences(decode(ClosingRecord, computed, MAX_CLOSING_BYTES), certified)
    except CodecError as error:
        yield Finding("closing record", "one that can be read", str(error))
