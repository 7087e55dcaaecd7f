"""A client that says what it likes, byte by byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

HANG_S = 60


@dataclass
class Wire:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(HANG_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode().strip().split("\r\n")
            headers = {name.lower(): text for name, text in (line.split(": ", 1) for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return int(first.split()[1]), headers, body

    async def problem(self, status: int, code: str) -> dict[str, str]:
        found, headers, body = await self.answer()
        document = json.loads(body)
        assert (found, document["code"]) == (status, code), (found, body)
        assert headers["content-type"] == "application/problem+json"
        assert ("retry-after" in headers) == (status in (429, 503, 507))
        return headers

    async def ended(self) -> None:
        async with asyncio.timeout(HANG_S):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass


@asynccontextmanager
async def wire_to(port: int) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
