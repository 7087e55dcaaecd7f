"""The data process itself, as the child of a core: real files, real sockets, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from benchmarks.dataprocess import data_process, setup_in
from chain.codec import encode
from fl.blobs import BlobKind
from node.data.messages import Finding
from node.dataplane import DataPlane
from node.ports.pipe import CorePipe
from tests.node.test_pipe import HANG_S, alive, gone

CORE = """
import asyncio, sys
from node.ports.pipe import CorePipe

async def main():
    pipe = CorePipe(bytes.fromhex(sys.argv[1]))
    await pipe.receive()
    await pipe.receive()
    print(pipe.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_it_listens_for_peers_and_for_clients_and_says_where(tmp_path: Path) -> None:
    async with data_process(tmp_path) as (_, plane):
        assert plane.opened is not None
        for port in (plane.opened.bulk_port, plane.opened.door_port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()


async def test_what_it_kept_outlives_sigkill(tmp_path: Path) -> None:
    async with data_process(tmp_path) as (pipe, plane):
        cid = await plane.keep(BlobKind.RECORD, b"a record")
        assert pipe.pid is not None
        os.kill(pipe.pid, signal.SIGKILL)
        finding = await asyncio.wait_for(plane.insist(lambda: plane.obtain(cid, BlobKind.RECORD)), HANG_S)
        assert finding == Finding.OK
        assert plane.life == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_are_for_the_core_to_heed(tmp_path: Path, number: signal.Signals) -> None:
    async with data_process(tmp_path) as (pipe, plane):
        assert pipe.pid is not None
        os.kill(pipe.pid, number)
        await plane.keep(BlobKind.RECORD, b"a record")
        assert plane.life == 1


async def test_it_lets_ordering_have_the_processor_first(tmp_path: Path) -> None:
    async with data_process(tmp_path) as (pipe, _):
        assert pipe.pid is not None
        assert os.getpriority(os.PRIO_PROCESS, pipe.pid) > os.getpriority(os.PRIO_PROCESS, 0)


async def test_the_libraries_of_the_kernels_are_not_loaded_before_there_is_a_sum(tmp_path: Path) -> None:
    async with data_process(tmp_path) as (pipe, _):
        assert "llvmlite" not in Path(f"/proc/{pipe.pid}/maps").read_text()


async def test_only_its_user_can_read_what_it_writes(tmp_path: Path) -> None:
    async with data_process(tmp_path) as (_, plane):
        await plane.keep(BlobKind.RECORD, b"a record")
        written = list((tmp_path / "data").rglob("*"))
        assert written
        assert not [path for path in written if path.stat().st_mode & 0o077]


async def test_it_is_gone_when_its_core_was_killed_and_the_next_core_finds_all(tmp_path: Path) -> None:
    async with data_process(tmp_path) as (_, plane):
        cid = await plane.keep(BlobKind.RECORD, b"a record")
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CORE, encode(setup_in(tmp_path)).hex(), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), HANG_S))
    assert alive(pid)
    parent.kill()
    await parent.wait()
    async with data_process(tmp_path) as (_, plane):
        assert await plane.obtain(cid, BlobKind.RECORD) == Finding.OK
    await gone(pid)


async def test_a_port_that_is_taken_is_named_and_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        pipe = CorePipe(encode(setup_in(tmp_path, port)))
        plane = DataPlane(pipe, who=lambda account, key: (True, ()))
        running = asyncio.create_task(plane.run())
        said = ""
        async with asyncio.timeout(HANG_S):
            while str(port) not in said:
                await asyncio.sleep(0.05)
                said += capfd.readouterr().err
    await asyncio.wait_for(plane.up(), HANG_S)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await pipe.close()
