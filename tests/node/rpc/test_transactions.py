from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable

from chain.codec import decode, encode
from chain.light import ReceiptBundle, genesis_checkpoint, verify_receipt_bundle
from chain.transaction import MAX_TRANSACTION_BYTES, sign_transaction
from fl.jobs import CreateJob, StopJob
from fl.members import RegisterMember
from fl.records import Kind, Receipt
from node.admission import CHECKED_AT_ONCE, Status
from node.buckets import Rate
from node.rpc.limits import RpcLimits
from tests.fl.builders import make_rules, signing_key
from tests.node.rpc.calls import Caller, Reply
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.loop import simulate


def play(script: Callable[[Cluster, Caller], Awaitable[None]], n: int = 4) -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(n), seed=11)
        await cluster.start()
        await script(cluster, Caller(cluster.node(0)))

    simulate(main)


def a_job(cluster: Cluster, name: str = "digits") -> bytes:
    return cluster.sign("creator", CreateJob(make_rules(name=name), b""))


def test_a_submission_is_answered_as_soon_as_it_is_available() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        reply = await caller.submit(a_job(cluster))
        assert reply.status == 200
        assert reply["answers"][0]["status"] in ("available", "final")
        assert reply["answers"][0]["location"] == "/v1/transactions/" + reply["answers"][0]["id"]

    play(script)


def test_a_client_may_wait_for_execution_and_for_its_proof() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        executed = await caller.submit(a_job(cluster), wait="executed")
        assert executed.status == 200 and executed["answers"][0]["receipt"]["status"] == "ok"
        proven = await caller.submit(a_job(cluster, "other"), wait="proven")
        assert proven.status == 200 and proven["answers"][0]["status"] == "proven"

    play(script)


def test_without_a_quorum_the_answer_is_202_after_ten_seconds() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        for index in (2, 3):
            cluster.hosts[index].machine.kill()
        loop = asyncio.get_running_loop()
        began = loop.time()
        reply = await caller.submit(a_job(cluster))
        assert reply.status == 202 and reply["answers"][0]["status"] == "accepted"
        assert 10 <= loop.time() - began < 10.1

    play(script)


def test_a_repeat_is_answered_as_the_first_time() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        data = a_job(cluster)
        first, meanwhile = await asyncio.gather(caller.submit(data), caller.submit(data))
        assert first["answers"][0]["id"] == meanwhile["answers"][0]["id"]
        done = await caller.submit(data, wait="proven")
        again = await caller.submit(data, wait="proven")
        assert again.json() == done.json()
        elsewhere = await Caller(cluster.node(2)).submit(data, wait="proven")
        assert elsewhere.json() == done.json()
        assert cluster.node(0).executor.executed.receipts == 1

    play(script)


def test_what_is_executed_while_it_is_checked_is_not_taken_again() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        admission = cluster.node(0).admission
        contents = [a_job(cluster, f"job-{number}") for number in range(CHECKED_AT_ONCE + 1)]
        offload, begun, over = admission._offload, asyncio.Event(), asyncio.Event()

        class Slow:
            """Says late what it has found in time."""

            async def run(self, function: Callable[..., object], *args: object) -> object:
                found = await offload.run(function, *args)
                begun.set()
                await over.wait()
                return found

        admission._offload = Slow()  # type: ignore[assignment]
        checked = asyncio.create_task(admission.submit(contents))
        await begun.wait()
        admission._offload = offload
        await Caller(cluster.node(1)).submit(*contents[1:], wait="proven")
        while cluster.node(0).executor.executed.receipts < len(contents) - 1:
            await asyncio.sleep(0.05)
        over.set()
        fresh, *known = await checked
        assert fresh.standing is not None and fresh.standing.status is Status.ACCEPTED
        assert all(each.standing is not None and each.standing.receipt is not None for each in known)
        assert admission.unsettled == 1 and not admission._being_checked

    play(script)


def test_a_batch_of_transactions_is_answered_one_by_one() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        good, late = a_job(cluster), cluster.sign("creator", StopJob(bytes(32)), valid_until_ms=1)
        reply = await caller.submit(good, b"nonsense", late, good)
        assert reply.status == 200
        first, nonsense, expired, repeated = reply["answers"]
        assert first["id"] == repeated["id"]
        assert nonsense["code"] == "UNDECODABLE" and nonsense["detail"]
        assert expired["code"] == "EXPIRED"

    play(script)


def test_json_carries_the_same_bytes_in_base64() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        reply = await caller.submit_json({"transactions": [base64.b64encode(a_job(cluster)).decode()]})
        assert reply.status == 200

    play(script)


