"""Where the nodes give and take blobs: each has a door of its own for that, beside the address in the network file.

The address answers what is asked for a blob with a redirect. It is followed once, and the door that it names is asked
from then on, until it does not answer; then the node is asked anew. As little is believed here as elsewhere: callers
compare every byte with a CID.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import AbstractStreamWriter

from chain.cid import cid_text
from chain.codec import encode
from chain.keys import SigningKey
from fl.access import Action, Leave, SignedLeave, sign_leave
from fl.client.nodes import CONNECT_TIMEOUT_S, Node, Nodes, Reply, Unusable, limited, seconds

REDIRECTS = frozenset({301, 302, 307, 308})
GOOD = frozenset({200, 206})
ABSENT = frozenset({404, 410})
LEAVE_WANTED = frozenset({401, 403}) | ABSENT
"""Who may not read a blob is not told that it is there."""
_LEAVE_MS = 3_600_000
_RENEWED_MS = 600_000
"""A leave that ends sooner than this is signed anew."""
_SMALL_BYTES = 64 * 1024
_PIECE_BYTES = 128 * 1024
"""Of a large body, what a socket is given at a time: what it does not take at once is copied."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a transfer waits, and how much of it is under way at once."""

    lanes: int = 4
    """Leaves under way."""
    stall_s: float = 10.0
    """A node that sends nothing for so long is passed over."""
    leaf_s: float = 60.0
    """A leaf that takes longer is tried elsewhere: slower than 17 KiB a second, nothing is of use."""
    tries: int = 4
    """Of one leaf at one node, while there is another one to go to."""
    pause_s: float = 0.05
    longest_pause_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to a door. `path` follows `/v1/blobs`."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | bytearray | memoryview | None = None
    limit_bytes: int = _SMALL_BYTES
    room: memoryview | None = None
    """What the content of a good answer fills, no more and no less; its body is empty then."""


class Permit:
    """What shows a node that the account may do this with this blob: a leave, signed again before it ends."""

    def __init__(self, sign: Callable[[int], SignedLeave]) -> None:
        self._sign = sign
        self._until_ms = 0
        self._text = ""

    def header(self) -> str:
        now_ms = time.time_ns() // 1_000_000
        if self._until_ms < now_ms + _RENEWED_MS:
            self._until_ms = now_ms + _LEAVE_MS
            signed = encode(self._sign(self._until_ms))
            self._text = f"Quorate {base64.urlsafe_b64encode(signed).decode()}"
        return self._text


@dataclass(slots=True)
class Shown:
    """A leave to read that is shown only once a node has asked for one."""

    permit: Permit | None
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class Signer:
    """Who asks: an account, and the key that speaks for it."""

    chain: bytes
    account: bytes
    key: SigningKey

    def put(self, cid: bytes, size_bytes: int, kind: int) -> Permit:
        return self._permit(Action.PUT, cid, size_bytes, kind)

    def read(self, cid: bytes) -> Permit:
        return self._permit(Action.READ, cid, 0, 0)

    def _permit(self, action: Action, cid: bytes, size_bytes: int, kind: int) -> Permit:
        def sign(until_ms: int) -> SignedLeave:
            leave = Leave(self.chain, self.account, self.key.public, action, cid, size_bytes, kind, until_ms)
            return sign_leave(self.key, leave)

        return Permit(sign)


class Doors:
    def __init__(self, nodes: Nodes, pace: Pace | None = None) -> None:
        self.nodes = nodes
        self.pace = pace or Pace()
        self._urls: dict[str, str] = {}

    async def ask(self, node: Node, asked: Asked, permit: Permit | None = None) -> Reply:
        """One answer of one node's door, whatever its status. Raises Unusable when there is none."""
        url = self._urls.get(node.url)
        if url is None:
            url = self._urls[node.url] = await self._find(node)
        try:
            return await self._fetch(node, url, asked, permit)
        except Unusable:
            # It may have moved: a process that is started again listens elsewhere.
            self._urls.pop(node.url, None)
            raise

    async def read(self, node: Node, asked: Asked, shown: Shown) -> Reply:
        reply = await self.ask(node, asked, shown.permit if shown.wanted else None)
        if reply.status in LEAVE_WANTED and shown.permit is not None and not shown.wanted:
            shown.wanted = True
            reply = await self.ask(node, asked, shown.permit)
        return reply

    async def _find(self, node: Node) -> str:
        """The redirect is asked for with a question that has no body and whose answer is small."""
        reply, location = await self._request(node, node.url, Asked("GET", "", {"limit": "1"}))
        if reply.status in REDIRECTS:
            door, found, _ = location.partition("/v1/blobs")
            if not found or not door.startswith(("http://", "https://")):
                raise Unusable(f"it names no door for blobs but {location[:100]!r}")
            return door
        if reply.status >= 500 or reply.status == 429:
            raise Unusable(reply.problem())
        return node.url

    async def _fetch(self, node: Node, url: str, asked: Asked, permit: Permit | None) -> Reply:
        reply, _ = await self._request(node, url, asked, permit)
        if reply.status in REDIRECTS:
            raise Unusable("its door sends on elsewhere")
        return reply

    async def _request(self, node: Node, url: str, asked: Asked, permit: Permit | None = None) -> tuple[Reply, str]:
        headers = dict(asked.headers)
        if permit is not None:
            headers["Authorization"] = permit.header()
        if asked.body is not None:
            headers.setdefault("Content-Type", "application/octet-stream")
        stall_s = self.pace.leaf_s if asked.body is not None else self.pace.stall_s
        timeout = aiohttp.ClientTimeout(
            total=self.pace.leaf_s, connect=CONNECT_TIMEOUT_S, sock_read=min(stall_s, self.pace.leaf_s)
        )
        try:
            async with self.nodes.session().request(
                asked.method,
                f"{url}/v1/blobs{asked.path}",
                params=asked.query,
                data=_payload(asked.body),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                if asked.room is not None and response.status in GOOD:
                    await _fill(asked.room, response)
                    body = b""
                else:
                    body = await limited(response, asked.limit_bytes)
                reply = Reply(node.name, response.status, body, seconds(response.headers.get("Retry-After")))
                return reply, response.headers.get("Location", "")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unusable(str(error) or type(error).__name__) from None


def blob_path(cid: bytes, rest: str = "") -> str:
    return f"/{cid_text(cid)}{rest}"


def _payload(body: bytes | bytearray | memoryview | None) -> object:
    return _InPieces(body) if body is not None and len(body) > _SMALL_BYTES else body


class _InPieces(aiohttp.Payload):
    """Bytes that go to the socket piece by piece: they are not copied, and hold up nothing else."""

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        super().__init__(value)
        self._size = len(value)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        view = memoryview(self._value)
        for start in range(0, len(view), _PIECE_BYTES):
            await writer.write(view[start : start + _PIECE_BYTES])


async def _fill(room: memoryview, response: aiohttp.ClientResponse) -> None:
    filled = 0
    async for part in response.content.iter_any():
        if filled + len(part) > len(room):
            raise Unusable(f"more than the {len(room)} bytes that were asked for")
        room[filled : filled + len(part)] = part
        filled += len(part)
    if filled < len(room):
        raise Unusable(f"{filled} of the {len(room)} bytes that were asked for")
