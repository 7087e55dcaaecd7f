"""What a validator does with blocks of small updates once they are final, in processor time an update, step by step.

    python -m benchmarks.execution [--updates 200 500 1000] [--members 256 1000] [--jobs 8] [--out execution.json]

A node with its real executor, aggregator, state tree, LevelDB and batches' log in a temporary directory, and without
peers: blocks of inline q8 updates of 1,000 parameters are handed to it as if ordering had made them final. Members
answer one job after the other; a round that all have answered is given a result with the next block, which counts
too. The data process is a pipe that says Done. Nothing is signed or checked here: that is done before a block is final.

`us_an_update` is of the whole process, LevelDB's own threads with it: the median of the blocks, with nothing timed
inside. The steps are timed after that, in as many further blocks, where they begin and end, each on its thread.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from chain.batch import Batch, SignedBatch, batch_digest
from chain.block import Block, Body, Header, Item, ItemKind, body_roots
from chain.certificate import Result, Validator
from chain.cid import raw_cid
from chain.codec import encode
from chain.genesis import GENESIS_VERSION, Genesis, GenesisMember, Params
from chain.hashing import ZERO_DIGEST
from chain.keys import SigningKey
from chain.transaction import Transaction, account_id, tx_id
from chain.tree import StateTree
from consensus.availability import BatchStored
from consensus.lineage import descend
from fl.execution import Execution
from fl.jobrules import SYNCHRONOUS, VISIBLE_TO_VALIDATORS, rules_hash, zero_model_cid
from fl.jobs import CreateJob, JoinJob, job_id
from fl.kernels import KERNEL_VERSION
from fl.records import ConfigEntry, JobRules, Kind
from fl.rounds import SubmitUpdate, open_aggregations
from fl.state import State
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.transactions import KIND_OF_BODY, read_all
from fl.updates import form_of
from fl.weights import EXAMPLES
from node import aggregator, dataplane, executor, garbage
from node.admission import Admission
from node.aggregator import Aggregator
from node.data.messages import MESSAGES, Add, Done, Opened, to_frame
from node.dataplane import DataPlane
from node.executor import Executor, FinalBlock
from node.node import Node, initialise
from node.ports import PipeEvent, PipeUp, Ports
from node.ports.clock import SystemClock
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.offload import ThreadOffload
from node.store import JournalMark

BEGINS_MS = 1_700_000_000_000
BLOCK_MS = 100
HOUR_MS = 3_600_000
VALIDATORS = 4
WARM_UP_BLOCKS = 4
SCHEMA = Schema(
    (
        TensorSpec("hidden.weight", "F32", (20, 40), AVERAGED),
        TensorSpec("hidden.bias", "F32", (20,), AVERAGED),
        TensorSpec("output.weight", "F32", (9, 18), AVERAGED),
        TensorSpec("output.bias", "F32", (18,), AVERAGED),
    )
)
"""1,000 parameters."""


@dataclass
class Steps:
    """Processor time by step, in seconds. A step within another is not counted twice."""

    spent: Counter[str] = field(default_factory=Counter)
    _inner: threading.local = field(default_factory=threading.local)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        outer, self._inner.spent = getattr(self._inner, "spent", 0.0), 0.0
        start = time.thread_time()
        try:
            yield
        finally:
            took = time.thread_time() - start
            self.spent[name] += took - self._inner.spent
            self._inner.spent = outer + took

    def time(self, owner: Any, name: str, step: str) -> Callable[[], None]:
        """From here on the calls of this function are a step; what is given back ends that."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.step(step):
                return function(*args, **kwargs)

        setattr(owner, name, timed)
        return lambda: setattr(owner, name, function)


class _NoLinks:
    """Nobody is there."""

    def send(self, peer: bytes, channel: object, frame: bytes) -> bool:
        return False

    def punish(self, peer: bytes, reason: str) -> None: ...

    async def close(self) -> None: ...


