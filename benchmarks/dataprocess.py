"""A data process alone: below a core that does nothing but what it is told here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from chain.codec import encode
from chain.keys import SigningKey
from node.data.setup import Place, Setup
from node.dataplane import DataPlane
from node.ports.pipe import CorePipe

_UP_S = 120.0


def setup_in(directory: Path, bulk_port: int = 0) -> Setup:
    return Setup(
        chain=b"c" * 32,
        consensus_key=SigningKey(b"k" * 32).public,
        link_seed=b"l" * 32,
        data_dir=str(directory / "data"),
        bulk=Place("127.0.0.1", bulk_port),
        door=Place("127.0.0.1", 0),
        tls_cert="",
        tls_key="",
        cors=(),
        gateways=(),
        reserve_bytes=0,
        member_bytes=2**30,
        lease_ms=3_600_000,
        blob_bytes=2**30,
        sums_bytes=2**30,
        downloads=8,
        threads=2,
        requests_per_s=500,
        log_level="warning",
        log_format="json",
    )


@asynccontextmanager
async def data_process(directory: Path) -> AsyncIterator[tuple[CorePipe, DataPlane]]:
    """Once it is at work."""
    pipe = CorePipe(encode(setup_in(directory)))
    plane = DataPlane(pipe, who=lambda account, key: (True, ("trainer",)))
    running = asyncio.create_task(plane.run())
    try:
        await asyncio.wait_for(plane.up(), _UP_S)
        yield pipe, plane
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await pipe.close()
