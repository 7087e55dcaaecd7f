"""A file from IPFS into a place on this machine's disk: taken up again after a break if it was cut as Quorate cuts."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from chain.unixfs import MAX_FILE_BYTES, Manifest, leaf_cid, leaf_range
from fl.client.errors import BadFile, Unverified
from fl.client.keyfile import sync_directory
from fl.client.transfer.blobfile import Partial, is_file
from fl.client.transfer.blobs import Progress, quiet, step
from fl.client.transfer.ipfs import AT_ONCE, Blocks, Source
from fl.client.transfer.upload import at_once


async def get_from_ipfs(cid: bytes, sources: Sequence[Source], path: Path, progress: Progress = quiet) -> int:
    """The size of the file that `cid` names, once it is at `path`, every block of it verified."""
    async with Blocks(sources) as blocks:
        try:
            manifest = await blocks.manifest(cid)
        except Unverified as error:
            if error.code != "FOREIGN_LAYOUT":
                raise
            return await _whole(blocks, cid, path, progress)
        return await _by_leaves(blocks, cid, manifest, path, progress)


async def _by_leaves(blocks: Blocks, cid: bytes, manifest: Manifest, path: Path, progress: Progress) -> int:
    size_bytes = manifest.size_bytes
    if await asyncio.to_thread(is_file, path, cid, size_bytes):
        return size_bytes
    partial, told = Partial(path, cid, manifest), step(progress, "fetch")
    try:
        await asyncio.to_thread(partial.open, step(progress, "check"))
        waiting = deque(sorted(partial.missing))
        there = size_bytes - sum(stop - start for start, stop in (leaf_range(size_bytes, each) for each in waiting))
        told(there, size_bytes)

        async def lane() -> None:
            nonlocal there
            while waiting:
                index = waiting.popleft()
                block = await blocks.block(leaf_cid(manifest.leaf(index)))
                if not await asyncio.to_thread(partial.put, index, block):
                    raise Unverified("WRONG_BYTES", f"Leaf {index} is not of the size that its file says.")
                partial.missing.discard(index)
                there += len(block)
                told(there, size_bytes)

        await at_once(lane() for _ in range(AT_ONCE))
        await asyncio.to_thread(partial.finish)
    finally:
        partial.close()
    return size_bytes


async def _whole(blocks: Blocks, cid: bytes, path: Path, progress: Progress) -> int:
    """A tree that others cut: its parts come in an order of their own, and their sizes are known when they are here."""
    beside = path.with_name(f".{path.name}.{cid[-8:].hex()}.ipfs")
    told, there = step(progress, "fetch"), 0
    try:
        with open(beside, "wb") as file:

            def write(start: int, data: bytes) -> None:
                nonlocal there
                os.pwrite(file.fileno(), data, start)
                there += len(data)
                told(there, there)

            size_bytes = await blocks.file(cid, write, MAX_FILE_BYTES)
            os.ftruncate(file.fileno(), size_bytes)
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_directory(path.parent)
    except OSError as error:
        raise BadFile(
            "UNWRITABLE", f"{path} cannot be written: {error.strerror}.", "Make room, or name another."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return size_bytes
