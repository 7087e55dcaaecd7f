"""The processes of the floor: started, told when to go, and asked what they used."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.floor import large, small, wire
from benchmarks.floor.steps import Steps
from benchmarks.floor.workload import FloorResult, Workload

_PATIENCE_S = 300.0


def run_floor(workload: Workload, directory: Path | None = None) -> FloorResult:
    """`directory` is where validators write: on the disk that the product is measured on. All that is written is gone
    in the end."""
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="quorate-floor-", dir=directory))
        validators = []
        for index in range(workload.validators):
            home = Path(place) / str(index)
            home.mkdir()
            validators.append(_Child(validator, workload, index, home))
            stack.callback(validators[-1].end)
        ports = [each.hear() for each in validators]
        client_ = _Child(client, workload, ports)
        stack.callback(client_.end)
        for each in validators:
            each.tell(ports)
        everyone = [*validators, client_]
        for each in everyone:
            each.hear()
        passes = [_pass(number, validators, client_) for number in range(workload.passes + 1)][1:]
    names = {step for found in passes for step in found.cpu_s}
    steps = {step: median(found.cpu_s.get(step, 0.0) for found in passes) for step in sorted(names)}
    validator_cpu_s = median(each.validator_cpu_s for each in passes)
    client_cpu_s = median(each.client_cpu_s for each in passes)
    steps["other"] = max(0.0, validator_cpu_s + client_cpu_s - sum(steps.values()))
    seconds = tuple(each.seconds for each in passes)
    return FloorResult(workload, seconds, steps, client_cpu_s, validator_cpu_s, passes[-1].came_to, load)


@dataclass(frozen=True, slots=True)
class _Pass:
    seconds: float
    client_cpu_s: float
    validator_cpu_s: float
    cpu_s: dict[str, float]
    came_to: bytes


def _pass(number: int, validators: list[_Child], sender: _Child) -> _Pass:
    everyone = [*validators, sender]
    for each in everyone:
        each.tell(number)
    for each in everyone:
        each.hear()
    sender.tell("go")
    began, client_cpu_s, steps = sender.hear()
    over = [each.hear() for each in validators]
    results = {result for _, _, _, result in over}
    if len(results) != 1:
        raise SystemExit("the validators of the floor came to different sums")
    cpu_s = dict(steps)
    for _, _, used, _ in over:
        for step, seconds in used.items():
            cpu_s[step] = cpu_s.get(step, 0.0) + seconds
    last = max(ended for ended, _, _, _ in over)
    return _Pass(last - began, client_cpu_s, sum(used for _, used, _, _ in over), cpu_s, results.pop())


class _Child:
    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, *arguments), daemon=True)
        self._process.start()
        other.close()

    def tell(self, message: object) -> None:
        self._pipe.send(message)

    def hear(self) -> Any:
        if not self._pipe.poll(_PATIENCE_S):
            raise SystemExit("a process of the floor hangs")
        return self._pipe.recv()

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def validator(pipe: Connection, asked: Workload, index: int, home: Path) -> None:
    with wire.listen() as listener:
        pipe.send(listener.getsockname()[1])
        peers = wire.Peers(index, listener, pipe.recv())
    kind = small.Validator if asked.inline else large.Validator
    working = kind(asked, home, peers)
    pipe.send("ready")
    while True:
        working.prepare(pipe.recv())
        before = time.process_time()
        pipe.send("ready")
        working.wait()
        ended = time.monotonic()
        pipe.send((ended, time.process_time() - before, working.steps.taken(), working.result()))


def client(pipe: Connection, asked: Workload, ports: list[int]) -> None:
    connections = [wire.dial(port, wire.CLIENT) for port in ports]
    sending = (small.Client if asked.inline else large.Client)(asked, connections)
    pipe.send("ready")
    while True:
        pipe.recv()
        pipe.send("ready")
        pipe.recv()
        steps = Steps()
        threads = [threading.Thread(target=sending.send, args=(target, steps)) for target in range(len(ports))]
        began, before = time.monotonic(), time.process_time()
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        pipe.send((began, time.process_time() - before, steps.taken()))
