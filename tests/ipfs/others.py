"""Other people's IPFS software, run as a process. `npm ci` in this directory installs it; without, its tests skip."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NODE = shutil.which("node")

installed = pytest.mark.skipif(
    NODE is None or not (HERE / "node_modules").is_dir(),
    reason="needs Node.js and `npm ci` in tests/ipfs",
)


class Failed(AssertionError):
    """The program ended otherwise than well; with what it said."""


async def run(script: str, *arguments: str) -> list[str]:
    """The lines that it prints."""
    assert NODE is not None
    process = await asyncio.create_subprocess_exec(
        NODE, script, *arguments, cwd=HERE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(300):
            said, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Failed(f"{script} ended with {process.returncode}: {complaint.decode()[-2000:]}")
    return said.decode().splitlines()
