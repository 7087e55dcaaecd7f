"""Large updates: blobs in leaves of 1 MiB, each with its hash beside it."""

from __future__ import annotations

import mmap
import os
import queue
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from struct import Struct

import numpy as np

from benchmarks.floor import wire
from benchmarks.floor.steps import Steps, Threads
from benchmarks.floor.workload import JOB, MIB, Pages, Workload, place_of, weight
from chain.unixfs import leaf_range
from fl.aggregation import Aggregation, AggregationRules, Update
from fl.kernels import FUSED
from fl.tensors.encodings import check_joints, check_part, encode_update
from fl.tensors.model import model_form

LEAF = Struct("!III32s")
"""Update, leaf, size, hash."""
_BUFFERS = 6
"""Leaves on their way from the client to the peers."""


class Client:
    def __init__(self, asked: Workload, connections: Sequence[socket.socket]) -> None:
        self._connections = connections
        self._asked = asked
        values = np.random.default_rng(1).normal(0, 0.01, asked.parameters).astype(np.float32)
        form = asked.form
        self._payload = encode_update(form, place_of(0), {"w": values})
        self._headers = [form.header(place_of(member)) for member in range(asked.updates)]

    def send(self, target: int, steps: Steps) -> None:
        connection = self._connections[target]
        view, size = memoryview(self._payload), len(self._payload)
        for update in range(target, self._asked.updates, len(self._connections)):
            for leaf in range(-(-size // MIB)):
                start, stop = leaf_range(size, leaf)
                # All members send the same values, each behind a header of its own.
                header = self._headers[update] if leaf == 0 else b""
                data = memoryview(header + view[len(header) : stop]) if header else view[start:stop]
                with steps.step("hash of the client"):
                    name = sha256(data).digest()
                with steps.step("upload"):
                    connection.sendall(LEAF.pack(update, leaf, stop - start, name))
                    wire.send(connection, data)


@dataclass(slots=True, eq=False)
class _Leaf:
    head: bytes
    view: memoryview
    buffer: bytearray
    holders: int


@dataclass(slots=True)
class _Blob:
    descriptor: int
    missing: int
    map: mmap.mmap | None = field(default=None)


class Validator:
    def __init__(self, asked: Workload, directory: Path, peers: wire.Peers) -> None:
        self.steps = Steps()
        self._asked = asked
        self._rules = asked.rules
        self._form = asked.form
        self._size = asked.payload_bytes
        self._directory = directory
        self._threads = Threads()
        self._pass = 0
        self._done = False
        self._model = b""
        """The hash of the new one."""
        self._blobs: dict[int, _Blob] = {}
        self._whole: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(bytearray(MIB))
        self._to_send: list[queue.SimpleQueue[_Leaf]] = []
        for target in peers.targets.values():
            leaves: queue.SimpleQueue[_Leaf] = queue.SimpleQueue()
            self._to_send.append(leaves)
            self._threads.start(self._relay, target, leaves)
        base = directory / "base"
        with open(base, "wb") as file:
            form = model_form(self._rules.schema)
            file.write(form.header)
            file.write(bytes(form.size_bytes - len(form.header)))
        with open(base, "rb") as file:
            self._base = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for source in peers.sources.values():
            self._threads.start(self._pull, source)
        self._threads.start(self._take, peers.client)
        self._threads.start(self._sum)

    def prepare(self, number: int) -> None:
        for blob in self._blobs.values():
            if blob.map is not None:
                blob.map.close()
        self._pass = number if self._asked.pages is Pages.FRESH else 0
        self._done = False
        leaves = -(-self._size // MIB)
        self._blobs = {update: _Blob(self._open(str(update)), leaves) for update in range(self._asked.updates)}
        self.steps.taken()

    def wait(self) -> None:
        self._threads.wait_for(lambda: self._done)

    def result(self) -> bytes:
        return self._model

    def _open(self, name: str) -> int:
        return os.open(self._directory / f"{self._pass}-{name}", os.O_RDWR | os.O_CREAT)

    # Threads

    def _take(self, client: socket.socket) -> None:
        """From the client, to all others."""
        while True:
            buffer = self._free.get()
            with self.steps.step("receive"):
                head, view = _received(client, buffer)
            leaf = _Leaf(head, view, buffer, 1 + len(self._to_send))
            for each in self._to_send:
                each.put(leaf)
            self._put(head, view)
            self._release(leaf)

    def _relay(self, target: socket.socket, leaves: queue.SimpleQueue[_Leaf]) -> None:
        while True:
            leaf = leaves.get()
            with self.steps.step("relays out"):
                target.sendall(leaf.head)
                wire.send(target, leaf.view)
            self._release(leaf)

    def _release(self, leaf: _Leaf) -> None:
        with self._threads.guard:
            leaf.holders -= 1
            free = not leaf.holders
        if free:
            self._free.put(leaf.buffer)

    def _pull(self, source: socket.socket) -> None:
        buffer = bytearray(MIB)
        while True:
            with self.steps.step("relays in"):
                head, view = _received(source, buffer)
            self._put(head, view)

    def _put(self, head: bytes, view: memoryview) -> None:
        update, leaf, _, name = LEAF.unpack(head)
        place, blob, start = place_of(update), self._blobs[update], leaf * MIB
        with self.steps.step("hash"):
            if sha256(view).digest() != name:
                raise ValueError("a leaf is not what it should be")
        with self.steps.step("look at values"):
            check_part(self._form, place, start, view)
        with self.steps.step("write"):
            os.pwrite(blob.descriptor, view, start)
        with self._threads.guard:
            blob.missing -= 1
            whole = not blob.missing
        if whole:
            with self.steps.step("write"):
                os.fdatasync(blob.descriptor)
            with self.steps.step("look at values"):
                blob.map = mmap.mmap(blob.descriptor, 0, access=mmap.ACCESS_READ)
                os.close(blob.descriptor)
                check_joints(self._form, place, memoryview(blob.map), MIB)
            self._whole.put(update)

    def _sum(self) -> None:
        while True:
            self._round()
            self._done = True
            self._threads.tell()

    def _round(self) -> None:
        aggregation = Aggregation(AggregationRules(JOB, 1, self._rules, 1))
        left = self._asked.updates
        while left:
            group = [self._whole.get() for _ in range(min(FUSED, left))]
            left -= len(group)
            with self.steps.step("sum"):
                aggregation.add(*(self._update(index) for index in group))
        with self.steps.step("model"):
            closing = aggregation.finish(bytes(32), memoryview(self._base))
            running, place = sha256(), 0
            descriptor = self._open("model")
            for chunk in closing.model():
                running.update(chunk)
                place += os.pwrite(descriptor, chunk, place)
            os.fdatasync(descriptor)
            os.close(descriptor)
            self._model = running.digest()

    def _update(self, index: int) -> Update:
        payload = self._blobs[index].map
        assert payload is not None
        place = place_of(index)
        return Update(index, place.round, place.member, weight(index), 0, memoryview(payload), bytes(32))


def _received(source: socket.socket, buffer: bytearray) -> tuple[bytes, memoryview]:
    head = bytes(wire.received(source, LEAF.size))
    view = memoryview(buffer)[: LEAF.unpack(head)[2]]
    wire.fill(source, view)
    return head, view
