from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import yaml

from fl.jobs import StopJob
from fl.kernels import KERNEL_VERSION
from node.health import Reason
from tests.node.rpc.calls import Caller
from tests.node.rpc.test_transactions import a_job, assert_refused, play
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.loop import simulate

DOCS = Path(__file__).parents[3] / "docs"


async def reasons(caller: Caller) -> list[str]:
    reply = await caller.get("/v1/ready")
    if reply.status == 200:
        return []
    assert_refused(reply, 503, "NOT_READY")
    found: list[str] = reply["reasons"]
    assert found == (await caller.get("/v1/status"))["reasons"]
    return found


def test_a_linked_validator_that_has_executed_everything_is_ready() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await caller.submit(a_job(cluster), wait="proven")
        assert await reasons(caller) == []
        status = await caller.get("/v1/status")
        assert status["validators"] == {"n": 4, "f": 1, "q": 3} and status["node"] == "org-000"
        assert all(peer["linked"] for peer in status["peers"]) and len(status["peers"]) == 3
        assert status["syncing"] is None and "time_ahead_ms" not in status.json()
        assert status["executed_height"] == caller.api.executed_height
        assert (status["version"], status["kernel_version"]) == (caller.api.version, KERNEL_VERSION)

    play(script)


def test_a_validator_without_a_quorum_of_links_is_not_ready() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await caller.submit(a_job(cluster), wait="proven")
        for index in (2, 3):
            cluster.hosts[index].machine.kill()
        await asyncio.sleep(10)
        assert caller.health.linked() == 1
        assert await reasons(caller) == [Reason.ISOLATED]

    play(script)


def test_a_drain_a_full_disk_and_a_clock_behind_are_reasons_not_to_be_ready() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await caller.submit(a_job(cluster), wait="proven")
        caller.node.admission.draining = caller.node.disk_full = True
        assert await reasons(caller) == [Reason.DISK_FULL, Reason.DRAINING]
        caller.node.admission.draining = caller.node.disk_full = False
        cluster.hosts[0].machine.traits.skew_ms = -3_600_000
        assert await reasons(caller) == [Reason.CLOCK_BEHIND]
        ahead_ms = (await caller.get("/v1/status"))["time_ahead_ms"]
        assert 3_590_000 < ahead_ms <= 3_600_100

    play(script)


def test_a_node_that_was_away_shows_how_far_it_is_and_is_ready_once_level() -> None:
    async def main() -> None:
        cluster = Cluster(genesis_of(4), seed=31)
        await cluster.start()
        cluster.hosts[3].machine.kill()
        other = Caller(cluster.node(0))
        for number in range(60):
            await other.submit(a_job(cluster, f"job-{number}"), wait="executed")
            await other.submit(a_job(cluster, f"again-{number}"), wait="executed")
        await cluster.hosts[3].live(cluster.genesis)
        assert await cluster.until(lambda: cluster.hosts[3].up, within=5)
        caller = Caller(cluster.node(3))
        shown = []
        while not shown or await reasons(caller):
            shown.append((await caller.get("/v1/status"))["syncing"])
            await asyncio.sleep(0.01)
        progress = [each for each in shown if each is not None]
        assert progress and progress[0]["behind"] > 64
        assert progress[-1]["behind"] < progress[0]["behind"]
        assert await cluster.until(lambda: len(set(cluster.executed())) == 1, within=10)

    simulate(main)


def test_one_liar_cannot_make_a_node_unready() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await caller.submit(a_job(cluster), wait="proven")
        await asyncio.sleep(2)
        caller.node.replica.catch_up._peers[cluster.hosts[1].key.public].final_height = 2**60
        assert caller.health.target() < 1_000 and await reasons(caller) == []

    play(script)


def test_an_absent_validator_misses_votes_and_its_turns_time_out() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await caller.submit(a_job(cluster, "first"), wait="proven")
        cluster.hosts[2].machine.kill()
        for number in range(40):
            await caller.submit(a_job(cluster, f"job-{number}"), wait="executed")
        numbers = read(caller)
        missed = {key: value for key, value in numbers.items() if key.startswith("quorate_votes_missed_total")}
        assert missed.pop('quorate_votes_missed_total{validator="org-002"}') > 20
        assert sum(missed.values()) < 5
        given_up = [key for key in numbers if key.startswith("quorate_views_given_up_total")]
        assert any('leader="org-002"' in key and 'reason="no_proposal"' in key for key in given_up)
        gone = 'quorate_peer_up{channel="consensus",validator="org-002"}'
        assert await cluster.until(lambda: read(caller)[gone] == 0, within=10)
        numbers = read(caller)
        assert numbers["quorate_peers_up"] == 2 == numbers["quorate_peers_needed"]

    play(script)


def read(caller: Caller) -> dict[str, float]:
    lines = [line for line in caller.metrics.text().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_the_clock_is_compared_with_the_headers() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        for number in range(10):
            await caller.submit(a_job(cluster, f"job-{number}"), wait="executed")
        assert 0 <= read(caller)["quorate_header_lateness_seconds"] < 1
        behind = Caller(cluster.node(1))
        cluster.hosts[1].machine.traits.skew_ms = -2_000
        for number in range(70):
            await caller.submit(a_job(cluster, f"more-{number}"), wait="executed")
        assert read(behind)["quorate_header_lateness_seconds"] < -1

    play(script)


def test_refusals_are_counted_by_code() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await caller.submit(b"a", b"b", cluster.sign("creator", StopJob(bytes(32)), valid_until_ms=1))
        numbers = read(caller)
        assert numbers['quorate_admission_refused_total{code="UNDECODABLE"}'] == 2
        assert numbers['quorate_admission_refused_total{code="EXPIRED"}'] == 1

    play(script, n=1)


def families(caller: Caller) -> set[str]:
    """Names as a query uses them, but for the parts of histograms."""
    names = set()
    for family in caller.metrics.registry.collect():
        names.add(family.name + ("_total" if family.type == "counter" else ""))
    return names


def test_the_page_lists_every_metric_and_no_other() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        await caller.submit(a_job(cluster), wait="proven")
        listed = set(re.findall(r"`(quorate_\w+)`", (DOCS / "metrics.md").read_text()))
        assert listed == {name for name in families(caller) if name.startswith("quorate_")}

    play(script)


def test_alerts_ask_for_metrics_that_there_are() -> None:
    rules: list[dict[str, Any]] = []
    for group in yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]:
        rules += group["rules"]
    listed = set(re.findall(r"`(quorate_\w+)`", (DOCS / "metrics.md").read_text()))
    for rule in rules:
        used = {name.removesuffix("_bucket") for name in re.findall(r"quorate_\w+", rule["expr"])}
        assert used <= listed, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"] and rule["annotations"]["action"]
    subjects = " ".join(rule["alert"] for rule in rules)
    watched = "FinalHeightStalled RootDiffers Alarm VotesMissed ExecutedLag ClockSkew DiskMark"
    assert all(subject in subjects for subject in watched.split())


def test_state_roots_are_shown_at_common_heights() -> None:
    async def script(cluster: Cluster, caller: Caller) -> None:
        caller.metrics.executed(1_023)
        assert not any(key.startswith("quorate_state_root") for key in read(caller))
        caller.metrics.executed(1_024)
        root = caller.node.executor.executed.state_root
        assert read(caller)['quorate_state_root{height="1024"}'] == int.from_bytes(root[:6], "big")

    play(script, n=1)
