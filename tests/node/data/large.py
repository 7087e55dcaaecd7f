"""A life of one large blob, for a process of its own whose memory is watched: `python -m tests.node.data.large DIR MIB`
prints by how many bytes its anonymous memory rose at most."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from chain.cid import cid_text
from chain.unixfs import Hasher, manifest_cid
from fl.blobs import BlobKind
from node.data.blobs import BlobStore
from tests.node.data.worlds import MIB, Room

THREADS = 4


def rss_anon() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def leaf_of(index: int, last: int) -> bytes:
    return random.Random(index).randbytes(MIB if index < last else 12_345)


def leaves(last: int, seed: int = 0) -> Iterator[bytes]:
    return (leaf_of(index + seed, last + seed) for index in range(last + 1))


async def live(place: Room, last: int) -> int:
    hasher = Hasher()
    for data in leaves(last):
        hasher.update(data)
    manifest = hasher.finish()
    cid = manifest_cid(manifest)
    async with place.open() as store:
        await store.put(BlobKind.RECORD, leaf_of(last, last))
        before = rss_anon()
        peak, over = before, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.002):
                peak = max(peak, rss_anon())

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            staging = store.stage(cid, manifest, BlobKind.MODEL)
            order = random.Random(1).sample(range(last + 1), last + 1)

            def receive(part: int) -> None:
                for index in order[part::THREADS]:
                    assert staging.put(index, memoryview(leaf_of(index, last)))
                    assert not staging.put(index, bytes(MIB))

            await asyncio.gather(*(asyncio.to_thread(receive, part) for part in range(THREADS)))
            await store.publish(staging)
            await made(store, last)
            assert sha256(store.view(cid)).digest() == digest_of(last)
            await mended(place, store, cid, last)
        finally:
            over.set()
            watching.join()
        return peak - before


async def made(store: BlobStore, last: int) -> None:
    """Another blob of that size, written here."""
    draft = await asyncio.to_thread(store.write, BlobKind.MODEL, leaves(last, seed=1000))
    blob = await store.keep(draft)
    assert blob.manifest.count == last + 1 and await store.verify(blob.cid) == []


async def mended(place: Room, store: BlobStore, cid: bytes, last: int) -> None:
    with (place.root / "files" / "blobs" / cid_text(cid)).open("r+b") as file:
        file.seek(last // 2 * MIB + 77)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    assert await store.verify(cid) == [last // 2]
    staging = await store.damaged(cid)
    assert staging is not None and staging.missing() == [last // 2]
    assert staging.put(last // 2, leaf_of(last // 2, last))
    await store.publish(staging)
    assert sha256(store.view(cid)).digest() == digest_of(last)


def digest_of(last: int) -> bytes:
    total = sha256()
    for data in leaves(last):
        total.update(data)
    return total.digest()


if __name__ == "__main__":
    print(asyncio.run(live(Room(Path(sys.argv[1])), int(sys.argv[2]))))
