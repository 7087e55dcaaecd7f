"""What a client is given for a transaction: what became of it, with the proof, kept on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from chain.light import ReceiptBundle
from fl.client.home import StoredReceipt
from fl.execution import OK


@dataclass(frozen=True, slots=True)
class Receipt:
    """`status` is "ok" or a refusal's code; ids are lower hex. The proof was verified against the network file; the
    file at `path` holds it and the signed transaction, for whoever wants to verify it again (docs/receipts.md)."""

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
        """Whether the status is "ok"."""
        return self.status == OK

    @classmethod
    def of(cls, stored: StoredReceipt) -> Receipt:
        """Of what is on disk."""
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
            proof=stored.file.proof,
        )