def test_bodies_that_are_not_lists_of_transactions_are_refused() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        for body in (
            {},
            [],
            {"transactions": []},
            {"transactions": "AA=="},
            {"transactions": [1]},
            {"transactions": ["AA"]},
            {"transactions": ["Ä"]},
            {"transactions": ["AA=="] * 1025},
            {"transactions": ["AA=="], "more": 1},
        ):
            assert_refused(await caller.submit_json(body), 400, "MALFORMED_BODY")
        for data in (b"", b"\x90", b"\xc0", b"\x91\xa1a", b"\x91\xc4\x01", b"\xdd\xff\xff\xff\xff", b"\x91\xc4\x01aa"):
            reply = await caller.call("POST", "/v1/transactions", data, "application/msgpack")
            assert_refused(reply, 400, "MALFORMED_BODY")
        nested = await caller.call("POST", "/v1/transactions", b"[" * 100_000, "application/json")
        assert_refused(nested, 400, "MALFORMED_BODY")

    play(script, n=1)


def assert_refused(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply["code"], reply["status"]) == (status, code, status), reply.json()
    assert reply["detail"] and reply["title"] and reply["type"] == f"about:blank#{code}"
    if status in (429, 503, 507):
        assert int(reply.response.headers["Retry-After"]) == reply["retry_after"] >= 1


def test_each_bad_transaction_has_its_own_code() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        body = CreateJob(make_rules(), b"")
        now_ms = cluster.now_ms()
        spent = cluster.sign("creator", body, nonce=7)
        await caller.submit(spent, wait="executed")
        weak = sign_transaction(signing_key("x"), cluster.genesis.chain_id, bytes(32), 0, now_ms + 1000, 99, b"")
        for data, status, code in (
            (b"\x00", 400, "UNDECODABLE"),
            (cluster.sign("creator", body, chain_id=bytes(32)), 400, "WRONG_CHAIN"),
            (bytes(MAX_TRANSACTION_BYTES + 1), 400, "OVERSIZE"),
            (spent[:-1] + bytes([spent[-1] ^ 1]), 400, "BAD_SIGNATURE"),
            (cluster.sign("creator", CreateJob(make_rules(name="a b"), b"")), 400, "BAD_NAME"),
            (encode(weak), 400, "UNKNOWN_KIND"),
            (cluster.sign("creator", CreateJob(make_rules(name="b"), b""), nonce=7), 409, "NONCE_USED"),
            (cluster.sign("creator", body, nonce=1_000), 409, "NONCE_FAR"),
            (cluster.sign("creator", body, valid_until_ms=now_ms - 1), 409, "EXPIRED"),
            (cluster.sign("creator", body, valid_until_ms=now_ms + 10**9), 409, "VALID_UNTIL_FAR"),
        ):
            assert_refused(await caller.submit(data), status, code)

    play(script, n=1)


def test_what_the_state_decides_leaves_a_receipt() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        reply = await caller.submit(cluster.sign("trainer-000", CreateJob(make_rules(), b"")), wait="executed")
        assert reply.status == 200
        assert reply["answers"][0]["receipt"]["status"] == "UNAUTHORISED"

    play(script, n=1)


def test_a_full_pool_a_full_disk_and_a_drain_say_when_to_come_again() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        node = caller.node
        node.disk_full = True
        assert_refused(await caller.submit(a_job(cluster)), 507, "DISK_FULL")
        node.disk_full = False
        node.admission._room = lambda: 10
        assert_refused(await caller.submit(a_job(cluster)), 503, "BUSY")
        node.admission._room = node.replica.availability.room
        assert_refused(await caller.submit(b"nonsense"), 400, "UNDECODABLE")
        node.admission.draining = True
        assert_refused(await caller.submit(a_job(cluster)), 503, "BUSY")
        assert node.admission.refused == {"DISK_FULL": 1, "BUSY": 2, "UNDECODABLE": 1}

    play(script, n=1)


def test_what_the_pool_drops_after_all_is_not_said_to_be_expired() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        data = a_job(cluster)
        submit = caller.node.admission._submit
        caller.node.admission._submit = lambda event: caller.node.admission.not_taken([event.transactions[0][0]])
        assert_refused(await caller.submit(data), 503, "BUSY")
        caller.node.admission._submit = submit
        assert (await caller.submit(data)).status == 200

    play(script, n=1)


