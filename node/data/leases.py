"""What accounts were promised room for: before a byte of a blob is taken, its account holds a lease on it.

The rule by which bytes count against an account: a lease counts until it ends, or until roots name its blob, for then
the state's own retention answers for it. A blob that is staged for an account without a lease (validators pull what
members uploaded elsewhere) is leased to it as it is staged. So all that a member can make a validator keep which no
state names, staged, whole or only promised, is bounded by its quota. Leases are kept in rows and end by the wall's
clock, so that they outlive a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from chain.codec import U8, U64, decode, encode
from fl.blobs import BlobKind
from node.data.errors import QuotaExceeded
from node.data.index import LEASE

_ROW_BYTES = 64


@dataclass(frozen=True, slots=True)
class Lease:
    account: bytes
    cid: bytes
    size_bytes: int
    kind: BlobKind
    until_ms: int
    """By the wall's clock."""

    @property
    def key(self) -> bytes:
        return LEASE + self.account + self.cid

    @property
    def row(self) -> bytes:
        return encode(_Row(self.size_bytes, self.kind, self.until_ms))


@dataclass(frozen=True, slots=True)
class _Row:
    size_bytes: U64
    kind: U8
    until_ms: U64


class Leases:
    """In memory, all that run; their number is bounded by accounts and by what each may hold."""

    def __init__(self, member_bytes: int, member_leases: int) -> None:
        self._member_bytes = member_bytes
        self._member_leases = member_leases
        self._by_account: dict[bytes, dict[bytes, Lease]] = {}
        self._by_cid: dict[bytes, dict[bytes, Lease]] = {}

    def restore(self, rows: Iterable[tuple[bytes, bytes, bytes]]) -> None:
        for account, cid, row in rows:
            read = decode(_Row, row, _ROW_BYTES)
            self.put(Lease(account, cid, read.size_bytes, BlobKind(read.kind), read.until_ms))

    def of(self, account: bytes, cid: bytes) -> Lease | None:
        return self._by_account.get(account, {}).get(cid)

    def on(self, cid: bytes) -> list[Lease]:
        return list(self._by_cid.get(cid, {}).values())

    def held_by(self, account: bytes) -> list[Lease]:
        return list(self._by_account.get(account, {}).values())

    def bytes_of(self, account: bytes) -> int:
        return sum(lease.size_bytes for lease in self._by_account.get(account, {}).values())

    @property
    def size_bytes(self) -> int:
        return sum(lease.size_bytes for lease in self)

    def check(self, account: bytes, cid: bytes, size_bytes: int) -> None:
        """May this account hold such a lease, whatever it holds on this blob already?"""
        held = self.of(account, cid)
        others_bytes = self.bytes_of(account) - (0 if held is None else held.size_bytes)
        if others_bytes + size_bytes > self._member_bytes:
            raise QuotaExceeded(
                f"This account may have {self._member_bytes} bytes waiting here; {others_bytes} wait already, and "
                f"{size_bytes} more are too many."
            )
        if held is None and len(self._by_account.get(account, {})) >= self._member_leases:
            raise QuotaExceeded(f"This account has {self._member_leases} blobs waiting here, as many as it may.")

    def put(self, lease: Lease) -> None:
        self._by_account.setdefault(lease.account, {})[lease.cid] = lease
        self._by_cid.setdefault(lease.cid, {})[lease.account] = lease

    def drop(self, lease: Lease) -> None:
        for group, first, second in (
            (self._by_account, lease.account, lease.cid),
            (self._by_cid, lease.cid, lease.account),
        ):
            held = group.get(first, {})
            if held.get(second) is lease:
                del held[second]
                if not held:
                    del group[first]

    def ended(self, wall_ms: int) -> list[Lease]:
        return [lease for lease in self if lease.until_ms <= wall_ms]

    def __iter__(self) -> Iterator[Lease]:
        for held in list(self._by_account.values()):
            yield from list(held.values())
