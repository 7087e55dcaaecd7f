from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from chain.cid import cid_text, parse_cid, raw_cid
from chain.codec import decode, unpack
from chain.light import ReceiptBundle, genesis_checkpoint, verify_event_bundle
from chain.log import EMPTY, append, leaf_digest
from fl.datasets import RegisterDataset
from fl.jobrules import rules_hash
from fl.records import Entry, JobRules
from node.rpc.event_log import SCANNED_AT_ONCE, EventLog, Filter
from node.rpc.problems import Problem
from tests.node.rpc.calls import Caller, Listening
from tests.node.rpc.test_transactions import a_job, assert_refused, play
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.jobs import Training
from tests.simulation.loop import simulate


def test_a_job_its_rounds_and_its_model_can_be_followed_to_the_end() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=21)
        await cluster.start()
        training = Training(cluster, trainers=4)
        await training.create()
        assert await cluster.until(training.finished, within=60)
        caller = Caller(cluster.node(0))
        job = await caller.get("/v1/jobs/digits")
        assert job["id"] == training.id.hex() and job["status"] == "finished" and job["completed"] == 3
        rules = decode(JobRules, base64.b64decode(job["rules_raw"]), 10**6)
        assert rules_hash(rules).hex() == job["rules_hash"] and job["rules"]["target"] == 4
        assert (await caller.get(f"/v1/jobs/{job['id']}")).json() == job.json()
        assert (await caller.get("/v1/jobs"))["jobs"][0]["id"] == job["id"]
        rounds = await caller.get("/v1/jobs/digits/rounds?limit=2")
        assert [each["number"] for each in rounds["rounds"]] == [3, 2] and rounds["next"] == 1
        last = await caller.get("/v1/jobs/digits/rounds?limit=2&cursor=1")
        assert [each["number"] for each in last["rounds"]] == [1] and last["next"] is None
        final = await caller.get("/v1/jobs/digits/rounds/3")
        assert final["phase"] == "closed" and final["model"] == job["model"]
        assert final["metrics"][0]["name"] == "loss" and final["metrics"][0]["mean"] == 1_000_000
        blob = cluster.hosts[0].data.read(parse_cid(job["model"]))
        assert blob is not None and raw_cid(blob) == parse_cid(job["model"])
        updates = await caller.get("/v1/jobs/digits/rounds/3/updates?limit=3")
        assert [each["position"] for each in updates["updates"]] == [0, 1, 2] and updates["next"] == 3
        raw = await caller.get("/v1/jobs/digits/rounds/3/updates/raw")
        log = EMPTY
        for leaf in unpack(raw.response.body, 10**6):
            log, _ = append(log, leaf_digest(leaf))
        assert log.root().hex() == final["log_root"], "the raw entries are the leaves of the round's log"
        second = await caller.get("/v1/jobs/digits/rounds/3/updates/raw?cursor=1&limit=1")
        entry = decode(Entry, unpack(second.response.body, 10**6)[0], 1000)
        assert entry.tx_id.hex() == updates["updates"][1]["tx_id"]
        assert_refused(await caller.get("/v1/jobs/digits/rounds/3/updates/raw?limit=1001"), 400, "BAD_PARAMETER")
        members = await caller.get("/v1/jobs/digits/members")
        assert {each["name"] for each in members["members"]} == set(training.names)
        one = members["members"][0]
        assert (await caller.get(f"/v1/jobs/digits/members/{one['account']}")).json() == one
        assert_refused(await caller.get("/v1/jobs/digits/rounds/9"), 404, "UNKNOWN_ROUND")
        assert_refused(await caller.get(f"/v1/jobs/digits/members/{'00' * 32}"), 404, "NOT_JOINED")
        metrics = caller.metrics.text().decode()
        assert 'quorate_rounds{phase="closed"}' in metrics and "quorate_jobs_open 0.0" in metrics

    simulate(main)


def test_data_sets_are_listed_page_by_page_and_told_one_by_one() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        for name in ("a", "b", "c"):
            body = RegisterDataset(name, raw_cid(name.encode()), 1, False, "words", "", "CC0-1.0")
            await caller.submit(cluster.sign("creator", body), wait="executed")
        first = await caller.get("/v1/datasets?limit=2")
        rest = await caller.get(f"/v1/datasets?limit=2&cursor={first['next']}")
        assert sorted(each["name"] for each in first["datasets"] + rest["datasets"]) == ["a", "b", "c"]
        assert rest["next"] is None
        one = first["datasets"][0]
        assert (await caller.get(f"/v1/datasets/{one['id']}")).json() == one
        assert (one["cid"], one["withdrawn_height"]) == (cid_text(raw_cid(one["name"].encode())), None)
        assert_refused(await caller.get(f"/v1/datasets/{'00' * 32}"), 404, "UNKNOWN_DATASET")

    play(script, n=1)


async def jobs(cluster: Cluster, caller: Caller, *names: str) -> None:
    for name in names:
        await caller.submit(a_job(cluster, name), wait="executed")


