"""Large updates on four validator processes of this machine: rounds, bytes, memory, and what small updates feel of it.

    python -m benchmarks.large_updates [--parameters 10000000] [--trainers 8] [--rounds 5] [--encoding f32]
        [--warm-rounds 1] [--at-once 8] [--samples 100] [--out large.json]

The trainers are clients of the SDK in a process of their own: each round they fetch the model, put their update as a
blob, and submit it. A round's time is that of its blocks, from the one that opened it to the one that closed it.
Memory is RssAnon, the most that any process of a kind has had in the whole run. Processor time is that of the rounds
after the first, which loads the kernels, or after as many as were named: files are written again from the fifth on,
once the updates of the first are no longer kept. Beside it is what the same bytes of f32 cost at least
(benchmarks.update_floor). With samples, small updates of another job are submitted one at a time, first at rest and
then while the rounds go on, from submitting to executed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp
import numpy as np

from benchmarks.processes import MIB, MemoryWatch, cpu_seconds, roles
from benchmarks.small_updates import Load, Sender, rules_of, update
from benchmarks.update_floor import floor
from cli.http import Place, ask
from cli.localnets import LocalNetwork, Plan
from fl.client.keyfile import load_key
from fl.client.network import connect_async
from fl.jobrules import rules_hash
from fl.jobs import CreateJob, JoinJob
from fl.records import JobRules

JOB = "large"
PAUSE_S = 0.02


def large_rules(parameters: int, trainers: int, rounds: int, encoding: str) -> JobRules:
    made = rules_of(JOB, parameters, trainers)
    return replace(made, rounds=rounds, encoding=encoding)


async def train(directory: Path, trainers: int, at_once: int, parameters: int, salt: int) -> None:
    """All trainers of the job until it is over."""
    submitting = asyncio.Semaphore(at_once)
    net = LocalNetwork.open(directory)
    values = np.random.default_rng(salt).normal(0, 0.01, parameters + trainers).astype(np.float32)

    async def one(place: int) -> None:
        network = await connect_async(
            net.network_file, net.key_file(net.trainers[place]), home=directory / "homes" / str(place)
        )
        try:
            job = await network.job(JOB)
            await job.join()
            async for task in job.tasks():
                async with submitting:
                    await task.submit(delta={"w": values[place : place + parameters]}, examples=10 + place)
        finally:
            await network.close()

    await asyncio.gather(*(one(place) for place in range(trainers)))


async def latencies(load: Load, job: bytes, rules: JobRules, senders: list[Sender], over: Any) -> list[float]:
    """Milliseconds from submitting to executed, one small update after the other."""
    found: list[float] = []
    values = np.random.default_rng(1).normal(0, 0.01, 1000).astype(np.float32)
    for sender in senders:
        if over():
            break
        signed = update(sender, job, rules, values)
        start = time.perf_counter()
        await load.post(len(found), [signed])
        found.append((time.perf_counter() - start) * 1000)
        await asyncio.sleep(PAUSE_S)
    return found


async def measure(net: LocalNetwork, arguments: argparse.Namespace) -> dict[str, Any]:
    chain_id = bytes.fromhex(net.chain_id)
    creator = Sender(chain_id, load_key(net.key_file("creator")))
    probes = [Sender(chain_id, load_key(net.key_file(name))) for name in net.trainers[arguments.trainers :]]
    rules = large_rules(arguments.parameters, arguments.trainers, arguments.rounds, arguments.encoding)
    report: dict[str, Any] = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        load = Load(session, [member.rpc for member in net.members.values()])
        small = [rules_of(f"small-{place}", 1000, len(probes)) for place in range(2 if probes else 0)]
        made = [await load.post(0, [creator.sign(CreateJob(each, b""))]) for each in (*small, rules)]
        ids = [bytes.fromhex(answers[0]["receipt"]["job"]) for answers in made]
        await load.level()
        joins = [
            probe.sign(JoinJob(job, rules_hash(each)))
            for job, each in zip(ids[:-1], small, strict=True)
            for probe in probes
        ]
        if joins:
            await load.post_all(joins)
            await load.level()
            rest = await latencies(load, ids[0], small[0], probes, lambda: False)
            report["small_at_rest_ms"] = round(statistics.median(rest), 1)
        warm = min(arguments.warm_rounds, arguments.rounds - 1)
        trainers = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.large_updates", "--train-in", str(net.directory)),
                *("--trainers", str(arguments.trainers), "--parameters", str(arguments.parameters)),
                *("--at-once", str(arguments.at_once)),
            ],
            # Linux shares the processors among sessions: whoever measures shall not share with the load.
            start_new_session=True,
        )
        steady = asyncio.create_task(used_before_round(warm + 1, net, ids[-1].hex(), trainers))
        try:
            with MemoryWatch(net) as memory:
                if probes:
                    await asyncio.sleep(arguments.warm_s)
                    busy = await latencies(load, ids[1], small[1], probes, lambda: trainers.poll() is not None)
                    report["small_beside_bulk_ms"] = round(statistics.median(busy), 1)
                    report["small_beside_bulk_samples"] = len(busy)
                    report["ratio_beside_bulk_to_rest"] = round(
                        report["small_beside_bulk_ms"] / report["small_at_rest_ms"], 2
                    )
                if await asyncio.to_thread(trainers.wait) != 0:
                    raise SystemExit("the trainers failed")
        finally:
            if trainers.poll() is None:
                trainers.kill()
        before, trained = await steady
        after = {role: cpu_seconds(pid) for role, pid in roles(net).items()}
        await load.level()
    report.update(rounds_of(net, ids[-1].hex(), arguments))
    report["anonymous_mib"] = {kind: memory.worst_mib(kind) for kind in ("core", "data")}
    bulk_mib = report["update_bytes"] * arguments.trainers * (arguments.rounds - warm) / MIB
    for kind in ("core", "data"):
        used = sum(after[role] - before[role] for role in after if role in before and role.endswith(kind))
        report[f"cpu_ms_a_mib_and_validator_{kind}"] = round(used / len(net.members) / bulk_mib * 1000, 2)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    report["cpu_ms_a_mib_trainers"] = round((ended.ru_utime + ended.ru_stime - trained) / bulk_mib * 1000, 2)
    if arguments.encoding == "f32":
        report["floor"] = await asyncio.to_thread(floor, arguments.parameters, arguments.trainers, len(net.members))
    return report


async def used_before_round(
    number: int, net: LocalNetwork, job: str, trainers: subprocess.Popen[bytes]
) -> tuple[dict[str, float], float]:
    """Seconds of processor time of each process of the network, and of the trainers, when this round has opened."""
    place = Place(next(iter(net.members.values())).rpc)
    while (await asyncio.to_thread(ask, place, "GET", f"/v1/jobs/{job}/rounds/{number}")).status != 200:
        await asyncio.sleep(0.2)
    return {role: cpu_seconds(pid) for role, pid in roles(net).items()}, cpu_seconds(trainers.pid)


def rounds_of(net: LocalNetwork, job: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every round closed, with one model on all validators, each of whom holds its bytes."""
    rounds: dict[int, dict[str, dict[str, Any]]] = {}
    for name, member in net.members.items():
        for number in range(1, arguments.rounds + 1):
            reply = ask(Place(member.rpc), "GET", f"/v1/jobs/{job}/rounds/{number}")
            rounds.setdefault(number, {})[name] = reply.data
    seconds, models = [], []
    for number, by_node in rounds.items():
        found = {(each["phase"], each["model"]) for each in by_node.values()}
        if len(found) != 1 or next(iter(found))[0] != "closed":
            raise SystemExit(f"round {number} did not close alike: {found}")
        one = next(iter(by_node.values()))
        seconds.append((one["ended_ms"] - one["opened_ms"]) / 1000)
        models.append(one["model"])
    held = {digest_of_model(member.rpc, models[-1]) for member in net.members.values()}
    if len(held) != 1:
        raise SystemExit("the validators hold different bytes of the last model")
    size = arguments.parameters * (4 if arguments.encoding == "f32" else 1)
    return {
        "update_bytes": size,
        "round_s": [round(each, 2) for each in seconds],
        "round_median_s": round(statistics.median(seconds), 2),
        "updates_mib_a_second": round(size * arguments.trainers / MIB / statistics.median(seconds), 1),
        "last_model": models[-1],
    }


