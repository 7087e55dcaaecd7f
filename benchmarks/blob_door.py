"""How many MiB a second the data process's door takes and gives on loopback, beside aiohttp doing nothing, as JSON.

    python -m benchmarks.blob_door [--mib 512] [--lanes 4] [--repeats 3] [--directory DIR] [--out blob_door.json]

Server and client are a process each. The client's lanes are threads with a plain socket each, so that little of what
is measured is its own. `door` hashes each leaf, writes it, publishes the blob durably and gives it from its mapped
file; `bare` is aiohttp on the same loop that throws away what comes and gives bytes from memory. Rates move with
whatever else the machine does, the server's processor time hardly. `anon_mib` is what the anonymous memory of `door`
grew by.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

import uvloop
from aiohttp import web

from chain.cid import cid_text
from chain.codec import encode
from chain.keys import SigningKey
from chain.unixfs import LEAF_BYTES, leaf_range, manifest_cid, manifest_of
from fl.access import Action, Leave, sign_leave
from fl.blobs import BlobKind
from node.buckets import Rate
from node.data.blobs import Blob, BlobLimits, BlobStore
from node.data.door.server import DOOR_LIMITS, open_door
from node.data.messages import Standing
from node.ports import PeerGone
from node.ports.clock import SystemClock
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.offload import ThreadOffload
from node.rpc.listening import RpcConfig

MIB = 1024 * 1024
CHAIN = bytes(32)
KEY = SigningKey(bytes(range(32)))
ACCOUNT = sha256(KEY.public).digest()
PIECE_BYTES = 256 * 1024


# Servers


async def _door(root: Path, told: Connection) -> None:
    disk, kv, offload, clock = FileDisk(root / "disk"), LevelKv(root / "rows"), ThreadOffload(2), SystemClock()
    limits = BlobLimits(reserve_bytes=0, member_bytes=1 << 40)
    store = await BlobStore.open(disk, kv, clock, offload, limits)

    async def ask(account: bytes, key: bytes) -> Standing:
        return Standing(0, True, ("trainer",))

    async def obtain(cid: bytes, kind: BlobKind, account: bytes) -> Blob:
        raise PeerGone("this door stands alone: there is nobody to obtain a blob from")

    unlimited = replace(DOOR_LIMITS, requests=Rate(1e9, 1e9))
    door = await open_door(store, clock, offload, CHAIN, ask, obtain, RpcConfig(limits=unlimited))
    told.send(door.address[1])
    await asyncio.get_running_loop().run_in_executor(None, told.recv)
    await door.close()
    await store.close()


async def _bare(told: Connection) -> None:
    data = memoryview(bytes(LEAF_BYTES))

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "PUT":
            async for _ in request.content.iter_any():
                pass
            return web.Response(body=b"{}")
        first, last = request.headers["Range"].removeprefix("bytes=").split("-")
        response = web.StreamResponse(status=206)
        response.content_length = left = int(last) + 1 - int(first)
        await response.prepare(request)
        while left:
            await response.write(data[: min(left, PIECE_BYTES)])
            left -= min(left, PIECE_BYTES)
        return response

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    told.send(runner.addresses[0][1])
    await asyncio.get_running_loop().run_in_executor(None, told.recv)
    await runner.cleanup()


def _serve(what: str, root: Path, told: Connection) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_door(root, told) if what == "door" else _bare(told))
    told.send(None)


@contextmanager
def served(what: str, root: Path) -> Iterator[tuple[int, int]]:
    """Its port, and its process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(what, root, theirs))
    process.start()
    try:
        yield ours.recv(), process.pid or 0
    finally:
        ours.send("over")
        process.join(20)
        if process.is_alive():
            process.kill()


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say RssAnon")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# The client


class Lane:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(2 * LEAF_BYTES)

    def close(self) -> None:
        self._socket.close()

    def ask(self, head: str, body: memoryview | bytes = b"") -> bytes:
        self._socket.sendall(f"{head}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        if body:
            self._socket.sendall(body)
        view, filled = memoryview(self._buffer), 0
        end = length = -1
        while end < 0 or filled < end + length:
            size = self._socket.recv_into(view[filled:])
            if not size:
                raise ConnectionError("the server hung up")
            filled += size
            if end < 0 and (end := self._buffer.find(b"\r\n\r\n", 0, filled)) >= 0:
                end += 4
                lines = bytes(view[:end]).decode().lower().split("\r\n")
                if " 20" not in lines[0]:
                    raise RuntimeError(bytes(view[:filled]).decode())
                length = int(next(line.split()[1] for line in lines if line.startswith("content-length")))
        return bytes(view[end : end + length]) if length < PIECE_BYTES else b""


def in_lanes(lanes: list[Lane], count: int, work: Callable[[Lane, int], object]) -> None:
    waiting: SimpleQueue[int | None] = SimpleQueue()
    for each in [*range(count), *[None] * len(lanes)]:
        waiting.put(each)

    def run(lane: Lane) -> None:
        while (index := waiting.get()) is not None:
            work(lane, index)

    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(run, lanes))


