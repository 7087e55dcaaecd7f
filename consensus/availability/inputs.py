"""What the availability core is told, what it asks and announces in `Output.events`, and its acknowledgement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from chain.batch import SignedBatch
from chain.certificate import Available, ValidatorSet
from chain.keys import SigningKey
from consensus.effects import PeerUp, Received, Tick


class Verdict(Enum):
    """The application's answer about a batch: a function of its bytes, of immutable rules, and of whether signatures
    were to be verified."""

    OK = auto()
    BAD = auto()
    PENDING = auto()
    """It names a job that has not been executed here yet, or a blob that there is no room for."""


# Inputs


@dataclass(frozen=True, slots=True)
class Submit:
    """Transactions that admission accepted: (id, encoded transaction, valid until, in ms of block time). Those that
    name blobs go `alone`, each in a batch of its own, for peers vote for it only when they hold the blob."""

    transactions: tuple[tuple[bytes, bytes, int], ...]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    batch: bytes
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Advanced:
    """`height`: of the newest final header known, body or not; `executed`: of the newest state."""

    height: int
    executed: int


@dataclass(frozen=True, slots=True)
class Ordered:
    """A final block named these batches. After a replay the node says so again for the last `horizon` heights."""

    height: int
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Need:
    """A final block names these batches and the node's log has no bytes for them."""

    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class NewEpoch:
    validators: ValidatorSet
    me: int | None
    key: SigningKey


@dataclass(frozen=True, slots=True)
class Muted:
    """While on, nothing is created and no batch voted for: what earlier votes promised may have been lost, and is
    being fetched."""

    on: bool


@dataclass(frozen=True, slots=True)
class Replay:
    """Persisted records in any order, in one piece or in several, before anything else but `Advanced`."""

    records: Iterable[object]


Input = Submit | Received | Checked | Advanced | Ordered | Need | PeerUp | Tick | NewEpoch | Muted | Replay


# Events


@dataclass(frozen=True, slots=True)
class CheckBatch:
    """Ask the application about every transaction; the creator's signature has been verified. `look` says whether it is
    to verify theirs as well."""

    digest: bytes
    signed: SignedBatch
    look: bool


@dataclass(frozen=True, slots=True)
class CheckSpared:
    """The verdict that was asked for no longer matters: a certificate covers the batch, or it is past its time."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class ServeBatch:
    """Answer this peer with a BatchAnswer if the log holds the batch; say nothing if it does not."""

    peer: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class BatchHere:
    """Its BatchStored is in `persist`, of this output or of an earlier one."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class Referable:
    """From here on a proposal may name this batch as far as this validator is concerned."""

    reference: Available


@dataclass(frozen=True, slots=True)
class Candidate:
    """From here on this validator, when it leads, may name this batch."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class PoolFull:
    """These transactions were not taken."""

    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class TransactionsExpired:
    """These left the pool: their time had passed before they could be packed."""

    ids: tuple[bytes, ...]


# Acknowledgement


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The only promise to a client: these transactions are available and will be ordered."""

    ids: tuple[bytes, ...]
    batch: bytes
