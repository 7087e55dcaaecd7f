from __future__ import annotations

import asyncio
import base64
from typing import TypeVar

from chain.batch import SignedBatch, batch_digest, verify_batch
from chain.block import Block, block_digest
from chain.certificate import Certificate, ValidatorSet, verify_certificate
from chain.codec import decode
from chain.genesis import Genesis, SetChange
from chain.light import (
    BlockBundle,
    HandOver,
    StateBundle,
    follow,
    genesis_checkpoint,
    verify_block_bundle,
    verify_executed,
    verify_state_bundle,
)
from fl.records import Member
from fl.state import member_key
from tests.fl.builders import trainer_names
from tests.node.rpc.calls import Caller, Reply
from tests.node.rpc.test_transactions import a_job, assert_refused, play
from tests.simulation.cluster import Cluster, genesis_of, validator
from tests.simulation.loop import simulate

T = TypeVar("T")


def record(cls: type[T], text: str) -> T:
    return decode(cls, base64.b64decode(text), 10**7)


async def some_blocks(cluster: Cluster, caller: Caller, count: int = 6) -> None:
    for number in range(count):
        await caller.submit(a_job(cluster, f"job-{number}"), wait="proven")


def test_blocks_are_listed_newest_first_page_by_page() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await some_blocks(cluster, caller)
        seen, cursor = [], ""
        while True:
            page = await caller.get(f"/v1/blocks?limit=3{cursor}")
            seen += [block["height"] for block in page["blocks"]]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert seen == list(range(seen[0], -1, -1))
        far = await caller.get(f"/v1/blocks?cursor={2**64 - 1}&limit=1")
        assert far["blocks"][0]["height"] == caller.api.executed_height

    play(script)


def test_raw_blocks_batches_and_finalizations_verify() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await some_blocks(cluster, caller)
        chain_id, validators = cluster.genesis.chain_id, cluster.genesis.validator_set
        genesis = decode(Genesis, (await caller.get("/v1/genesis")).response.body, 10**7)
        assert genesis.chain_id == chain_id
        batches = 0
        for height in range(caller.api.executed_height + 1):
            shown = await caller.get(f"/v1/blocks/{height}")
            block = decode(Block, (await caller.get(f"/v1/blocks/{height}/raw")).response.body, 10**6)
            assert block_digest(block.header).hex() == shown["digest"]
            final = await caller.get(f"/v1/blocks/{height}/finalization/raw")
            if final.status == 200:
                certificate = decode(Certificate, final.response.body, 10**6)
                assert verify_certificate(chain_id, validators, certificate)
                assert shown["finalization"]["block"] == shown["digest"]
            else:
                assert_refused(final, 404, "NO_FINALIZATION")
            for digest in shown["batches"]:
                batches += 1
                raw = (await caller.get(f"/v1/batches/{digest}/raw")).response.body
                signed = decode(SignedBatch, raw, 10**7)
                assert batch_digest(signed.batch).hex() == digest
                assert verify_batch(chain_id, validators, signed)
        assert batches

    play(script)


def test_what_is_not_there_is_404() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        assert_refused(await caller.get("/v1/blocks/1000"), 404, "UNKNOWN_BLOCK")
        assert_refused(await caller.get(f"/v1/blocks/{2**64 - 1}/raw"), 404, "UNKNOWN_BLOCK")
        assert_refused(await caller.get(f"/v1/batches/{'00' * 32}/raw"), 404, "UNKNOWN_BATCH")
        assert_refused(await caller.get("/v1/validators?epoch=1"), 404, "UNKNOWN_EPOCH")
        assert_refused(await caller.get(f"/v1/members/{'00' * 32}"), 404, "UNKNOWN_MEMBER")
        assert_refused(await caller.get("/v1/jobs/nothing"), 404, "UNKNOWN_JOB")
        assert_refused(await caller.get("/v1/nothing"), 404, "UNKNOWN_PATH")
        assert_refused(await caller.get("/v1/blocks/"), 404, "UNKNOWN_PATH")
        assert_refused(await caller.get("/"), 404, "UNKNOWN_PATH")
        wrong = await caller.call("POST", "/v1/blocks")
        assert_refused(wrong, 405, "METHOD_NOT_ALLOWED")
        assert wrong.response.headers["Allow"] == "GET, HEAD"

    play(script, n=1)


def test_parameters_are_read_strictly() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        for target in (
            "/v1/blocks/01",
            "/v1/blocks/-1",
            "/v1/blocks/+1",
            "/v1/blocks/1_0",
            "/v1/blocks/%C2%B2",
            f"/v1/blocks/{2**64}",
            "/v1/blocks?limit=0",
            "/v1/blocks?limit=101",
            "/v1/blocks?limit=1&limit=1",
            "/v1/blocks?limit",
            "/v1/blocks?more=1",
            "/v1/blocks?limit=%FF",
            "/v1/blocks?" + "&".join(f"p{number}=1" for number in range(40)),
            "/v1/batches/AB/raw",
            f"/v1/batches/{'AB' * 32}/raw",
            "/v1/state/abc",
            f"/v1/state/{'00' * 257}",
            "/v1/events?kinds=nothing",
            "/v1/jobs/a%20b",
            "/v1/transactions/" + "0" * 63,
        ):
            assert_refused(await caller.get(target), 400, "BAD_PARAMETER")
        assert_refused(await caller.get("/v1/blocks/%FF"), 400, "MALFORMED_REQUEST")

    play(script, n=1)


