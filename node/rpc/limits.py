"""What one client, and all together, may ask of this node at once. Local resources only: no two nodes need agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

from node.buckets import Rate, TokenBuckets
from node.rpc.problems import Problem

_KIB = 1024
_MIB = 1024 * _KIB

REQUESTS = Rate(500, 1_000)
SUBMITTED_BYTES = Rate(16 * _MIB, 32 * _MIB)


@dataclass(frozen=True, slots=True)
class RpcLimits:
    body_bytes: int = 4 * _MIB
    json_body_bytes: int = 1 * _MIB
    """JSON is parsed on the event loop, at some 20 ms a megabyte."""
    bodies_bytes: int = 64 * _MIB
    """Of all bodies under way together."""
    transactions: int = 1024
    """In one request."""
    header_bytes: int = 8 * _KIB
    """Of the request line, and of each header."""
    headers: int = 64
    header_s: float = 5.0
    """From the first byte of a request, or of a connection, to the end of its headers; trickling does not help."""
    body_s: float = 20.0
    write_s: float = 20.0
    """For a client to take an answer, or an event, before it is given up."""
    idle_s: float = 75.0
    handshake_s: float = 5.0
    connections: int = 1024
    connections_by_client: int = 128
    subscribers: int = 256
    subscribers_by_client: int = 32
    ingests: int = 64
    """Streams of transactions."""
    ingests_by_client: int = 16
    unanswered: int = 1024
    """Transactions of one stream; those of one message may be more."""
    unanswered_bytes: int = 4 * _MIB
    requests: Rate = field(default=REQUESTS)
    """By client, where a list or a proof counts for more than one."""
    submitted_bytes: Rate = field(default=SUBMITTED_BYTES)
    """By client."""
    wait_s: float = 10.0
    """A submission is answered after so long, whatever has become of it."""


def client_of(address: str) -> str:
    """By whom limits count: an address, or the network of 64 bits that one household's IPv6 addresses come from."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return f"{IPv6Address(int(ip) >> 64 << 64)}/64"


class Places:
    """So many in all, and so many for each client."""

    def __init__(self, most: int, most_by_client: int) -> None:
        self._most = most
        self._most_by_client = most_by_client
        self._taken: Counter[str] = Counter()
        self.total = 0

    def take(self, client: str) -> bool:
        if self.total >= self._most or self._taken[client] >= self._most_by_client:
            if not self._taken[client]:
                del self._taken[client]
            return False
        self._taken[client] += 1
        self.total += 1
        return True

    def leave(self, client: str) -> None:
        self.total -= 1
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]


class Turnstile:
    """Rates, and the bytes of bodies that are being received."""

    def __init__(self, limits: RpcLimits) -> None:
        self.limits = limits
        self._requests = TokenBuckets(limits.requests)
        self._submitted = TokenBuckets(limits.submitted_bytes)
        self._bodies_bytes = 0

    def admit(self, client: str, cost: int, now_s: float) -> None:
        wait_s = self._requests.take(client, cost, now_s)
        if wait_s:
            raise Problem("RATE_LIMITED", "Too many requests come from this address.", retry_after_s=wait_s)

    def submit(self, client: str, size_bytes: int, now_s: float) -> None:
        wait_s = self._submitted.take(client, size_bytes, now_s)
        if wait_s:
            raise Problem("RATE_LIMITED", "Too many bytes are submitted from this address.", retry_after_s=wait_s)

    def pause_s(self, client: str, size_bytes: int, now_s: float) -> float:
        """0 if a message of so many bytes is within the client's rates, and counted; or the seconds until it may be."""
        return self._requests.take(client, 1, now_s) or self._submitted.take(client, size_bytes, now_s)

    def begin_body(self, size_bytes: int) -> None:
        if self._bodies_bytes + size_bytes > self.limits.bodies_bytes:
            raise Problem("BUSY", "Too many bodies are being received at this time.")
        self._bodies_bytes += size_bytes

    def end_body(self, size_bytes: int) -> None:
        self._bodies_bytes -= size_bytes
