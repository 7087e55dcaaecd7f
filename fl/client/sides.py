"""What is done side by side, as the two directions of a stream are, until one side is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def until_one_ends(*sides: Awaitable[None]) -> None:
    """The others are ended with the first that ends, and awaited. Raises what that one raised."""
    tasks = [asyncio.ensure_future(side) for side in sides]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
