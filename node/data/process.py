"""The data process itself: from the first frame on its pipe to the pipe's end.

It is the child of a core and has no life without it. Signals for the whole group are the core's to heed: this process
ends when its pipe does, whatever ended the core, and then at once, for what it has acknowledged is on the disk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import uvloop

from chain.codec import decode
from chain.keys import SigningKey
from node import garbage
from node.buckets import Rate
from node.data.arrivals import Elsewhere
from node.data.blobs import BlobLimits, BlobStore
from node.data.door.server import DOOR_LIMITS, DOOR_SOCKET, open_door
from node.data.messages import FRAME_BYTES
from node.data.service import DataLimits, DataNode
from node.data.setup import Setup
from node.logs import logging_to
from node.ports import AlreadyLocked, DataPorts, PortError
from node.ports.bulk import TlsBulk
from node.ports.clock import SystemClock
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.offload import ThreadOffload
from node.ports.pipe import DataEnd
from node.rpc.listening import RpcConfig

log = logging.getLogger("quorate.data")

LOCK = "lock"
ROWS = "rows"

ORDERLY_S = 1.0
"""After the end of the pipe, for what is still running on threads; then the process is gone in any case."""
LOCKED_S = 5.0
"""How long an earlier data process of this directory is given to end."""
NICENESS = 10
AUTOGROUP = Path("/proc/self/autogroup")


def main(descriptor: int) -> int:
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _step_back()
    _open_many()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_live(descriptor))


def _step_back() -> None:
    """Ordering comes first: bytes in bulk get what it leaves of the processors."""
    with suppress(OSError):
        os.nice(NICENESS)
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    # Linux shares the processors among sessions first and by niceness only within one. Of one session with this
    # process, the core would pay for its bytes; and of two, niceness is the session's.
    with suppress(OSError):
        os.setsid()
        AUTOGROUP.write_text(str(NICENESS))


def _open_many() -> None:
    """A map holds a descriptor, and a round's updates are mapped together."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _live(descriptor: int) -> int:
    core = await DataEnd.open(descriptor, ended=_gone_soon)
    first = await core.receive()
    if not isinstance(first, bytes):
        return 0
    setup = decode(Setup, first, FRAME_BYTES)
    with logging_to(None, setup.log_level, setup.log_format):
        try:
            await _work(core, setup)
            return 0
        except (PortError, OSError) as error:
            code = error.code if isinstance(error, PortError) else "CANNOT_START"
            log.critical("the data process ends", extra={"code": code, "reason": str(error)})
        except Exception:
            log.critical("the data process ends", extra={"code": "FAULT"}, exc_info=True)
        finally:
            await core.close()
    return 1


def _gone_soon() -> None:
    """By a thread, for at the end the event loop waits for others."""
    last = threading.Timer(ORDERLY_S, os._exit, (0,))
    last.daemon = True
    last.start()


async def _work(core: DataEnd, setup: Setup) -> None:
    async with _ports(core, setup) as ports:
        node = await DataNode.open(
            ports,
            _limits(setup),
            elsewhere=_gateways(setup, ports) if setup.gateways else None,
            check_kernels=_check_kernels,
        )
        door = await open_door(
            node.store,
            ports.clock,
            ports.offload,
            setup.chain,
            node.questions.standing,
            node.obtain,
            _at_the_door(setup),
        )
        node.gauges += (door.figures, _memory)
        try:
            garbage.settle()
            await node.run(door.address)
        finally:
            await door.close()


@asynccontextmanager
async def _ports(core: DataEnd, setup: Setup) -> AsyncIterator[DataPorts]:
    root = Path(setup.data_dir)
    disk = FileDisk(root)
    try:
        await _locked(disk)
        kv = LevelKv(root / ROWS)
        offload = ThreadOffload(setup.threads)
        try:
            link = SigningKey(setup.link_seed)
            bulk = TlsBulk(link, setup.consensus_key, setup.chain, (setup.bulk.host, setup.bulk.port))
            yield DataPorts(core, bulk, disk, kv, offload, SystemClock())
        finally:
            offload.close()
            kv.close()
    finally:
        disk.close()


async def _locked(disk: FileDisk) -> None:
    """The process before this one may still be ending."""
    loop = asyncio.get_running_loop()
    until = loop.time() + LOCKED_S
    while True:
        try:
            disk.lock(LOCK)
            return
        except AlreadyLocked:
            if loop.time() > until:
                raise
        await asyncio.sleep(LOCKED_S / 50)


def _limits(setup: Setup) -> DataLimits:
    blobs = BlobLimits(
        reserve_bytes=setup.reserve_bytes,
        member_bytes=setup.member_bytes,
        lease_ms=setup.lease_ms,
        blob_bytes=setup.blob_bytes,
    )
    return DataLimits(blobs, sums_bytes=setup.sums_bytes, downloads=setup.downloads)


def _at_the_door(setup: Setup) -> RpcConfig:
    return RpcConfig(
        host=setup.door.host,
        port=setup.door.port,
        tls_cert=Path(setup.tls_cert) if setup.tls_cert else None,
        tls_key=Path(setup.tls_key) if setup.tls_key else None,
        # Beside the core's own, whose path is known to be short enough.
        admin_socket=Path(setup.data_dir).parent / DOOR_SOCKET,
        cors=setup.cors,
        limits=replace(DOOR_LIMITS, requests=Rate(setup.requests_per_s, 2 * setup.requests_per_s)),
    )


def _gateways(setup: Setup, ports: DataPorts) -> Callable[[BlobStore], Elsewhere]:
    # An HTTP client's memory is for those who have named somebody to ask.
    from fl.client.transfer.ipfs import Source
    from node.data.outside import Outside

    sources = [Source.of(url) for url in setup.gateways]
    return lambda store: Outside(store, ports.offload, sources).obtain


def _check_kernels() -> None:
    from fl.kernels.golden import check_golden

    check_golden()


def _memory() -> dict[str, int]:
    """What is this process's own, mapped files apart."""
    with open("/proc/self/status", encoding="ascii") as status:
        rows = dict(line.split(":", 1) for line in status)
    return {"rss_anon_bytes": 1024 * int(rows["RssAnon"].split()[0])}
