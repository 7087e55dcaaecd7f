"""Rounds of one job as they go by: when each opened, what had been used by then, and that they closed alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from benchmarks.figures import Check
from benchmarks.network import Snapshot, Validators
from cli.http import Place, ask, fetch
from fl.client.errors import QuorateError, TimedOut

_LOOK_S = 0.05
_HELD_S = 120.0
_OPEN_S = 300.0
_PART = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Round:
    """From its opening to its end, by the time of blocks; what processes had used at both ends."""

    number: int
    seconds: float
    window: tuple[Snapshot, Snapshot]


def followed(
    running: Validators, job: str, rounds: int, patience_s: float, check: Callable[[], None] = lambda: None
) -> list[Round]:
    """All rounds, once the last of them has closed; `check` raises if waiting is of no use any more."""
    taken, found = [_opened(running, job, 1, patience_s, check)], []
    for number in range(1, rounds + 1):
        ended = _ended(running, job, number, patience_s, check)
        taken.append(running.snapshot())
        seconds = (ended["ended_ms"] - ended["opened_ms"]) / 1000
        found.append(Round(number, seconds, (taken[-2], taken[-1])))
    return found


def _opened(running: Validators, job: str, number: int, patience_s: float, check: Callable[[], None]) -> Snapshot:
    _until(running, job, number, lambda found: True, patience_s, check)
    return running.snapshot()


def _ended(running: Validators, job: str, number: int, patience_s: float, check: Callable[[], None]) -> dict[str, Any]:
    found = _until(running, job, number, lambda found: found["ended_ms"] is not None, patience_s, check)
    if found["phase"] != "closed":
        raise QuorateError("ROUND_FAILED", f"Round {number} ended with {found['code']}.", "Look at the logs.")
    return found


def _until(
    running: Validators,
    job: str,
    number: int,
    wanted: Callable[[dict[str, Any]], bool],
    patience_s: float,
    check: Callable[[], None],
) -> dict[str, Any]:
    place, ends = Place(running.net.members["v0"].rpc), time.monotonic() + patience_s
    while True:
        reply = ask(place, "GET", f"/v1/jobs/{job}/rounds/{number}", timeout_s=60)
        if reply.status == 200 and wanted(reply.data):
            return reply.data
        check()
        if time.monotonic() > ends:
            raise TimedOut("ROUND_STUCK", f"Round {number} went no further in {patience_s:g} s.", "Look at the logs.")
        time.sleep(_LOOK_S)


def is_open(running: Validators, job: str, number: int, check: Callable[[], None]) -> None:
    """Returns once it is."""
    _until(running, job, number, lambda found: True, _OPEN_S, check)


def rounds_closed(running: Validators, job: str) -> int:
    """The number of the newest, as the first validator has it."""
    found = fetch(Place(running.net.members["v0"].rpc), f"/v1/jobs/{job}/rounds?limit=2")["rounds"]
    return max((int(each["number"]) for each in found if each["phase"] == "closed"), default=0)


def closed_alike(running: Validators, job: str, rounds: Sequence[int]) -> list[Check]:
    """Every round closed, with one model on all validators, each of whom holds the last one's bytes."""
    running.level()
    models: dict[int, set[tuple[str, str]]] = {}
    for name in running.names:
        for number in rounds:
            found = ask(Place(running.net.members[name].rpc), "GET", f"/v1/jobs/{job}/rounds/{number}").data
            models.setdefault(number, set()).add((found["phase"], found["model"]))
    alike = all(len(each) == 1 and next(iter(each))[0] == "closed" for each in models.values())
    _, last = next(iter(models[rounds[-1]]))
    held = {_held(running.net.members[name].rpc, last) for name in running.names}
    return [
        Check(f"{len(models)} rounds closed with one model on all validators", alike),
        Check("all validators hold the same bytes of the last model", len(held) == 1),
    ]


def _held(rpc: str, cid: str) -> bytes:
    """The digest of the model as this validator gives it. A round ends with a quorum's signatures: the last validator
    may still be computing."""
    ends = time.monotonic() + _HELD_S
    while True:
        running = sha256()
        try:
            with urlopen(f"{rpc}/v1/models/{cid}", timeout=_HELD_S) as answer:
                while part := answer.read(_PART):
                    running.update(part)
            return running.digest()
        except HTTPError:
            if time.monotonic() > ends:
                raise
        time.sleep(_LOOK_S)
