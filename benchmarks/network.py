"""Validators as real processes on this machine, while something is measured, and what they have done so far."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.links import received_bytes
from benchmarks.processes import Processors, cpu_seconds, roles
from chain.genesis import Params
from cli.http import Place, fetch
from cli.localnets import LocalNetwork, Plan, compile_kernels
from fl.client.errors import QuorateError, TimedOut, Unreachable

PATIENCE_MS = 600_000
"""For the aggregation of a round: the validators of a network do not share one machine's processors; these do."""
INTERVAL_MS = Params().min_block_interval_ms
_READY_S = 90.0
_LEVEL_S = 120.0
_LOOK_S = 0.02
_TOLD_S = 30.0
_EXECUTED = re.compile(r"^quorate_transactions_total\{result=\"ok\"\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """By validator, how many transactions it has executed, when it said so, and the bytes that its links received
    (empty where the system does not say); by role, processor time; and what the machine's processors had done."""

    at_s: float
    executed: Mapping[str, int]
    told_s: Mapping[str, float]
    cpu_s: Mapping[str, float]
    received: Mapping[str, int] = field(default_factory=dict)
    processors: Processors = field(default_factory=Processors.now)


class Validators:
    """Those of a local network that run."""

    def __init__(self, net: LocalNetwork) -> None:
        self.net = net
        self.others: dict[str, int] = {}
        """Processes beside the validators, by role: those of the load."""

    @property
    def names(self) -> list[str]:
        return [name for name in self.net.members if self.net.running(name)]

    def who(self) -> dict[str, int]:
        return roles(self.net) | self.others

    def with_load(self, role: str, pid: int) -> Callable[[], dict[str, int]]:
        """`who`, with this process among them."""
        self.others[role] = pid
        return self.who

    def forget(self, role: str) -> None:
        del self.others[role]

    def snapshot(self) -> Snapshot:
        used = {role: cpu_seconds(pid) for role, pid in self.who().items() if Path(f"/proc/{pid}").exists()}
        at_s, executed, told = time.monotonic(), {}, {}
        for name in self.names:
            executed[name] = executed_by(self.net.members[name].rpc)
            told[name] = time.monotonic()
        return Snapshot(at_s, executed, told, used, received_bytes(self.net))

    def heights(self, kind: str) -> dict[str, int]:
        return {name: int(self.status(name)[kind]) for name in self.names}

    def status(self, name: str) -> dict[str, Any]:
        return fetch(Place(self.net.members[name].rpc), "/v1/status")

    def level(self) -> None:
        """Returns once all that run have executed what any of them knows to be final."""
        ends, wanted = time.monotonic() + _LEVEL_S, max(self.heights("final_height").values())
        while min(self.heights("executed_height").values()) < wanted:
            if time.monotonic() > ends:
                raise TimedOut("NOT_LEVEL", f"Not all validators came to height {wanted}.", "Look at their logs.")
            time.sleep(_LOOK_S)


def executed_by(rpc: str) -> int:
    """Transactions with the receipt "ok", by the validator's state."""
    try:
        with urlopen(f"{rpc}/metrics", timeout=_TOLD_S) as answer:
            found = _EXECUTED.search(answer.read().decode())
    except OSError as error:
        raise Unreachable("UNREACHABLE", f"{rpc} does not answer: {error}.", "Look at its log.") from error
    if found is None:
        raise Unreachable("NO_FIGURE", f"{rpc} does not say how much it has executed.", "Is it another version?")
    return int(float(found[1]))


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a scenario is performed: a directory of its own, and somebody who is told how far it is."""

    directory: Path
    say: Callable[[str], None] = field(default=lambda text: None)

    @contextmanager
    def validators(
        self, count: int, trainers: int, update_rounds: int | None = None, interval_ms: int = INTERVAL_MS
    ) -> Iterator[Validators]:
        self.say("compiling, if that was not done on this machine")
        compile_kernels()
        place = Path(tempfile.mkdtemp(prefix="net-", dir=self.directory))
        params = Params(aggregation_base_ms=PATIENCE_MS, min_block_interval_ms=interval_ms)
        net = LocalNetwork.create(place, Plan(count, trainers, params=params, update_rounds=update_rounds))
        try:
            for name in net.members:
                net.start(name)
            net.wait_ready(net.members, _READY_S, lambda text: self.say(f"validators: {text}"))
            yield Validators(net)
        except QuorateError as error:
            error.todo = f"The validators' logs are kept: {_kept_logs(net)}"
            raise
        finally:
            net.stop(net.members)
            # The next case needs the room.
            shutil.rmtree(place)


def _kept_logs(net: LocalNetwork) -> Path:
    kept = Path(tempfile.mkdtemp(prefix="quorate-bench-logs-"))
    for name in net.members:
        shutil.copyfile(net.home(name) / "log.jsonl", kept / f"{name}.jsonl")
    return kept
