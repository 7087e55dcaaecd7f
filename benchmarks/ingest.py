"""What it costs a validator to take small updates, besides reading their bytes and checking their signatures: processor
time a transaction, of the process that takes them.

    python -m benchmarks.ingest [--updates 1024] [--requests 1,16,64,256] [--streamed 1,16,64] [--wait executed]
                                [--runs 1] [--out FILE]
    python -m benchmarks.ingest --requests 64 --streamed "" --profile

One validator process with its real doors, store and threads; the client is this process. Two things are played, and
their time is not counted. What the bytes say, and that their signatures are good, the validator has been told before.
What it takes is available, final and executed some milliseconds later, and has a receipt. Each update is a q8
delta of 1,000 parameters, inline: 1,593 bytes. `--profile` samples the process (py-spy): where the time goes, by steps.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.accounts import Account, InlineUpdates, rules_of, some_values
from benchmarks.profiling import sampled
from benchmarks.submitting import Submitting
from chain.codec import encode, pack
from chain.transaction import verify_transaction
from cli.localnets import LocalNetwork, Plan
from consensus.availability import Submit
from fl.check import Checked, check_transaction
from fl.client.ingest import Ingest
from fl.errors import PendingJob, Refused
from fl.ingest import REFUSED
from fl.jobrules import rules_hash
from fl.jobs import CreateJob, JoinJob
from fl.records import Receipt
from node import process
from node.buckets import Rate, TokenBuckets
from node.config import Config, load_config
from node.node import Node
from node.rpc.limits import Turnstile
from node.rpc.server import RpcServer

TRAINERS = 32
EACH = 240
"""Updates of one trainer: fewer than its window of nonces, less what joining took."""
SETTLED_AFTER_S = 0.01
SETTLES_S = 0.5
FREE = Rate(1e9, 1e9)
REQUESTS_AT_ONCE = 4
STREAMED_AT_ONCE = 256

STEPS = (
    ("played", ("benchmarks/ingest.py",)),
    ("look-ups", ("_check_state", "_hold_back", "node/store.py", "fl/accounts.py")),
    ("answers", ("receipt_view", "_taken_view", "to_json", "json/", "views.py")),
    ("waiting", ("wait (node/admission.py", "executed (node/admission.py", "_wake", "_note")),
    ("admission", ("node/admission.py",)),
    ("request", ("node/rpc/transactions.py", "node/rpc/ingest.py")),
    ("threads", ("concurrent/futures", "offload.py", "threading.py", "asyncio/futures.py")),
    ("desk and sockets", ("node/rpc/",)),
    ("aiohttp", ("aiohttp/",)),
    ("event loop, system calls", ("asyncio/runners.py",)),
)
"""Where a sampled stack belongs: the first row that has a frame of it, from the innermost frame outwards."""


class Played:
    """In the validator: what comes after admission, and what it took of the processor."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pending: list[bytes] = []
        self._number = 0
        self._known: dict[bytes, Checked] = {}
        self.seconds = 0.0
        self.taken = 0

    def submit(self, event: Submit) -> None:
        if not self._pending:
            asyncio.get_running_loop().call_later(SETTLED_AFTER_S, self._settle)
        self._pending += [identity for identity, *_ in event.transactions]

    def _settle(self) -> None:
        began = time.thread_time()
        ids, self._pending = self._pending, []
        self._number += 1
        self.taken += len(ids)
        batch, height = self._number.to_bytes(32, "big"), 1_000_000 + self._number
        blank = Receipt(bytes(32), height, batch, 0, bytes(32), 0, 13, "ok", bytes(32), 1, 0, 10)
        receipts = tuple(encode(replace(blank, tx_id=identity)) for identity in ids)
        self.seconds += time.thread_time() - began
        admission = self._node.admission
        admission.available(tuple(ids), batch)
        admission.final(height, (batch,))
        admission.executed(height, ids, receipts)

    def know(self, data: bytes) -> None:
        genesis, rules = self._node.genesis, self._node.admission.rules_of
        self._known[data] = check_transaction(data, genesis.chain_id, genesis.params, rules, verify_signature=False)

    def check(self, transactions: Sequence[bytes]) -> list[Checked | Refused | PendingJob]:
        return [self._known[data] for data in transactions]

    def signature_us(self) -> float:
        """What checking one takes on this machine at this moment: the measure to compare by, for others use it too."""
        # What is known beforehand is no garbage, and is not to be looked through for any.
        gc.collect()
        gc.freeze()
        readings = [checked.reading for checked in list(self._known.values())[:200]]
        began = time.thread_time()
        for reading in readings:
            assert verify_transaction(reading.tx, reading.id)
        return (time.thread_time() - began) / len(readings) * 1e6