def test_events_come_in_pages_and_through_filters() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await jobs(cluster, caller, "a", "b", "c")
        page = await caller.get("/v1/events?limit=2")
        assert [event["index"] for event in page["events"]] == [0, 1] and page["next"] == 2
        rest = await caller.get("/v1/events?from=2")
        assert [event["index"] for event in rest["events"]] == [2] and rest["next"] == rest["head"] == 3
        height = rest["events"][0]["height"]
        later = await caller.get(f"/v1/events?from_height={height}")
        assert [event["index"] for event in later["events"]] == [2]
        only = await caller.get("/v1/events?job=b&kinds=job_created,job_joined")
        assert [event["index"] for event in only["events"]] == [1]
        assert (await caller.get("/v1/events?kinds=round_opened"))["events"] == []
        assert_refused(await caller.get("/v1/events?job=none"), 404, "UNKNOWN_JOB")
        beyond = await caller.get(f"/v1/events?from={2**64 - 1}")
        assert beyond["events"] == [] and beyond["next"] == 2**64 - 1

    play(script, n=1)


def test_an_event_is_proven_as_a_receipt_is() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await jobs(cluster, caller, "a", "b")
        await asyncio.sleep(1)
        for index in range(2):
            reply = await caller.get(f"/v1/events/{index}/proof")
            bundle = decode(ReceiptBundle, base64.b64decode(reply["bundle"]), 10**6)
            verify_event_bundle(genesis_checkpoint(cluster.genesis), bundle)
            assert bundle.index == index == reply["event"]["index"]
        assert_refused(await caller.get("/v1/events/2/proof"), 404, "UNKNOWN_EVENT")

    play(script)


class Listener:
    def __init__(self, caller: Caller, query: str = "") -> None:
        self.messages: list[Any] = []
        self.task = asyncio.ensure_future(caller.stream(f"/v1/events/ws{query}", Listening(self._take)))

    async def _take(self, text: str) -> None:
        self.messages.append(json.loads(text))

    def indices(self) -> list[int]:
        return [message["index"] for message in self.messages if message["type"] == "event"]


def test_a_stream_begins_where_it_is_told_and_goes_on_as_events_happen() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await jobs(cluster, caller, "a", "b")
        listeners = {
            "from now": Listener(caller),
            "from the start": Listener(caller, "?from_index=0"),
            "again": Listener(caller, "?from_index=1"),
            "from a height": Listener(caller, f"?from_height={caller.api.executed_height}"),
            "future": Listener(caller, "?from_index=3"),
            "filtered": Listener(caller, "?from_index=0&kinds=round_opened"),
        }
        await asyncio.sleep(0.1)
        await jobs(cluster, caller, "c", "d")
        await asyncio.sleep(0.1)
        assert {name: listener.indices() for name, listener in listeners.items()} == {
            "from now": [2, 3],
            "from the start": [0, 1, 2, 3],
            "again": [1, 2, 3],
            "from a height": [1, 2, 3],
            "future": [3],
            "filtered": [],
        }

    play(script, n=1)


def test_heights_are_streamed_when_asked_for() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        listener = Listener(caller, "?heads=1&kinds=evidence")
        await jobs(cluster, caller, "a")
        await asyncio.sleep(2)
        newest = listener.messages[-1]
        assert newest == {
            "type": "head",
            "final_height": caller.api.executed_height,
            "executed_height": caller.api.executed_height,
            "certified_height": caller.api.executed_height,
        }
        heights = [message["executed_height"] for message in listener.messages]
        assert heights == sorted(heights) and len(listener.messages) > 1

    play(script)


def test_a_stream_cannot_begin_at_an_index_and_a_height() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        with pytest.raises(Problem) as refused:
            await Listener(caller, "?from_index=0&from_height=0").task
        assert refused.value.code == "BAD_PARAMETER"

    play(script, n=1)


def test_a_slow_subscriber_holds_its_place_and_nothing_else() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        gate = asyncio.Event()
        taken: list[int] = []

        async def slowly(text: str) -> None:
            await gate.wait()
            taken.append(json.loads(text)["index"])

        stream = asyncio.ensure_future(caller.stream("/v1/events/ws?from_index=0", Listening(slowly)))
        quick = Listener(caller, "?from_index=0")
        await jobs(cluster, caller, *(f"job-{number}" for number in range(20)))
        await asyncio.sleep(0.1)
        assert taken == [] and quick.indices() == list(range(20))
        gate.set()
        await asyncio.sleep(0.1)
        assert taken == list(range(20)) and not stream.done()

    play(script, n=1)


def test_an_event_log_reads_old_and_new_alike() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await jobs(cluster, caller, *(f"job-{number}" for number in range(12)))
        whole = EventLog(caller.node.store, lambda: caller.node.executor.executed.events)
        small = EventLog(caller.node.store, lambda: caller.node.executor.executed.events)
        import node.rpc.event_log as module

        module.NEWEST_KEPT, before = 4, module.NEWEST_KEPT
        try:
            for first in (0, 6, 8, 11, 9, 0):
                assert small.page(first, 5, Filter())[0] == whole.page(first, 5, Filter())[0]
            assert len(small._newest) <= 4
        finally:
            module.NEWEST_KEPT = before
        assert SCANNED_AT_ONCE >= 12

    play(script, n=1)
