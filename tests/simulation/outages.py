"""Machines that lose their power by plan, and come back by themselves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from node.node import Node
from tests.simulation.cluster import Cluster
from tests.simulation.loop import Crash, drawn_from

RESTART_SECONDS = 0.3


@dataclass(frozen=True)
class Plan:
    """Machine `machine` crashes at its operation `first`, and then so many operations after each restart. With `data`,
    operations are those of its data process; the power takes both."""

    machine: int = 0
    first: int = 0
    then: tuple[int, ...] = ()
    survival: int = 0
    data: bool = False


@dataclass
class Ran:
    operations: int = 0
    crashes: int = 0
    opened: int = 0
    """Operations from the first restart until the node was open again."""


def crash_by(plan: Plan, cluster: Cluster, ran: Ran) -> None:
    host = cluster.hosts[plan.machine]
    machine = host.data if plan.data else host.machine
    due = [plan.first, *plan.then] if plan.first else []
    base = 0
    restarts: list[asyncio.Future[None]] = []
    before = host.started

    def on_operation(number: int, kind: str) -> None:
        if due and number - base >= due[0]:
            due.pop(0)
            machine.chance = drawn_from(plan.survival, "survival", number)
            ran.crashes += 1
            raise Crash

    def on_crash() -> None:
        asyncio.get_running_loop().call_later(RESTART_SECONDS, restart)

    def restart() -> None:
        nonlocal base
        base = machine.operations
        restarts.append(asyncio.ensure_future(host.live(cluster.genesis)))

    def started(node: Node) -> None:
        before(node)
        ran.opened = ran.opened or (machine.operations - base if base else 0)

    machine.on_operation = on_operation
    host.machine.on_crash = on_crash
    host.started = started
