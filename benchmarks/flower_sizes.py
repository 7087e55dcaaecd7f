"""A round of one flat model, of any size: on Flower's SuperLink, and on four validators. All ways in one run.

    quorate bench flower [--set parameters=1000,1000000] [--set rounds=4]

    superlink   flower-superlink and stock SuperNodes over plain HTTP, one server, nothing replicated
    impatient   the same, with every sleep in Flower's programs cut to 0.25 s: what is gained was waiting for a poll
    q8, f32     four validators, the updates in that encoding

Clients train nothing. Flower's return the weights that they got; those of the chain fetch the model and submit a change
that was made ahead, each in a process of its own. A round lasts from the end of the one before it to its own: the
average in Flower's ServerApp, the block that closed the round on the chain. The first round is left out. Processor time
is that of all processes, clients among them. Needs .venv-flower-1.41.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.flower_rounds import superlink_run
from benchmarks.flower_sites import ROOT, Site
from benchmarks.heirs import Heirs
from benchmarks.network import PATIENCE_MS
from chain.genesis import Params
from cli.http import Place, ask
from cli.localnets import LocalNetwork, Plan
from fl.client.network import connect_async
from fl.client.sync import connect

APP = ROOT / "benchmarks" / "flower_flat"
JOB = "flat"
WAYS = ("superlink", "impatient", "q8", "f32")
_LOOK_S = 0.2
_HANG_S = 900.0
_IMPATIENT = """\
import time

_sleep = time.sleep
time.sleep = lambda seconds: _sleep(min(seconds, 0.25))
"""
"""As sitecustomize, which Python imports before a program."""


@dataclass(frozen=True, slots=True)
class FlowerRound:
    """Moments by one clock."""

    sent_s: float
    asked_s: float
    """When the last client's app was asked."""
    answered_s: float
    averaged_s: float


def on_superlink(directory: Path, parameters: int, clients: int, rounds: int, impatient: bool) -> list[FlowerRound]:
    environment = impatience(directory) if impatient else {}
    settings = f"num-server-rounds={rounds} parameters={parameters} clients={clients}"
    with superlink_run(directory, APP, clients, settings, environment) as run:
        return list(_told(run, rounds))


def impatience(directory: Path) -> dict[str, str]:
    """The environment of programs that do not sleep for long."""
    site = directory / "impatient"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_IMPATIENT)
    return {"PYTHONPATH": str(site)}


def _told(run: subprocess.Popen[str], rounds: int) -> Iterator[FlowerRound]:
    assert run.stdout is not None
    found, last = 0, ""
    for text in run.stdout:
        if "flat round" in text:
            yield FlowerRound(*map(float, text.partition("flat round")[2].split()[1:5]))
            found += 1
        last = text if text.strip() else last
        if found == rounds:
            return
    raise SystemExit(f"flwr run ended after {found} rounds: {last}")


def on_validators(directory: Path, parameters: int, clients: int, rounds: int, encoding: str) -> list[float]:
    """When each round closed."""
    params = Params(aggregation_base_ms=PATIENCE_MS)
    net = LocalNetwork.create(directory / "net", Plan(4, trainers=clients, params=params))
    with ExitStack() as stack:
        for name in net.members:
            stack.callback(net.kill, name)
            net.start(name)
        net.wait_ready(net.members, 60.0)
        with connect(net.network_file, net.key_file("creator"), home=directory / "creator") as network:
            job = network.create_job(
                JOB,
                {"w": np.zeros(parameters, np.float32)},
                rounds=rounds,
                target=clients,
                encoding=encoding,
                privacy="visible-to-validators",
            ).id
        for number in range(clients):
            site = stack.enter_context(Site(directory, f"trainer-{number}"))
            command = [sys.executable, "-m", "benchmarks.flower_sizes", "--train-in", str(net.directory)]
            command += ["--place", str(number), "--parameters", str(parameters)]
            site.start("trainer", command, {"PYTHONPATH": str(ROOT)})
        return _closings(net, job, rounds)


