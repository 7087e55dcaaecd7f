"""Every step that a client takes on the disk or the network, by number and name, with somebody in the way of each.

Run as a program it is a trainer that answers one round and kills itself at the step of a given name:

    python -m tests.fl.client.steps NETWORK KEY HOME ROUND NAME
"""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from fl.client.network import AsyncNetwork, connect_async
from fl.client.nodes import Nodes
from fl.client.transfer.doors import Doors

LOSS = {"loss": 1.0}


class Killed(BaseException):
    """The process is dead: no handler and no `finally` of it does anything more to the disk or the network."""


@dataclass
class Steps:
    """`before` is called with the number and the name of each step, and stands in its way by raising."""

    before: Callable[[int, str], None] = lambda number, name: None
    taken: list[str] = field(default_factory=list)
    dead: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> None:
        with self._lock:
            if self.dead:
                raise Killed
            self.taken.append(name)
            try:
                self.before(len(self.taken), name)
            except Killed:
                self.dead = True
                raise

    @contextmanager
    def watched(self, home: Path) -> Iterator[None]:
        """What is done in this process meanwhile, to files of this home and to nodes."""
        own = str(home)

        def named(what: str, real: Any, place: int) -> Any:
            def call(*arguments: Any, **more: Any) -> Any:
                path = str(arguments[place])
                if path.startswith(own):
                    self.take(f"{what} {_short(path, own)}")
                return real(*arguments, **more)

            return call

        def nameless(what: str, real: Any) -> Any:
            def call(descriptor: int, *arguments: Any) -> Any:
                path = os.readlink(f"/proc/self/fd/{descriptor}")
                if path.startswith(own):
                    self.take(f"{what} {_short(path, own)}")
                return real(descriptor, *arguments)

            return call

        real_open = builtins.open

        def opened(path: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
            if set(mode) & set("wxa+") and str(path).startswith(own):
                self.take(f"open {_short(str(path), own)}")
            return real_open(path, mode, *arguments, **more)

        fetch, request = Nodes._fetch, Doors._request

        async def fetched(nodes: Nodes, node: Any, asked: Any) -> Any:
            self.take(f"{asked.method} {asked.path}")
            return await fetch(nodes, node, asked)

        async def requested(doors: Doors, node: Any, url: str, asked: Any, permit: Any = None) -> Any:
            self.take(f"{asked.method} /v1/blobs{asked.path}")
            return await request(doors, node, url, asked, permit)

        with (
            patch.object(os, "replace", named("replace", os.replace, 1)),
            patch.object(os, "link", named("link", os.link, 1)),
            patch.object(os, "unlink", named("unlink", os.unlink, 0)),
            patch.object(os, "truncate", named("truncate", os.truncate, 0)),
            patch.object(os, "utime", named("touch", os.utime, 0)),
            patch.object(os, "fsync", nameless("sync", os.fsync)),
            patch.object(os, "ftruncate", nameless("truncate", os.ftruncate)),
            patch.object(os, "pwrite", nameless("write", os.pwrite)),
            patch.object(builtins, "open", opened),
            patch.object(Nodes, "_fetch", fetched),
            patch.object(Doors, "_request", requested),
        ):
            yield


def _short(path: str, home: str) -> str:
    """Without the directories of chain and account, and marked where the name is one for the time being."""
    parts = Path(path).relative_to(home).parts
    known = ("outbox", "receipts", "models", "feedback", "handovers")
    start = next((place for place, part in enumerate(parts) if part in known), len(parts) - 1)
    kept = parts[start:]
    name = kept[-1]
    shown = f"temporary{'.blob' if name.startswith('.blob') else ''}" if name.startswith(".") else name
    return "/".join((*kept[:1], shown)) if len(kept) > 1 else shown


def trained(model: dict[str, Any], seed: int) -> dict[str, NDArray[np.float32]]:
    """No two runs of a training come to the same."""
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal(array.shape).astype(np.float32) for name, array in model.items()}


async def answer(
    settings: dict[str, Any],
    round: int,
    seed: int,
    steps: Steps,
    connected: Callable[[AsyncNetwork], None] = lambda network: None,
) -> None:
    """One life of a trainer: what is in flight, then this round, if it is still asked; and no other."""
    network = await connect_async(**settings)
    connected(network)
    try:
        job = await network.job("digits")
        async with aclosing(job.tasks()) as tasks:
            async for task in tasks:
                if task.round == round:
                    steps.take("trained")
                    receipt = await task.submit(delta=trained(task.model, seed), examples=1, metrics=LOSS)
                    assert receipt.accepted, receipt
                return
    finally:
        # Sockets are closed for the dead by the system.
        await network.nodes.close()


def main(network: str, key: str, home: str, round: str, name: str) -> None:
    def kill(_: int, step: str) -> None:
        if fnmatch(step, name):
            os.kill(os.getpid(), signal.SIGKILL)

    steps = Steps(kill)
    settings = {"network": network, "key": key, "home": home}
    with steps.watched(Path(home)):
        asyncio.run(answer(settings, int(round), os.getpid(), steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
