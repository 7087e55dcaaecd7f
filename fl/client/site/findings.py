"""What a preflight is given, and what it finds: a line for each check, in the order in which they are shown."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fl.client.errors import QuorateError
from fl.client.site.policy import PolicyFile
from fl.records import Role

PATIENCE_S = 3.0
ROOM_BYTES = 64 * 1024 * 1024
"""For receipts and what is in flight, whatever the job."""


class State(StrEnum):
    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State
    found: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """What somebody is about to take part with."""

    network: Path
    key: Path | None
    passphrase: bytes | None
    home: Path
    policy: PolicyFile
    job: str | None = None
    account: bytes | None = None
    """If it is not named after the key: once keys have been rotated."""
    role: str = Role.TRAINER.value
    accept: str | None = None
    dataset: str | None = None
    beside: Path = Path()
    """Where own code lies."""
    kernel_version: int | None = None
    """Of the kernels here; None where there are none."""
    patience_s: float = PATIENCE_S
    now_s: Callable[[], float] = time.time
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free


class Findings:
    """The checks so far, in the order in which they are shown."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def ok(self, name: str, found: str) -> None:
        self.checks.append(Check(name, State.OK, found))

    def warn(self, name: str, found: str, todo: str) -> None:
        self.checks.append(Check(name, State.WARN, found, todo))

    def fail(self, name: str, found: str, todo: str) -> None:
        self.checks.append(Check(name, State.FAIL, found, todo))

    @contextmanager
    def failing(self, name: str) -> Iterator[None]:
        """An error of what is done within is what the check has found."""
        try:
            yield
        except QuorateError as error:
            self.fail(name, f"{error.what} [{error.code}]", error.todo)


def nearest(path: Path) -> Path:
    """What there is of it."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_room(found: Findings, given: Given, wanted: int, name: str, what: str) -> None:
    place = nearest(given.home)
    free = given.free_bytes(place if place.is_dir() else place.parent)
    text = f"{_size(free)} are free; {what} take up to {_size(wanted)}"
    todo = f"Make room, or name a home on another disk: {given.home} is on this one."
    if free < wanted:
        found.fail(name, text, todo)
    elif free < 2 * wanted:
        found.warn(name, text, todo)
    else:
        found.ok(name, text)


def _size(count: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
