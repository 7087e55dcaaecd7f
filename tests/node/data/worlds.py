"""A blob store on a real disk, and blobs to put into it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from chain.unixfs import Manifest, leaf_range, manifest_cid, manifest_of
from consensus.effects import Now
from node.data.blobs import BlobLimits, BlobStore
from node.data.staging import Staging
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.offload import ThreadOffload

MIB = 1024 * 1024
LIMITS = BlobLimits(reserve_bytes=0, member_bytes=64 * MIB)
ALICE, BOB = b"a" * 32, b"b" * 32


class HandClock:
    """Both clocks stand still until a test moves them."""

    def __init__(self, ms: int = 1_000_000) -> None:
        self.ms = ms
        self._random = random.Random(ms)

    def now(self) -> Now:
        return Now(self.ms, self.ms)

    def entropy(self, size: int) -> bytes:
        return self._random.randbytes(size)


class Room:
    """One directory, opened as often as a test likes."""

    def __init__(self, root: Path, limits: BlobLimits = LIMITS) -> None:
        self.root = root
        self.limits = limits
        self.clock = HandClock()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[BlobStore]:
        disk, kv, offload = FileDisk(self.root / "files"), LevelKv(self.root / "rows"), ThreadOffload()
        store = await BlobStore.open(disk, kv, self.clock, offload, self.limits)
        try:
            yield store
        finally:
            await store.close()
            offload.close()
            kv.close()
            disk.close()

    def files(self) -> list[str]:
        directory = self.root / "files" / "blobs"
        return sorted(each.name for each in directory.iterdir()) if directory.is_dir() else []


def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def named(data: bytes) -> tuple[bytes, Manifest]:
    manifest = manifest_of(data)
    return manifest_cid(manifest), manifest


def leaf(data: bytes, index: int) -> bytes:
    start, stop = leaf_range(len(data), index)
    return data[start:stop]


def fill(staging: Staging, data: bytes) -> None:
    for index in staging.missing():
        assert staging.put(index, leaf(data, index))
