from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chain.codec import decode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from fl.client.errors import BadInput, RefusedByChain, TimedOut, Unverified
from fl.client.network import AsyncNetwork, connect_async
from fl.client.sync import connect
from fl.jobrules import rules_hash
from fl.jobs import JoinJob, StopJob
from fl.members import RegisterMember
from tests.fl.builders import make_rules, signing_key
from tests.fl.client.chainlet import NODES, Running


def registration(name: str) -> RegisterMember:
    return RegisterMember(name, signing_key(name).public, ("trainer",))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


async def registrar(chain: Running, home: str = "home") -> AsyncNetwork:
    return await connect_async(**chain.settings("registrar", home=home))


def events(network: AsyncNetwork) -> list[str]:
    lines = (network.home / "journal.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


async def test_a_receipt_is_proven_and_stays_on_disk(chain: Running) -> None:
    async with await registrar(chain) as network:
        receipt = await network.send(registration("eve"))
        assert receipt.accepted and receipt.height == chain.chain.height
        assert network.pending() == []
        assert events(network) == ["signed", "acknowledged", "proven"]
        assert network.receipts() == [receipt]
        assert network.verify_receipt(receipt.path) == receipt
        damaged = receipt.path.read_bytes().replace(b"ok", b"no")
        receipt.path.write_bytes(damaged)
        with pytest.raises(Unverified):
            network.verify_receipt(receipt.path)


async def test_many_transactions_in_flight_have_nonces_of_their_own(chain: Running) -> None:
    async with await registrar(chain) as network:
        receipts = await asyncio.gather(*(network.send(registration(f"m{index}")) for index in range(12)))
    assert {each.status for each in receipts} == {"ok"}
    assert sorted(each.nonce for each in receipts) == list(range(12))


async def test_two_clients_of_one_home_share_its_nonces(chain: Running) -> None:
    async with await registrar(chain) as one, await registrar(chain) as other:
        receipts = await asyncio.gather(
            *((one, other)[index % 2].send(registration(f"m{index}")) for index in range(10))
        )
    assert sorted(each.nonce for each in receipts) == list(range(10))


async def test_a_nonce_that_another_home_used_is_replaced(chain: Running) -> None:
    async with await registrar(chain, "one") as one, await registrar(chain, "two") as other:
        assert (await one.send(registration("first"))).nonce == 0
        for face in chain.faces:
            face.swallows = True
            face.submitted.clear()
        waiting = asyncio.create_task(other.send(registration("second")))
        await until(lambda: any(face.submitted for face in chain.faces))
        for face in chain.faces:
            face.swallows = False
        assert (await one.send(registration("third"))).nonce == 1
        waiting.cancel()
        # `other` holds a transaction under nonce 1, which has gone to another one.
        assert (await other.send(registration("fourth"))).nonce == 2
        assert await other.resume() == []
        assert other.pending() == []


async def test_after_a_restart_the_same_bytes_are_sent_again(chain: Running) -> None:
    for face in chain.faces:
        face.swallows = True
    network = await registrar(chain)
    waiting = asyncio.create_task(network.send(registration("eve")))
    await until(lambda: any(face.submitted for face in chain.faces))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await network.close()
    before = {data for face in chain.faces for data in face.submitted}
    assert len(before) == 1
    for face in chain.faces:
        face.swallows = False
    async with await registrar(chain) as again:
        (receipt,) = await again.resume()
        assert receipt.accepted
        assert again.pending() == []
    assert {data for face in chain.faces for data in face.submitted} == before
    assert len(chain.chain.batches) == 1


async def test_a_transaction_goes_through_while_any_quorum_of_nodes_answers(chain: Running) -> None:
    async with await registrar(chain) as network:
        for dead in range(NODES):
            for face in chain.faces:
                face.down = face.index in (dead, (dead + 1) % NODES)
            assert (await network.send(registration(f"m{dead}"))).accepted


async def test_a_busy_node_is_passed_over_and_waited_for(chain: Running) -> None:
    async with await registrar(chain) as network:
        chain.faces[network.sender.account[0] % NODES].busy = True
        assert (await network.send(registration("eve"))).accepted
        for face in chain.faces:
            face.busy = True
        waiting = asyncio.create_task(network.send(registration("mallory")))
        await asyncio.sleep(0.2)
        for face in chain.faces:
            face.busy = False
        assert (await waiting).accepted


async def test_one_node_cannot_refuse_for_all(chain: Running) -> None:
    async with await registrar(chain) as network:
        for face in chain.faces:
            for each in chain.faces:
                each.refuses = "EXPIRED" if each is face else ""
            assert (await network.send(registration(f"m{face.index}"))).accepted


async def test_a_refusal_that_f_plus_one_nodes_agree_on_is_raised_and_frees_the_nonce(chain: Running) -> None:
    async with await registrar(chain) as network:
        for face in chain.faces:
            face.refuses = "WRONG_KEY"
        with pytest.raises(RefusedByChain) as caught:
            await network.send(registration("eve"))
        assert caught.value.code == "WRONG_KEY"
        assert network.pending() == []
        for face in chain.faces:
            face.refuses = ""
        assert (await network.send(registration("eve"))).nonce == 0


async def test_a_transaction_that_expired_unseen_is_signed_anew_but_not_for_ever(chain: Running) -> None:
    async with await registrar(chain) as network:
        for face in chain.faces:
            face.refuses = "EXPIRED"
        with pytest.raises(TimedOut) as caught:
            await network.send(registration("eve"))
        assert caught.value.code == "EXPIRED" and "clock" in caught.value.todo
        assert events(network).count("signed") == events(network).count("given_up") == 3
        assert network.pending() == []


async def test_what_bytes_decide_is_refused_without_a_nonce_or_a_request(chain: Running) -> None:
    async with await registrar(chain) as network:
        with pytest.raises(RefusedByChain) as caught:
            await network.send(RegisterMember("no name", signing_key("eve").public, ("trainer",)))
        assert caught.value.code == "BAD_NAME"
        with pytest.raises(BadInput) as unfit:
            await network.send(RegisterMember("", signing_key("eve").public, ("trainer",)))
        assert unfit.value.code == "BAD_VALUE"
        assert network.pending() == []
        assert not any(face.submitted for face in chain.faces)


async def test_what_the_state_refuses_is_raised_with_its_code_and_leaves_a_receipt(chain: Running) -> None:
    async with await registrar(chain) as network:
        with pytest.raises(RefusedByChain) as caught:
            await network.send(StopJob(bytes(32)))
        assert caught.value.code == "UNKNOWN_JOB"
        (receipt,) = network.receipts()
        assert receipt.status == "UNKNOWN_JOB"


def test_a_key_that_is_not_the_accounts_is_refused(chain: Running) -> None:
    identity = chain.create(make_rules())
    other = chain.chain.ledger.actor("trainer-001").account.hex()
    with connect(**chain.settings("trainer-000", account=other)) as network, pytest.raises(RefusedByChain) as caught:
        network.send(JoinJob(identity, rules_hash(make_rules())))
    assert caught.value.code == "WRONG_KEY"


def test_the_outbox_holds_the_signed_bytes_before_any_node_has_seen_them(chain: Running, tmp_path: Path) -> None:
    for face in chain.faces:
        face.down = True
    settings = chain.settings("registrar")
    for face in chain.faces:
        face.down = False
    with connect(**settings) as network:
        home = network.home
        network.send(registration("first"))
    submitted = {data for face in chain.faces for data in face.submitted}
    assert len(submitted) == 1
    tx = decode(Transaction, submitted.pop(), MAX_TRANSACTION_BYTES)
    assert tx.nonce == 0
    assert list((home / "outbox").iterdir()) == []