def digest_of_model(rpc: str, cid: str) -> str:
    running = sha256()
    with urlopen(f"{rpc}/v1/models/{cid}", timeout=120) as answer:
        while part := answer.read(MIB):
            running.update(part)
    return running.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--trainers", type=int, default=8)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-rounds", type=int, default=1, help="rounds before processor time is counted")
    parser.add_argument("--encoding", choices=("f32", "q8"), default="f32")
    parser.add_argument("--at-once", type=int, default=1_000, help="how many trainers send an update at one time")
    parser.add_argument("--samples", type=int, default=0, help="small updates at rest, and as many beside the rounds")
    parser.add_argument("--warm-s", type=float, default=3.0, help="how long the rounds go on before the samples beside")
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    parser.add_argument("--train-in", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train_in is not None:
        asyncio.run(train(arguments.train_in, arguments.trainers, arguments.at_once, arguments.parameters, salt=7))
        return
    with tempfile.TemporaryDirectory(prefix="quorate-bench-") as directory:
        plan = Plan(validators=arguments.validators, trainers=arguments.trainers + arguments.samples)
        net = LocalNetwork.create(Path(directory) / "net", plan)
        try:
            for name in net.members:
                net.start(name)
            net.wait_ready(net.members, 60)
            found = asyncio.run(measure(net, arguments))
        finally:
            net.stop(net.members)
    report = {
        "benchmark": "large updates",
        "command": " ".join(["python", "-m", "benchmarks.large_updates", *sys.argv[1:]]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "python": platform.python_version(),
        "validators": arguments.validators,
        "trainers": arguments.trainers,
        "parameters": arguments.parameters,
        "encoding": arguments.encoding,
        **found,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
