"""The verdict on a transaction's bytes: what admission asks, and what votes for a batch attest, some of them all but
the signature.

It is a pure function of the bytes, the chain's parameters, and rules of jobs, which never change. So it is
the same on every node and at every time, and execution relies on it instead of repeating it. Where a blob takes the
place of bytes in the transaction, the verdict names it, and `fl.blobs` judges its bytes wherever they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from chain.genesis import Params
from chain.keys import WeakKey, check_public_key
from chain.transaction import Transaction, verify_transaction
from fl.blobs import Demand
from fl.errors import PendingJob, Refused
from fl.state import RulesOf
from fl.transactions import KINDS, Reading, read, read_all


class Checked(NamedTuple):
    reading: Reading
    demand: Demand | None
    """The blob that the transaction names instead of carrying it, of which nothing has been looked at."""


def check_transaction(
    data: bytes, chain_id: bytes, params: Params, rules_of: RulesOf, verify_signature: bool = True
) -> Checked:
    """Raises Refused with a code that bytes decide, or PendingJob when the job's rules are not known here;
    nothing else, whatever the bytes. A caller that passes `verify_signature=False` verifies it otherwise."""
    reading = read(data, params)
    refusal = _refusal_of_origin(reading, chain_id, verify_signature)
    if refusal is not None:
        raise refusal
    return _checked(reading, params, rules_of)


def check_all(
    transactions: Sequence[bytes], chain_id: bytes, params: Params, rules_of: RulesOf, verify_signatures: bool = True
) -> list[Checked | Refused | PendingJob]:
    """What `check_transaction` says of each, or raises."""
    found: list[Any] = list(read_all(transactions, params))
    of_kind: dict[int, list[int]] = {}
    for place, reading in enumerate(found):
        if type(reading) is Reading:
            refusal = _refusal_of_origin(reading, chain_id, verify_signatures)
            if refusal is None:
                of_kind.setdefault(reading.tx.kind, []).append(place)
            else:
                found[place] = refusal
    for kind, places in of_kind.items():
        alike = [found[place] for place in places]
        good = KINDS[kind].known_good([(reading.body, reading.tx) for reading in alike], params, rules_of)
        for place, reading, known in zip(places, alike, good, strict=True):
            try:
                found[place] = Checked(reading, None) if known else _checked(reading, params, rules_of)
            except (Refused, PendingJob) as refused:
                found[place] = refused
    return found


def _refusal_of_origin(reading: Reading, chain_id: bytes, verify_signature: bool) -> Refused | None:
    tx = reading.tx
    if tx.chain != chain_id:
        return Refused("WRONG_CHAIN")
    # Before the payload, so that a stranger's bytes cost one signature and no more.
    if verify_signature and not verify_transaction(tx, reading.id):
        return _why_unverified(tx)
    return None


def _checked(reading: Reading, params: Params, rules_of: RulesOf) -> Checked:
    return Checked(reading, reading.row.check(reading.body, reading.tx, params, rules_of))


def _why_unverified(tx: Transaction) -> Refused:
    try:
        check_public_key(tx.key)
    except WeakKey as weak:
        return Refused("WEAK_KEY", f"{weak}; make a new key.")
    return Refused("BAD_SIGNATURE")