def test_an_account_has_a_rate_and_strangers_share_one() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        stranger = [cluster.sign(f"stranger-{number}", StopJob(bytes(32))) for number in range(201)]
        reply = await caller.submit(*stranger)
        codes = [answer.get("code") for answer in reply["answers"]]
        assert codes == [None] * 200 + ["RATE_LIMITED"]
        assert reply["answers"][200]["retry_after"] == 1
        assert_refused(await caller.submit(stranger[200]), 429, "RATE_LIMITED")
        assert (await caller.submit(a_job(cluster))).status == 200
        await asyncio.sleep(1)
        assert (await caller.submit(stranger[200])).status == 200

    play(script, n=1)


def test_bytes_submitted_from_one_address_have_a_rate() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        small = Caller(caller.node, RpcLimits(submitted_bytes=Rate(100, 400)))
        assert_refused(await small.submit(bytes(400)), 400, "UNDECODABLE")
        assert_refused(await small.submit(bytes(400)), 429, "RATE_LIMITED")

    play(script, n=1)


def test_a_node_outside_the_set_takes_nothing_and_says_so() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        caller.node.replica.me = None
        reply = await caller.submit(a_job(cluster))
        assert_refused(reply, 503, "BUSY")
        assert "not a validator" in reply["detail"]

    play(script, n=1)


def test_the_status_of_a_transaction_can_be_asked_until_it_is_proven() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        reply = await caller.submit(a_job(cluster))
        location = reply["answers"][0]["location"]
        seen = []
        while not seen or seen[-1] != "proven":
            status = (await caller.get(location))["status"]
            seen += [status] if seen[-1:] != [status] else []
            await asyncio.sleep(0.002)
        order = ["available", "final", "executed", "proven"]
        assert seen == [status for status in order if status in seen]

    play(script)


def test_an_unknown_transaction_is_404_unless_its_nonce_is_used() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await caller.submit(a_job(cluster), wait="executed")
        account = cluster.actor("creator").account.hex()
        path = f"/v1/transactions/{'ab' * 32}"
        assert_refused(await caller.get(path), 404, "UNKNOWN_TRANSACTION")
        assert_refused(await caller.get(f"{path}?sender={account}&nonce=1"), 404, "UNKNOWN_TRANSACTION")
        used = await caller.get(f"{path}?sender={account}&nonce=0")
        assert used.json() == {"id": "ab" * 32, "status": "unknown", "nonce": "used"}
        assert_refused(await caller.get(f"{path}?nonce=0"), 400, "BAD_PARAMETER")

    play(script, n=1)


def test_what_left_no_receipt_in_its_block_is_expired() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        body = RegisterMember("someone", signing_key("someone").public, ("trainer",))
        one = cluster.sign("registrar", body, nonce=5)
        other = cluster.sign("registrar", RegisterMember("else", signing_key("else").public, ()), nonce=5)
        reply = await caller.submit(one, other, wait="executed")
        statuses = [answer["status"] for answer in reply["answers"]]
        assert reply.status == 200 and statuses == ["proven", "expired"]

    play(script, n=1)


def test_a_receipt_comes_with_a_proof_that_anyone_can_check() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        ids = []
        for number in range(5):
            reply = await caller.submit(a_job(cluster, f"job-{number}"), wait="proven")
            ids.append(reply["answers"][0]["id"])
        await asyncio.sleep(1)
        checkpoint = genesis_checkpoint(cluster.genesis)
        for node in cluster.running():
            for identity in ids:
                reply = await Caller(node).get(f"/v1/transactions/{identity}/receipt")
                assert reply.status == 200, reply.json()
                bundle = decode(ReceiptBundle, base64.b64decode(reply["bundle"]), 10**6)
                verify_receipt_bundle(checkpoint, bundle)
                receipt = decode(Receipt, bundle.receipt, 4096)
                assert receipt.tx_id.hex() == identity == reply["receipt"]["tx_id"]
                assert receipt.kind == Kind.CREATE_JOB and receipt.status == "ok"

    play(script)


def test_a_receipt_is_404_before_execution_and_409_before_its_proof() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        assert_refused(await caller.get(f"/v1/transactions/{'00' * 32}/receipt"), 404, "NO_RECEIPT")
        reply = await caller.submit(a_job(cluster), wait="proven")
        identity = reply["answers"][0]["id"]
        caller.node.store.newest_certificate = lambda: None  # type: ignore[method-assign]
        early = await caller.get(f"/v1/transactions/{identity}/receipt")
        assert_refused(early, 409, "NOT_PROVEN_YET")
        assert early.response.headers["Retry-After"] == "1"

    play(script, n=1)