def _closings(net: LocalNetwork, job: str, rounds: int) -> list[float]:
    door = Place(next(iter(net.members.values())).rpc)
    ends = time.monotonic() + _HANG_S
    found: list[float] = []
    while len(found) < rounds:
        reply = ask(door, "GET", f"/v1/jobs/{job}/rounds/{len(found) + 1}")
        if reply.status == 200 and reply.data["ended_ms"] is not None:
            if reply.data["phase"] != "closed":
                raise SystemExit(f"round {len(found) + 1} ended with {reply.data['code']}")
            found.append(reply.data["ended_ms"] / 1000)
            continue
        if time.monotonic() > ends:
            raise SystemExit(f"round {len(found) + 1} has not closed in {_HANG_S:.0f} s")
        time.sleep(_LOOK_S)
    return found


async def train(directory: Path, place: int, parameters: int) -> None:
    net = LocalNetwork.open(directory)
    change = {"w": np.random.default_rng(place).normal(0, 0.01, parameters).astype(np.float32)}
    home = directory / "homes" / str(place)
    async with await connect_async(net.network_file, net.key_file(net.trainers[place]), home=home) as network:
        job = await network.job(JOB)
        await job.join()
        async for task in job.tasks():
            await task.submit(delta=change, examples=10, feedback=False)


# Figures


def of_flower(rounds: Sequence[FlowerRound]) -> dict[str, Any]:
    """Where a round's time went: until all apps were asked, from there until the answers were there, and the rest."""
    stretches = {
        "until_asked_s": [each.asked_s - each.sent_s for each in rounds[1:]],
        "until_answered_s": [each.answered_s - each.asked_s for each in rounds[1:]],
        "averaging_s": [each.averaged_s - each.answered_s for each in rounds[1:]],
    }
    return {
        **of_closings([each.averaged_s for each in rounds]),
        "stretches": {name: round(median(values), 3) for name, values in stretches.items()},
    }


def of_closings(moments: Sequence[float]) -> dict[str, Any]:
    seconds = [later - earlier for earlier, later in pairwise(moments)]
    return {"rounds_s": [round(each, 3) for each in seconds], "median_s": round(median(seconds), 3)}


def measure(parameters: int, clients: int, rounds: int, ways: Sequence[str]) -> dict[str, Any]:
    """Of each way, with its ratio to the SuperLink's median; `rounds` besides the first."""
    found: dict[str, Any] = {}
    for way in ways:
        load = os.getloadavg()[0]
        directory = Path(tempfile.mkdtemp(prefix="quorate-flower-"))
        try:
            with Heirs() as heirs:
                if way in ("superlink", "impatient"):
                    told = on_superlink(directory, parameters, clients, rounds + 1, way == "impatient")
                    closings, found[way] = [each.averaged_s for each in told], of_flower(told)
                else:
                    closings = on_validators(directory, parameters, clients, rounds + 1, way)
                    found[way] = of_closings(closings)
            found[way]["cpu_s"] = round(heirs.between(closings[0], closings[-1]) / rounds, 2)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        found[way]["load_average"] = round(load, 1)
    with_ratios(found)
    return {"parameters": parameters, "clients": clients, "ways": found}


def with_ratios(ways: dict[str, Any]) -> None:
    reference = ways.get("superlink", {}).get("median_s")
    for each in ways.values():
        if reference:
            each["of_superlink"] = round(each["median_s"] / reference, 3)
    if reference and "impatient" in ways:
        ways["superlink"]["polling_share"] = round(1 - ways["impatient"]["median_s"] / reference, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description="A trainer of a local network.")
    parser.add_argument("--train-in", type=Path, required=True)
    parser.add_argument("--place", type=int, required=True)
    parser.add_argument("--parameters", type=int, required=True)
    given = parser.parse_args()
    asyncio.run(train(given.train_in, given.place, given.parameters))


if __name__ == "__main__":
    main()
