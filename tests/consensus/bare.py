"""Ordering cores alone on a schedule of their own: constant delays, instant disks, nothing else."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from chain.block import EMPTY_BODY, Block, block_digest
from chain.certificate import Validator, ValidatorSet
from chain.genesis import Genesis, GenesisMember, Params
from chain.keys import SigningKey
from consensus.beacon import first_commitment
from consensus.effects import ALL, Now, Output, PeerUp, Received, Tick
from consensus.lineage import Lineage, genesis_lineage
from consensus.messages import Proposal
from consensus.ordering.core import Ordering
from consensus.ordering.events import Finalized, PayloadChanged
from consensus.ordering.payload import Draft, Taken, Verdict

START_MS = 1_800_000_000_000


def keys(n: int) -> list[SigningKey]:
    return [SigningKey.from_seed(bytes([index + 1]) * 32) for index in range(n)]


def validator(index: int, key: SigningKey) -> Validator:
    link = SigningKey.from_seed(bytes([index + 101]) * 32)
    operator = SigningKey.from_seed(bytes([index + 201]) * 32 if index < 55 else bytes(31) + bytes([index]))
    return Validator(
        name=f"v{index}",
        consensus_key=key.public,
        link_key=link.public,
        operator_key=operator.public,
        beacon_commit=first_commitment(key),
        address=f"10.0.0.{index + 1}:7000",
        rpc=f"http://10.0.0.{index + 1}:8000",
    )


def genesis_of(n: int, params: Params | None = None) -> Genesis:
    return Genesis(
        version=1,
        name="test",
        time_ms=START_MS,
        params=params or Params(),
        validators=tuple(validator(index, key) for index, key in enumerate(keys(n))),
        set_changes=(),
        registrars=(),
        admission="open",
        members=tuple[GenesisMember, ...](),
    )


class AlwaysPending:
    """A payload that is empty, valid and never satisfied, or whatever a test sets."""

    def __init__(self, interval_ms: int) -> None:
        self.pending = True
        self.busy_interval_ms: int | None = None
        self._interval_ms = interval_ms
        self.verdict = Verdict.VALID
        self.ends_at: int | None = None
        """The height of the block that names another validator set."""

    def draft(self, parent: Lineage, taken: Taken) -> Draft:
        return Draft(EMPTY_BODY, parent.executed_height, parent.executed_root)

    def judge(self, block: Block, parent: Lineage, taken: Taken) -> Verdict:
        return self.verdict

    def learn(self, proposal: Proposal) -> None:
        pass

    def waiting(self, tip: Lineage, taken: Taken) -> bool:
        return self.pending

    def interval_ms(self, now_ms: int) -> int:
        return self._interval_ms if self.busy_interval_ms is None else self.busy_interval_ms

    def block_due_in(self, root: Lineage, wall_ms: int) -> int | None:
        return None

    def next_set(self, parent: Lineage, executed_height: int) -> bytes:
        return b"\x01" * 32 if parent.height + 1 == self.ends_at else b""


@dataclass
class Journal:
    records: list[object] = field(default_factory=list)


class Bare:
    def __init__(self, n: int, params: Params, delay_ms: int = 10) -> None:
        self.genesis = genesis_of(n, params)
        self.keys = keys(n)
        self.validators = ValidatorSet(0, self.genesis.validators)
        self.delay_ms = delay_ms
        self.now_ms = 0
        self.crashed: set[int] = set()
        self.skew_ms = [0] * n
        self.drop: Callable[[int, int, object], bool] = lambda source, target, message: False
        self.heap: list[tuple[int, int, Callable[[], None]]] = []
        self.sequence = itertools.count()
        self.payloads = [AlwaysPending(params.min_block_interval_ms) for _ in range(n)]
        self.journals = [Journal() for _ in range(n)]
        self.final: list[list[tuple[int, Block]]] = [[] for _ in range(n)]
        self.events: list[list[object]] = [[] for _ in range(n)]
        self.cores = [self.build(index) for index in range(n)]
        self._armed: list[int | None] = [None] * n
        for index in range(n):
            self.at(0, partial(self.step, index, Tick()))

    def build(self, index: int) -> Ordering:
        root = genesis_lineage(self.genesis, self.validators)
        return Ordering(
            self.genesis.chain_id,
            self.validators,
            index,
            self.keys[index],
            self.genesis.params,
            root,
            self.payloads[index],
        )

    def now(self, index: int) -> Now:
        return Now(self.now_ms, START_MS + self.now_ms + self.skew_ms[index])

    def at(self, when_ms: int, action: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (when_ms, next(self.sequence), action))

    def step(self, index: int, event: object) -> None:
        if index not in self.crashed:
            self.release(index, self.cores[index].step(self.now(index), event))

    def release(self, index: int, out: Output) -> None:
        self.journals[index].records += out.persist
        self.events[index] += out.events
        for ack in out.acks:
            if isinstance(ack, Finalized):
                self.final[index] += [(self.now_ms, block) for block, _ in ack.blocks]
        for send in out.send:
            targets = range(len(self.cores)) if send.to == ALL else (send.to,)
            for target in targets:
                if target != index and not self.drop(index, target, send.message):
                    received = partial(self.step, target, Received(index, send.message))
                    self.at(self.now_ms + self.delay_ms, received)
        deadline = self.cores[index].deadline()
        if deadline is not None and deadline != self._armed[index]:
            self._armed[index] = deadline
            self.at(max(deadline, self.now_ms), lambda: self.fire(index, deadline))

    def fire(self, index: int, deadline: int) -> None:
        if self._armed[index] == deadline:
            self._armed[index] = None
            self.step(index, Tick())

    def restart(self, index: int) -> None:
        self.crashed.discard(index)
        self.cores[index] = self.build(index)
        self._armed[index] = None
        self.final[index] = []
        self.release(index, self.cores[index].replay(self.journals[index].records, self.now(index)))
        self.step(index, Tick())
        for other in range(len(self.cores)):
            if other != index:
                self.step(index, PeerUp(other))
                self.step(other, PeerUp(index))

    def nudge(self) -> None:
        for index in range(len(self.cores)):
            self.step(index, PayloadChanged())

    def run(self, until_ms: int) -> None:
        while self.heap and self.heap[0][0] <= until_ms:
            when, _, action = heapq.heappop(self.heap)
            self.now_ms = max(self.now_ms, when)
            action()
        self.now_ms = until_ms

    def heights(self) -> list[int]:
        return [core.tree.root.height for core in self.cores]

    def assert_agreement(self) -> None:
        by_height: dict[int, bytes] = {}
        for chain in self.final:
            for _, block in chain:
                identity = block_digest(block.header)
                assert by_height.setdefault(block.header.height, identity) == identity
