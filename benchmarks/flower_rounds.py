"""A round of an unmodified Flower app: on Flower's own SuperLink, and on four validators. All ways in one run.

    python -m benchmarks.flower_rounds --repeat 2 --rounds 6 --clients 2

    superlink   flower-superlink, stock SuperNodes
    gateway     four validators, a gateway a member, stock SuperNodes
    polled      the same, with gateways that answer at once where there is no message: SuperNodes then sleep for 3 s
    in process  four validators, the app loaded by `quorate train --flower`

The same app, data, clients, rounds and settings, without evaluation. A round lasts from the end of the one before it to
its own: `aggregate_train` in Flower's log, the closed round on the chain. The first round, in which apps are installed,
is left out. Needs .venv-flower-1.41.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.flower_sites import FLOWER, ROOT, Site, of_flower
from cli.http import Place as Door
from cli.http import ask
from cli.localnets import LocalNetwork, Plan, compile_kernels, free_port
from fl.client.flowergate.fab import build
from fl.client.flowergate.serve import Place, Serving, serve
from fl.client.network import connect_async
from fl.client.sync import connect

APP = ROOT / "examples" / "flower"
JOB = "digits"
_LOOK_S = 0.05
_HANG_S = 600.0
_CONFIG = "[superlink]\ndefault = 'here'\n[superlink.here]\naddress = '127.0.0.1:%d'\ninsecure = true\n"

Closings = list[float]


def node_config(number: int, clients: int) -> str:
    return f"partition-id={number} num-partitions={clients}"


# Flower's own


@contextmanager
def superlink_run(
    directory: Path, app: Path, clients: int, settings: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`flwr run` of the app on a SuperLink with as many SuperNodes, all of them Flower's own programs."""
    app = shutil.copytree(app, directory / "app")
    port, flwr = free_port(), directory / "flwr"
    flwr.mkdir()
    (flwr / "config.toml").write_text(_CONFIG % port)
    with ExitStack() as stack:
        link = stack.enter_context(Site(directory, "superlink", environment))
        command = [str(FLOWER / "flower-superlink"), "--insecure", "--port", str(port)]
        link.start("superlink", command, of_flower(flwr))
        link.wait_for("Uvicorn running", "superlink")
        for number in range(clients):
            site = stack.enter_context(Site(directory, f"node-{number}", environment))
            site.port = port
            site.start_supernode(node_config(number, clients))
            site.wait_for("SuperNode ID", "supernode")
        run = subprocess.Popen(
            [str(FLOWER / "flwr"), "run", str(app), "here", "--stream", "--run-config", settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            env={**os.environ, **of_flower(flwr), **(environment or {})},
        )
        try:
            yield run
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def on_superlink(directory: Path, clients: int, rounds: int) -> Closings:
    settings = f"fraction-evaluate=0.0 num-server-rounds={rounds}"
    with superlink_run(directory, APP, clients, settings) as run:
        return list(_aggregations(run, rounds))


def _aggregations(run: subprocess.Popen[str], rounds: int) -> Iterator[float]:
    assert run.stdout is not None
    found = 0
    for text in run.stdout:
        if "aggregate_train: Received" in text:
            yield time.time()
            found += 1
        if found == rounds:
            return
    raise SystemExit(f"flwr run ended after {found} rounds")


# Ours


def on_validators(directory: Path, clients: int, rounds: int, way: str) -> tuple[Closings, list[str]]:
    """When each round closed, and what the first member's gateway said."""
    net = LocalNetwork.create(directory / "net", Plan(4, trainers=clients))
    with ExitStack() as stack:
        for name in net.members:
            stack.callback(net.kill, name)
            net.start(name)
        net.wait_ready(net.members, 60.0)
        job = _create(net, directory / "creator", clients, rounds)
        sites = [stack.enter_context(Site(directory, f"site-{number}")) for number in range(clients)]
        for number, site in enumerate(sites):
            _start_member(net, site, number, clients, way)
        closings = list(_closings(net, job, rounds))
        return closings, sites[0].log("gateway").splitlines() if way != "in process" else []


def _create(net: LocalNetwork, home: Path, clients: int, rounds: int) -> str:
    bundle = build(APP)
    model = {"coef": np.zeros((10, 64), np.float32), "intercept": np.zeros(10, np.float32)}
    with connect(net.network_file, net.key_file("creator"), home=home) as network:
        return network.create_job(
            JOB,
            model,
            rounds=rounds,
            target=clients,
            privacy="visible-to-validators",
            config={"lr": 0.03},
            metrics=["train_loss"],
            app=f"flower:{bundle.client}",
            app_digest=bundle.digest,
        ).id


def _start_member(net: LocalNetwork, site: Site, number: int, clients: int, way: str) -> None:
    account = f"trainer-{number}"
    if way == "in process":
        given = ["train", JOB, "--flower", build(APP).client, "--node-config", node_config(number, clients)]
        client = ["--network", net.network_file, "--key", net.key_file(account), "--home", site.directory / "home"]
        command = [str(FLOWER / "quorate"), *given, *map(str, client)]
        site.start("trainer", command, {**of_flower(site.directory / "flwr"), "PYTHONPATH": f"{ROOT}:{APP}"})
        return
    if way == "gateway":
        site.start_gateway(net, account, JOB, APP)
    else:
        place = (net.network_file, net.key_file(account), site.directory / "home", site.port)
        command = [sys.executable, "-m", "benchmarks.flower_rounds", "--polled", *map(str, place)]
        site.start("gateway", command, {"PYTHONPATH": str(ROOT)})
    site.wait_for("is awaited")
    site.start_supernode(node_config(number, clients))


def _closings(net: LocalNetwork, job: str, rounds: int) -> Iterator[float]:
    door = Door(next(iter(net.members.values())).rpc)
    ends = time.monotonic() + _HANG_S
    for number in range(1, rounds + 1):
        while True:
            reply = ask(door, "GET", f"/v1/jobs/{job}/rounds/{number}")
            if reply.status == 200 and reply.data["phase"] == "closed":
                break
            if time.monotonic() > ends:
                raise SystemExit(f"round {number} has not closed in {_HANG_S:.0f} s")
            time.sleep(_LOOK_S)
        yield time.time()


async def polled(network_file: str, key: str, home: str, port: str) -> None:
    """A gateway that keeps nobody waiting."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    bundle = build(APP)
    async with await connect_async(network_file, key, home=home) as network:
        job = await network.job(JOB)
        await job.join()
        serving = Serving(bundle, bundle.records(), hold_s=0.0)
        await serve(job, serving, Place("127.0.0.1", int(port)), trains=True, evaluates=False, say=print)


# Figures

_SAID = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) round (\d+) (given to|answered by)")


def said(lines: Sequence[str]) -> Mapping[tuple[int, str], float]:
    """When a round was given to the SuperNode, and when its answer was there."""
    found = {}
    for line in lines:
        if match := _SAID.match(line):
            moment, number, what = match.groups()
            found[int(number), what] = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S,%f").timestamp()
    return found


@dataclass(slots=True)
class Way:
    """What was measured of one way, over all of its turns; the stretches of the first member's rounds."""

    rounds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    works: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)

    def add(self, closings: Closings, lines: Sequence[str]) -> None:
        told = said(lines)
        self.rounds += [later - earlier for earlier, later in pairwise(closings)]
        for number, (before, closed) in enumerate(pairwise(closings), 2):
            given, answered = told.get((number, "given to")), told.get((number, "answered by"))
            if given is not None and answered is not None:
                self.waits.append(given - before)
                self.works.append(answered - given)
                self.rest.append(closed - answered)

    def row(self, name: str, reference: float) -> str:
        middle = median(self.rounds)
        parts = ""
        if self.waits:
            told = (median(each) for each in (self.waits, self.works, self.rest))
            parts = "{:.1f} until it is asked, {:.1f} in the SuperNode, {:.1f} until closed".format(*told)
        ratio = f"{middle / reference:.2f}" if reference else ""
        return f"| {name} | {middle:.1f} | {min(self.rounds):.1f} to {max(self.rounds):.1f} | {ratio} | {parts} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--ways", default="superlink,gateway,polled,in process")
    parser.add_argument("--polled", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.polled:
        asyncio.run(polled(*given.polled))
        return
    compile_kernels()
    print(
        f"{given.clients} clients, {given.repeat} x {given.rounds} rounds, {os.cpu_count()} cores; load at each start:"
    )
    found = {way: Way() for way in given.ways.split(",")}
    # In turns, so that a machine which others use is as busy for each of them.
    for way in [*found] * given.repeat:
        print(f"  {way}: {os.getloadavg()[0]:.1f}", flush=True)
        directory = Path(tempfile.mkdtemp(prefix="quorate-flower-"))
        try:
            if way == "superlink":
                found[way].add(on_superlink(directory, given.clients, given.rounds), ())
            else:
                found[way].add(*on_validators(directory, given.clients, given.rounds, way))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    reference = median(found["superlink"].rounds) if "superlink" in found else 0.0
    print(
        "\n| way | median s a round | from … to | of the SuperLink's | stretches, s |\n| --- | --- | --- | --- | --- |"
    )
    for name, measured in found.items():
        print(measured.row(name, reference))


if __name__ == "__main__":
    main()
