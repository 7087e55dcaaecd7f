"""What holds between the records of a round, its log, the transactions in it and their payloads, if all is well.

Each function is pure and yields what does not hold. What no record can show to an outsider afterwards rests on the
quorum that certified the state, and `RESTS` names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields

from chain.codec import decode
from chain.genesis import Params
from chain.log import EMPTY, Frontier, append, leaf_digest
from chain.transaction import account_id, tx_id, verify_transaction
from fl.audit.recorded import History, Signed
from fl.audit.steps import Finding, differing
from fl.blobs import Demand
from fl.errors import PendingJob, Refused
from fl.jobrules import rules_hash
from fl.metrics import NO_SUM, mean, with_values
from fl.records import Entry, Job, JobRules, Phase, Round
from fl.rounds import SubmitUpdate, check_update
from fl.state import MAX_VALUE_BYTES
from fl.tensors.closing import ClosingRecord
from fl.transactions import read
from fl.weights import DATASET, weight_of

RESTS = (
    "that each member was in the round's cohort, in its role and in time, with a fresh nonce, and that no valid update"
    " was left out: q validators executed that and signed the state",
)


def check_records(job: Job, rules: JobRules, current: Round) -> Iterator[Finding]:
    yield from differing("hash of the job's rules", job.rules_hash, rules_hash(rules))
    if current.phase == Phase.CLOSED:
        yield from differing("the round's model", True, bool(current.model and current.record))


def check_history(current: Round, history: History) -> Iterator[Finding]:
    origin = f"round {history.made_by}" if history.made_by else "the job's creation"
    yield from differing(f"base, which {origin} made", history.base, current.base)
    yield from differing("rounds that were closed before", history.version, current.version)


def log_of(leaves: Iterable[bytes]) -> Frontier:
    log = EMPTY
    for leaf in leaves:
        log, _ = append(log, leaf_digest(leaf))
    return log


def read_entry(leaf: bytes) -> Entry:
    """Raises CodecError."""
    return decode(Entry, leaf, MAX_VALUE_BYTES)


# Transactions


def read_signed(position: int, entry: Entry, data: bytes, params: Params) -> Signed:
    """Raises Refused unless these bytes are a transaction with an update."""
    reading = read(data, params)
    body = reading.body
    if not isinstance(body, SubmitUpdate):
        raise Refused("UNKNOWN_KIND", f"The transaction is a {type(body).__name__}, no update.")
    return Signed(position, entry, reading.tx, body)


def where(position: int, member: bytes) -> str:
    return f"update {position} of {member.hex()[:16]}"


def check_transaction(
    signed: Signed, chain_id: bytes, job: bytes, rules: JobRules, current: Round, base: bytes
) -> Iterator[Finding]:
    """That the transaction says what the log's entry does, and answers this round, or in a job without rounds a recent
    one. `base` is what the round that it answers began with."""
    tx, body, entry = signed.tx, signed.body, signed.entry
    place = where(signed.position, entry.member)
    yield from differing(f"{place}: chain", chain_id, tx.chain)
    yield from differing(f"{place}: transaction", entry.tx_id, tx_id(tx))
    yield from differing(f"{place}: member", entry.member, tx.sender)
    yield from differing(f"{place}: job", job, body.job)
    yield from differing(f"{place}: round that it answers", entry.round, body.round)
    yield from differing(f"{place}: base", base, body.base)
    yield from differing(f"{place}: payload", entry.cid, body.cid)
    yield from differing(f"{place}: group of tensors", entry.group, body.group)
    oldest = current.number - max(0, len(rules.discounts) - 1)
    if not oldest <= body.round <= current.number:
        wanted = f"{oldest} to {current.number}" if rules.discounts else str(current.number)
        yield Finding(f"{place}: round", wanted, str(body.round))


def check_once(signed: Sequence[Signed]) -> Iterator[Finding]:
    """That nobody answered twice."""
    seen: dict[bytes, int] = {}
    for each in signed:
        first = seen.setdefault(each.entry.member, each.position)
        if first != each.position:
            yield Finding(where(each.position, each.entry.member), "one update of a member", f"update {first} too")


def check_signature(signed: Signed) -> Iterator[Finding]:
    if not verify_transaction(signed.tx, tx_id(signed.tx)):
        yield Finding(where(signed.position, signed.entry.member), f"a signature by {signed.tx.key.hex()}", "another")


def is_first_key(signed: Signed) -> bool:
    """Whether the account is named after this key, so that nothing else need say that it speaks for it."""
    return account_id(signed.tx.key) == signed.tx.sender


# Weights


def check_weight(signed: Signed, rules: JobRules, current: Round) -> Iterator[Finding]:
    """With a cap on organisations, or weights by data sets, which the state lists, it is bounded and no more."""
    age, found = current.number - signed.body.round, signed.entry.weight
    if rules.discounts and not 0 <= age < len(rules.discounts):
        # That is a finding of its own.
        return
    most = weight_of(rules, signed.body.examples, rules.cap, 1, age)
    place = where(signed.position, signed.entry.member)
    if not rules.organisation_cap and rules.weights != DATASET:
        yield from differing(f"{place}: weight", most, found)
    elif not 1 <= found <= most:
        yield Finding(f"{place}: weight", f"1 to {most}", str(found))


# Payloads


def demand_of(signed: Signed, rules: JobRules, params: Params) -> Demand | None:
    """What the payload's blob has to be, if it did not come inline; what came is checked here. Raises Refused."""
    try:
        return check_update(signed.body, signed.tx, params, lambda job: rules if job == signed.body.job else None)
    except PendingJob:
        raise Refused("UNKNOWN_JOB", "The update is of another job.") from None


# Sums over the log


def check_sums(signed: Sequence[Signed], current: Round, metrics: int) -> Iterator[Finding]:
    """That the round's record counts what its log holds."""
    weights, examples = [0] * len(current.weights), 0
    for each in signed:
        if each.entry.group < len(weights):
            weights[each.entry.group] += each.entry.weight
        examples += each.body.examples
    values = [(each.body.metrics, each.body.examples) for each in signed if len(each.body.metrics) == metrics]
    sums = with_values((NO_SUM,) * metrics, values)
    yield from differing("weights of the round", tuple(weights), current.weights)
    yield from differing("examples of the round", examples, current.examples)
    if current.frozen_height:
        yield from differing("means of the metrics", tuple(map(mean, sums)), current.means)


# The closing record


def check_closing(
    record: ClosingRecord, job: bytes, rules: JobRules, current: Round, weights: Sequence[int]
) -> Iterator[Finding]:
    """Against the round's record and its log: whatever of it needs no aggregation."""
    closed = current.phase == Phase.CLOSED
    for name, expected in (
        ("rule", rules.rule),
        ("kernel_version", current.kernel_version),
        ("job", job),
        ("round", current.number),
        ("log_root", current.updates.root()),
        ("ok", closed),
        ("code", current.code),
        ("base", current.base),
        ("model", current.model),
        ("optimizer", current.optimizer),
        ("weights", tuple(weights)),
    ):
        yield from differing(f"closing record: {name}", expected, getattr(record, name))


def closing_differences(computed: ClosingRecord, certified: ClosingRecord) -> Iterator[Finding]:
    """Field by field."""
    for field in fields(ClosingRecord):
        name = field.name
        yield from differing(f"closing record: {name}", getattr(computed, name), getattr(certified, name))
