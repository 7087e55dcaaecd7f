"""The rules that safety and the bounds rest on, next to each other so that a test can break each.

Every caller reaches them through the module (`guards.may_…`), and they see nothing but their arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from chain.availability import AvailabilityCertificate, is_enough
from chain.certificate import Available, ValidatorSet, Vote, VoteKind
from chain.genesis import Params
from consensus.availability.inputs import Verdict

VOTE_AHEAD = 8
"""Heights by which a creator's view of finality may be ahead of the voter's."""


@dataclass(slots=True)
class Outstanding:
    """A creator's batches that this validator voted for and that are neither ordered nor expired."""

    size_bytes: int = 0
    batches: int = 0


NOTHING_OUTSTANDING = Outstanding()


class Judgement(Enum):
    VOTE = auto()
    ASK = auto()
    """Nothing but the application's verdict is missing."""
    WAIT = auto()
    REFUSE = auto()


def is_expired(reference: Available, height: int) -> bool:
    """Whether a block of this height may no longer name the batch."""
    return height > reference.expiry


def may_include(reference: Available, height: int) -> bool:
    return not is_expired(reference, height)


def is_well_formed(reference: Available, params: Params) -> bool:
    """What every honest creator's batch satisfies, whatever the time."""
    return (
        reference.expiry == reference.created + params.horizon
        and reference.size_bytes <= params.batch_bytes
        and reference.transactions > 0
    )


def is_past_voting(reference: Available, final: int, params: Params) -> bool:
    return reference.created < final - params.horizon // 2


def is_within_quota(outstanding: Outstanding, size_bytes: int, params: Params) -> bool:
    return (
        outstanding.batches < params.creator_quota_batches
        and outstanding.size_bytes + size_bytes <= params.creator_quota_bytes
    )


def may_vote_available(
    reference: Available, final: int, outstanding: Outstanding, verdict: Verdict | None, params: Params
) -> Judgement:
    """`final` is the newest final height known here, `outstanding` what its creator already has of my votes."""
    if verdict is Verdict.BAD or is_past_voting(reference, final, params):
        return Judgement.REFUSE
    if reference.created > final + VOTE_AHEAD:
        return Judgement.WAIT
    if not is_within_quota(outstanding, reference.size_bytes, params):
        return Judgement.WAIT
    if verdict is None:
        return Judgement.ASK
    return Judgement.VOTE if verdict is Verdict.OK else Judgement.WAIT


LOOK_AFTER_MS = 2_000
"""How long whoever has the next turn to look waits for a certificate: under load others need a while."""
PRESENT_MS = 3_000
"""Whoever has not been heard for so long, three status frames, is not relied on."""
PASSED_OVER_MS = 10_000
"""Nor for so long is anybody whose look at a batch did not come in time."""
LOOKS_UNDER_WAY = 8
"""Of one creator's batches that were voted for as held: the application takes the creators in turn."""


def seats_before(creator: int, me: int, sequence: int, n: int) -> list[int]:
    """Who looks at a batch before me: round the table from its creator, who did so at its door, beginning at another
    seat for each of its batches."""
    place = ((me - creator) % n - 1 + sequence) % (n - 1)
    return [(creator + 1 + (before - sequence) % (n - 1)) % n for before in range(place)]


def turn_to_look(before_me: int, lookers: int) -> int:
    """In each turn as many look as a certificate needs besides the batch's creator."""
    return before_me // (lookers - 1)


def is_relied_on(now_ms: int, heard_ms: int | None, passed_over_until_ms: int) -> bool:
    """`heard_ms`: when the validator was heard last, if ever."""
    return heard_ms is not None and now_ms < heard_ms + PRESENT_MS and now_ms >= passed_over_until_ms


def may_look(now_ms: int, look_ms: int, looked: bool, has_bytes: bool) -> bool:
    """At a batch that was voted for as held."""
    return not looked and has_bytes and now_ms >= look_ms


def own_kind(looked: bool) -> VoteKind:
    """What a vote of mine may say."""
    return VoteKind.AVAILABLE if looked else VoteKind.HELD


