"""A door on a real store, with members for whom a test answers instead of a core: in the test's process or, run as a
program, in one of its own."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import uvloop

from chain.cid import cid_text
from chain.codec import encode
from chain.keys import SigningKey
from chain.unixfs import LEAF_BYTES, Manifest, leaf_range, manifest_cid, manifest_of
from consensus.effects import Now
from fl.access import Action, Leave, sign_leave
from fl.blobs import BlobKind
from node.buckets import Rate
from node.data.blobs import Blob, BlobLimits, BlobStore
from node.data.door.server import DOOR_LIMITS, BlobDoor, open_door
from node.data.messages import Standing
from node.ports import PortError
from node.ports.clock import SystemClock
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.offload import ThreadOffload
from node.rpc.limits import RpcLimits
from node.rpc.listening import RpcConfig
from tests.fl.builders import signing_key

CHAIN = sha256(b"the chain").digest()
UNLIMITED = Rate(1_000_000, 1_000_000)
LOOSE = replace(DOOR_LIMITS, requests=UNLIMITED)
STORE = BlobLimits(reserve_bytes=0)


class ShiftedClock:
    """The system's, with a wall that a test may move."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self.ahead_ms = 0

    def now(self) -> Now:
        now = self._clock.now()
        return Now(now.mono_ms, now.wall_ms + self.ahead_ms)

    def entropy(self, size: int) -> bytes:
        return self._clock.entropy(size)


class Silent(PortError):
    code = "CORE_SILENT"


@dataclass(frozen=True)
class Person:
    name: str
    key: SigningKey

    @property
    def account(self) -> bytes:
        return sha256(self.key.public).digest()


def person(name: str) -> Person:
    return Person(name, signing_key(name))


ROLES: Mapping[str, tuple[str, ...]] = {
    "alice": ("trainer",),
    "bob": ("trainer",),
    "auditor": ("auditor",),
    "operator": ("validator",),
    "stranger": (),
}


def blob_of(size: int, seed: int = 0) -> bytes:
    chance = Random(seed * 1_000_003 + size)
    return b"".join(chance.randbytes(min(LEAF_BYTES, size - start)) for start in range(0, size, LEAF_BYTES))


@dataclass(frozen=True)
class Upload:
    """A blob as its owner sees it."""

    data: bytes
    kind: BlobKind = BlobKind.MODEL

    @cached_property
    def manifest(self) -> Manifest:
        return manifest_of(self.data)

    @cached_property
    def cid(self) -> bytes:
        return manifest_cid(self.manifest)

    @property
    def path(self) -> str:
        return f"/v1/blobs/{cid_text(self.cid)}"

    def leaf(self, index: int) -> bytes:
        start, stop = leaf_range(len(self.data), index)
        return self.data[start:stop]


def signed_leave(
    who: Person, action: Action, cid: bytes, size: int, kind: int, until_ms: int, /, **changes: Any
) -> str:
    leave = Leave(CHAIN, who.account, who.key.public, action, cid, size, kind, until_ms)
    signed = sign_leave(who.key, replace(leave, **changes))
    return "Quorate " + base64.urlsafe_b64encode(encode(signed)).decode()


def leave_to_put(upload: Upload) -> str:
    """By the system's clock."""
    until_ms = SystemClock().now().wall_ms + 3_600_000
    return signed_leave(person("alice"), Action.PUT, upload.cid, len(upload.data), upload.kind, until_ms)