async def obey(node: Node, server: RpcServer) -> None:
    """Commands come a line each, and are answered by a line of JSON."""
    reader = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    played = Played(node)
    while line := await reader.readline():
        said: object = True
        match line.decode().split():
            case ["free"]:
                node.admission._members = TokenBuckets(FREE)
                limits = replace(server.api.limits, requests=FREE, submitted_bytes=FREE)
                server.api.reception.turnstile = Turnstile(limits)
            case ["play"]:
                node.admission._submit = played.submit
                node.admission.check = played.check  # type: ignore[method-assign]
            case ["signature"]:
                said = played.signature_us()
            case ["know", data]:
                played.know(bytes.fromhex(data))
            case _:
                said = {"cpu_s": time.process_time() - played.seconds, "taken": played.taken}
        print(json.dumps(said), flush=True)


def serve(path: Path) -> None:
    serving = process._serving

    async def with_commands(node: Node, config: Config) -> RpcServer:
        server = await serving(node, config)
        node.commands = asyncio.create_task(obey(node, server))  # type: ignore[attr-defined]
        node.commands.add_done_callback(lambda _: node.stop())  # type: ignore[attr-defined]
        return server

    process._serving = with_commands
    process.run(load_config(path, {}))


Way = Callable[[str, str, int, Sequence[bytes]], Awaitable[None]]


class Validator:
    def __init__(self, directory: Path) -> None:
        arguments = [sys.executable, "-m", "benchmarks.ingest", "--serve", str(directory / "v0" / "node.toml")]
        with open(directory / "log", "wb") as log:
            self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

    def ask(self, line: str) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        if not said:
            raise SystemExit("the validator has ended; its log is in the network's directory")
        return json.loads(said)