def says_more(vote: Vote, known: Vote | None) -> bool:
    """Than what is known of its signer: who held a batch may have looked at it since. So each has two votes at most."""
    return known is None or (known.kind == VoteKind.HELD and vote.kind == VoteKind.AVAILABLE)


def lookers_among(votes: Iterable[Vote]) -> int:
    return sum(vote.kind == VoteKind.AVAILABLE for vote in votes)


def may_speak(muted: bool) -> bool:
    """Whoever lost what it voted for holds it no longer: it promises nothing more until it does."""
    return not muted


def may_reference(looked: bool, certificate: AvailabilityCertificate | None) -> bool:
    """Bytes alone do not count, nor that they are held: an honest validator must have verified every signature of what
    a block names, and f+1 honest ones have stored it."""
    return looked or certificate is not None


def may_assemble(votes: Collection[Vote], validators: ValidatorSet) -> bool:
    """`votes` are verified, one a signer."""
    return is_enough(len(votes), lookers_among(votes), validators)


def may_acknowledge(own: bool, certificate: AvailabilityCertificate | None) -> bool:
    return own and certificate is not None


def may_pack(pooled: bool, outstanding: bool) -> bool:
    """A transaction is in the pool once, and not in the pool while an own batch carries it."""
    return not pooled and not outstanding


def may_take_answer(asked: bool) -> bool:
    """`asked`: whether I put to this very peer the question that the digest of its answer, computed here, answers."""
    return asked


def may_seal(now_ms: int, sealed_ms: int | None, settled: bool, full: bool, in_flight: int, pace_ms: int) -> bool:
    return now_ms >= seal_at(sealed_ms, settled, full, in_flight, pace_ms)


def pace_ms(last: int, interval_ms: int) -> int:
    """Between batches, of which the last held so many transactions. All that a creator certifies within one interval
    of blocks is ordered by one block at the earliest, and each batch costs votes and a certificate; a few transactions
    are not kept waiting for more to come."""
    return max(SEAL_GAP_MS, interval_ms) if last > FEW else SEAL_GAP_MS


def is_stream(transactions: int) -> bool:
    """Whether a block that ordered so many says that more will come than the next few blocks need hold."""
    return transactions >= STREAM


def interval_ms(now_ms: int, busy_until_ms: int, params: Params) -> int:
    """Between blocks, and batches of one creator. A block with its batches costs as much as some forty transactions:
    of a stream, fewer and larger ones order more. Nobody gives a leader up for it: a follower waits that long too."""
    if now_ms >= busy_until_ms:
        return params.min_block_interval_ms
    return max(params.min_block_interval_ms, min(params.delta_ms, BUSY_INTERVAL_MS))


def may_seal_alone(in_flight: int) -> bool:
    """Whatever else is under way: what waits for a blob and what does not never wait for each other."""
    return in_flight < ALONE_IN_FLIGHT


SEAL_GAP_MS = 10
SEAL_PATIENCE_MS = 1_000
STREAM = 32
BUSY_MS = 1_000
"""For so long after a block that says that there is a stream."""
BUSY_INTERVAL_MS = 250
FEW = 2
"""Transactions of a batch that say that there is no stream of them."""
ALONE_IN_FLIGHT = 24
"""Own uncertified batches of one transaction with a blob: peers hold more offers than these, so that there is always
room for the others."""
OFFERS_IN_FLIGHT = 4
"""Own uncertified batches beyond which a full pool waits for the second to pass: peers hold only a few offers."""


def seal_at(sealed_ms: int | None, settled: bool, full: bool, in_flight: int, pace_ms: int) -> int:
    """When the next batch is due: `settled` says that the last is certified, `full` that a whole batch waits."""
    if sealed_ms is None:
        return 0
    if full and in_flight < OFFERS_IN_FLIGHT:
        return sealed_ms + SEAL_GAP_MS
    return sealed_ms + (pace_ms if settled else SEAL_PATIENCE_MS)
