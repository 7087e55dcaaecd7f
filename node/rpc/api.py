"""What handlers work with: a node, what is known of it beside, and the limits of this server."""

from __future__ import annotations

from dataclasses import dataclass, field

from chain.certificate import Certificate, Executed, VoteKind, read_subject
from node.health import Health
from node.metrics import Metrics
from node.node import Node
from node.rpc.desk import Reception
from node.rpc.event_log import EventLog
from node.rpc.limits import Places, RpcLimits, Turnstile
from node.rpc.problems import Problem


@dataclass(slots=True)
class Api:
    node: Node
    health: Health
    metrics: Metrics
    limits: RpcLimits
    version: str
    tls: bool = False
    """Whether clients are spoken to under TLS, at either door."""
    door_url: str = ""
    """At which clients reach the data process's door, where it is not the address that it listens on."""
    openapi: bytes = b""
    events: EventLog = field(init=False)
    subscribers: Places = field(init=False)
    ingests: Places = field(init=False)
    reception: Reception = field(init=False)

    def __post_init__(self) -> None:
        self.events = EventLog(self.node.store, lambda: self.node.executor.executed.events)
        self.reception = Reception(self.limits, self.metrics, self.node.ports.clock)
        self.subscribers = Places(self.limits.subscribers, self.limits.subscribers_by_client)
        self.ingests = Places(self.limits.ingests, self.limits.ingests_by_client)
        self.metrics.subscribers.set_function(lambda: self.subscribers.total)
        self.metrics.ingests.set_function(lambda: self.ingests.total)

    @property
    def executed_height(self) -> int:
        return self.node.executor.executed.lineage.height

    @property
    def turnstile(self) -> Turnstile:
        return self.reception.turnstile

    def now_s(self) -> float:
        return self.reception.now_s()

    def certified(self) -> tuple[Certificate, Executed]:
        """The newest execution certificate of a state that this node can still prove; raises NOT_PROVEN_YET."""
        node = self.node
        certificate = node.store.newest_certificate()
        if certificate is None:
            raise Problem("NOT_PROVEN_YET", "No execution certificate has been made or heard of yet.")
        executed = read_subject(VoteKind.EXECUTED, certificate.subject)
        assert isinstance(executed, Executed)
        tree = node.executor.tree
        if not tree.oldest_height <= executed.height <= tree.height:
            raise Problem(
                "NOT_PROVEN_YET",
                f"The newest certificate is of height {executed.height}, and this node has the states of "
                f"{tree.oldest_height} to {tree.height}.",
            )
        return certificate, executed
