"""Availability cores with their disks and a wire between them, moved by hand or by a clock.

What a core puts out stays in its queue until `flush`: records become durable, then messages and acknowledgements
leave. A crash forgets the queue. The application's verdicts and the chain of final blocks are the test's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from chain.availability import AVAILABILITY_KINDS, AvailabilityCertificate, verify_availability
from chain.batch import Batch, SignedBatch, sign_batch
from chain.certificate import Available, ValidatorSet, Vote
from chain.codec import encode
from chain.genesis import Params
from chain.transaction import Transaction, account_id, sign_transaction, tx_id
from consensus.availability import (
    Acknowledged,
    Advanced,
    Availability,
    BatchHere,
    BatchStored,
    CertificateHeld,
    CheckBatch,
    Checked,
    NewEpoch,
    Ordered,
    Referable,
    Replay,
    ServeBatch,
    Submit,
    Verdict,
)
from consensus.availability.inputs import Input
from consensus.effects import ALL, Misbehaviour, Now, Output, PeerUp, Received, Send, Tick
from consensus.messages import MESSAGES, BatchAnswer, Status, from_frame, to_frame
from tests.chain.build import CHAIN, consensus_key, key, validator_set

WALL_MS = 1_800_000_000_000
DAY_MS = 86_400_000

Lost = Callable[[int, int, object], bool]


def transaction(nonce: int, size: int = 10, valid_until_ms: int = WALL_MS + DAY_MS) -> Transaction:
    client = key("client")
    body = bytes(size)
    return sign_transaction(client, CHAIN, account_id(client.public), nonce, valid_until_ms, 1, body)


def entry(tx: Transaction) -> tuple[bytes, bytes, int]:
    return tx_id(tx), encode(tx), tx.valid_until_ms


def submit(*nonces: int, size: int = 10, valid_until_ms: int = WALL_MS + DAY_MS) -> Submit:
    return Submit(tuple(entry(transaction(nonce, size, valid_until_ms)) for nonce in nonces))


def ids(*nonces: int) -> tuple[bytes, ...]:
    return tuple(tx_id(transaction(nonce)) for nonce in nonces)


def signed_batch(
    creator: int,
    sequence: int = 0,
    created: int = 0,
    nonces: Iterable[int] = (0,),
    epoch: int = 0,
    horizon: int = Params().horizon,
    size: int = 10,
) -> SignedBatch:
    transactions = tuple(encode(transaction(nonce, size)) for nonce in nonces)
    batch = Batch(CHAIN, epoch, creator, sequence, created, created + horizon, transactions)
    return sign_batch(consensus_key(creator), batch)


def status(*digests: bytes, epoch: int = 0) -> Status:
    return Status(epoch, 0, 0, 0, 0, (), digests)


@dataclass
class Machine:
    core: Availability | None
    disk: list[object] = field(default_factory=list)
    queue: deque[Output] = field(default_factory=deque)
    checks: list[CheckBatch] = field(default_factory=list)
    acks: list[Acknowledged] = field(default_factory=list)
    events: list[object] = field(default_factory=list)


class World:
    def __init__(self, n: int = 4, params: Params | None = None) -> None:
        self.params = params or Params()
        self.validators: ValidatorSet = validator_set(n)
        self.previous: ValidatorSet | None = None
        self.now_ms = 1_000
        self.blocks: list[tuple[bytes, ...]] = [()]
        self.wire: deque[tuple[int, int, bytes]] = deque()
        self.lost: Lost = lambda source, target, message: False
        self.verdict: Callable[[int, bytes], Verdict | None] = lambda node, batch: Verdict.OK
        """Of whoever looks; None while the application cannot say yet: the blob is still on its way."""
        self.sent: list[tuple[int, int, object]] = []
        self.machines = [Machine(self._core(node)) for node in range(n)]

    def _core(self, node: int) -> Availability:
        return Availability(CHAIN, self.validators, self.seat(node), consensus_key(node), self.params, self.previous)

    def seat(self, node: int) -> int | None:
        """Which validator of this epoch the machine is; at first, machine and index are the same."""
        return self.validators.index_of(consensus_key(node).public)

    def node_at(self, seat: int) -> int:
        return next(node for node in range(self.n) if self.seat(node) == seat)

    @property
    def n(self) -> int:
        return len(self.machines)

    @property
    def alive(self) -> list[int]:
        return [node for node, machine in enumerate(self.machines) if machine.core is not None]

    def core(self, node: int) -> Availability:
        core = self.machines[node].core
        assert core is not None
        return core

    @property
    def now(self) -> Now:
        return Now(self.now_ms, WALL_MS + self.now_ms)

    # One thing at a time

    def step(self, node: int, event: Input) -> Output:
        machine = self.machines[node]
        out = self.core(node).step(self.now, event)
        machine.queue.append(out)
        machine.events += out.events
        for happening in out.events:
            if isinstance(happening, CheckBatch):
                machine.checks.append(happening)
            elif isinstance(happening, ServeBatch):
                self._serve(node, happening)
        return out

    def _serve(self, node: int, request: ServeBatch) -> None:
        for record in self.machines[node].disk:
            if isinstance(record, BatchStored) and record.signed.reference.batch == request.digest:
                self._post(node, self.node_at(request.peer), BatchAnswer(record.signed))
                return

    def is_asked(self, node: int) -> bool:
        return any(self._verdict(node, check) is not None for check in self.machines[node].checks)

    def _verdict(self, node: int, check: CheckBatch) -> Verdict | None:
        """Reading alone finds nothing wrong."""
        return self.verdict(node, check.digest) if check.look else Verdict.OK

    def flush(self, node: int) -> None:
        machine = self.machines[node]
        while machine.queue:
            out = machine.queue.popleft()
            machine.disk += out.persist
            for send in out.send:
                targets = range(self.validators.n) if send.to == ALL else (send.to,)
                for target in map(self.node_at, targets):
                    if target != node:
                        self._post(node, target, send.message)
            machine.acks += [ack for ack in out.acks if isinstance(ack, Acknowledged)]

    def _post(self, source: int, target: int, message: object) -> None:
        self.sent.append((source, target, message))
        if not self.lost(source, target, message):
            self.wire.append((source, target, to_frame(message)))

    def deliver(self, position: int = 0, keep: bool = False) -> None:
        source, target, frame = self.wire[position]
        if not keep:
            del self.wire[position]
        seat = self.seat(source)
        if self.machines[target].core is not None and seat is not None:
            channel = MESSAGES[frame[0]][2]
            self.step(target, Received(seat, from_frame(channel, frame)))

    def answer_checks(self, node: int) -> None:
        checks, self.machines[node].checks = self.machines[node].checks, []
        for check in checks:
            verdict = self._verdict(node, check)
            if verdict is None:
                self.machines[node].checks.append(check)
            else:
                self.step(node, Checked(check.digest, verdict))

    def settle(self) -> None:
        """Until nothing moves but time."""
        while True:
            for node in self.alive:
                self.answer_checks(node)
                self.flush(node)
            if not self.wire and not any(self.is_asked(node) for node in self.alive):
                return
            while self.wire:
                self.deliver()

    def run(self, duration_ms: int) -> None:
        """Lets time pass: deadlines, and a status frame of each to each in every second."""
        end_ms = self.now_ms + duration_ms
        self.settle()
        while self.now_ms < end_ms:
            deadlines = [self.core(node).deadline() for node in self.alive]
            second = (self.now_ms // 1_000 + 1) * 1_000
            self.now_ms = min([end_ms, second, *(max(time, self.now_ms + 1) for time in deadlines if time is not None)])
            for node in self.alive:
                time = self.core(node).deadline()
                if time is not None and self.now_ms >= time:
                    self.step(node, Tick())
            if self.now_ms % 1_000 == 0:
                self.exchange_status()
            self.settle()

    def exchange_status(self) -> None:
        for node in self.alive:
            listed = self.core(node).uncertified()
            for peer in range(self.n):
                if peer != node:
                    self._post(node, peer, status(*listed, epoch=self.validators.epoch))

    # The chain

    @property
    def height(self) -> int:
        return len(self.blocks) - 1

    def grow(self, *digests: bytes) -> None:
        """One more final block."""
        self.blocks.append(digests)
        for node in self.alive:
            self.step(node, Ordered(self.height, digests))
            self.step(node, Advanced(self.height, self.height))

    def order_from(self, leader: int) -> tuple[bytes, ...]:
        """A final block of what this leader would name; certificates travel beside it."""
        # Its proposal leaves after all that it put out before is durable.
        self.flush(leader)
        core = self.core(leader)
        named = tuple(ref.batch for ref in core.candidates(lambda digest: False, self.height + 1))
        for node in self.alive:
            if node != leader:
                for certificate in core.certificates_for(named):
                    self.step(node, Received(leader, certificate))
                assert all(self.core(node).reference(digest) is not None for digest in named)
        self.grow(*named)
        return named

    def advance(self, heights: int) -> None:
        """Empty blocks, of which only the last is told."""
        self.blocks += [()] * heights
        for node in self.alive:
            self.step(node, Advanced(self.height, self.height))

    # Deaths

    def crash(self, node: int) -> None:
        machine = self.machines[node]
        machine.core = None
        machine.queue.clear()
        machine.checks = []
        self.wire = deque((source, target, frame) for source, target, frame in self.wire if target != node)

    def restart(self, node: int) -> None:
        machine = self.machines[node]
        machine.core = self._core(node)
        self.step(node, Replay(tuple(machine.disk)))
        for height, digests in enumerate(self.blocks):
            if digests and height + self.params.horizon > self.height:
                self.step(node, Ordered(height, digests))
        self.step(node, Advanced(self.height, self.height))
        for peer in self.alive:
            if peer != node:
                self.step(node, PeerUp(peer))
                self.step(peer, PeerUp(node))

    def turn_epoch(self, members: ValidatorSet) -> None:
        self.previous, self.validators = self.validators, members
        for node in self.alive:
            signing = consensus_key(node)
            self.step(node, NewEpoch(members, members.index_of(signing.public), signing))

    # What happened

    def faults(self, node: int) -> list[Misbehaviour]:
        return [event for event in self.machines[node].events if isinstance(event, Misbehaviour)]

    def all_faults(self) -> list[Misbehaviour]:
        return [fault for node in range(self.n) for fault in self.faults(node)]

    def here(self, node: int) -> list[bytes]:
        return [event.digest for event in self.machines[node].events if isinstance(event, BatchHere)]

    def referable(self, node: int) -> list[Available]:
        return [event.reference for event in self.machines[node].events if isinstance(event, Referable)]

    def stored(self, node: int) -> list[BatchStored]:
        return [record for record in self.machines[node].disk if isinstance(record, BatchStored)]

    def certificates(self, node: int) -> list[AvailabilityCertificate]:
        records = self.machines[node].disk
        return [record.certificate for record in records if isinstance(record, CertificateHeld)]

    def acknowledged(self, node: int) -> set[bytes]:
        return {id for ack in self.machines[node].acks for id in ack.ids}

    def sent_by(self, node: int, kind: type) -> list[tuple[int, object]]:
        return [(to, msg) for source, to, msg in self.sent if source == node and isinstance(msg, kind)]

    def verifies(self, certificate: AvailabilityCertificate) -> bool:
        return verify_availability(CHAIN, self.validators, certificate)


def sends(out: Output, kind: type) -> list[Send]:
    return [send for send in out.send if isinstance(send.message, kind)]


def events(out: Output, kind: type) -> list[object]:
    return [event for event in out.events if isinstance(event, kind)]


def is_available_vote(message: object) -> bool:
    return isinstance(message, Vote) and message.kind in AVAILABILITY_KINDS
