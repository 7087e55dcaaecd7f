"""What a node tells Prometheus, in a registry of its own. `docs/metrics.md` lists it, `docs/alerts.yml` watches it.

Most numbers are read when they are asked for; only what happens between two questions is counted as it happens.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chain.block import Block
from consensus.availability.pool import POOL_BYTES
from consensus.lineage import Lineage
from consensus.ordering.timing import LEADER_INACTIVE, NO_NOTARIZATION, NO_PROPOSAL
from fl.records import Meta, Phase, Round
from fl.state import META, job_of, open_jobs, read_record, round_of
from node.health import LIVE_BLOCKS, Health, Reason
from node.node import Node
from node.ports import Channel
from node.rpc.tally import Answered

SETTLED_VIEWS = 4
"""Votes of a view still come in while the next few are under way; after so many it is seen who has missed it."""
ROOT_EVERY = 1_024
"""Every so many heights the state root is shown, so that those of all validators can be compared."""
ROOT_BYTES = 6
"""As many as a float holds exactly."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_INTERVALS = (0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 6.0, 10.0, 30.0)
_REASONS = {
    NO_PROPOSAL: "no_proposal",
    NO_NOTARIZATION: "no_notarization",
    LEADER_INACTIVE: "leader_inactive",
}
_PHASES = {phase.value: phase.name.lower() for phase in Phase}


class Metrics:
    """An observer of its node, and the tally of its doors."""

    def __init__(self, node: Node, health: Health, version: str) -> None:
        self._node = node
        self._health = health
        self.registry = registry = CollectorRegistry()
        self._block_interval = Histogram(
            "quorate_block_interval_seconds", "Between final blocks.", buckets=_INTERVALS, registry=registry
        )
        self._views_observed = Counter(
            "quorate_views_observed", "Views that were looked at for missing votes.", registry=registry
        )
        self._votes_missed = Counter(
            "quorate_votes_missed", "Views in which a validator cast no vote in time.", ["validator"], registry=registry
        )
        self._fsync = Histogram(
            "quorate_fsync_seconds", "Duration of a group of syncs.", ["log"], buckets=_SECONDS, registry=registry
        )
        self._state_root = Gauge(
            "quorate_state_root",
            f"First {ROOT_BYTES} bytes of the state root of a height that divides by {ROOT_EVERY}.",
            ["height"],
            registry=registry,
        )
        self._requests = Counter(
            "quorate_rpc_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "quorate_rpc_seconds", "Time to answer, waiting included.", ["route"], buckets=_SECONDS, registry=registry
        )
        self._connections = Gauge("quorate_rpc_connections", "Open connections of clients.", registry=registry)
        self._turned_away = Counter(
            "quorate_rpc_connections_refused", "Connections closed for a limit.", ["reason"], registry=registry
        )
        self.subscribers = Gauge("quorate_rpc_subscribers", "Open event streams.", registry=registry)
        self.ingests = Gauge("quorate_rpc_ingests", "Open streams of transactions.", registry=registry)
        Gauge("quorate_build_info", "Always 1.", ["version"], registry=registry).labels(version).set(1)
        ProcessCollector(registry=self.registry)
        self.registry.register(_NodeCollector(node, health))
        self._last_time_ms: int | None = None
        self._looked_at = (0, 0)
        """Epoch and view up to which votes were looked for."""
        node.observers.append(self)
        node.journal.on_sync = self._fsync.labels("journal").observe
        node.batches.log.on_sync = self._fsync.labels("batches").observe

    def text(self) -> bytes:
        return generate_latest(self.registry)

    # Tally

    def connected(self) -> None:
        self._connections.inc()

    def left(self) -> None:
        self._connections.dec()

    def turned_away(self, reason: str) -> None:
        self._turned_away.labels(reason).inc()

    def answered(self, answered: Answered) -> None:
        self._requests.labels(answered.route, answered.method, str(answered.status)).inc()
        self._request_seconds.labels(answered.route).observe(answered.seconds)

    # Observer

    def final(self, block: Block, lineage: Lineage) -> None:
        if self._last_time_ms is not None:
            self._block_interval.observe((block.header.time_ms - self._last_time_ms) / 1000)
        self._last_time_ms = block.header.time_ms
        if lineage.height + LIVE_BLOCKS >= self._health.target():
            self._look_for_votes()

    def executed(self, height: int) -> None:
        if height % ROOT_EVERY == 0:
            self._state_root.clear()
            root = self._node.executor.executed.state_root
            self._state_root.labels(str(height)).set(int.from_bytes(root[:ROOT_BYTES], "big"))

    def _look_for_votes(self) -> None:
        ordering, members = self._node.replica.ordering, self._node.replica.validators.members
        epoch, looked = self._looked_at
        settled = ordering.final_view - SETTLED_VIEWS
        if epoch != ordering.epoch:
            looked = 0
        for number in range(max(looked + 1, settled - SETTLED_VIEWS), settled + 1):
            view = ordering.views.get(number)
            if view is None:
                continue
            self._views_observed.inc()
            for index, member in enumerate(members):
                if not view.votes_of(index):
                    self._votes_missed.labels(member.name).inc()
        self._looked_at = (ordering.epoch, max(looked, settled))