async def by_stream(url: str, wait: str, size: int, updates: Sequence[bytes]) -> None:
    """So many at a time, each time that as many have been answered."""
    async with Ingest([url], wait) as door:
        left = [updates[start : start + size] for start in range(0, len(updates), size)]

        async def drain() -> None:
            while left:
                answers = await door.send_all(left.pop())
                assert all(answer.status != REFUSED for answer in answers), answers

        await asyncio.gather(*(drain() for _ in range(max(1, STREAMED_AT_ONCE // size))))


async def by_requests(url: str, wait: str, size: int, updates: Sequence[bytes]) -> None:
    queue = [updates[start : start + size] for start in range(0, len(updates), size)]

    async def drain(session: aiohttp.ClientSession) -> None:
        while queue:
            body = pack(tuple(queue.pop()))
            headers = {"Content-Type": "application/msgpack"}
            async with session.post(f"{url}/v1/transactions?wait={wait}", data=body, headers=headers) as answer:
                content = await answer.json()
                assert answer.status == 200 and all("code" not in each for each in content["answers"]), content

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(drain(session) for _ in range(REQUESTS_AT_ONCE)))


async def measure(net: LocalNetwork, validator: Validator, arguments: argparse.Namespace) -> dict[str, Any]:
    url = net.members["v0"].rpc
    trainers = [Account.of(net, name) for name in net.trainers]
    rules = rules_of("ingest", 1000, len(trainers))
    async with Submitting(net) as submitting:
        while not await ready(submitting.session, url):
            await asyncio.sleep(0.1)
        validator.ask("free")
        answers = await submitting.executed(0, [Account.of(net, "creator").sign(CreateJob(rules, b""))])
        job = bytes.fromhex(answers[0]["receipt"]["job"])
        await submitting.all_executed([trainer.sign(JoinJob(job, rules_hash(rules))) for trainer in trainers])
    validator.ask("play")
    signing = InlineUpdates(job, rules, some_values(1000))
    ways = ways_of(arguments)
    found: dict[str, list[float]] = {name: [] for name, _, _ in ways}
    signatures: list[float] = []
    stacks = net.directory / "stacks.txt"
    for _ in range(arguments.runs):
        for name, send, size in ways:
            senders = islice(cycle(trainers), arguments.updates)
            updates = [signing.signed(trainer, 1, rules.initial) for trainer in senders]
            for data in updates:
                validator.ask("know " + data.hex())
            with sampled(validator.process.pid, stacks) if arguments.profile else nullcontext():
                await asyncio.sleep(SETTLES_S)
                signatures.append(validator.ask("signature"))
                before = validator.ask("usage")
                await send(url, arguments.wait, size, updates)
                after = validator.ask("usage")
            assert after["taken"] - before["taken"] == len(updates)
            found[name].append((after["cpu_s"] - before["cpu_s"]) / len(updates) * 1e6)
    return {
        "signature_us": round(statistics.median(signatures), 1),
        "cpu_us_a_transaction": {name: round(statistics.median(each), 1) for name, each in found.items()},
        "profile": steps_of(stacks.read_text()) if arguments.profile else {},
    }


def ways_of(arguments: argparse.Namespace) -> list[tuple[str, Way, int]]:
    requests, streamed = (
        [int(size) for size in text.split(",") if size] for text in (arguments.requests, arguments.streamed)
    )
    ways: list[tuple[str, Way, int]] = [(f"requests of {size}", by_requests, size) for size in requests]
    return [*ways, *((f"streamed by {size}", by_stream, size) for size in streamed)]


async def ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/v1/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def steps_of(stacks: str) -> dict[str, float]:
    counted: dict[str, int] = {}
    for line in stacks.splitlines():
        path, _, count = line.rpartition(" ")
        frames = path.split(";")[::-1]
        if frames[0].startswith(("_worker (", "Condition.wait (", "wait (")):
            continue
        step = next((name for frame in frames for name, marks in STEPS if any(m in frame for m in marks)), "other")
        counted[step] = counted.get(step, 0) + int(count)
    whole = sum(counted.values()) or 1
    return {name: round(count / whole, 3) for name, count in sorted(counted.items(), key=lambda each: -each[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=1024)
    parser.add_argument("--requests", default="1,16,64,256", help="updates a request, each measured")
    parser.add_argument("--streamed", default="1,16,64", help="updates sent at a time on a stream, each measured")
    parser.add_argument("--wait", default="executed")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="sample the last way (slows it down)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve)
        return
    if arguments.updates * arguments.runs * len(ways_of(arguments)) > TRAINERS * EACH:
        parser.error(f"at most {TRAINERS * EACH} updates in all: nonces of {TRAINERS} trainers")
    with tempfile.TemporaryDirectory(prefix="quorate-ingest-") as directory:
        net = LocalNetwork.create(Path(directory) / "net", Plan(validators=1, trainers=TRAINERS))
        validator = Validator(net.directory)
        try:
            found = asyncio.run(measure(net, validator, arguments))
        finally:
            validator.process.terminate()
            validator.process.wait(20)
    report = {
        "benchmark": "ingest",
        "command": " ".join(["python", "-m", "benchmarks.ingest", *sys.argv[1:]]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "python": platform.python_version(),
        **found,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