class _Willing:
    """A data process that says at once that it has added what it was told, and never closes a round."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[PipeEvent] = asyncio.Queue()
        self._said.put_nowait(PipeUp())
        self._said.put_nowait(to_frame(Opened(1, "", 0)))
        self.sent_bytes = 0

    def send(self, frame: bytes) -> bool:
        self.sent_bytes += len(frame)
        if frame[0] == _ADD:
            # Read no further than to its number: taking it apart is the data process's work, which is not measured.
            head = msgpack.Unpacker()
            head.feed(frame[1:64])
            head.read_array_header()
            self._said.put_nowait(to_frame(Done(head.unpack())))
        return True

    async def receive(self) -> PipeEvent:
        return await self._said.get()

    async def close(self) -> None: ...


_ADD = next(number for number, message in MESSAGES.items() if message is Add)


@dataclass
class Sender:
    """Somebody with an account. Nobody checks a signature here."""

    name: str
    key: bytes
    account: bytes
    nonce: int = 0

    def transaction(self, chain_id: bytes, time_ms: int, body: object) -> Transaction:
        nonce, self.nonce = self.nonce, self.nonce + 1
        kind = KIND_OF_BODY[type(body)]
        return Transaction(chain_id, self.account, self.key, nonce, time_ms + HOUR_MS, kind, encode(body), bytes(64))


def _sender(name: str) -> Sender:
    key = b"\x01" + sha256(name.encode()).digest()
    return Sender(name, key, account_id(key))


def _validator(index: int) -> tuple[SigningKey, Validator]:
    key, name = SigningKey.from_seed(sha256(b"validator/%d" % index).digest()), f"v{index}"
    link, operator = (b"\x01" + sha256(b"%s/%d" % (what, index)).digest() for what in (b"link", b"operator"))
    commit = sha256(b"commit/%d" % index).digest()
    return key, Validator(name, key.public, link, operator, commit, address=f"{name}:1", rpc="")


def rules_for(name: str, members: int) -> JobRules:
    """As somebody would write them: its weights by examples, two metrics, some configuration, an app."""
    return JobRules(
        name=name,
        schema=SCHEMA,
        initial=zero_model_cid(SCHEMA),
        mode=SYNCHRONOUS,
        rule="fedavg",
        encoding="q8",
        range_bits=8,
        weights=EXAMPLES,
        cap=5_000,
        target=members,
        minimum=members // 2,
        maximum=members,
        deadline_ms=HOUR_MS,
        grace_ms=HOUR_MS,
        rounds=1_000,
        max_failed=3,
        privacy=VISIBLE_TO_VALIDATORS,
        metrics=("loss", "accuracy"),
        config=(
            ConfigEntry("batch-size", 1, "integer", "32"),
            ConfigEntry("learning-rate", 1, "decimal", "0.05"),
            ConfigEntry("local-epochs", 1, "integer", "2"),
        ),
        app="quorate.torch:train",
        app_digest=sha256(b"app").digest(),
    )


class Chain:
    """A node whose final blocks are made here."""

    def __init__(self, members: int, jobs: int, directory: Path) -> None:
        keys, validators = zip(*map(_validator, range(VALIDATORS)), strict=True)
        self.creator = _sender("creator")
        self.members = [_sender(f"trainer-{index:04}") for index in range(members)]
        self.genesis = Genesis(
            version=GENESIS_VERSION,
            name="benchmark",
            time_ms=BEGINS_MS,
            params=Params(kernel_version=KERNEL_VERSION),
            validators=validators,
            set_changes=(),
            registrars=(),
            admission="registrars",
            members=(
                GenesisMember("creator", self.creator.key, ("creator",)),
                *(GenesisMember(each.name, each.key, ("trainer",)) for each in self.members),
            ),
        )
        self.chain_id = self.genesis.chain_id
        self.pipe = _Willing()
        self._key = keys[0]
        self._wanted_jobs = jobs
        self._directory = directory
        self._sequence = 0
        self._form = form_of(self._rules(0), 0)
        self._tail = b""
        self.jobs: list[bytes] = []
        self._turn = 0
        """Updates made so far: job after job, and in each of them member after member."""
        self._sent = self._told = 0
        """Updates in blocks, and of them those told to the data process."""

    async def open(self) -> None:
        disk, rows = FileDisk(self._directory / "disk"), LevelKv(self._directory / "rows")
        self._ports = Ports(_NoLinks(), disk, rows, ThreadOffload(), SystemClock(), self.pipe)  # type: ignore[arg-type]
        await initialise(self._ports)
        self.node = await Node.open(self.genesis, self._key, self._ports)
        # Ordering is not there: what execution tells it goes nowhere.
        self.node.feed = lambda event: None  # type: ignore[method-assign]
        self.node.data.add = self._add  # type: ignore[method-assign,assignment]
        self._lineage = self.node.executor.executed.lineage
        self._tasks = [
            asyncio.create_task(each)
            for each in (self.node.data.run(), self.node.executor.run(), self.node.aggregator.run())
        ]
        self.node.aggregator.resume()
        await self.execute([self.creator.transaction(self.chain_id, BEGINS_MS, each) for each in self._creations()])
        joins = [
            each.transaction(self.chain_id, BEGINS_MS, JoinJob(job, rules_hash(self._rules(place))))
            for place, job in enumerate(self.jobs)
            for each in self.members
        ]
        for start in range(0, len(joins), 1_000):
            await self.execute(joins[start : start + 1_000])
        await self.execute(())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ports.offload.close()
        self._ports.kv.close()
        self._ports.disk.close()

    def _rules(self, place: int) -> JobRules:
        return rules_for(f"digits-{place}", len(self.members))

    def _creations(self) -> Iterator[CreateJob]:
        for place in range(self._wanted_jobs):
            body = CreateJob(self._rules(place), b"")
            sent = self.creator.transaction(self.chain_id, BEGINS_MS, body)
            self.creator.nonce -= 1
            self.jobs.append(job_id(tx_id(sent)))
            yield body

    def updates(self, count: int) -> list[Transaction]:
        """The next ones, of the rounds that are open."""
        made = []
        for turn in range(self._turn, self._turn + count):
            place, index = divmod(turn, len(self.members))
            job, round_number = self.jobs[place % len(self.jobs)], place // len(self.jobs) + 1
            member = self.members[index]
            base = zero_model_cid(SCHEMA) if round_number == 1 else _model_of(job, round_number - 1)
            payload = self._payload(Place(job, round_number, member.account))
            body = SubmitUpdate(job, round_number, base, 60 + index, (450_000, 910_000), 0, raw_cid(payload), payload)
            made.append(member.transaction(self.chain_id, self._lineage.time_ms, body))
        self._turn += count
        return made

    def _payload(self, place: Place) -> bytes:
        """Of every member the same change: nothing here looks at it."""
        header = self._form.header(place)
        if not self._tail:
            draw = np.random.default_rng(6)
            delta = {each.name: draw.normal(0, 0.01, each.shape).astype(np.float32) for each in SCHEMA.tensors}
            self._tail = encode_update(self._form, place, delta)[len(header) :]
        return header + self._tail

    async def round_trip(self, transactions: Sequence[Transaction]) -> float:
        """A block of these, and one with the results of the rounds that they completed; processor time, in seconds."""
        return await self.execute(transactions) + await self.execute(())

    async def execute(self, transactions: Sequence[Transaction]) -> float:
        """As one block, with a batch of each validator; processor time from its being final on, in seconds."""
        share = -(-len(transactions) // VALIDATORS) or 1
        parts = [transactions[start : start + share] for start in range(0, len(transactions), share)]
        batches = [self._batch(creator, part) for creator, part in enumerate(parts)]
        digests = tuple([self._stored(each) for each in batches])
        await self.node.batches.log.durable(self.node.batches.log.last)
        self.node.batches.settle()
        final = self._block(Body(digests, self._results()))
        self._sent += sum(each.kind == Kind.SUBMIT_UPDATE for each in transactions)
        start = time.process_time()
        self.node.executor.submit(final)
        await self._settled()
        return time.process_time() - start

    async def _settled(self) -> None:
        """Executed, and every update told to the data process."""
        while self.node.executor.waiting or self._told < self._sent:
            await self.node.progress.wait(1.0)

    async def _add(self, *args: Any) -> None:
        await DataPlane.add(self.node.data, *args)
        self._told += args[-1].count
        self.node.progress.moved()

    def _batch(self, creator: int, transactions: Sequence[Transaction]) -> SignedBatch:
        self._sequence += 1
        height = self._lineage.height
        encoded = tuple(map(encode, transactions))
        return SignedBatch(Batch(self.chain_id, 0, creator, self._sequence, height, height + 1_024, encoded), bytes(64))

    def _stored(self, signed: SignedBatch) -> bytes:
        self.node.batches.append(BatchStored(signed, True))
        self.node.read.judged(signed, read_all(signed.batch.transactions, self.genesis.params))
        return batch_digest(signed.batch)

    def _results(self) -> tuple[Item, ...]:
        """Of every round that is frozen."""
        items = []
        for task in open_aggregations(self.node.store.state):
            model = _model_of(task.job, task.round)
            result = Result(
                task.job, task.round, task.log_root, task.kernel_version, True, "", model, b"", raw_cid(task.log_root)
            )
            items.append(Item(ItemKind.RESULT, encode(result)))
        return tuple(items)

    def _block(self, body: Body) -> FinalBlock:
        parent = self._lineage
        batch_root, item_root = body_roots(body)
        validators = self.genesis.validator_set
        view = parent.height + 1
        header = Header(
            version=1,
            chain=self.chain_id,
            epoch=0,
            height=parent.height + 1,
            view=view,
            parent=parent.digest,
            log_root=parent.log.root(),
            batch_root=batch_root,
            item_root=item_root,
            executed_height=parent.height,
            executed_root=ZERO_DIGEST,
            time_ms=parent.time_ms + BLOCK_MS,
            rules_version=1,
            reveal=ZERO_DIGEST,
            commit=ZERO_DIGEST,
            next_set=b"",
        )
        block = Block(header, body)
        self._lineage = descend(parent, block, view % VALIDATORS, self.genesis.params.execution_window)
        return FinalBlock(block, self._lineage, None, JournalMark(0, 0), validators)


def _model_of(job: bytes, round_number: int) -> bytes:
    return raw_cid(job + round_number.to_bytes(8, "big"))


def timed_steps(node: Node, steps: Steps) -> list[Callable[[], None]]:
    """What each step is, by where its code stands."""
    return [
        steps.time(executor, "execute_block", "state machine"),
        steps.time(Execution, "outcome", "receipts and logs"),
        steps.time(State, "changes", "state encoded"),
        steps.time(Executor, "_keep", "rows made"),
        steps.time(StateTree, "apply", "tree"),
        steps.time(LevelKv, "get", "rows read"),
        steps.time(LevelKv, "write", "rows written"),
        steps.time(Aggregator, "_from_logs", "aggregator"),
        steps.time(aggregator, "_told_from", "aggregator"),
        steps.time(Aggregator, "executed", "aggregator"),
        steps.time(dataplane, "to_frame", "aggregator"),
        steps.time(Admission, "executed", "admission"),
    ]


async def measure_case(updates: int, members: int, jobs: int, blocks: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="quorate-execution-") as directory:
        chain = Chain(members, jobs, Path(directory))
        await chain.open()
        try:
            for _ in range(WARM_UP_BLOCKS):
                await chain.round_trip(chain.updates(updates))
            garbage.settle()
            steps = Steps()
            executed = chain.node.executor.executed.receipts
            whole = [await chain.round_trip(chain.updates(updates)) for _ in range(blocks)]
            assert chain.node.executor.executed.receipts - executed == updates * blocks, "all were executed"
            undo = timed_steps(chain.node, steps)
            for _ in range(blocks):
                await chain.round_trip(chain.updates(updates))
            for each in undo:
                each()
            return {
                "updates_a_block": updates,
                "members": members,
                "jobs": jobs,
                "blocks": blocks,
                "us_an_update": round(statistics.median(whole) / updates * 1e6, 2),
                "us_an_update_mean": round(statistics.mean(whole) / updates * 1e6, 2),
                "us_an_update_by_step": {
                    name: round(spent / blocks / updates * 1e6, 2) for name, spent in steps.spent.most_common()
                },
                "state_root": chain.node.executor.executed.state_root.hex(),
            }
        finally:
            gc.unfreeze()
            await chain.close()


def measure(
    updates: Sequence[int] = (200, 500, 1_000), members: Sequence[int] = (256, 1_000), jobs: int = 8, blocks: int = 24
) -> list[dict[str, Any]]:
    """One row for each size of a block and number of members."""
    return [asyncio.run(measure_case(count, many, jobs, blocks)) for count in updates for many in members]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, nargs="+", default=[200, 500, 1_000], help="in a block")
    parser.add_argument("--members", type=int, nargs="+", default=[256, 1_000])
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    arguments = parser.parse_args()
    report = {
        "benchmark": "execution",
        "command": " ".join(["python", "-m", "benchmarks.execution", *sys.argv[1:]]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "python": platform.python_version(),
        "cases": measure(arguments.updates, arguments.members, arguments.jobs, arguments.blocks),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