def leave_for(cid: bytes, size: int) -> str:
    until_ms = time.time_ns() // 1_000_000 + 3_600_000
    leave = Leave(CHAIN, ACCOUNT, KEY.public, Action.PUT, cid, size, BlobKind.MODEL, until_ms)
    return "Quorate " + base64.urlsafe_b64encode(encode(sign_leave(KEY, leave))).decode()


Step = Callable[[], object]


def door_steps(lanes: list[Lane], data: memoryview) -> tuple[Step, Step]:
    """To put the blob, the last answer being that it is durable; and to get it."""
    manifest, size = manifest_of(data), len(data)
    cid = manifest_cid(manifest)
    path, permit = f"/v1/blobs/{cid_text(cid)}", f"\r\nAuthorization: {leave_for(cid, size)}"

    def put_leaf(lane: Lane, index: int) -> None:
        start, stop = leaf_range(size, index)
        octets = "\r\nContent-Type: application/octet-stream"
        lane.ask(f"PUT {path}/leaves/{index} HTTP/1.1{permit}{octets}", data[start:stop])

    def put() -> None:
        lanes[0].ask(f"POST {path} HTTP/1.1{permit}\r\nContent-Type: application/msgpack", encode(manifest))
        in_lanes(lanes, manifest.count, put_leaf)

    def get_leaf(lane: Lane, index: int) -> None:
        start, stop = leaf_range(size, index)
        lane.ask(f"GET {path} HTTP/1.1\r\nRange: bytes={start}-{stop - 1}")

    return put, lambda: in_lanes(lanes, manifest.count, get_leaf)


def bare_steps(lanes: list[Lane], data: memoryview) -> tuple[Step, Step]:
    def put(lane: Lane, index: int) -> None:
        lane.ask("PUT / HTTP/1.1", data[index * LEAF_BYTES : (index + 1) * LEAF_BYTES])

    def get(lane: Lane, index: int) -> None:
        lane.ask(f"GET / HTTP/1.1\r\nRange: bytes=0-{LEAF_BYTES - 1}")

    count = len(data) // LEAF_BYTES
    return lambda: in_lanes(lanes, count, put), lambda: in_lanes(lanes, count, get)


@dataclass
class Figure:
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def measure(self, pid: int, step: Step) -> None:
        cpu, begin = cpu_seconds(pid), time.perf_counter()
        step()
        self.seconds.append(time.perf_counter() - begin)
        self.cpu_seconds.append(cpu_seconds(pid) - cpu)

    def told(self, mib: int) -> dict[str, float]:
        rates = sorted(mib / each for each in self.seconds)
        return {
            "mib_per_second": round(statistics.median(rates)),
            "low": round(rates[0]),
            "high": round(rates[-1]),
            "cpu_seconds_per_gib": round(statistics.median(self.cpu_seconds) * 1024 / mib, 2),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=None, help="on the disk that is to be measured")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    figures = {name: Figure() for name in ("door put", "door get", "bare put", "bare get")}
    grown, size = 0, given.mib * MIB
    with (
        tempfile.TemporaryDirectory(dir=given.directory) as root,
        served("door", Path(root)) as door,
        served("bare", Path(root)) as bare,
    ):
        for _ in range(given.repeats):
            data = memoryview(os.urandom(size))
            before = anonymous_bytes(door[1])
            for what, (port, pid), steps in (("door", door, door_steps), ("bare", bare, bare_steps)):
                lanes = [Lane(port) for _ in range(given.lanes)]
                for name, step in zip(("put", "get"), steps(lanes, data), strict=True):
                    figures[f"{what} {name}"].measure(pid, step)
                for lane in lanes:
                    lane.close()
            grown = max(grown, anonymous_bytes(door[1]) - before)
    result = {
        "mib": given.mib,
        "lanes": given.lanes,
        "cpus": os.cpu_count(),
        "figures": {name: figure.told(given.mib) for name, figure in figures.items()},
        "anon_mib": round(grown / MIB, 1),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