def test_the_state_is_proven_present_and_absent_at_a_certified_height() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await some_blocks(cluster, caller, 3)
        checkpoint = genesis_checkpoint(cluster.genesis)
        key = member_key(cluster.actor("creator").account)
        for wanted, there in ((key, True), (b"nothing", False)):
            reply = await caller.get(f"/v1/state/{wanted.hex()}")
            bundle = record(StateBundle, reply["bundle"])
            executed = verify_state_bundle(checkpoint, bundle)
            assert bundle.key == wanted and (bundle.value is not None) is there
            assert reply["height"] == executed.height == caller.node.replica.attestation.certified_height()
        assert decode(Member, record(StateBundle, (await proof(caller, key))["bundle"]).value or b"", 999).name

    async def proof(caller: Caller, key: bytes) -> Reply:
        return await caller.get(f"/v1/state/{key.hex()}")

    play(script)


def test_a_state_is_proven_as_it_was_when_it_was_certified() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await some_blocks(cluster, caller, 3)
        certificate = caller.node.store.newest_certificate()
        before = await caller.get("/v1/state/" + b"receipts".hex())
        caller.node.store.newest_certificate = lambda: certificate  # type: ignore[method-assign]
        await caller.submit(a_job(cluster, "later"), wait="executed")
        after = await caller.get("/v1/state/" + b"receipts".hex())
        assert after["value"] == before["value"]
        bundle = record(StateBundle, after["bundle"])
        verify_state_bundle(genesis_checkpoint(cluster.genesis), bundle)
        caller.node.executor.tree._undo.clear()
        gone = await caller.get("/v1/state/" + b"receipts".hex())
        assert_refused(gone, 409, "NOT_PROVEN_YET")

    play(script)


def test_old_blocks_are_proven_under_the_newest_certificate() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await some_blocks(cluster, caller)
        newest = caller.node.replica.attestation.certified_height()
        for height in range(newest):
            reply = await caller.get(f"/v1/blocks/{height}/proof")
            bundle = record(BlockBundle, reply["bundle"])
            verify_block_bundle(genesis_checkpoint(cluster.genesis), bundle)
            assert bundle.height == height and bundle.block.hex() == reply["digest"]
        assert_refused(await caller.get(f"/v1/blocks/{newest}/proof"), 409, "NOT_PROVEN_YET")

    play(script)


def test_a_checkpoint_leads_through_the_epochs() -> None:
    async def main() -> None:
        due = 4
        changes = (SetChange(due, tuple(validator(index) for index in (0, 1, 2, 4))),)
        cluster = Cluster(genesis_of(4, set_changes=changes), seed=5, extra=1)
        await cluster.start()
        caller = Caller(cluster.node(0))
        number = 0
        while any(node.replica.validators.epoch == 0 for node in cluster.running()[:3]):
            number += 1
            await caller.submit(a_job(cluster, f"job-{number}"), wait="executed")
            await asyncio.sleep(0.2)
        await caller.submit(a_job(cluster, "afterwards"), wait="proven")
        reply = await caller.get("/v1/checkpoint")
        hand_overs = [record(HandOver, text) for text in reply["handovers"]]
        checkpoint = follow(genesis_checkpoint(cluster.genesis), hand_overs)
        assert checkpoint.validators.epoch == reply["epoch"] == 1
        executed = verify_executed(checkpoint, record(Certificate, reply["certificate"]))
        assert executed.height == reply["height"] and executed.state_root.hex() == reply["state_root"]
        shown = await caller.get("/v1/validators")
        assert record(ValidatorSet, shown["raw"]) == checkpoint.validators
        assert (await caller.get("/v1/validators?epoch=0"))["epoch"] == 0

    simulate(main)


def test_members_are_listed_once_each_with_their_names_and_roles() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        found, cursor = [], ""
        while True:
            page = await caller.get(f"/v1/members?limit=2{cursor}")
            found += page["members"]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert sorted(member["name"] for member in found) == sorted(["creator", *trainer_names(4)])
        assert len({member["account"] for member in found}) == 5
        one = await caller.get(f"/v1/members/{found[0]['account']}")
        assert one.json() == found[0]

    play(script, n=1)


def test_an_account_shows_the_nonces_it_has_used() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        account = cluster.actor("creator").account.hex()
        fresh = await caller.get(f"/v1/accounts/{account}")
        assert fresh.json() == {
            "id": account,
            "exists": False,
            "key": None,
            "floor": 0,
            "used": [],
            "next_nonce": 0,
        }
        await caller.submit(a_job(cluster), wait="executed")
        cluster.actor("creator").nonce = 5
        await caller.submit(a_job(cluster, "other"), wait="executed")
        reply = await caller.get(f"/v1/accounts/{account}")
        assert (reply["exists"], reply["floor"], reply["used"], reply["next_nonce"]) == (True, 1, [5], 1)

    play(script, n=1)


def test_the_parameters_and_the_validators_are_shown() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        assert (await caller.get("/v1/params"))["params"]["min_block_interval_ms"] == 50
        shown = await caller.get("/v1/validators")
        assert (shown["n"], shown["f"], shown["quorum"]) == (4, 1, 3)
        assert record(ValidatorSet, shown["raw"]).digest().hex() == shown["digest"]

    play(script)
