"""The batches' log: what is in it can be read at once, and counts as held once it is durable."""

from __future__ import annotations

from pathlib import Path

import pytest

from chain.batch import Batch, SignedBatch, batch_digest
from chain.codec import encode
from consensus.availability import BatchStored
from node.batchlog import BatchLog
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.records import batch_entry, read_batch_entry
from node.segments import CorruptLog, SegmentedLog
from node.store import Store
from tests.chain.build import CHAIN

SIGNED = SignedBatch(Batch(CHAIN, 0, 1, 0, 0, 64, (b"a transaction",)), bytes(64))
DIGEST = batch_digest(SIGNED.batch)


def mark(size: int) -> bytes:
    return b"\x5a" * size


async def test_what_is_appended_is_read_at_once_and_held_once_it_is_durable(tmp_path: Path) -> None:
    disk, kv = FileDisk(tmp_path / "files"), LevelKv(tmp_path / "rows")
    batches = BatchLog(await SegmentedLog.create(disk, "batches", mark), Store(kv, CHAIN))
    assert batches.read(DIGEST) is None
    batches.append(BatchStored(SIGNED, False))
    batches.settle()
    assert batches.read(DIGEST) == SIGNED and not batches.holds(DIGEST)
    first = batches.log.last
    batches.append(BatchStored(SIGNED, True))
    await batches.log.durable(first)
    batches.settle()
    assert batches.read(DIGEST) == SIGNED and batches.holds(DIGEST)
    await batches.log.durable(batches.log.last)
    batches.settle()
    assert batches.read(DIGEST) == SIGNED
    kv.close()
    disk.close()


@pytest.mark.parametrize("voted", [False, True])
def test_an_entry_is_the_encoding_of_its_record(voted: bool) -> None:
    record = BatchStored(SIGNED, voted)
    assert b"".join(batch_entry(record)) == encode(record)
    assert read_batch_entry(encode(record)) == record


@pytest.mark.parametrize(
    "spoilt", [b"", b"\x92", b"\x93" + SIGNED.encoded + b"\xc3", b"\x92" + SIGNED.encoded + b"\x01"]
)
def test_what_is_no_entry_is_not_read(spoilt: bytes) -> None:
    with pytest.raises(CorruptLog):
        read_batch_entry(spoilt)
