"""Transactions by the stream: in virtual time what is answered, over sockets how the stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from chain.codec import decode, encode, pack
from fl.ingest import MESSAGE_BYTES, REFUSED, TRANSACTIONS_A_MESSAGE, Answer, read_answers, submission
from fl.jobs import CreateJob, StopJob
from fl.members import RegisterMember
from fl.records import Receipt
from node.admission import Status
from node.buckets import Rate
from node.rpc.limits import RpcLimits
from node.rpc.problems import Problem
from node.rpc.sockets import Close
from node.rpc.table import HungUp
from tests.fl.builders import make_rules, signing_key
from tests.node.rpc.calls import Caller
from tests.node.rpc.host import LOOSE, Hosted, hosted
from tests.node.rpc.test_transactions import a_job, play
from tests.node.wire import HANG_S, wire_to
from tests.simulation.claims import assert_one_history
from tests.simulation.cluster import Cluster


class Talking:
    """A client on a line of its own; it takes answers unless it is told not to."""

    def __init__(self, caller: Caller, wait: str = "executed") -> None:
        self.answers: list[Answer] = []
        self.messages = 0
        self.heard = 0
        self.reads = asyncio.Event()
        self.reads.set()
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self.task = asyncio.ensure_future(caller.stream(f"/v1/ingest?wait={wait}", self))

    def submit(self, *transactions: bytes) -> None:
        self._said.put_nowait(submission(transactions))

    def write(self, message: bytes) -> None:
        self._said.put_nowait(message)

    def hang_up(self) -> None:
        self._said.put_nowait(b"")

    async def hear(self) -> bytes:
        message = await self._said.get()
        if not message:
            raise HungUp
        self.heard += 1
        return message

    async def say(self, message: str | bytes) -> None:
        await self.reads.wait()
        assert isinstance(message, bytes)
        self.messages += 1
        self.answers += read_answers(message)

    async def until(self, count: int, within: float = 15) -> list[Answer]:
        async with asyncio.timeout(within):
            while len(self.answers) < count:
                await asyncio.sleep(0.001)
        return sorted(self.answers, key=lambda answer: answer.number)


def registration(cluster: Cluster, number: int) -> bytes:
    name = f"member-{number}"
    return cluster.sign("registrar", RegisterMember(name, signing_key(name).public, ("trainer",)))


def test_each_transaction_is_answered_by_its_number_once_it_is_executed() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        line = Talking(caller)
        data = [registration(cluster, number) for number in range(40)]
        line.submit(*data[:30])
        line.submit(*data[30:])
        answers = await line.until(40)
        assert [answer.number for answer in answers] == list(range(40))
        assert {answer.status for answer in answers} == {"executed"}
        for answer in answers:
            receipt = decode(Receipt, answer.receipt, 4096)
            assert (receipt.tx_id, receipt.status, receipt.nonce) == (answer.id, "ok", answer.number)
            assert answer.receipt == encode(caller.node.admission.standing(answer.id).receipt)
        assert line.messages < 20, "what comes together is told together"

    play(script)


def test_a_client_may_wait_for_an_acknowledgement_or_for_a_proof() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        promised, proven = Talking(caller, "available"), Talking(caller, "proven")
        promised.submit(registration(cluster, 0))
        proven.submit(registration(cluster, 1))
        [answer] = await promised.until(1)
        assert (answer.status, answer.receipt) == ("available", b"")
        [answer] = await proven.until(1)
        assert answer.status == "proven" and decode(Receipt, answer.receipt, 4096).status == "ok"
        assert caller.node.admission.standing(answer.id).status is Status.PROVEN

    play(script)


def test_what_is_acknowledged_on_a_stream_outlives_its_node() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        line = Talking(caller, "available")
        line.submit(*(registration(cluster, number) for number in range(20)))
        answers = await line.until(20)
        assert {answer.status for answer in answers} == {"available"}
        line.hang_up()
        with pytest.raises(HungUp):
            await line.task
        cluster.hosts[0].machine.kill()

        def kept() -> bool:
            return all(
                node.store.receipt_index(answer.id) is not None for node in cluster.running() for answer in answers
            )

        assert len(cluster.running()) == 3 and await cluster.until(kept, within=15)
        assert_one_history(cluster)

    play(script)


def test_refusals_come_at_once_each_with_its_code_and_sentence() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        line = Talking(caller)
        good, late = registration(cluster, 0), cluster.sign("creator", StopJob(bytes(32)), valid_until_ms=1)
        line.submit(good, b"nonsense", late, good[:-1] + bytes([good[-1] ^ 1]), bytes(40 * 1024 + 1))
        answers = await line.until(5)
        assert [answer.code for answer in answers] == ["", "UNDECODABLE", "EXPIRED", "BAD_SIGNATURE", "OVERSIZE"]
        assert all(answer.status == REFUSED and answer.detail and not answer.retry_after_s for answer in answers[1:])
        assert line.answers[-1].number == 0, "the good one takes longest"

    play(script)


def test_what_is_not_taken_at_this_time_says_when_to_come_again() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        node, line = caller.node, Talking(caller)
        node.disk_full = True
        line.submit(a_job(cluster))
        node.disk_full = (await line.until(1)) == []
        node.admission._room = lambda: 10
        line.submit(a_job(cluster), a_job(cluster))
        await line.until(3)
        node.admission._room = node.replica.availability.room
        submit = node.admission._submit
        node.admission._submit = lambda event: node.admission.not_taken([event.transactions[0][0]])
        line.submit(a_job(cluster))
        await line.until(4)
        node.admission._submit = submit
        stranger = [cluster.sign(f"stranger-{number}", StopJob(bytes(32))) for number in range(201)]
        line.submit(*stranger)
        await line.until(205)
        me, node.replica.me = node.replica.me, None
        line.submit(a_job(cluster))
        await line.until(206)
        node.replica.me = me
        node.admission.draining = True
        line.submit(a_job(cluster))
        answers = [answer for answer in await line.until(207) if answer.code]
        said = ["DISK_FULL", "BUSY", "BUSY", "BUSY", "RATE_LIMITED", "BUSY", "BUSY"]
        assert [answer.code for answer in answers] == said
        assert all(answer.retry_after_s >= 1 and answer.detail for answer in answers)

    play(script, n=1)


def test_without_a_quorum_it_is_answered_as_it_stands_after_ten_seconds() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        for index in (2, 3):
            cluster.hosts[index].machine.kill()
        line, loop = Talking(caller), asyncio.get_running_loop()
        began = loop.time()
        line.submit(registration(cluster, 0))
        await asyncio.sleep(3)
        line.submit(registration(cluster, 1))
        first, second = await line.until(2)
        assert (first.status, second.status) == ("accepted", "accepted")
        assert 12.9 < loop.time() - began < 13.2
        assert not caller.node.admission.watched, "nobody waits any more"

    play(script)


def test_a_repeat_is_answered_as_the_first_time() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        line, data = Talking(caller), registration(cluster, 0)
        line.submit(data, data)
        line.submit(data)
        first, *others = await line.until(3)
        assert all(replace(each, number=0) == first for each in others)
        line.submit(data)
        elsewhere = Talking(Caller(cluster.node(1)))
        elsewhere.submit(data)
        again, there = (await line.until(4))[3], (await elsewhere.until(1))[0]
        assert again.receipt == there.receipt == first.receipt and again.status in ("executed", "proven")
        assert caller.node.executor.executed.receipts == 1

    play(script)


def test_no_more_is_read_than_may_be_unanswered() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        small = Caller(caller.node, RpcLimits(unanswered=10))
        line = Talking(small)
        line.reads.clear()
        for number in range(6):
            line.submit(*(registration(cluster, 5 * number + place) for place in range(5)))
        await asyncio.sleep(5)
        assert (line.heard, line.answers) == (3, []), "two messages are under way, the third waits for room"
        line.reads.set()
        assert {answer.status for answer in await line.until(30)} == {"executed"}

        few = Talking(Caller(caller.node, RpcLimits(unanswered_bytes=500)))
        few.reads.clear()
        for number in range(30, 34):
            few.submit(registration(cluster, number))
        await asyncio.sleep(5)
        assert few.heard < 4
        few.reads.set()
        await few.until(4)

        large = Talking(small)
        large.submit(*(registration(cluster, number) for number in range(40, 60)))
        assert len(await large.until(20)) == 20, "a message that is more than the bound by itself goes alone"

    play(script, n=1)


def test_over_its_rate_a_client_is_read_later_and_not_refused() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        data = [registration(cluster, number) for number in range(6)]
        for limits in (
            RpcLimits(submitted_bytes=Rate(len(data[0]), 2 * len(data[0]))),
            RpcLimits(requests=Rate(1, 2)),
        ):
            line, loop = Talking(Caller(caller.node, limits)), asyncio.get_running_loop()
            began = loop.time()
            for each in data:
                line.submit(each)
            answers = await line.until(6)
            assert all(not answer.code for answer in answers)
            assert 3.5 < loop.time() - began < 6

    play(script, n=1)


@pytest.mark.parametrize(
    "message",
    [
        b"\x90",
        b"\xc0",
        b"\x91\xa1a",
        b"\x91\xc4\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xc4\x01aa",
        pack((b"a",) * (TRANSACTIONS_A_MESSAGE + 1)),
        b"\x91" * 5_000,
    ],
)
def test_what_is_no_message_ends_the_stream_with_a_sentence(message: bytes) -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        line = Talking(caller)
        line.write(message)
        with pytest.raises(Problem) as refused:
            await line.task
        assert refused.value.code == "MALFORMED_BODY" and refused.value.detail

    play(script, n=1)


def test_a_stream_that_has_ended_leaves_nothing_behind() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        for wait in ("available", "executed", "proven"):
            line = Talking(caller, wait)
            line.submit(*(cluster.sign("creator", CreateJob(make_rules(name=f"{wait}-{each}"), b"")) for each in "ab"))
            await asyncio.sleep(0)
            line.hang_up()
            with pytest.raises(HungUp):
                await line.task
        assert not caller.node.admission.watched
        await asyncio.sleep(3)
        assert not caller.node.admission._unproven

    play(script)


# Over sockets


@asynccontextmanager
async def client_of(tmp_path: Path, limits: RpcLimits = LOOSE) -> AsyncIterator[tuple[Hosted, aiohttp.ClientSession]]:
    async with hosted(tmp_path, limits) as node, aiohttp.ClientSession(node.url) as client:
        yield node, client


async def ended(stream: aiohttp.ClientWebSocketResponse) -> tuple[int, str]:
    message = await asyncio.wait_for(stream.receive(), HANG_S)
    assert message.type is aiohttp.WSMsgType.CLOSE, message
    return message.data, str(message.extra)


async def gone(node: Hosted) -> None:
    async with asyncio.timeout(HANG_S):
        while node.server.api.ingests.total:
            await asyncio.sleep(0.01)


async def test_a_websocket_takes_transactions_and_says_why_it_ends(tmp_path: Path) -> None:
    async with client_of(tmp_path) as (node, client):
        stream = await client.ws_connect("/v1/ingest?wait=executed")
        await stream.send_bytes(submission([node.sign("creator", CreateJob(make_rules(), b"")), b"nonsense"]))
        answers: list[Answer] = []
        while len(answers) < 2:
            answers += read_answers(await asyncio.wait_for(stream.receive_bytes(), HANG_S))
        assert {answer.number: answer.status for answer in answers} == {0: "executed", 1: REFUSED}

        await stream.send_bytes(b"\x90")
        code, reason = await ended(stream)
        assert code == Close.BAD_MESSAGE and reason.startswith("MALFORMED_BODY: Not a msgpack array")
        wordy = await client.ws_connect("/v1/ingest")
        await wordy.send_str("hello")
        assert await ended(wordy) == (Close.BAD_MESSAGE, "MALFORMED_BODY: Messages are binary here.")
        large = await client.ws_connect("/v1/ingest")
        await large.send_bytes(bytes(MESSAGE_BYTES + 1))
        assert (await ended(large))[0] == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        await gone(node)

        last = await client.ws_connect("/v1/ingest")
        await node.server.close()
        assert (await ended(last))[0] == Close.GOING_AWAY


async def test_streams_are_limited_and_checked_before_they_begin(tmp_path: Path) -> None:
    async with client_of(tmp_path, replace(LOOSE, ingests_by_client=1)) as (node, client):
        assert (await client.get("/v1/ingest")).status == 426
        for query, status in (("wait=accepted", 400), ("more=1", 400)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect(f"/v1/ingest?{query}")
            assert refused.value.status == status
        one = await client.ws_connect("/v1/ingest")
        with pytest.raises(aiohttp.WSServerHandshakeError) as second:
            await client.ws_connect("/v1/ingest")
        assert second.value.status == 503
        await one.close()
        await gone(node)
        await (await client.ws_connect("/v1/ingest")).close()


def framed(message: bytes) -> bytes:
    """As a client sends it: binary, whole, under a mask of zeros."""
    return b"\x82\xff" + len(message).to_bytes(8, "big") + bytes(4) + message


HANDSHAKE = (
    b"GET /v1/ingest HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_who_does_not_read_its_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.rpc.ingest.answers_message", lambda answers: bytes(2_000_000))
    async with (
        client_of(tmp_path, replace(LOOSE, write_s=0.3, unanswered=1)) as (node, _),
        wire_to(node.server.port) as one,
    ):
        one.send(HANDSHAKE + framed(submission([b"x"])) * 100)
        async with asyncio.timeout(HANG_S):
            while not node.server.api.ingests.total:
                await asyncio.sleep(0.001)
        await gone(node)
        await one.ended()
