"""What a batch that a peer offers costs a validator until it is in the log, by steps: processor time a transaction.

    python -m benchmarks.batches [--updates 60,120,250] [--batches 32] [--repeats 5] [--out batches.json]

Each batch is read from its frame, named, its creator's signature verified, judged, kept for execution and written to
the log; and others are signed and made into frames, as a validator's own. Nothing is given back between the batches of
a repeat, as in a validator where they wait for their block. Figures are medians of the repeats, in microseconds.
Updates are q8, inline, of 1,000 parameters and 32 members.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from benchmarks.machine import machine, versions
from benchmarks.reading import CHAIN, JOB, job_rules, update_of
from chain.batch import Batch, SignedBatch, sign_batch
from chain.certificate import Available
from chain.genesis import Params
from chain.hashing import Domain, signing_bytes
from chain.keys import SigningKey, verify
from consensus.availability import BatchStored, Verdict
from consensus.messages import BatchOffer, Channel, from_frame, to_frame
from fl.records import JobRules
from node import garbage
from node.batchlog import BatchLog
from node.checking import BatchChecks, Judged
from node.dataplane import DataPlane
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.offload import ThreadOffload
from node.readings import ReadBatches
from node.segments import SegmentedLog
from node.store import Store

PARAMETERS = 1_000
MEMBERS = 32
THREADS = 2
CREATOR = SigningKey(b"\x01" * 32)

T = TypeVar("T")


def updates(rules: JobRules, count: int, first: int) -> tuple[bytes, ...]:
    """From the `first` one of a job's updates on, the members in turn."""
    keys = [SigningKey(bytes([member]) * 32) for member in range(MEMBERS)]
    draw = np.random.default_rng(first)
    return tuple(
        update_of(rules, keys[number % MEMBERS], number // MEMBERS, draw.normal(0, 0.01, PARAMETERS).astype(np.float32))
        for number in range(first, first + count)
    )


class Bench:
    """The parts of a validator that a batch passes through, real ones but for the loop between them."""

    def __init__(self, log: SegmentedLog, store: Store, rules: JobRules, offload: ThreadOffload) -> None:
        self.log = BatchLog(log, store)
        self.read = ReadBatches()
        self.steps: dict[str, float] = {}
        self._checks = BatchChecks(
            CHAIN,
            Params(),
            offload,
            # No update names a blob.
            cast(DataPlane, None),
            {JOB: rules}.get,
            self.read,
            may_bring=lambda account, key: False,
            creator_of=lambda signed: None,
            disk_full=lambda: False,
            checked=lambda digest, verdict: None,
        )

    def _timed(self, name: str, step: Callable[[], T]) -> T:
        began = time.process_time()
        result = step()
        self.steps[name] = self.steps.get(name, 0.0) + time.process_time() - began
        return result

    def seal(self, batch: Batch) -> bytes:
        signed = self._timed("own: signed and named", lambda: sign_batch(CREATOR, batch))
        return self._timed("own: frame", lambda: to_frame(BatchOffer(signed)))

    def receive(self, frame: bytes) -> None:
        signed = self._timed("frame decoded", lambda: self._offered(frame))
        reference = self._timed("named", lambda: signed.reference)
        assert self._timed("creator's signature", lambda: self._is_signed(reference, signed))
        judged = self._timed("judged, held", lambda: self._judge(signed, look=False))
        self._timed("judged, looked at", lambda: self._judge(signed, look=True))
        self._timed("kept for execution", lambda: self.read.judged(signed, judged.readings))
        self._timed("log", lambda: self.log.append(BatchStored(signed, True)))

    def _offered(self, frame: bytes) -> SignedBatch:
        return cast(BatchOffer, from_frame(Channel.DATA, frame)).signed

    def _is_signed(self, reference: Available, signed: SignedBatch) -> bool:
        return verify(CREATOR.public, signing_bytes(Domain.BATCH, CHAIN, 0, reference.batch), signed.signature)

    def _judge(self, signed: SignedBatch, look: bool) -> Judged:
        judged = self._checks.judge(signed, look, lambda: True)
        assert judged.verdict is Verdict.OK and len(judged.readings) == len(signed.batch.transactions)
        return judged


async def measure(directory: Path, size: int, batches: int) -> dict[str, float]:
    rules = job_rules(PARAMETERS)
    made = [Batch(CHAIN, 0, 1, number, 1_000, 2_024, updates(rules, size, number * size)) for number in range(batches)]
    disk, kv, offload = FileDisk(directory / "files"), LevelKv(directory / "rows"), ThreadOffload(THREADS)
    bench = Bench(await SegmentedLog.create(disk, "batches", bytes), Store(kv, CHAIN), rules, offload)
    frames = [bench.seal(batch) for batch in made]
    garbage.settle()
    for frame in frames:
        bench.receive(frame)
    offload.close()
    kv.close()
    disk.close()
    return {name: seconds / batches / size * 1e6 for name, seconds in bench.steps.items()}


def measured(size: int, batches: int, repeats: int) -> dict[str, float]:
    found = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="quorate-batches-") as directory:
            found.append(asyncio.run(measure(Path(directory), size, batches)))
    return {name: round(statistics.median(each[name] for each in found), 2) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--updates", default="60,120,250", help="transactions a batch, each measured")
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.updates.split(",")]
    report = {
        "machine": machine(),
        "versions": versions(),
        "microseconds_a_transaction": {
            f"batches of {size}": measured(size, arguments.batches, arguments.repeats) for size in sizes
        },
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
