"""What a client is given for a transaction: what became of it, with the proof, kept on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from chain.light import ReceiptBundle
from fl.client.home import StoredReceipt
from fl.execution import OK


@dataclass(frozen=True, slots=True)
class Receipt:
    """`status` is "ok" or a refusal's code; ids are lower hex. The proof was verified against the network file, and
    is in `path` for whoever wants to verify it again."""

    tx: str
    status: str
    height: int
    job: str
    round: int
    position: int
    weight: int
    nonce: int
    path: Path
    proof: ReceiptBundle = field(repr=False)

    @property
    def accepted(self) -> bool:
        return self.status == OK

    @classmethod
    def of(cls, stored: StoredReceipt) -> Receipt:
        entry = stored.receipt
        return cls(
            tx=entry.tx_id.hex(),
            status=entry.status,
            height=entry.height,
            job=entry.job.hex(),
            round=entry.round,
            position=entry.position,
            weight=entry.weight,
            nonce=entry.nonce,
            path=stored.path,
            proof=stored.bundle,
        )
