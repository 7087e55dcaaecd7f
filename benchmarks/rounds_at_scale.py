"""One large round on validator processes of this machine, and what small updates of another job feel of it.

    python -m benchmarks.rounds_at_scale [--members 1000] [--parameters 10000] [--rule fedavg] [--setting NAME=NUMBER]
        [--encoding q8] [--at-once 8] [--every-ms 200] [--rest-s 20] [--out scale.json]

All members' updates come from one process (benchmarks.crowd). Meanwhile small updates of another job are sent at a
steady pace, whether or not the ones before have been answered; the latency of each is from when it was due to when it
was executed. It belongs to the part of the run in which it was sent: at rest, while members join, while the round
collects, while it aggregates, as the first validator has it. Memory is RssAnon, the most of any process of a kind in
that part; processor time is of all processes of a kind together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import aiohttp
import numpy as np

from benchmarks.crowd import add_job_arguments, crowd_rules, job_arguments, join, phase_of, register, senders
from benchmarks.large_updates import digest_of_model
from benchmarks.processes import MIB, MemoryWatch, cpu_seconds, roles
from benchmarks.small_updates import Load, Sender, rules_of, update
from chain.genesis import Params
from cli.http import Place, ask
from cli.localnets import LocalNetwork, Plan
from fl.client.keyfile import load_key
from fl.jobs import CreateJob
from fl.kernels.golden import check_golden
from fl.records import JobRules

REST, JOINING, COLLECTING, AGGREGATING, ENDED = "at rest", "joining", "collecting", "aggregating", "ended"
PARTS = (REST, JOINING, COLLECTING, AGGREGATING)
SMALL_PARAMETERS = 1000
KINDS = ("core", "data")
PATIENCE_MS = 600_000
_LOOK_AGAIN_S = 0.1
_HELD_S = 120.0
_AT_MOST = 8192
"""Small updates; each takes a member of its own."""


@dataclass(slots=True)
class Part:
    latencies_ms: list[float] = field(default_factory=list)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: dict[str, float] = field(default_factory=dict)


class Watch:
    """In which part the run is, and what the processes use in it."""

    def __init__(self, net: LocalNetwork, memory: MemoryWatch) -> None:
        self._net = net
        self._memory = memory
        self._began = time.perf_counter()
        self._used = self._cpu()
        self.name = REST
        self.parts = {name: Part() for name in PARTS}

    def _cpu(self) -> dict[str, float]:
        found = {role: cpu_seconds(pid) for role, pid in roles(self._net).items()}
        return {kind: sum(used for role, used in found.items() if role.endswith(kind)) for kind in KINDS}

    def turn(self, name: str) -> None:
        """The part that has this name begins."""
        part, used = self.parts[self.name], self._cpu()
        part.seconds = time.perf_counter() - self._began
        part.cpu_seconds = {kind: used[kind] - self._used[kind] for kind in KINDS}
        part.peak_bytes = dict(self._memory.peak_bytes)
        self._memory.peak_bytes.clear()
        self._began, self._used, self.name = time.perf_counter(), used, name

    async def follow(self, job: bytes) -> None:
        """Until the job's round has ended."""
        while True:
            phase = await phase_of(self._net, job)
            if phase in (COLLECTING, AGGREGATING) and phase != self.name:
                self.turn(phase)
            elif phase in ("closed", "failed"):
                self.turn(ENDED)
                return
            await asyncio.sleep(_LOOK_AGAIN_S)


class Probes:
    """Small updates at a steady pace, each from a member of its own."""

    def __init__(self, load: Load, job: bytes, rules: JobRules, members: list[Sender], watch: Watch) -> None:
        self._load = load
        self._job = job
        self._rules = rules
        self._members = members
        self._watch = watch
        self._values = np.random.default_rng(1).normal(0, 0.01, SMALL_PARAMETERS).astype(np.float32)

    async def go_on(self, every_s: float) -> None:
        """For ever: cancelled when enough was seen, or the members are used up."""
        due = time.perf_counter()
        async with asyncio.TaskGroup() as sending:
            for place, member in enumerate(self._members):
                sending.create_task(self._one(place, member, due))
                due += every_s
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async def _one(self, place: int, member: Sender, due: float) -> None:
        part = self._watch.parts.get(self._watch.name)
        await self._load.post(place, [update(member, self._job, self._rules, self._values)])
        if part is not None:
            part.latencies_ms.append((time.perf_counter() - due) * 1000)


