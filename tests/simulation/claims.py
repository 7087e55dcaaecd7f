"""What must hold of a cluster at the end of any run, asked of the stores of its nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from chain.block import block_digest
from chain.codec import decode
from fl.members import RegisterMember
from fl.records import Receipt
from node.admission import Status
from node.node import Node
from tests.fl.builders import signing_key
from tests.simulation.cluster import Cluster, Host


@dataclass
class Promises:
    """Every acknowledgement, noted in the very moment in which a node gives it."""

    cluster: Cluster
    given: dict[bytes, int] = field(default_factory=dict)
    """By transaction: the host that acknowledged it first."""
    on_promise: Callable[[Host, bytes], None] | None = None

    def __post_init__(self) -> None:
        for host in self.cluster.hosts:
            host.started = self._watched(host, host.started)

    def _watched(self, host: Host, before: Callable[[Node], None]) -> Callable[[Node], None]:
        def started(node: Node) -> None:
            before(node)
            self._watch(host, node)

        return started

    def _watch(self, host: Host, node: Node) -> None:
        inner = node.admission.available

        def available(ids: tuple[bytes, ...], batch: bytes) -> None:
            inner(ids, batch)
            for identity in ids:
                if identity not in self.given:
                    self.given[identity] = host.index
                    if self.on_promise is not None:
                        self.on_promise(host, identity)

        node.admission.available = available  # type: ignore[method-assign]

    def kept(self, nodes: list[Node] | None = None) -> bool:
        nodes = self.cluster.running() if nodes is None else nodes
        return all(node.store.receipt_index(identity) is not None for node in nodes for identity in self.given)


def assert_one_history(cluster: Cluster) -> None:
    """One block at each height, one root after it, on every node that is up; no transaction executed twice."""
    digests: dict[int, bytes] = {}
    roots: dict[int, bytes] = {}
    for node in cluster.running():
        executed = node.executor.executed
        for block in node.store.blocks(1, executed.lineage.height):
            digest = block_digest(block.header)
            assert digests.setdefault(block.header.height, digest) == digest, f"fork at {block.header.height}"
        tree = node.executor.tree
        for height in range(tree.oldest_height, tree.height + 1):
            root = tree.root_at(height)
            assert roots.setdefault(height, root) == root, f"states differ at {height}"
        receipts = [node.store.receipt(index) for index in range(executed.receipts)]
        ids = [decode(Receipt, data, 4096).tx_id for data in receipts if data is not None]
        assert len(ids) == executed.receipts == len(set(ids)), "a transaction was executed twice"


def level(cluster: Cluster) -> bool:
    """Every node that is up has executed what any has seen final."""
    return len(set(cluster.heights() + cluster.executed())) == 1


def membership(number: int) -> RegisterMember:
    """A small transaction of the registrar's; each number another one."""
    return RegisterMember(f"member-{number}", signing_key(f"member/{number}").public, ("trainer",))


async def assert_alive(cluster: Cluster, number: int, within: float = 15) -> None:
    """Each node that is up takes a transaction to its execution, and all come to the same state."""
    for place, host in enumerate(host for host in cluster.hosts if host.up):
        data = cluster.sign("registrar", membership(number + place))
        answers = await cluster.submit(host.index, data, wait=Status.EXECUTED, within=within)
        assert answers and answers[0].id is not None, f"n{host.index} does not take transactions"
        standing = cluster.node(host.index).admission.standing(answers[0].id)
        assert standing.receipt is not None and standing.receipt.status == "ok", f"n{host.index}: {standing}"
    assert await cluster.until(lambda: level(cluster), within=10), (cluster.heights(), cluster.executed())
    assert_one_history(cluster)
