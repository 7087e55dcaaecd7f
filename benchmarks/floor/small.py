"""Small updates: signed transactions with their payloads, as the product's clients sign and encode them."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgpack
import numpy as np
from nacl.bindings import crypto_sign_open
from numpy.typing import NDArray

from benchmarks.floor import wire
from benchmarks.floor.rows import sum_f32_rows, sum_q8_rows
from benchmarks.floor.steps import Steps, Threads
from benchmarks.floor.workload import CHAIN, SIGNERS, Pages, Workload, key_of, place_of, signed, weight
from chain.cid import RAW_PREFIX, raw_cid
from chain.hashing import Domain, signing_bytes
from chain.keys import check_public_key
from chain.transaction import account_id
from fl.jobrules import grid_of
from fl.records import Kind
from fl.rounds import SubmitUpdate
from fl.tensors.encodings import encode_update
from fl.tensors.floats import check_range
from fl.tensors.layout import BLOCK
from fl.tensors.q8 import check_scales

FRAME_BYTES = 256 * 1024
_SIGNATURE_BYTES = 66
"""With its msgpack header."""
_SEVEN = b"\x97"
"""Head of an array of seven: the transaction without its signature."""


def transactions(asked: Workload) -> Iterator[bytes]:
    """What the client sends; the same bytes in every pass."""
    values = np.random.default_rng(1).normal(0, 0.01, asked.parameters).astype(np.float32)
    form, rules = asked.form, asked.rules
    payloads = [encode_update(form, place_of(member), {"w": values}) for member in range(min(SIGNERS, asked.updates))]
    for number in range(asked.updates):
        nonce, member = divmod(number, SIGNERS)
        payload = payloads[member]
        place = place_of(member)
        body = SubmitUpdate(place.job, place.round, rules.initial, weight(number), (), 0, raw_cid(payload), payload)
        yield signed(member, nonce, Kind.SUBMIT_UPDATE, body)


class Client:
    def __init__(self, asked: Workload, connections: Sequence[socket.socket]) -> None:
        self._connections = connections
        self._shares: list[list[bytes]] = [[] for _ in connections]
        frames: list[list[bytes]] = [[] for _ in connections]
        for number, each in enumerate(transactions(asked)):
            target = number % len(connections)
            frames[target].append(each)
            if len(each) * len(frames[target]) >= FRAME_BYTES:
                self._shares[target].append(msgpack.packb(frames[target]))
                frames[target] = []
        for target, rest in enumerate(frames):
            if rest:
                self._shares[target].append(msgpack.packb(rest))

    def send(self, target: int, steps: Steps) -> None:
        with steps.step("upload"):
            for frame in self._shares[target]:
                wire.send_frame(self._connections[target], frame)


@dataclass(slots=True)
class _Taken:
    """Of one frame."""

    keys: list[bytes]
    messages: list[bytes]
    signatures: list[bytes]
    payloads: list[bytes]
    weights: list[int]


class Validator:
    def __init__(self, asked: Workload, directory: Path, peers: wire.Peers) -> None:
        self.steps = Steps()
        self.sums: NDArray[np.int64] = np.zeros(asked.parameters, np.int64)
        self._asked = asked
        self._directory = directory
        self._threads = Threads()
        self._form = asked.form
        self._grid = grid_of(asked.rules)
        self._keys: dict[bytes, tuple[bytes, bytes, bytes]] = {}
        for member in range(min(SIGNERS, asked.updates)):
            public = key_of(member).public
            check_public_key(public)
            self._keys[public] = public[1:], account_id(public), self._form.header(place_of(member))
        self._prefix = signing_bytes(Domain.TX, CHAIN, 0, b"")
        self._log = -1
        self._at = 0
        self._written = 0
        self._summed = 0
        self._to_write: queue.SimpleQueue[tuple[bytearray, int]] = queue.SimpleQueue()
        self._to_check: queue.SimpleQueue[tuple[bytearray, list[bytes]]] = queue.SimpleQueue()
        self._to_send: list[queue.SimpleQueue[bytearray]] = []
        for target in peers.targets.values():
            frames: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
            self._to_send.append(frames)
            self._threads.start(self._relay, target, frames)
        self._threads.start(self._write)
        # More of them than cores would only wait for one another.
        for _ in range(max(1, (os.cpu_count() or 1) // asked.validators)):
            self._threads.start(self._check)
        for source in peers.sources.values():
            self._threads.start(self._receive, source, "relays in", ())
        self._threads.start(self._receive, peers.client, "receive", self._to_send)

    def prepare(self, number: int) -> None:
        """For the next pass."""
        fresh = self._asked.pages is Pages.FRESH
        if fresh or self._log < 0:
            if self._log >= 0:
                os.close(self._log)
            self._log = os.open(self._directory / f"log-{number if fresh else 0}", os.O_RDWR | os.O_CREAT)
        self._at = self._written = self._summed = 0
        self.sums[:] = 0
        self.steps.taken()

    def wait(self) -> None:
        total = self._asked.updates
        self._threads.wait_for(lambda: self._written == total and self._summed == total)

    def result(self) -> bytes:
        return sha256(self.sums.data).digest()

    # Threads

    def _receive(self, source: socket.socket, step: str, targets: Sequence[queue.SimpleQueue[bytearray]]) -> None:
        while True:
            with self.steps.step(step):
                frame = wire.receive_frame(source)
            for each in targets:
                each.put(frame)
            batch: list[bytes] = msgpack.unpackb(frame)
            self._to_write.put((frame, len(batch)))
            self._to_check.put((frame, batch))

    def _relay(self, target: socket.socket, frames: queue.SimpleQueue[bytearray]) -> None:
        while True:
            frame = frames.get()
            with self.steps.step("relays out"):
                wire.send_frame(target, frame)

    def _write(self) -> None:
        while True:
            waiting = [self._to_write.get()]
            while not self._to_write.empty():
                waiting.append(self._to_write.get())
            with self.steps.step("write"):
                for frame, _ in waiting:
                    self._at += os.pwrite(self._log, frame, self._at)
                os.fdatasync(self._log)
            self._written += sum(count for _, count in waiting)
            self._threads.tell()

    def _check(self) -> None:
        own = np.zeros_like(self.sums)
        while True:
            _, batch = self._to_check.get()
            with self.steps.step("decode and hash"):
                taken = self._taken(batch)
            with self.steps.step("signatures"):
                for key, message, signature in zip(taken.keys, taken.messages, taken.signatures, strict=True):
                    crypto_sign_open(signature + message, key)
            with self.steps.step("look at values and sum"):
                own[:] = 0
                self._add(own, taken)
            with self._threads.guard:
                self.sums += own
                self._summed += len(batch)
            self._threads.tell()

    def _taken(self, batch: list[bytes]) -> _Taken:
        taken = _Taken([], [], [], [], [])
        unpack, pack, keys = msgpack.unpackb, msgpack.packb, self._keys
        before = Domain.TX.prefix + _SEVEN
        for data in batch:
            fields = unpack(data)
            chain, sender, public, _, _, kind, encoded, signature = fields
            body = unpack(encoded)
            _, _, _, examples, _, _, cid, payload = body
            key, account, header = keys[public]
            if (
                pack(fields) != data
                or pack(body) != encoded
                or chain != CHAIN
                or kind != Kind.SUBMIT_UPDATE
                or sender != account
                or cid != RAW_PREFIX + sha256(payload).digest()
                or not payload.startswith(header)
            ):
                raise ValueError("a transaction is not what it should be")
            taken.keys.append(key)
            taken.messages.append(self._prefix + sha256(before + data[1:-_SIGNATURE_BYTES]).digest())
            taken.signatures.append(signature)
            taken.payloads.append(payload)
            taken.weights.append(examples)
        return taken

    def _add(self, sums: NDArray[np.int64], taken: _Taken) -> None:
        width, range_bits = self._asked.payload_bytes, self._asked.rules.range_bits
        rows = np.frombuffer(b"".join(taken.payloads), np.uint8).reshape(-1, width)
        start = width - self._form.data_bytes
        factors = np.array(taken.weights, np.float64) * self._grid.factor(1)
        if self._asked.encoding == "q8":
            count = -(-self._asked.parameters // BLOCK)
            scales = np.ascontiguousarray(rows[:, start : start + 4 * count]).view(np.float32)
            check_scales(scales.ravel(), range_bits)
            sum_q8_rows(sums, rows.ravel().view(np.int8), scales, factors, width, start + 4 * count, BLOCK)
        else:
            values = np.ascontiguousarray(rows[:, start:]).view(np.float32)
            check_range(values.ravel(), range_bits)
            sum_f32_rows(sums, values, factors)
