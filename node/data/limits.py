"""What a blob store takes."""

from __future__ import annotations

from dataclasses import dataclass

from chain.unixfs import MAX_FILE_BYTES


@dataclass(frozen=True, slots=True)
class BlobLimits:
    reserve_bytes: int = 1 << 30
    """Left free on the disk for ordering and everybody else."""
    blank_bytes: int = 4 << 30
    """At most, of files of deleted blobs that wait to be written again."""
    member_bytes: int = 8 << 30
    """Of an account's blobs that no state names yet."""
    member_leases: int = 256
    lease_ms: int = 3_600_000
    blob_bytes: int = MAX_FILE_BYTES
    idle_ms: int = 900_000
    """A staged blob or draft that nobody holds is rubbish once it was not touched for so long."""
