"""Availability: transactions become batches, batches become certificates that prove f+1 honest durable copies, and that
an honest validator has verified every signature.

What enters: transactions that admission has checked, offers, votes, certificates and status frames of peers,
the application's verdicts, and how far ordering has come. What leaves: batches and certificates to make durable,
offers and votes and pulls, acknowledgements, and for ordering the references that a block may name.

    sealed ──offer──▶ read or looked at, durable ──vote──▶ certified ──flood──▶ named by a block ──▶ forgotten here
                            │ 1 s without a certificate: every voter owns it, votes to all, lists it in its status
                            │ 2 s: the next who only hold it verify signatures as well, and vote again
                            ▼
                     whoever lacks it pulls it and votes; whoever has the votes of a certificate assembles it

The creator and the next f look, the others hold (docs/decisions/0024-looked-at-and-held.md). A block may name what is
certified; a voter also takes what it has looked at itself.

`core.py` is the face and the dispatch; `guards.py` holds every rule that safety or a bound rests on, each as a
function of plain values; `creation.py` packs and re-offers own batches, `voting.py` judges offers, `certifying.py`
gathers votes and completes what a dead creator left, `pulls.py` fetches bytes, `lots.py` is the book of batches.

Bytes of a batch stay in memory only while its vote or its certificate is open (own ones until ordered, for they
may have to be packed again); otherwise the node serves them from the batches' log.
"""

from consensus.availability.core import Availability
from consensus.availability.guards import is_expired, may_include
from consensus.availability.inputs import (
    Acknowledged,
    Advanced,
    BatchHere,
    Candidate,
    CheckBatch,
    Checked,
    CheckSpared,
    Muted,
    Need,
    NewEpoch,
    Ordered,
    PoolFull,
    Referable,
    Replay,
    ServeBatch,
    Submit,
    TransactionsExpired,
    Verdict,
)
from consensus.availability.records import BatchStored, CertificateHeld, SequenceReserved

__all__ = [
    "Acknowledged",
    "Advanced",
    "Availability",
    "BatchHere",
    "BatchStored",
    "Candidate",
    "CertificateHeld",
    "CheckBatch",
    "CheckSpared",
    "Checked",
    "Muted",
    "Need",
    "NewEpoch",
    "Ordered",
    "PoolFull",
    "Referable",
    "Replay",
    "SequenceReserved",
    "ServeBatch",
    "Submit",
    "TransactionsExpired",
    "Verdict",
    "is_expired",
    "may_include",
]
