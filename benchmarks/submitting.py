"""How loads submit, until each transaction is executed: many a request, or on streams."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp

from chain.codec import decode, pack
from cli.localnets import LocalNetwork
from fl.client.errors import QuorateError
from fl.client.ingest import Answer, Ingest
from fl.execution import OK
from fl.ingest import RECEIPT_BYTES
from fl.records import Kind, Receipt

TOGETHER = 64
"""Transactions a request, unless a load says otherwise."""
_TIMEOUT = aiohttp.ClientTimeout(total=60)
_AGAIN_S = 0.2
_FEW = 4
"""Requests on their way to each node while a load prepares."""


Fate = tuple[bytes, str]
"""Of a transaction that was executed: its id, and the status of its receipt."""


@dataclass(frozen=True, slots=True)
class Updates:
    """Of one round, to be sent together."""

    transactions: Sequence[bytes]
    job: bytes
    round: int

    @property
    def taken(self) -> bytes:
        """What an encoded receipt holds, of the kind, if it is that of an update which the round has taken, and else
        not."""
        in_a_row = pack((int(Kind.SUBMIT_UPDATE), OK, self.job, self.round))
        return in_a_row[1:]


class Submitting:
    """Nodes are named by their places among the network's validators."""

    def __init__(self, net: LocalNetwork) -> None:
        self.nodes = [member.rpc for member in net.members.values()]
        self.again = 0
        """Requests that had to be sent again: a node had no room, or did not answer."""

    async def __aenter__(self) -> Submitting:
        self.session = aiohttp.ClientSession(timeout=_TIMEOUT, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.session.close()

    def url(self, node: int, path: str) -> str:
        return self.nodes[node % len(self.nodes)] + path

    async def executed(self, node: int, transactions: Sequence[bytes]) -> list[dict[str, Any]]:
        """The answers, each with a receipt. A node that has no room is asked again, and for one that does not answer,
        the next."""
        data, headers = pack(tuple(transactions)), {"Content-Type": "application/msgpack"}
        while True:
            try:
                async with self.session.post(
                    self.url(node, "/v1/transactions?wait=executed"), data=data, headers=headers
                ) as reply:
                    content = await reply.json(content_type=None)
                    status = reply.status
            except (aiohttp.ClientError, OSError, TimeoutError):
                node, pause = node + 1, _AGAIN_S
            else:
                if status == 200 and all("receipt" in each for each in content["answers"]):
                    return list(content["answers"])
                pause = _pause_s(status, content)
            self.again += 1
            await asyncio.sleep(pause)

    async def fates(self, node: int, updates: Updates) -> list[Fate]:
        answers = await self.executed(node, updates.transactions)
        return [(bytes.fromhex(each["id"]), each["receipt"]["status"]) for each in answers]

    async def all_executed(self, transactions: Sequence[bytes]) -> None:
        """In any order, by all nodes."""
        waiting = [transactions[start : start + TOGETHER] for start in range(0, len(transactions), TOGETHER)]

        async def lane(node: int) -> None:
            while waiting:
                await self.executed(node, waiting.pop())

        await asyncio.gather(*(lane(node) for node in range(len(self.nodes)) for _ in range(_FEW)))


async def streamed(streams: Ingest, updates: Updates) -> list[Fate]:
    """By whichever node has room."""
    taken = updates.taken
    return [
        (each.id, OK if taken in each.receipt else _status(each))
        for each in await streams.send_all(updates.transactions)
    ]


def _status(answer: Answer) -> str:
    if not answer.receipt:
        raise QuorateError("LOAD_REFUSED", f"A node answered {answer.status} {answer.code}.", "Look at its log.")
    return decode(Receipt, answer.receipt, RECEIPT_BYTES).status


def _pause_s(status: int, content: dict[str, Any]) -> float:
    """How long to wait before the same is sent again."""
    if status in (429, 503):
        return _AGAIN_S
    if status not in (200, 202):
        raise QuorateError("LOAD_REFUSED", f"A node answered {status} {content.get('code')}.", "Look at its log.")
    refused = [answer for answer in content["answers"] if "code" in answer]
    if refused and refused[0]["code"] not in ("RATE_LIMITED", "BUSY"):
        raise QuorateError("LOAD_REFUSED", f"A node refused a transaction: {refused[0]}.", "Look at its log.")
    return float(refused[0].get("retry_after", _AGAIN_S)) if refused else 0.0
