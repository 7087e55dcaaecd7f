"""What memory a data process takes for a round, by the number of its updates: one process for each number, with a real
store of updates on disk, and the sums of the data process itself.

    python -m benchmarks.sums_memory [--parameters 1000000] [--updates 8 32 128 256] [--encoding f32]

Memory is RssAnon, what no file backs: the most while updates are stored, summed and closed, and what the process had
before the first of them, with the kernels loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from benchmarks.accounts import rules_of
from benchmarks.processes import MIB, anonymous_bytes
from chain.keys import SigningKey
from chain.unixfs import LEAF_BYTES
from fl.blobs import BlobKind
from fl.jobrules import zero_model
from fl.kernels import KERNEL_VERSION
from fl.kernels.golden import check_golden
from fl.tensors.encodings import Place, encode_update
from fl.updates import form_of
from node.data.arrivals import Arrivals
from node.data.blobs import BlobLimits, BlobStore
from node.data.messages import Add, Addend, Begin, Close
from node.data.pile import Pile
from node.data.summing import Sums
from node.data.swarm import Swarm
from node.ports.bulk import TlsBulk
from node.ports.clock import SystemClock
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.offload import ThreadOffload

JOB, LOG_ROOT = b"j" * 32, b"r" * 32
EVERY_S = 0.01


class Peak:
    def __init__(self) -> None:
        self.size_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self.size_bytes = max(self.size_bytes, anonymous_bytes(os.getpid()))

    def end(self) -> int:
        self._over.set()
        self._thread.join()
        return self.size_bytes


async def measure(directory: Path, parameters: int, count: int, encoding: str) -> dict[str, float]:
    rules = rules_of("sums", parameters, count, encoding=encoding)
    form = form_of(rules, 0)
    values = np.random.default_rng(1).normal(0, 0.01, parameters).astype(np.float32)
    check_golden()
    disk, kv, offload, clock = FileDisk(directory), LevelKv(directory / "rows"), ThreadOffload(), SystemClock()
    store = await BlobStore.open(disk, kv, clock, offload, BlobLimits(reserve_bytes=0))
    swarm = Swarm(store, alone(), clock)
    sums = Sums(store, offload, Arrivals(store, swarm), lambda: Pile(disk, store.reserve, 1), 1 << 40, None)
    running = asyncio.create_task(sums.run())
    before = anonymous_bytes(os.getpid())
    base = await store.put(BlobKind.MODEL, zero_model(rules.schema))
    peak = Peak()
    sums.begin(Begin(JOB, 1, rules, 1))
    for index in range(count):
        member = index.to_bytes(32, "big")
        data = memoryview(encode_update(form, Place(JOB, 1, member), {"w": values}))
        leaves = (data[start : start + LEAF_BYTES] for start in range(0, len(data), LEAF_BYTES))
        blob = await store.keep(await offload.run(store.write, BlobKind.UPDATE, leaves))
        await sums.add(Add(0, JOB, 1, (Addend(index, 1, member, 1, 0, blob.cid),), ()))
    closed = await sums.close(Close(0, JOB, 1, LOG_ROOT, count, KERNEL_VERSION, base.cid, b""))
    found = {"updates": count, "before_mib": before / MIB, "most_mib": peak.end() / MIB}
    if not closed.ok:
        raise SystemExit(f"the round did not close: {closed.code}")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.close()
    kv.close()
    offload.close()
    disk.close()
    return {name: round(value, 1) for name, value in found.items()}


def alone() -> TlsBulk:
    key = SigningKey.from_seed(bytes(32))
    return TlsBulk(key, key.public, bytes(32), ("127.0.0.1", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--updates", type=int, nargs="+", default=[8, 32, 128, 256])
    parser.add_argument("--encoding", choices=("f32", "q8"), default="f32")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone is not None:
        with tempfile.TemporaryDirectory(prefix="quorate-sums-") as directory:
            print(
                json.dumps(
                    asyncio.run(measure(Path(directory), arguments.parameters, arguments.alone, arguments.encoding))
                )
            )
        return
    for count in arguments.updates:
        command = [sys.executable, "-m", "benchmarks.sums_memory", "--alone", str(count)]
        chosen = ["--parameters", str(arguments.parameters), "--encoding", arguments.encoding]
        subprocess.run([*command, *chosen], check=True)


if __name__ == "__main__":
    main()
