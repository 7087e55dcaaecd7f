"""The verdict on a transaction's bytes: what admission asks, and what votes for a batch attest, some of them all but
the signature.

It is a pure function of the bytes, the chain's parameters, and rules of jobs, which never change. So it is
the same on every node and at every time, and execution relies on it instead of repeating it. Where a blob takes the
place of bytes in the transaction, the verdict names it, and `fl.blobs` judges its bytes wherever they are.
"""

from __future__ import annotations

from chain.frozen import record
from chain.genesis import Params
from chain.keys import WeakKey, check_public_key
from chain.transaction import Transaction, verify_transaction
from fl.blobs import Demand
from fl.errors import Refused
from fl.state import RulesOf
from fl.transactions import Reading, read


@record
class Checked:
    reading: Reading
    demand: Demand | None
    """The blob that the transaction names instead of carrying it, of which nothing has been looked at."""


def check_transaction(
    data: bytes, chain_id: bytes, params: Params, rules_of: RulesOf, verify_signature: bool = True
) -> Checked:
    """Raises Refused with a code that bytes decide, or PendingJob when the job's rules are not known here;
    nothing else, whatever the bytes. A caller that passes `verify_signature=False` verifies it otherwise."""
    reading = read(data, params)
    tx = reading.tx
    if tx.chain != chain_id:
        raise Refused("WRONG_CHAIN")
    # Before the payload, so that a stranger's bytes cost one signature and no more.
    if verify_signature and not verify_transaction(tx, reading.id):
        raise _why_unverified(tx)
    demand = reading.row.check(reading.body, tx, params, rules_of)
    return Checked(reading, demand)


def _why_unverified(tx: Transaction) -> Refused:
    try:
        check_public_key(tx.key)
    except WeakKey as weak:
        return Refused("WEAK_KEY", f"{weak}; make a new key.")
    return Refused("BAD_SIGNATURE")