class _NodeCollector(Collector):
    """What is read from the node at each scrape."""

    def __init__(self, node: Node, health: Health) -> None:
        self._node = node
        self._health = health

    def collect(self) -> Iterator[Metric]:
        yield from self._heights()
        yield from self._agreement()
        yield from self._taking()
        yield from self._storage()
        yield from self._data()
        yield from self._learning()

    def _heights(self) -> Iterator[Metric]:
        node, replica = self._node, self._node.replica
        yield _gauge("final_height", "Height of the newest final block.", replica.ordering.tree.root.height)
        yield _gauge("executed_height", "Height of the newest state.", node.executor.executed.lineage.height)
        yield _gauge("certified_height", "Newest height with an execution certificate.", self._certified())
        yield _gauge("sync_target_height", "Final height that f+1 peers have reached.", self._health.target())
        yield _gauge("executor_waiting_blocks", "Final blocks not yet executed.", node.executor.waiting)
        yield _gauge("aggregator_waiting_rounds", "Closed rounds not yet averaged.", node.aggregator.waiting)

    def _certified(self) -> int:
        return self._node.replica.attestation.certified_height()

    def _agreement(self) -> Iterator[Metric]:
        node, replica, health = self._node, self._node.replica, self._health
        ordering, members = replica.ordering, replica.validators.members
        yield _gauge("epoch", "Number of the validator set in office.", replica.validators.epoch)
        yield _gauge("view", "The view of ordering that this node is in.", ordering.view)
        given_up = CounterMetricFamily(
            "quorate_views_given_up", "Views that this node nullified.", labels=["reason", "leader"]
        )
        for (reason, leader), count in ordering.timing.given_up.items():
            given_up.add_metric([_REASONS.get(reason, "other"), members[leader].name], count)
        yield given_up
        peers = GaugeMetricFamily("quorate_peer_up", "Whether the link stands.", labels=["validator", "channel"])
        for member in members:
            if member.consensus_key != node.key.public:
                for channel in Channel:
                    up = (member.consensus_key, channel) in node.linked
                    peers.add_metric([member.name, channel.name.lower()], up)
        yield peers
        yield _gauge("peers_up", "Validators whose votes reach this node, itself left out.", health.linked())
        yield _gauge("peers_needed", "So many have to for anything to become final.", replica.validators.quorum - 1)
        late_ms = health.skew_ms()
        if late_ms is not None:
            yield _gauge("header_lateness_seconds", "Own clock less header time, at finality.", late_ms / 1000)
        ahead_s = health.time_ahead_ms() / 1000
        yield _gauge("time_ahead_seconds", "By how much the next header must be ahead of this clock.", ahead_s)
        reasons = health.reasons()
        not_ready = GaugeMetricFamily("quorate_not_ready", "Why clients should go elsewhere.", labels=["reason"])
        for reason_ in Reason:
            not_ready.add_metric([reason_.value], reason_ in reasons)
        yield not_ready
        alarm = GaugeMetricFamily("quorate_alarm", "The node stopped for this.", labels=["code"])
        if node.failure is not None:
            alarm.add_metric([node.failure.code], 1)
        yield alarm

    def _taking(self) -> Iterator[Metric]:
        node = self._node
        availability = node.replica.availability
        counts = availability.counts()
        used = POOL_BYTES - availability.room() if node.replica.me is not None else 0
        yield _gauge("pool_transactions", "Transactions that wait to be packed.", counts["pool"])
        yield _gauge("pool_bytes", "Bytes of the pool that are taken.", used)
        yield _gauge("batches_open", "Batches neither ordered nor expired.", counts["open"])
        yield _gauge("batches_uncertified", "Of them, voted for and without a certificate.", counts["uncertified"])
        refused = CounterMetricFamily("quorate_admission_refused", "Transactions not taken.", labels=["code"])
        for code, count in node.admission.refused.items():
            refused.add_metric([code], count)
        yield refused

    def _storage(self) -> Iterator[Metric]:
        node = self._node
        sizes = GaugeMetricFamily("quorate_stored_bytes", "On this node's disk, its rows left out.", labels=["what"])
        sizes.add_metric(["journal"], node.journal.size_bytes)
        sizes.add_metric(["batches"], node.batches.log.size_bytes)
        yield sizes
        yield _gauge("disk_free_bytes", "Free on the disk of the data directory.", node.ports.disk.free_bytes())
        yield _gauge("disk_reserve_bytes", "Below so many the node takes nothing.", node.limits.disk_reserve_bytes)

    def _data(self) -> Iterator[Metric]:
        data, retention = self._node.data, self._node.retention
        yield _gauge("data_up", "Whether the data process is at work.", data.opened is not None)
        yield _gauge("data_full", "Whether its disk has no room for more blobs.", data.full)
        yield _gauge("data_waiting", "What the core has asked it and not been answered.", data.waiting)
        yield _gauge("batches_without_blobs", "Batches that are voted for once their blobs are here.", self._awaited)
        yield _gauge(
            "blobs_lacking", "Jobs and data sets of which something is being fetched.", self._node.lacking.waiting
        )
        starts = CounterMetricFamily("quorate_data_starts", "Times that the data process has come to work.")
        starts.add_metric([], data.life)
        yield starts
        swept = CounterMetricFamily("quorate_blobs_swept", "Blobs deleted because nothing names them any more.")
        swept.add_metric([], retention.swept_blobs)
        yield swept
        freed = CounterMetricFamily("quorate_blobs_swept_bytes", "Their bytes.")
        freed.add_metric([], retention.swept_bytes)
        yield freed
        if data.figures is not None:
            yield _gauge("data_free_bytes", "Free on the disk of the data process.", data.figures.free_bytes)
            figures = GaugeMetricFamily("quorate_data", "What the data process says of itself.", labels=["what"])
            for figure in data.figures.figures:
                figures.add_metric([figure.name], figure.value)
            yield figures

    @property
    def _awaited(self) -> int:
        return self._node.checks.awaited

    def _learning(self) -> Iterator[Metric]:
        read = self._node.store.state
        meta = read_record(read, Meta, META) or Meta(0, 0, 0, 0)
        executed = CounterMetricFamily("quorate_transactions", "Transactions of the chain.", labels=["result"])
        executed.add_metric(["ok"], meta.executed)
        executed.add_metric(["refused"], meta.refused)
        yield executed
        jobs = open_jobs(read).jobs
        yield _gauge("jobs_open", "Jobs neither finished nor stopped.", len(jobs))
        newest = [
            round_of(read, entry.job, job.round)
            for entry in jobs
            if (job := job_of(read, entry.job)) is not None and job.round
        ]
        yield _rounds(current for current in newest if current is not None)


def _rounds(rounds: Iterable[Round]) -> Metric:
    phases = Tally(current.phase for current in rounds)
    family = GaugeMetricFamily("quorate_rounds", "The newest rounds of open jobs.", labels=["phase"])
    for phase, name in _PHASES.items():
        family.add_metric([name], phases[phase])
    return family


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"quorate_{name}", about, value=value)
