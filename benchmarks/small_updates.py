"""Small updates on four validator processes of this machine: how many a second, how long each, and where the time goes.

    python -m benchmarks.small_updates [--validators 4] [--updates 4096] [--parameters 1000] [--out small.json]

Every update is a transaction of its own: a q8 delta of 1,000 parameters, inline, signed ahead. They are posted to all
nodes at once, many a request; the clock runs from the first request to the moment when each node has executed
the last of them. Latency is measured at rest, one update at a time, from submitting to executed. CPU is what the
processes used. The profile is sampled in one validator under load, if py-spy is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.processes import cpu_seconds
from chain.cid import raw_cid
from chain.codec import encode, pack
from chain.keys import SigningKey
from chain.transaction import account_id, sign_transaction
from cli.localnets import LocalNetwork, Plan
from fl.client.keyfile import load_key
from fl.jobrules import rules_hash, zero_model_cid
from fl.jobs import CreateJob, JoinJob
from fl.records import JobRules
from fl.rounds import SubmitUpdate
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from fl.transactions import KIND_OF_BODY
from fl.updates import form_of

A_REQUEST = 64
REQUESTS_AT_ONCE = 4
HOUR_MS = 3_600_000

# Where a sampled stack belongs: the first row, from the innermost frame outwards, that matches.
SHARES = (
    ("signatures", ("chain/keys.py", "verify_transaction", "ed25519")),
    ("codec", ("chain/codec.py", "msgpack")),
    ("network", ("node/ports/links", "ssl.py", "aiohttp/", "node/rpc/", "selector", "uvloop")),
    ("storage", ("node/store.py", "node/ports/kv", "node/ports/disk", "node/segments.py", "plyvel")),
    ("execution", ("fl/machine.py", "fl/rounds.py", "fl/state.py", "fl/execution.py", "chain/tree.py", "chain/log.py")),
    ("aggregation", ("fl/aggregation.py", "fl/kernels")),
    ("checks", ("fl/check.py", "fl/tensors/", "node/admission.py")),
    ("ordering and availability", ("consensus/",)),
    ("node", ("/node/",)),
    ("event loop, TLS, sockets", ("asyncio/runners.py",)),
)
IDLE = ("_worker (", "Condition.wait (", "wait (")
"""How the innermost frame of a thread that waits for work begins."""


class Sender:
    """One account, and the next nonce that it signs with."""

    def __init__(self, chain_id: bytes, key: SigningKey) -> None:
        self._chain_id = chain_id
        self._key = key
        self._nonce = 0
        self.account = account_id(key.public)

    def sign(self, body: object) -> bytes:
        nonce, self._nonce = self._nonce, self._nonce + 1
        until_ms = time.time_ns() // 1_000_000 + HOUR_MS
        kind = KIND_OF_BODY[type(body)]
        return encode(sign_transaction(self._key, self._chain_id, self.account, nonce, until_ms, kind, encode(body)))


class Load:
    def __init__(self, session: aiohttp.ClientSession, nodes: Sequence[str]) -> None:
        self._session = session
        self._nodes = nodes

    async def post(self, place: int, transactions: Sequence[bytes]) -> list[dict[str, Any]]:
        """Until each is executed there; a node that has no room, or wants a sender to be slower, is asked again."""
        url = f"{self._nodes[place % len(self._nodes)]}/v1/transactions?wait=executed"
        headers = {"Content-Type": "application/msgpack"}
        while True:
            async with self._session.post(url, data=pack(tuple(transactions)), headers=headers) as answer:
                content = await answer.json(content_type=None)
                if answer.status == 200:
                    refused = [each for each in content["answers"] if "code" in each]
                    if not refused:
                        return list(content["answers"])
                    if refused[0]["code"] != "RATE_LIMITED":
                        raise SystemExit(f"refused: {refused[0]}")
                    # What was taken of these is known by its id, and not taken twice.
                    await asyncio.sleep(refused[0]["retry_after"])
                    continue
                if answer.status not in (202, 429, 503):
                    raise SystemExit(f"{answer.status}: {content}")
                await asyncio.sleep(0.2 if answer.status != 202 else 0)

    async def post_all(self, transactions: Sequence[bytes]) -> float:
        """Seconds until the last is executed on the node that took it."""
        requests = [transactions[start : start + A_REQUEST] for start in range(0, len(transactions), A_REQUEST)]
        queues = [requests[place :: len(self._nodes)] for place in range(len(self._nodes))]

        async def drain(place: int) -> None:
            while queues[place]:
                await self.post(place, queues[place].pop(0))

        start = time.perf_counter()
        await asyncio.gather(*(drain(place) for place in range(len(self._nodes)) for _ in range(REQUESTS_AT_ONCE)))
        return time.perf_counter() - start

    async def status(self, place: int) -> dict[str, Any]:
        async with self._session.get(f"{self._nodes[place]}/v1/status") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def level(self) -> float:
        """Wait until every node has executed the same height; seconds that it took."""
        start = time.perf_counter()
        wanted = max([(await self.status(place))["final_height"] for place in range(len(self._nodes))])
        for place in range(len(self._nodes)):
            while (await self.status(place))["executed_height"] < wanted:
                await asyncio.sleep(0.01)
        return time.perf_counter() - start


def rules_of(name: str, parameters: int, trainers: int) -> JobRules:
    schema = Schema((TensorSpec("w", "F32", (parameters,), AVERAGED),))
    return JobRules(
        name=name,
        schema=schema,
        initial=zero_model_cid(schema),
        mode="sync",
        rule="fedavg",
        encoding="q8",
        range_bits=8,
        weights="examples",
        cap=1000,
        target=trainers,
        minimum=trainers,
        maximum=trainers,
        deadline_ms=HOUR_MS,
        grace_ms=HOUR_MS,
        rounds=1,
        max_failed=1,
        privacy="visible-to-validators",
        metrics=(),
        config=(),
        app="",
        app_digest=b"",
    )


def update(sender: Sender, job: bytes, rules: JobRules, values: np.ndarray[Any, Any]) -> bytes:
    payload = encode_update(form_of(rules, 0), Place(job, 1, sender.account), {"w": values})
    return sender.sign(SubmitUpdate(job, 1, rules.initial, 10, (), 0, raw_cid(payload), payload))


def profile_of(stacks: str) -> dict[str, float]:
    counted: Counter[str] = Counter()
    for line in stacks.splitlines():
        path, _, count = line.rpartition(" ")
        frames = path.split(";")[::-1]
        if frames[0].startswith(IDLE):
            continue
        counted[next((found for frame in frames if (found := _share(frame))), "other")] += int(count)
    whole = sum(counted.values()) or 1
    return {name: round(count / whole, 3) for name, count in counted.most_common()}


def _share(frame: str) -> str | None:
    return next((name for name, marks in SHARES if any(mark in frame for mark in marks)), None)


def sampler(pid: int, path: Path) -> subprocess.Popen[bytes] | None:
    if shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        return None
    command = [str(Path(sys.executable).parent / "py-spy"), "record", "--pid", str(pid), "--output", str(path)]
    command += ["--format", "raw", "--rate", "200", "--duration", "600", "--full-filenames"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def measure(net: LocalNetwork, arguments: argparse.Namespace) -> dict[str, Any]:
    chain_id = bytes.fromhex(net.chain_id)
    creator = Sender(chain_id, load_key(net.key_file("creator")))
    trainers = [Sender(chain_id, load_key(net.key_file(name))) for name in net.trainers]
    pids = [member.pid for member in net.members.values() if member.pid is not None]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        load = Load(session, [member.rpc for member in net.members.values()])
        jobs = -(-arguments.updates // len(trainers))
        rules = [rules_of(f"bench-{place}", arguments.parameters, len(trainers)) for place in range(jobs + 1)]
        made = [await load.post(0, [creator.sign(CreateJob(each, b""))]) for each in rules]
        ids = [bytes.fromhex(answers[0]["receipt"]["job"]) for answers in made]
        await load.level()
        joining = [JoinJob(job, rules_hash(each)) for job, each in zip(ids, rules, strict=True)]
        joins = [trainer.sign(body) for body in joining for trainer in trainers]
        joined_s = await load.post_all(joins)
        await load.level()
        values = np.random.default_rng(1).normal(0, 0.01, arguments.parameters).astype(np.float32)

        latencies = []
        for trainer in trainers[: arguments.samples]:
            signed = update(trainer, ids[0], rules[0], values)
            start = time.perf_counter()
            await load.post(len(latencies), [signed])
            latencies.append((time.perf_counter() - start) * 1000)
            await asyncio.sleep(0.02)

        updates = [
            update(trainer, job, each, values)
            for job, each in zip(ids[1:], rules[1:], strict=True)
            for trainer in trainers
        ]
        stacks = Path(net.directory) / "stacks.txt"
        sampling = sampler(pids[-1], stacks) if arguments.profile else None
        await asyncio.sleep(1 if sampling else 0)
        before = [cpu_seconds(pid) for pid in pids]
        own = time.process_time()
        start = time.perf_counter()
        await load.post_all(updates)
        await load.level()
        seconds = time.perf_counter() - start
        own = time.process_time() - own
        after = [cpu_seconds(pid) for pid in pids]
        if sampling is not None:
            sampling.send_signal(2)
            sampling.wait(20)
    count = len(updates)
    used = [later - earlier for earlier, later in zip(before, after, strict=True)]
    latencies.sort()
    return {
        "validators": len(pids),
        "updates": count,
        "parameters": arguments.parameters,
        "update_bytes": len(updates[0]),
        "seconds": round(seconds, 3),
        "executed_a_second": round(count / seconds, 1),
        "joins_a_second": round(len(joins) / joined_s, 1),
        "latency_ms": {
            "samples": len(latencies),
            "median": round(statistics.median(latencies), 1),
            "p90": round(latencies[int(len(latencies) * 0.9)], 1),
            "max": round(latencies[-1], 1),
        },
        "cpu_us_an_update_and_validator": round(statistics.median(used) / count * 1e6, 1),
        "cpu_s_validators": [round(each, 2) for each in used],
        "cpu_s_load_generator": round(own, 2),
        "profile": profile_of(stacks.read_text()) if sampling is not None and stacks.exists() else {},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--trainers", type=int, default=256)
    parser.add_argument("--updates", type=int, default=4096)
    parser.add_argument("--parameters", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=100, help="updates submitted one by one for the latency")
    parser.add_argument("--profile", action="store_true", help="sample one validator under load (slows it down)")
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quorate-bench-") as directory:
        net = LocalNetwork.create(
            Path(directory) / "net", Plan(validators=arguments.validators, trainers=arguments.trainers)
        )
        try:
            for name in net.members:
                net.start(name)
            net.wait_ready(net.members, 60)
            found = asyncio.run(measure(net, arguments))
        finally:
            net.stop(net.members)
    report = {
        "benchmark": "small updates",
        "command": " ".join(["python", "-m", "benchmarks.small_updates", *sys.argv[1:]]),
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
