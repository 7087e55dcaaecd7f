"""How well a node is: whether clients should come to it, how far it is behind, what its clock says of the others'."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from chain.block import Block
from consensus.lineage import Lineage
from node.node import Node
from node.ports import Channel

FAR_BLOCKS = 16
"""So far behind what the others say, a node is catching up rather than waiting for the next message."""
LIVE_BLOCKS = 2
METER_SPAN_S = 30.0
METER_EVERY_S = 1.0
SKEW_SAMPLES = 65


class Reason(StrEnum):
    """Why a node should not be asked."""

    FAILED = "failed"
    SYNCING = "syncing"
    ISOLATED = "isolated"
    CLOCK_BEHIND = "clock_behind"
    DISK_FULL = "disk_full"
    DATA_DOWN = "data_down"
    DRAINING = "draining"


SENTENCES = {
    Reason.FAILED: "The node has stopped because going on would break a promise.",
    Reason.SYNCING: "Its executed state is too far behind the newest certificate.",
    Reason.ISOLATED: "It is not linked to enough validators to make a quorum.",
    Reason.CLOCK_BEHIND: "The chain's time is ahead of its clock; synchronise the clock.",
    Reason.DISK_FULL: "Its disk is full up to the reserve.",
    Reason.DATA_DOWN: "Its data process is not at work.",
    Reason.DRAINING: "It is being stopped.",
}


@dataclass(frozen=True, slots=True)
class Syncing:
    target: int
    behind: int
    eta_s: int | None
    """None while it does not come nearer."""


class Health:
    """An observer of its node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._started_ms = node.ports.clock.now().mono_ms
        self._way: deque[tuple[float, int]] = deque()
        """Monotonic seconds, and how many blocks were lacking then."""
        self._lateness_ms: deque[int] = deque(maxlen=SKEW_SAMPLES)
        node.observers.append(self)

    def final(self, block: Block, lineage: Lineage) -> None:
        if lineage.height + LIVE_BLOCKS >= self.target():
            self._lateness_ms.append(self._node.ports.clock.now().wall_ms - block.header.time_ms)

    def executed(self, height: int) -> None:
        now_s = self._now_s()
        if not self._way or now_s - self._way[-1][0] >= METER_EVERY_S:
            self._way.append((now_s, self.target() - height))
        while self._way and self._way[0][0] < now_s - METER_SPAN_S:
            self._way.popleft()

    def _now_s(self) -> float:
        return self._node.ports.clock.now().mono_ms / 1000

    @property
    def uptime_s(self) -> int:
        return (self._node.ports.clock.now().mono_ms - self._started_ms) // 1000

    def target(self) -> int:
        """The final height that an honest validator has reached for certain: f of the claims may be lies."""
        node = self._node
        claims = node.replica.catch_up.claims()
        f = node.replica.validators.f
        return max(node.replica.ordering.tree.root.height, claims[f] if len(claims) > f else 0)

    def syncing(self) -> Syncing | None:
        target = self.target()
        behind = target - self._node.executor.executed.lineage.height
        return Syncing(target, behind, self._eta_s(behind)) if behind > FAR_BLOCKS else None

    def _eta_s(self, behind: int) -> int | None:
        if not self._way:
            return None
        since_s, was_behind = self._way[0]
        gained, passed_s = was_behind - behind, self._now_s() - since_s
        return round(behind * passed_s / gained) if gained > 0 else None

    def linked(self) -> int:
        """Other validators of this epoch whose votes reach this node."""
        node = self._node
        return sum(
            (member.consensus_key, Channel.CONSENSUS) in node.linked
            for member in node.replica.validators.members
            if member.consensus_key != node.key.public
        )

    def time_ahead_ms(self) -> int:
        """By how much the next header has to be ahead of this clock; 0 if it need not be."""
        node = self._node
        least_ms = node.replica.ordering.tree.root.time_ms + node.genesis.params.min_block_interval_ms
        return max(0, least_ms - node.ports.clock.now().wall_ms)

    def skew_ms(self) -> int | None:
        """How late headers are when they become final here, in the middle of the newest: the delay of a few messages
        and the difference of the clocks. None before anything was final."""
        return round(median(self._lateness_ms)) if self._lateness_ms else None

    def reasons(self) -> list[Reason]:
        """Empty when the node is ready."""
        node, params = self._node, self._node.genesis.params
        newest = max(node.replica.attestation.certified_height(), self.target())
        member = node.replica.me is not None
        needed = node.replica.validators.quorum - 1 if member else 1
        found = {
            Reason.FAILED: node.failure is not None,
            Reason.SYNCING: node.executor.executed.lineage.height + params.execution_window < newest,
            Reason.ISOLATED: self.linked() < needed,
            Reason.CLOCK_BEHIND: self.time_ahead_ms() > params.drift_ms,
            Reason.DISK_FULL: node.disk_full,
            Reason.DATA_DOWN: node.data.opened is None,
            Reason.DRAINING: node.admission.draining,
        }
        return [reason for reason, holds in found.items() if holds]