async def measure(net: LocalNetwork, arguments: argparse.Namespace) -> dict[str, Any]:
    creator = Sender(bytes.fromhex(net.chain_id), load_key(net.key_file("creator")))
    large = crowd_rules(
        arguments.parameters, arguments.members, arguments.rule, dict(arguments.setting), arguments.encoding
    )
    probing = range(arguments.members, arguments.members + arguments.probes)
    small = rules_of("small", SMALL_PARAMETERS, arguments.probes)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        load = Load(session, [member.rpc for member in net.members.values()])
        await register(load, net, range(probing.stop))
        made = [await load.post(0, [creator.sign(CreateJob(each, b""))]) for each in (small, large)]
        small_job, large_job = (bytes.fromhex(answers[0]["receipt"]["job"]) for answers in made)
        await load.level()
        members = senders(bytes.fromhex(net.chain_id), probing)
        await join(load, small_job, small, members)
        await load.level()
        with MemoryWatch(net) as memory:
            watch = Watch(net, memory)
            probes = asyncio.create_task(
                Probes(load, small_job, small, members, watch).go_on(arguments.every_ms / 1000)
            )
            await asyncio.sleep(arguments.rest_s)
            watch.turn(JOINING)
            crowd = subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.crowd", str(net.directory), "--job", large_job.hex()),
                    *job_arguments(arguments),
                ],
                # Linux shares the processors among sessions: whoever measures shall not share with the load.
                start_new_session=True,
            )
            try:
                await asyncio.wait_for(watch.follow(large_job), arguments.timeout_s)
                if await asyncio.to_thread(crowd.wait) != 0:
                    raise SystemExit("the crowd failed")
            finally:
                if crowd.poll() is None:
                    crowd.kill()
                probes.cancel()
                with suppress(asyncio.CancelledError):
                    await probes
        await load.level()
    return {"parts": {name: summary(part) for name, part in watch.parts.items()}} | ended(net, large_job)


def summary(part: Part) -> dict[str, Any]:
    found = sorted(part.latencies_ms)
    return {
        "seconds": round(part.seconds, 2),
        "small_updates": len(found),
        "small_median_ms": round(float(np.median(found)), 1) if found else None,
        "small_p95_ms": round(found[int(len(found) * 0.95)], 1) if found else None,
        "small_max_ms": round(found[-1], 1) if found else None,
        "anonymous_mib": {
            kind: round(
                max((size for role, size in part.peak_bytes.items() if role.endswith(kind)), default=0) / MIB, 1
            )
            for kind in KINDS
        },
        "cpu_s_all_validators": {kind: round(used, 2) for kind, used in part.cpu_seconds.items()},
    }


def ended(net: LocalNetwork, job: bytes) -> dict[str, Any]:
    """The round closed alike on all validators, each of whom holds the model's bytes."""
    asked = {
        name: ask(Place(member.rpc), "GET", f"/v1/jobs/{job.hex()}/rounds/1").data
        for name, member in net.members.items()
    }
    found = {(each["phase"], each["model"], each["record"]) for each in asked.values()}
    one = next(iter(asked.values()))
    if len(found) != 1 or one["phase"] != "closed":
        raise SystemExit(f"the round did not close alike: {found}, {one['code']}\n{complaints(net)}")
    if len({held_digest(member.rpc, one["model"]) for member in net.members.values()}) != 1:
        raise SystemExit("the validators hold different bytes of the model")
    return {
        "model": one["model"],
        "record": one["record"],
        "round_s": round((one["ended_ms"] - one["opened_ms"]) / 1000, 2),
    }


def held_digest(rpc: str, cid: str) -> str:
    """Once this validator has the model: the round ends with a quorum's signatures, and the last one may still be
    computing."""
    ends = time.monotonic() + _HELD_S
    while True:
        try:
            return digest_of_model(rpc, cid)
        except HTTPError:
            if time.monotonic() > ends:
                raise
        time.sleep(_LOOK_AGAIN_S)


def complaints(net: LocalNetwork) -> str:
    """The last that each validator warned of."""
    lines = []
    for name in net.members:
        log = (net.home(name) / "log.jsonl").read_text().splitlines()
        lines += [f"{name}: {line}" for line in log if '"level":"info"' not in line.replace(" ", "").lower()][-5:]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_job_arguments(parser)
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--every-ms", type=float, default=200.0, help="the pace of small updates")
    parser.add_argument("--rest-s", type=float, default=20.0, help="how long before the large round")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="for the large round")
    parser.add_argument("--directory", type=Path, help="where the validators' disks are; else a temporary place")
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    arguments = parser.parse_args()
    # A machine compiles the kernels once, for whatever validator comes first; that is no part of a round.
    check_golden()
    arguments.probes = min(_AT_MOST, int((arguments.rest_s + arguments.timeout_s) * 1000 / arguments.every_ms))
    with tempfile.TemporaryDirectory(prefix="quorate-bench-", dir=arguments.directory) as directory:
        # The validators of a network do not share one machine's processors; these do.
        params = Params(aggregation_base_ms=PATIENCE_MS)
        net = LocalNetwork.create(Path(directory) / "net", Plan(validators=arguments.validators, params=params))
        try:
            for name in net.members:
                net.start(name)
            net.wait_ready(net.members, 60)
            found = asyncio.run(measure(net, arguments))
        finally:
            net.stop(net.members)
    report = {
        "benchmark": "a round at scale",
        "command": " ".join(["python", "-m", "benchmarks.rounds_at_scale", *sys.argv[1:]]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "python": platform.python_version(),
        "validators": arguments.validators,
        "members": arguments.members,
        "parameters": arguments.parameters,
        "encoding": arguments.encoding,
        "rule": arguments.rule,
        "settings": dict(arguments.setting),
        **found,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
