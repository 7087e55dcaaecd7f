"""Data processes on simulated machines, each with the core's end of its pipe in the hands of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from chain.unixfs import leaf_range, manifest_cid, manifest_of
from fl.blobs import BlobKind, Demand, update_demand
from fl.records import Entry, JobRules
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.updates import form_of
from node.data.blobs import Blob, BlobLimits
from node.data.bundles import told
from node.data.messages import DataPeer, Opened
from node.data.service import DataLimits
from node.dataplane import DataPlane
from tests.fl.builders import make_rules, signing_key
from tests.simulation.bulk import BulkNetwork
from tests.simulation.datamachine import DataMachine
from tests.simulation.loop import simulate
from tests.simulation.ports import Traits

_T = TypeVar("_T")

JOB = b"j" * 32
ALICE, BOB = b"a" * 32, b"b" * 32
PARAMETERS = 600_000
SCHEMA = Schema((TensorSpec("w", "F32", (PARAMETERS,), AVERAGED),))
"""Its updates are blobs of three leaves."""


def rules(**changes: Any) -> JobRules:
    return make_rules(**{"schema": SCHEMA, "maximum": 64, **changes})


def update(member: bytes, value: float, of: JobRules, *, round: int = 1, job: bytes = JOB) -> bytes:
    delta = {spec.name: np.full(spec.shape, value, np.float32) for spec in of.schema.tensors}
    return encode_update(form_of(of, 0), Place(job, round, member), delta)


def cid_of(data: bytes) -> bytes:
    return manifest_cid(manifest_of(data))


def demand(data: bytes, member: bytes, of: JobRules, *, round: int = 1) -> Demand:
    """What a transaction says that names this update."""
    return update_demand(cid_of(data), of, Place(JOB, round, member), 0)


@dataclass(frozen=True, slots=True)
class Accepted:
    """An update as the core would tell it: inline, unless its payload is empty."""

    index: int
    round: int
    member: bytes
    group: int
    cid: bytes
    payload: bytes

    @property
    def entry(self) -> Entry:
        return Entry(bytes(32), self.member, self.round, 1, self.group, self.cid, bytes(32), 0)


class House:
    """A data process and a core that does nothing but ask it."""

    def __init__(self, name: str, machine: DataMachine) -> None:
        self.machine = machine
        self.key = machine.endpoint.key
        self.asked: list[tuple[bytes, bytes]] = []
        self.plane = DataPlane(machine.core_began(), who=self._who)
        self.name = name
        self.task = asyncio.create_task(self.plane.run(), name=f"{name} core")

    def _who(self, account: bytes, key: bytes) -> tuple[bool, tuple[str, ...]]:
        self.asked.append((account, key))
        return True, ("trainer",)

    async def add(
        self, updates: Sequence[Accepted], of: JobRules, *, job: bytes = JOB, round: int = 1, step: int = 1
    ) -> None:
        """In one message, of a round that begins with them if it has not yet."""
        self.plane.begin(job, round, of, step)
        told_of = told(
            [each.index for each in updates],
            [each.entry.fields for each in updates],
            [each.payload for each in updates],
        )
        await self.plane.add(job, round, told_of)

    async def put(self, data: bytes, kind: BlobKind = BlobKind.UPDATE, account: bytes = ALICE) -> bytes:
        """As a client does."""
        return await self.machine.put(data, kind, account)

    async def put_some(self, data: bytes, leaves: int, account: bytes = ALICE) -> None:
        """A client that breaks off."""
        assert self.machine.node is not None
        manifest = manifest_of(data)
        staging = self.machine.node.store.stage(manifest_cid(manifest), manifest, BlobKind.UPDATE, account)
        for index in range(leaves):
            start, stop = leaf_range(len(data), index)
            assert staging.put(index, data[start:stop])

    def announce(self, data: bytes, kind: BlobKind, account: bytes, size_bytes: int | None = None) -> None:
        """A client that sends a manifest and no leaf."""
        assert self.machine.node is not None
        manifest = replace(manifest_of(data), size_bytes=len(data) if size_bytes is None else size_bytes)
        self.machine.node.store.stage(manifest_cid(manifest), manifest, kind, account)

    def found(self, data: bytes) -> Blob:
        assert self.machine.node is not None
        blob = self.machine.node.store.find(cid_of(data))
        assert blob is not None
        return blob

    def holds(self, data: bytes) -> bool:
        return self.machine.read(cid_of(data)) == data

    def figure(self, name: str) -> int:
        assert self.machine.node is not None
        return self.machine.node.figures()[name]


class Street:
    def __init__(self, houses: int, limits: DataLimits, capacity_bytes: int | None) -> None:
        self.network = BulkNetwork(7)
        self.houses = [self._house(f"v{number}", limits, capacity_bytes) for number in range(houses)]

    def _house(self, name: str, limits: DataLimits, capacity_bytes: int | None) -> House:
        endpoint = self.network.join(name, signing_key(name).public)
        machine = DataMachine(name, 7, Traits(capacity_bytes=capacity_bytes), self.network, endpoint)
        machine.limits = limits
        return House(name, machine)

    async def open(self) -> None:
        for house in self.houses:
            await house.plane.up()
        self.meet()

    def meet(self) -> None:
        peers = [
            DataPeer(each.key, signing_key(each.name).public, each.name, _port(each.plane.opened))
            for each in self.houses
        ]
        for house in self.houses:
            house.plane.meet(peers)

    async def close(self) -> None:
        for house in self.houses:
            house.machine.core_gone()
            house.task.cancel()
        await asyncio.gather(*(house.task for house in self.houses), return_exceptions=True)


def _port(opened: Opened | None) -> int:
    return 0 if opened is None else opened.bulk_port


def on_a_street(
    houses: int,
    story: Callable[[Street], Coroutine[Any, Any, _T]],
    limits: DataLimits | None = None,
    capacity_bytes: int | None = None,
) -> _T:
    """Tells the story in virtual time."""

    async def tell() -> _T:
        street = Street(houses, limits or DataLimits(BlobLimits(reserve_bytes=0)), capacity_bytes)
        await street.open()
        try:
            return await story(street)
        finally:
            await street.close()

    return simulate(tell)


def with_bad_last_leaf(data: bytes) -> bytes:
    """The same, with a value at its end that is not finite."""
    return data[:-4] + np.array([np.inf], np.float32).tobytes()
