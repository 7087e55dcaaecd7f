"""The record that closes a round, stored as a blob and named in the certified result.

It says how the new model came about; with the round's log of accepted updates, anyone who holds their
payloads can compute it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chain.codec import U8, U16, U32, U64, Count, Digest, Length
from fl.tensors.grid import MAX_UPDATES

CLOSING_VERSION = 1
MAX_CLOSING_BYTES = 1024 + 5 * MAX_UPDATES

BlobName = Annotated[bytes, Length(0, 36)]
"""A CID, or nothing where there is no such blob."""


@dataclass(frozen=True, slots=True)
class ClosingRecord:
    version: U8
    rule: Annotated[str, Length(1, 32)]
    kernel_version: U16
    job: Digest
    round: U64
    log_root: Digest
    """Of the accepted updates: transaction, member, weight and payload of each."""
    ok: bool
    code: Annotated[str, Length(0, 32)]
    """Why the round failed; empty when it did not."""
    base: BlobName
    model: BlobName
    """Empty when the round failed."""
    optimizer: BlobName
    denominator: U64
    """The grid steps in one unit of the mean."""
    weights: Annotated[tuple[U32, ...], Count(1, MAX_UPDATES)]
    """In the order of the log."""
