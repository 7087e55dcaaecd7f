"""Anonymous memory of a process with a door does not grow with the blobs that go through it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from chain.codec import encode
from chain.unixfs import LEAF_BYTES
from tests.node.data.door.host import Upload, blob_of, leave_to_put

MIB = 1024 * 1024
BOUND_BYTES = 24 * MIB
"""Buffers of the leaves under way, what sockets hold, and what the allocator keeps of them."""


@contextmanager
def served(root: Path) -> Iterator[tuple[str, int]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.node.data.door.host", str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[4],
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"], process.pid
    finally:
        process.stdin.close()
        assert process.wait(30) == 0


def anonymous_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


async def through(url: str, upload: Upload, lanes: int) -> None:
    """In by leaves, out whole, in again as a stream, out by CAR."""
    permit = {"Authorization": leave_to_put(upload)}
    octets = permit | {"Content-Type": "application/octet-stream"}
    waiting = list(range(upload.manifest.count))
    async with aiohttp.ClientSession(url) as session:

        async def read(path: str) -> int:
            size = 0
            async with session.get(path) as answer:
                assert answer.status == 200
                async for chunk in answer.content.iter_any():
                    size += len(chunk)
            return size

        async def lane() -> None:
            while waiting:
                index = waiting.pop()
                async with session.put(f"{upload.path}/leaves/{index}", data=upload.leaf(index), headers=octets) as put:
                    assert put.status == 200, await put.read()

        manifest = permit | {"Content-Type": "application/msgpack"}
        async with session.post(upload.path, data=encode(upload.manifest), headers=manifest) as offered:
            assert offered.status == 200
        await asyncio.gather(*(lane() for _ in range(lanes)))
        assert await read(upload.path) == len(upload.data)
        async with session.put(upload.path, data=aiohttp.BytesPayload(upload.data), headers=octets) as put:
            assert put.status == 200
        assert await read(upload.path.replace("/v1/blobs", "/ipfs") + "?format=car") > len(upload.data)


@pytest.mark.parametrize("mib", [64, pytest.param(1024, marks=[pytest.mark.nightly])])
def test_memory_does_not_grow_with_a_blob(tmp_path: Path, mib: int) -> None:
    with served(tmp_path) as (url, pid):
        asyncio.run(through(url, Upload(blob_of(8 * LEAF_BYTES)), lanes=8))
        before = anonymous_bytes(pid)
        asyncio.run(through(url, Upload(blob_of(mib * MIB)), lanes=8))
        assert anonymous_bytes(pid) - before < BOUND_BYTES
