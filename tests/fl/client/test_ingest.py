"""Transactions of many signers by the stream, against nodes of every sort: busy, breaking, lying, gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest
from aiohttp import web

from chain.codec import decode
from fl.client.errors import Unreachable
from fl.client.ingest import Answer, Ingest
from fl.ingest import MESSAGE_BYTES, REFUSED, answers_message, read_submission
from fl.jobs import CreateJob
from fl.members import RegisterMember
from fl.records import Receipt
from tests.fl.builders import make_rules, signing_key
from tests.node.rpc.host import hosted

Reply = Callable[["Stage", web.WebSocketResponse, list[tuple[int, bytes]]], Awaitable[None]]


def executed(number: int, data: bytes) -> Answer:
    return Answer(number, sha256(data).digest(), "executed", data[:100])


async def good(stage: Stage, socket: web.WebSocketResponse, asked: list[tuple[int, bytes]]) -> None:
    await socket.send_bytes(answers_message([executed(number, data) for number, data in reversed(asked)]))


@dataclass
class Stage:
    """A node that does with each message what it is told to; the last way of `ways` is for all that follow."""

    ways: list[Reply]
    taken: list[bytes] = field(default_factory=list)
    messages: list[int] = field(default_factory=list)
    streams: int = 0
    url: str = ""

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        assert request.query == {"wait": "executed"}
        socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES)
        await socket.prepare(request)
        self.streams += 1
        number = 0
        async for message in socket:
            self.messages.append(len(message.data))
            transactions = read_submission(message.data)
            self.taken += transactions
            way = self.ways.pop(0) if len(self.ways) > 1 else self.ways[0]
            await way(self, socket, list(enumerate(transactions, number)))
            number += len(transactions)
        return socket


@asynccontextmanager
async def stages(*ways: list[Reply]) -> AsyncIterator[list[Stage]]:
    found = [Stage(each) for each in ways]
    async with AsyncExitStack() as stack:
        for stage in found:
            application = web.Application()
            application.router.add_get("/v1/ingest", stage.serve)
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            stage.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield found


def some(count: int, size: int = 100) -> list[bytes]:
    return [number.to_bytes(4, "big") * (size // 4) for number in range(count)]


async def test_a_node_executes_what_many_have_signed_and_says_what_it_refuses(tmp_path: Path) -> None:
    async with hosted(tmp_path) as node, Ingest([node.url]) as door:
        bodies = [RegisterMember(f"m-{each}", signing_key(f"m-{each}").public, ("trainer",)) for each in range(20)]
        signed = [node.sign("registrar", body) for body in bodies]
        signed += [node.sign("creator", CreateJob(make_rules(name=name), b"")) for name in ("a", "b")]
        answers = await door.send_all([*signed, b"nonsense"])
        assert [answer.status for answer in answers] == ["executed"] * 22 + [REFUSED]
        assert all(decode(Receipt, answer.receipt, 4096).status == "ok" for answer in answers[:-1])
        assert answers[-1].code == "UNDECODABLE" and answers[-1].detail
        repeated = await door.send(signed[0])
        assert repeated.id == answers[0].id and node.node.executor.executed.receipts == 22


async def test_messages_keep_to_their_bounds_and_go_to_every_node() -> None:
    async with stages([good], [good], [good]) as nodes, Ingest([stage.url for stage in nodes]) as door:
        data = some(5_000, 400)
        answers = await door.send_all(data)
        assert [answer.id for answer in answers] == [sha256(each).digest() for each in data]
        assert all(size <= MESSAGE_BYTES for stage in nodes for size in stage.messages)
        small = await door.send_all(some(4_000, 4))
        assert len(small) == 4_000 and all(len(stage.taken) >= 1_000 for stage in nodes)
        largest = await asyncio.gather(*(door.send(bytes([each]) * 40_000) for each in range(10)))
        assert len(largest) == 10
        assert sum(len(stage.taken) for stage in nodes) == 9_010
        assert await door.send_all(()) == []


async def test_what_a_broken_stream_leaves_unanswered_goes_to_another_node() -> None:
    async def half(stage: Stage, socket: web.WebSocketResponse, asked: list[tuple[int, bytes]]) -> None:
        await good(stage, socket, asked[: len(asked) // 2])
        await socket.close()

    async with stages([half, half, good], [good]) as (breaking, other):
        async with Ingest([breaking.url]) as door:
            data = some(100)
            assert [answer.id for answer in await door.send_all(data)] == [sha256(each).digest() for each in data]
            assert breaking.streams == 3 and len(breaking.taken) == 100 + 50 + 25
        breaking.ways = [half]
        async with Ingest([breaking.url, other.url]) as door:
            assert len(await door.send_all(some(300, 1_000))) == 300
            assert other.taken


async def test_what_is_not_taken_at_this_time_is_sent_again_when_it_may_be() -> None:
    def saying(code: str, retry_after_s: int) -> Reply:
        async def way(stage: Stage, socket: web.WebSocketResponse, asked: list[tuple[int, bytes]]) -> None:
            refused = [Answer(number, b"", REFUSED, b"", code, "Later.", retry_after_s) for number, _ in asked]
            await socket.send_bytes(answers_message(refused))

        return way

    async def not_yet(stage: Stage, socket: web.WebSocketResponse, asked: list[tuple[int, bytes]]) -> None:
        await socket.send_bytes(answers_message([Answer(number, b"", "available") for number, _ in asked]))

    loop = asyncio.get_running_loop()
    async with stages([saying("RATE_LIMITED", 1), good], [not_yet, not_yet, good]) as (limited, slow):
        async with Ingest([limited.url]) as door:
            began = loop.time()
            assert (await door.send(b"data")).status == "executed"
            assert loop.time() - began >= 1 and len(limited.taken) == 2
        async with Ingest([slow.url]) as door:
            assert (await door.send(b"data")).status == "executed"
            assert len(slow.taken) == 3
    async with stages([saying("BUSY", 30)], [good]) as (busy, free), Ingest([busy.url, free.url]) as door:
        answers = await asyncio.wait_for(door.send_all(some(20)), 10)
        assert {answer.status for answer in answers} == {"executed"} and len(busy.messages) <= 1
        assert len(free.taken) == 20
    async with stages([saying("NONCE_USED", 0)]) as (final,), Ingest([final.url]) as door:
        assert ((await door.send(b"data")).code, len(final.taken)) == ("NONCE_USED", 1)


async def test_nonsense_for_an_answer_ends_the_stream_and_nothing_else() -> None:
    def saying(message: bytes | str) -> Reply:
        async def way(stage: Stage, socket: web.WebSocketResponse, asked: list[tuple[int, bytes]]) -> None:
            await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))

        return way

    unasked = answers_message([executed(7, b"data")])
    for nonsense in (b"", b"\x90", b"\xff" * 100, unasked, "text", answers_message([executed(0, b"x")] * 2)):
        async with stages([saying(nonsense), good]) as (lying,), Ingest([lying.url]) as door:
            answer = await asyncio.wait_for(door.send(b"data"), 10)
            assert answer.status == "executed" and lying.streams <= 2


async def test_who_gets_no_answer_is_told_why_and_may_send_the_same_again() -> None:
    async def silent(stage: Stage, socket: web.WebSocketResponse, asked: list[tuple[int, bytes]]) -> None:
        pass

    nobody = "http://127.0.0.1:9"
    async with stages([silent, good]) as (stage,), Ingest([stage.url, nobody], patience_s=0.5) as door:
        with pytest.raises(Unreachable) as refused:
            await door.send_all(some(3))
        assert refused.value.code == "NO_ANSWER" and nobody in str(refused.value)
        assert "3 of 3 transactions" in str(refused.value)
        assert len(await door.send_all(some(3))) == 3
