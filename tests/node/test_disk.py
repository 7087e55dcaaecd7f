"""What a real disk may do that the conformance suite cannot ask of both: errors of the system, threads,
descriptors."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.ports import AlreadyLocked, DiskFailure, DiskFull
from node.ports import kv as kv_port
from node.ports.disk import FileDisk
from node.ports.kv import LevelKv
from node.ports.offload import ThreadOffload


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def half_written(number: int) -> Callable[[int, Any, int], int]:
    """Writes a part, then fails: how a disk that becomes full behaves."""
    real, calls = os.pwrite, 0

    def write(descriptor: int, data: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(number, os.strerror(number))
        whole = b"".join(data) if isinstance(data, tuple) else bytes(data)
        return real(descriptor, whole[: len(whole) // 2], offset)

    return write


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_write_that_found_no_room_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    disk = FileDisk(tmp_path)
    disk.append("f", b"whole")
    with monkeypatch.context() as patch:
        patch.setattr("os.pwritev", half_written(number))
        with pytest.raises(DiskFull, match="no space left"):
            disk.append("f", b"0123456789")
    assert (tmp_path / "f").read_bytes() == b"whole"
    disk.append("f", b"!")
    await disk.sync("f")
    assert disk.read("f") == b"whole!"
    disk.close()


async def test_a_file_whose_half_write_cannot_be_taken_back_is_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FileDisk(tmp_path)
    disk.append("f", b"whole")
    with monkeypatch.context() as patch:
        patch.setattr("os.pwritev", half_written(errno.ENOSPC))
        patch.setattr("os.ftruncate", failing(errno.EIO))
        with pytest.raises(DiskFailure):
            disk.append("f", b"0123456789")
    with pytest.raises(DiskFailure, match="failed before"):
        disk.append("f", b"!")
    disk.close()


async def test_a_directory_whose_sync_failed_fails_all_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FileDisk(tmp_path)
    disk.append("journal/1", b"vote")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", failing(errno.EIO))
        with pytest.raises(DiskFailure, match="directory journal"):
            await disk.sync("journal/1")
    with pytest.raises(DiskFailure, match="failed before"):
        disk.append("journal/2", b"vote")
    disk.close()


async def test_a_file_that_cannot_be_written_whole_stays_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FileDisk(tmp_path)
    await disk.write_whole("d/f", b"old")
    for call in ("os.fdatasync", "os.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(call, failing(errno.ENOSPC))
            with pytest.raises(DiskFull):
                await disk.write_whole("d/f", b"new")
        assert disk.read("d/f") == b"old"
        assert os.listdir(tmp_path / "d") == ["f"]
    await disk.write_whole("d/f", b"new")
    assert disk.read("d/f") == b"new"
    disk.close()


async def test_a_new_file_is_synced_with_its_directory_and_an_old_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FileDisk(tmp_path)
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    disk.append("d/f", b"x")
    await disk.sync("d/f")
    assert synced == [str(tmp_path / "d"), str(tmp_path)]
    disk.append("d/f", b"y")
    await disk.sync("d/f")
    assert len(synced) == 2
    disk.rename("d/f", "d/g")
    await disk.sync("d/g")
    assert synced[2:] == [str(tmp_path / "d")]
    disk.close()


async def test_the_loop_runs_while_a_sync_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FileDisk(tmp_path)
    gate = threading.Event()
    monkeypatch.setattr("os.fdatasync", lambda descriptor: gate.wait(10))
    disk.append("f", b"x")
    syncing = asyncio.ensure_future(disk.sync("f"))
    await asyncio.sleep(0.02)
    assert not syncing.done()
    gate.set()
    await syncing
    disk.close()


async def test_a_file_unlinked_during_its_sync_keeps_its_descriptor_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FileDisk(tmp_path)
    gate = threading.Event()
    seen: list[int] = []

    def fdatasync(descriptor: int) -> None:
        gate.wait(10)
        seen.append(os.fstat(descriptor).st_nlink)

    monkeypatch.setattr("os.fdatasync", fdatasync)
    disk.append("f", b"x")
    syncing = asyncio.ensure_future(disk.sync("f"))
    await asyncio.sleep(0)
    disk.unlink("f")
    syncing.cancel()
    await asyncio.gather(syncing, return_exceptions=True)
    disk.append("f", b"another file of that name")
    gate.set()
    while not seen:
        await asyncio.sleep(0.005)
    assert seen == [0]
    assert disk.read("f") == b"another file of that name"
    disk.close()


async def test_a_file_is_written_in_many_places_by_many_threads(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path)
    pieces = {place * 4096: bytes([place]) * 4096 for place in range(1, 64)}

    def write(offsets: list[int]) -> None:
        for offset in offsets:
            disk.write_at("blobs/b", offset, memoryview(pieces[offset]))

    order = sorted(pieces, key=lambda offset: offset * 37 % 1009)
    threads = [threading.Thread(target=write, args=(order[part::4],)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await disk.sync("blobs/b")
    assert disk.view("blobs/b") == bytes(4096) + b"".join(pieces.values())
    disk.close()
    assert (tmp_path / "blobs/b").read_bytes() == bytes(4096) + b"".join(pieces.values())


async def test_a_place_that_cannot_be_written_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FileDisk(tmp_path)
    disk.write_at("f", 0, b"whole")
    for number, failure in ((errno.ENOSPC, DiskFull), (errno.EIO, DiskFailure)):
        with monkeypatch.context() as patch:
            patch.setattr("os.pwrite", half_written(number))
            with pytest.raises(failure) as caught:
                disk.write_at("f", 5, b"0123456789")
        assert type(caught.value) is failure
    disk.write_at("f", 5, b"0123456789")
    await disk.sync("f")
    assert disk.read("f") == b"whole0123456789"
    disk.close()


async def test_a_file_unlinked_during_a_write_keeps_its_descriptor_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FileDisk(tmp_path)
    entered, gate, real = threading.Event(), threading.Event(), os.pwrite

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        entered.set()
        gate.wait(10)
        return real(descriptor, data, offset)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("os.pwrite", pwrite)
    writing = asyncio.get_running_loop().run_in_executor(None, disk.write_at, "f", 0, b"lost with its file")
    await asyncio.to_thread(entered.wait, 10)
    disk.unlink("f")
    gate.set()
    await writing
    assert disk.list() == [] and disk.size("f") is None
    disk.write_at("f", 0, b"another")
    assert disk.read("f") == b"another"
    disk.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_file_is_in_use_while_a_thread_writes_or_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FileDisk(tmp_path)
    disk.write_at("d/f", 0, b"bytes")
    for name, work in (
        ("os.pwrite", lambda: disk.write_at("d/f", 0, b"others")),
        ("os.pread", lambda: disk.read("d/f")),
    ):
        entered, gate = threading.Event(), threading.Event()

        def wait(*_: object, entered: threading.Event = entered, gate: threading.Event = gate) -> object:
            entered.set()
            gate.wait(10)
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(name, wait)
        working = asyncio.get_running_loop().run_in_executor(None, work)
        await asyncio.to_thread(entered.wait, 10)
        assert disk.in_use("d/f")
        gate.set()
        with pytest.raises(DiskFailure):
            await working
        assert not disk.in_use("d/f")
    disk.close()


async def test_a_view_is_a_map_and_not_a_copy(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path)
    disk.write_at("f", 0, b"mapped")
    view = disk.view("f")
    assert view.readonly and str(tmp_path / "f") in Path("/proc/self/maps").read_text()
    del view
    assert str(tmp_path / "f") not in Path("/proc/self/maps").read_text()
    disk.close()


async def test_descriptors_are_bounded_and_all_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    disk = FileDisk(tmp_path)
    for number in range(300):
        disk.append(f"d/{number}", b"x")
        await disk.sync(f"d/{number}")
    assert len(os.listdir("/proc/self/fd")) < before + 80
    assert all(disk.read(f"d/{number}") == b"x" for number in range(300))
    disk.lock("lock")
    disk.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_descriptors_of_files_that_nobody_syncs_are_bounded(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    disk = FileDisk(tmp_path)
    for round_ in range(2):
        for number in range(600):
            disk.write_at(f"d/{number}", round_, b"x")
    assert len(os.listdir("/proc/self/fd")) < before + 270
    for number in range(600):
        await disk.sync(f"d/{number}")
        assert disk.read(f"d/{number}") == b"xx"
    disk.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_file_whose_sync_on_the_way_failed_is_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FileDisk(tmp_path)
    disk.write_at("d/first", 0, b"x")
    with monkeypatch.context() as patch:
        patch.setattr("os.fdatasync", failing(errno.EIO))
        for number in range(300):
            disk.write_at(f"d/{number}", 0, b"x")
    with pytest.raises(DiskFailure, match="failed before"):
        await disk.sync("d/first")
    await disk.sync("d/299")
    disk.unlink("d/first")
    disk.write_at("d/first", 0, b"x")
    await disk.sync("d/first")
    disk.close()


async def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path / "node")
    disk.append("d/f", b"x")
    await disk.write_whole("d/g", b"x")
    for name, mode in (("", 0o700), ("d", 0o700), ("d/f", 0o600), ("d/g", 0o600)):
        assert stat.S_IMODE((tmp_path / "node" / name).stat().st_mode) == mode
    disk.close()


def test_two_processes_do_not_open_the_same_rows(tmp_path: Path) -> None:
    kv = LevelKv(tmp_path)
    with pytest.raises(AlreadyLocked):
        LevelKv(tmp_path)
    kv.close()
    LevelKv(tmp_path).close()


def test_a_write_larger_than_memory_should_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_port, "WRITE_LIMIT_BYTES", 100)
    kv = LevelKv(tmp_path)
    with pytest.raises(ValueError, match="over the limit"):
        kv.write({b"key": bytes(100)})
    assert kv.get(b"key") is None
    kv.close()


def test_rows_that_are_damaged_are_a_disk_failure(tmp_path: Path) -> None:
    kv = LevelKv(tmp_path)
    kv.write({b"key": b"value"}, sync=True)
    kv.close()
    (tmp_path / "CURRENT").write_bytes(b"nonsense")
    with pytest.raises(DiskFailure, match="cannot open"):
        LevelKv(tmp_path)


async def test_offloaded_work_is_bounded_even_when_its_callers_give_up() -> None:
    offload = ThreadOffload(workers=1, backlog=2)
    gate = threading.Event()
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        gate.wait(10)
        return number

    first = [asyncio.ensure_future(offload.run(work, number)) for number in range(2)]
    await asyncio.sleep(0.02)
    first[0].cancel()
    third = asyncio.ensure_future(offload.run(work, 2))
    await asyncio.sleep(0.02)
    assert started == [0]
    gate.set()
    assert await third == 2
    assert await first[1] == 1
    offload.close()
