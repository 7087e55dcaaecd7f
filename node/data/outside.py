"""Public blobs from IPFS, for when no validator has them: from the gateways that the operator has named.

Only files that were cut as Quorate cuts them can come so: another cut has another CID, and the state names ours. Their
nodes are fetched first and make the manifest; leaves then go where the swarm puts its own, so each of the two goes on
with what the other has brought.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from chain.cid import cid_text
from chain.unixfs import leaf_cid
from fl.blobs import BlobKind
from fl.client.errors import QuorateError
from fl.client.transfer.ipfs import AT_ONCE, Blocks, Source
from node.data.blobs import BlobStore
from node.data.errors import Discarded, TooLarge
from node.data.staging import Staging
from node.ports import Offload

log = logging.getLogger("quorate.data")


class Outside:
    def __init__(self, store: BlobStore, offload: Offload, sources: Sequence[Source]) -> None:
        self._store = store
        self._offload = offload
        self._sources = sources

    async def obtain(self, cid: bytes, kind: BlobKind) -> bool:
        """Whether the blob is durable in the store; False if none of the gateways gives it, or gives another file.
        Raises NoSpace, QuotaExceeded and DiskFailure."""
        try:
            async with Blocks(self._sources) as blocks:
                manifest = await blocks.manifest(cid, self._store.limits.blob_bytes)
                staging = self._store.stage(cid, manifest, kind)
                await self._fill(blocks, staging)
            await self._store.publish(staging)
            return True
        except (QuorateError, Discarded, TooLarge, _Wrong) as error:
            log.info("no gateway gives a blob", extra={"cid": cid_text(cid), "reason": str(error)})
            return False

    async def _fill(self, blocks: Blocks, staging: Staging) -> None:
        missing = iter(staging.missing())

        async def lane() -> None:
            for index in missing:
                if staging.has(index):
                    # The swarm was faster.
                    continue
                block = await blocks.block(leaf_cid(staging.manifest.leaf(index)))
                if not await self._offload.run(staging.put, index, block):
                    raise _Wrong(f"leaf {index} is not of the size that the root says")

        lanes = [asyncio.create_task(lane(), name="gateway") for _ in range(AT_ONCE)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for each in lanes:
                each.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)


class _Wrong(Exception):
    """The file does not add up."""
