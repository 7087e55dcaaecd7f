"""The bytes of bulk connections, over blocking sockets with TLS: TLS by itself says who is there and what it is for, a
hello then which chain it belongs to.

    hello       "quorate bulk\\x01", the chain id; both sides, the dialler first
    request     length u16, at most REQUEST_LIMIT, bytes
    answer      status u8 (0 given, 1 failed), length u32, bytes

Big endian. A length is checked against what was asked for before room is made for a byte.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from struct import Struct
from typing import Protocol

from node.ports import Buffer

REQUEST_LIMIT = 1024
LEAF_LIMIT = 1024 * 1024
GIVEN, FAILED = 0, 1

_REQUEST = Struct("!H")
_ANSWER = Struct("!BI")
_HELLO = b"quorate bulk\x01"
_TOGETHER_BYTES = 16 * 1024
"""An answer up to this size shares a TLS record with its header."""
_WRITE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class BulkLimits:
    handshake_s: float = 5.0
    stall_s: float = 20.0
    """A connection on which no byte moves for so long, although one should, is dead."""
    answer_s: float = 120.0
    """So long an answer may take in all, from its first byte that is waited for to its last."""
    idle_s: float = 60.0
    """So long a dialled connection is kept for nothing; the accepting side keeps it twice as long."""
    retry_s: tuple[float, float] = (0.2, 10.0)
    penalty_s: tuple[float, float] = (5.0, 300.0)
    under_way: int = 16
    """Requests sent to a peer and not answered."""
    waiting: int = 1024
    """Requests for a peer that are not sent."""
    sessions_per_peer: int = 2
    strangers: int = 32
    """Connections that have not said hello, each a thread."""
    strangers_by_address: int = 16


class Stream(Protocol):
    """A connection on which TLS is spoken."""

    def recv_into(self, view: memoryview, /) -> int: ...

    def sendall(self, data: bytes, /) -> None: ...


class Refused(Exception):
    """The sentence says why a connection ends."""


class Breach(Refused):
    """The other side did what no honest one does."""


def shut(sock: socket.socket) -> None:
    """Wakes whoever is blocked in it. Not by the method of a TLS socket, which would go on in plain text with what is
    still in the kernel's buffers."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def receive(sock: Stream, view: memoryview, until: float | None = None) -> None:
    """Fills the view. Raises OSError."""
    while view:
        count = sock.recv_into(view)
        if not count:
            raise ConnectionResetError("the peer closed the connection")
        view = view[count:]
        if until is not None and time.monotonic() > until:
            raise TimeoutError("the answer takes too long")


def received(sock: Stream, size_bytes: int, until: float | None = None) -> bytearray:
    data = bytearray(size_bytes)
    receive(sock, memoryview(data), until)
    return data


def prepare(plain: socket.socket, limits: BulkLimits) -> None:
    """Before the handshake."""
    plain.settimeout(limits.handshake_s)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def say_hello(sock: Stream, chain_id: bytes) -> None:
    sock.sendall(_HELLO + chain_id)


def hear_hello(sock: Stream, chain_id: bytes) -> None:
    expected = _HELLO + chain_id
    if received(sock, len(expected)) != expected:
        raise Refused("it speaks for another chain or another version")


def send_requests(sock: Stream, requests: Iterable[bytes]) -> None:
    sock.sendall(b"".join(part for each in requests for part in (_REQUEST.pack(len(each)), each)))


def receive_request(sock: Stream) -> bytes:
    (size_bytes,) = _REQUEST.unpack(received(sock, _REQUEST.size))
    if not 0 < size_bytes <= REQUEST_LIMIT:
        raise Breach(f"a request of {size_bytes} bytes")
    return bytes(received(sock, size_bytes))


def send_answer(sock: socket.socket, answer: Buffer) -> None:
    view = memoryview(answer).cast("B")
    header = _ANSWER.pack(GIVEN, len(view))
    if len(view) <= _TOGETHER_BYTES:
        sock.sendall(header + bytes(view))
        return
    sock.sendall(header)
    while view:
        view = view[sock.send(view[:_WRITE_BYTES]) :]


def send_failure(sock: socket.socket) -> None:
    sock.sendall(_ANSWER.pack(FAILED, 0))


def receive_header(sock: Stream) -> tuple[int, int]:
    status, size_bytes = _ANSWER.unpack(received(sock, _ANSWER.size))
    if status not in (GIVEN, FAILED) or (status == FAILED and size_bytes):
        raise Breach(f"an answer of status {status} with {size_bytes} bytes")
    return status, size_bytes
