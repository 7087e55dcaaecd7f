"""One node as it looks from here: whether it answers, what it says of itself, and what of that it can prove."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from chain.block import MAX_BLOCK_BYTES, Block, block_digest
from chain.certificate import Executed
from chain.codec import CodecError, decode
from fl.client.errors import QuorateError
from fl.client.nodes import Behind, Node, Nodes, Reply, Request, Untrue, Unusable, limited
from fl.client.reader import Reader
from fl.client.transfer.doors import Asked, Doors

_STATUS_BYTES = 1024 * 1024
_MOST_REASONS = 16
_BLOCK_PATIENCE_S = 2.0


@dataclass(slots=True)
class Look:
    """`fault` says why it is of no use; `lies` that its head does not follow from the network file."""

    name: str
    url: str
    fault: str = ""
    lies: bool = False
    latency_ms: float = 0.0
    ahead_s: float | None = None
    """Of this machine's clock, by the date that it answers with."""
    version: str = ""
    kernel_version: int | None = None
    reasons: tuple[str, ...] = ()
    """Why it says that it should not be asked."""
    head: Executed | None = None
    door_fault: str = ""

    @property
    def height(self) -> int:
        return self.head.height if self.head is not None else 0

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read along."""
        parts = urlsplit(self.url)
        try:
            return parts.scheme == "https" or ip_address(parts.hostname or "").is_loopback
        except ValueError:
            return parts.hostname == "localhost"


async def look_at(node: Node, reader: Reader, doors: Doors, now_s: Callable[[], float]) -> Look:
    look = Look(node.name, node.url)
    try:
        await _ask_status(doors.nodes, node, look, now_s)
        look.head = await reader.head_of(node)
        await doors.ask(node, Asked("GET", "", {"limit": "1"}))
    except Untrue as error:
        look.fault, look.lies = str(error), True
    except QuorateError as error:
        # Of a fork: two states of one height are certified.
        look.fault, look.lies = error.what, True
    except (Unusable, Behind) as error:
        if look.head is not None:
            look.door_fault = str(error)
        else:
            look.fault = str(error)
    return look


async def _ask_status(nodes: Nodes, node: Node, look: Look, now_s: Callable[[], float]) -> None:
    began_s, began = now_s(), time.monotonic()
    try:
        async with nodes.session().get(f"{node.url}/v1/status") as response:
            body = await limited(response, _STATUS_BYTES)
            date = response.headers.get("Date", "")
            status = response.status
    except ssl.SSLError as error:
        raise Unusable(f"TLS fails: {error.reason}") from None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise Unusable(str(error) or type(error).__name__) from None
    passed_s = time.monotonic() - began
    look.latency_ms = 1000 * passed_s
    look.ahead_s = _ahead_s(date, began_s + passed_s / 2)
    if status == 200:
        _take_down(look, _fields(body))


def _ahead_s(date: str, here_s: float) -> float | None:
    try:
        # It is cut to whole seconds.
        return parsedate_to_datetime(date).timestamp() + 0.5 - here_s
    except (ValueError, OverflowError):
        return None


def _fields(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _take_down(look: Look, fields: dict[str, Any]) -> None:
    """What it says of itself: strings of any kind, so they are cut short."""
    version, kernels, reasons = fields.get("version"), fields.get("kernel_version"), fields.get("reasons")
    look.version = version[:40] if isinstance(version, str) else ""
    look.kernel_version = kernels if isinstance(kernels, int) else None
    if isinstance(reasons, list):
        look.reasons = tuple(each[:40] for each in reasons[:_MOST_REASONS] if isinstance(each, str))


async def proven_time_ms(nodes: Nodes, head: Executed) -> int | None:
    """Of the block that a head names, from whichever node has it; None if none does."""

    def read(reply: Reply) -> int:
        if reply.status != 200:
            raise Unusable(reply.problem())
        try:
            header = decode(Block, reply.body, MAX_BLOCK_BYTES).header
        except CodecError as error:
            raise Unusable(f"no block: {error}") from None
        if block_digest(header) != head.block:
            raise Unusable("another block than the certified one")
        return header.time_ms

    try:
        return await nodes.ask(
            Request("GET", f"/v1/blocks/{head.height}/raw", limit_bytes=MAX_BLOCK_BYTES), read, _BLOCK_PATIENCE_S
        )
    except QuorateError:
        return None
