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
from fl.transactions import KINDS, Reading, read_all


class Checked(NamedTuple):
    reading: Reading
    demand: Demand | None
    """The blob that the transaction names instead of carrying it, of which nothing has been looked at."""


def check_transaction(
    data: bytes, chain_id: bytes, params: Params, rules_of: RulesOf, verify_signature: bool = True
) -> Checked:
    """Raises Refused with a code that bytes decide, or PendingJob when the job's rules are not known here;
    nothing else, whatever the bytes. A caller that passes `verify_signature=False` verifies it otherwise."""
    (found,) = check_all((data,), chain_id, params, rules_of, verify_signature)
    if isinstance(found, Exception):
        raise found
    return found


def check_all(
    transactions: Sequence[bytes], chain_id: bytes, params: Params, rules_of: RulesOf, verify_signatures: bool = True
) -> list[Checked | Refused | PendingJob]:
    """What is to be said of each of them alone, those of one kind looked at together."""
    found: list[Any] = list(read_all(transactions, params))
    of_kind: dict[int, list[int]] = {}
    for place, reading in enumerate(found):
        if type(reading) is not Reading:
            continue
        tx = reading.tx
        if tx.chain != chain_id:
            found[place] = Refused("WRONG_CHAIN")
        # Before the payload, so that a stranger's bytes cost one signature and no more.
        elif verify_signatures and not verify_transaction(tx, reading.id):
            found[place] = _why_unverified(tx)
        else:
            of_kind.setdefault(tx.kind, []).append(place)
    for kind, places in of_kind.items():
        alike = [found[place] for place in places]
        verdicts = KINDS[kind].check([(reading.body, reading.tx) for reading in alike], params, rules_of)
        for place, checked in zip(places, map(Checked._make, zip(alike, verdicts, strict=True)), strict=True):
            found[place] = checked.demand if isinstance(checked.demand, Exception) else checked
    return found


def _why_unverified(tx: Transaction) -> Refused:
    try:
        check_public_key(tx.key)
    except WeakKey as weak:
        return Refused("WEAK_KEY", f"{weak}; make a new key.")
    return Refused("BAD_SIGNATURE")