@dataclass
class Hosted:
    store: BlobStore
    door: BlobDoor
    clock: ShiftedClock
    session: aiohttp.ClientSession
    scheme: str = "http"
    standings: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    """Roles by key."""
    silent: bool = False
    asked: int = 0
    obtained: list[tuple[bytes, BlobKind, bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return self.door.address[1]

    async def ask(self, account: bytes, key: bytes) -> Standing:
        self.asked += 1
        if self.silent:
            raise Silent("the node does not answer")
        known = account == sha256(key).digest()
        return Standing(0, known, self.standings.get(key, ()) if known else ())

    async def obtain(self, cid: bytes, kind: BlobKind, account: bytes) -> Blob:
        self.obtained.append((cid, kind, account))
        staging = self.store.staging(cid)
        assert staging is not None
        for index in staging.missing():
            assert staging.put(index, self.remote[cid].leaf(index))
        return await self.store.publish(staging)

    remote: dict[bytes, Upload] = field(default_factory=dict)
    """What `obtain` finds elsewhere."""

    def leave(self, name: str, action: Action, cid: bytes, size: int = 0, kind: int = 0, /, **changes: Any) -> str:
        until_ms = self.clock.now().wall_ms + 3_600_000
        return signed_leave(person(name), action, cid, size, kind, until_ms, **changes)

    def putting(self, upload: Upload, name: str = "alice", **changes: Any) -> dict[str, str]:
        text = self.leave(name, Action.PUT, upload.cid, len(upload.data), upload.kind, **changes)
        return {"Authorization": text}

    def reading(self, cid: bytes, name: str = "alice", **changes: Any) -> dict[str, str]:
        return {"Authorization": self.leave(name, Action.READ, cid, **changes)}

    async def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        async with self.session.request(method, self.url + path, data=body, headers=headers) as answer:
            return answer.status, {name.lower(): text for name, text in answer.headers.items()}, await answer.read()

    async def offer(self, upload: Upload, name: str = "alice") -> tuple[int, Any]:
        headers = self.putting(upload, name) | {"Content-Type": "application/msgpack"}
        status, _, body = await self.call("POST", upload.path, encode(upload.manifest), headers)
        return status, json.loads(body)

    async def put_leaf(
        self, upload: Upload, index: int, data: bytes | None = None, name: str = "alice"
    ) -> tuple[int, Any]:
        body = upload.leaf(index) if data is None else data
        headers = self.putting(upload, name) | {"Content-Type": "application/octet-stream"}
        status, _, answer = await self.call("PUT", f"{upload.path}/leaves/{index}", body, headers)
        return status, json.loads(answer)

    async def put(self, upload: Upload, name: str = "alice") -> tuple[int, Any]:
        headers = self.putting(upload, name) | {"Content-Type": "application/octet-stream"}
        status, _, body = await self.call("PUT", upload.path, upload.data, headers)
        return status, json.loads(body)


@asynccontextmanager
async def hosted(
    root: Path, limits: RpcLimits = LOOSE, store_limits: BlobLimits = STORE, **config: Any
) -> AsyncIterator[Hosted]:
    disk, kv, offload, clock = FileDisk(root / "disk"), LevelKv(root / "rows"), ThreadOffload(2), ShiftedClock()
    store = await BlobStore.open(disk, kv, clock, offload, store_limits)
    async with aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0)) as session:
        host = Hosted.__new__(Hosted)
        config = {"limits": limits, **config}

        async def ask(account: bytes, key: bytes) -> Standing:
            return await host.ask(account, key)

        async def obtain(cid: bytes, kind: BlobKind, account: bytes) -> Blob:
            return await host.obtain(cid, kind, account)

        door = await open_door(store, clock, offload, CHAIN, ask, obtain, RpcConfig(**config))
        host.__init__(store, door, clock, session)  # type: ignore[misc]
        host.standings = {person(name).key.public: roles for name, roles in ROLES.items()}
        try:
            yield host
        finally:
            await door.close()
            await store.close()
            offload.close()
            kv.close()
            disk.close()


async def _serve(root: Path) -> None:
    """Prints one line of JSON once it answers, and serves until its input ends."""
    async with hosted(root) as host:
        upload = Upload(blob_of(3 * LEAF_BYTES + 5), BlobKind.MODEL)
        assert (await host.put(upload))[0] == 200
        print(json.dumps({"url": host.url, "cid": cid_text(upload.cid), "block": cid_text(upload.cid)}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(Path(sys.argv[1])))
