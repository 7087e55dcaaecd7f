"""Clients of a local network of real processes, who remember what they were promised, and the checks of it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from chain.codec import encode, pack
from chain.keys import SigningKey
from chain.transaction import account_id, sign_transaction, tx_id
from cli.http import Place, ask
from cli.localnets import LocalNetwork
from fl.members import RegisterMember
from fl.records import Kind

HANG_S = 120.0
"""A guard against hanging, and no measure of anything."""

SILENT = -1

_DAY_MS = 86_400_000
_PROMISES = ("available", "final", "executed", "proven")


@dataclass(frozen=True)
class Promise:
    id: str
    by: str


def until(what: str, condition: Callable[[], bool], within_s: float = HANG_S) -> None:
    ends = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends, f"not within {within_s:g} s: {what}"
        time.sleep(0.1)


def registration(chain_id: bytes, name: str) -> tuple[bytes, str]:
    """A stranger's transaction, good for one execution: encoded, and its id."""
    key = SigningKey.from_seed(sha256(name.encode()).digest())
    body = encode(RegisterMember(name, key.public, ("trainer",)))
    soon_ms = int(time.time() * 1000) + _DAY_MS // 2
    tx = sign_transaction(key, chain_id, account_id(key.public), 0, soon_ms, Kind.REGISTER_MEMBER, body)
    return encode(tx), tx_id(tx).hex()


class Load:
    """So many clients, each sending one transaction after the other to whichever node takes it."""

    def __init__(self, network: LocalNetwork, clients: int = 4, label: str = "load") -> None:
        self._network = network
        self._label = label
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send_on, args=(number,)) for number in range(clients)]
        self.promises: list[Promise] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, more: int = 20) -> None:
        """Returns once so many more transactions have been acknowledged."""
        wanted = len(self.promises) + more
        until(f"{more} more acknowledged transactions", lambda: len(self.promises) >= wanted)

    def _send_on(self, client: int) -> None:
        names = list(self._network.members)
        sent = 0
        while not self._over.is_set():
            data, identity = registration(bytes.fromhex(self._network.chain_id), f"{self._label}-{client}-{sent}")
            sent += 1
            place = client
            while not self._over.is_set():
                place += 1
                name = names[place % len(names)]
                if submit(self._network, name, data):
                    self.promises.append(Promise(identity, name))
                    break
                self._over.wait(0.05)


def submit(network: LocalNetwork, name: str, data: bytes, wait: str = "available", timeout_s: float = 15.0) -> bool:
    """Whether this node acknowledged the transaction. Whatever else happens is no promise."""
    parts = urlsplit(network.members[name].rpc)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        headers = {"Content-Type": "application/msgpack"}
        connection.request("POST", f"/v1/transactions?wait={wait}", pack((data,)), headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
    if answer.status not in (200, 202):
        return False
    return bool(content["answers"][0].get("status") in _PROMISES)


def height(network: LocalNetwork, name: str, kind: str = "final_height") -> int:
    """`SILENT` if it does not answer in time."""
    said = network.status(name)
    return SILENT if said is None else int(said[kind])


def settle(network: LocalNetwork) -> None:
    """Returns once all have executed the same height; the load is over."""

    def level() -> bool:
        heights = {height(network, name, "executed_height") for name in network.members}
        return len(heights) == 1 and heights != {SILENT}

    until("all validators at one height", level)


def chain_of(network: LocalNetwork, name: str) -> dict[int, tuple[str, str, int]]:
    """By height: the block's digest, the state root that it names and of which height that is."""
    found: dict[int, tuple[str, str, int]] = {}
    cursor = ""
    while True:
        page = _patiently(network, name, f"/v1/blocks?limit=100{cursor}")
        for block in page["blocks"]:
            found[block["height"]] = (block["digest"], block["executed_root"], block["executed_height"])
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"


def check_nothing_is_lost(network: LocalNetwork, promises: list[Promise]) -> None:
    """Each acknowledged transaction was executed. Asked of the nodes in turn: that they all hold the same is for
    `check_no_divergence`."""
    names = list(network.members)
    for place, promise in enumerate(promises):
        name = names[place % len(names)]
        said = _patiently(network, name, f"/v1/transactions/{promise.id}")
        assert said["status"] in ("executed", "proven"), f"{promise} is {said['status']} on {name}"
        assert said["receipt"]["status"] == "ok", f"{promise}: {said}"


def check_no_divergence(network: LocalNetwork) -> int:
    """All validators hold the same blocks, whose headers name the same states; returns the newest height of all."""
    chains = {name: chain_of(network, name) for name in network.members}
    newest = min(max(chain) for chain in chains.values())
    first = next(iter(chains.values()))
    for name, chain in chains.items():
        for number in range(newest + 1):
            assert chain[number] == first[number], f"{name} differs at height {number}"
    statuses = [network.status(name) for name in network.members]
    roots = {(said["executed_height"], said["state_root"]) for said in statuses if said is not None}
    assert len(roots) == len({number for number, _ in roots})
    return newest


def _patiently(network: LocalNetwork, name: str, path: str) -> dict[str, Any]:
    """Asks, coming again when the node says that this is too fast."""
    ends = time.monotonic() + HANG_S
    while True:
        reply = ask(Place(network.members[name].rpc), "GET", path)
        if reply.status == 200:
            return reply.data
        assert reply.status in (429, 503) and time.monotonic() < ends, f"{name} {path}: {reply}"
        time.sleep(0.2)
