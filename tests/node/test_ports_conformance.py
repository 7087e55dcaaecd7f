"""What every Disk, Kv, Offload and Clock promises, asked of the real ones and of the simulated ones alike."""

from __future__ import annotations

import asyncio

import pytest

from node.ports import (
    AlreadyLocked,
    DiskFailure,
    NoSuchFile,
)
from tests.node.port_worlds import Simulated, World

# Disk


def test_appends_follow_one_another_and_are_read_in_part(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("log/1", b"hello ")
        disk.append("log/1", b"world")
        assert disk.read("log/1") == b"hello world"
        assert disk.read("log/1", 6) == b"world"
        assert disk.read("log/1", 4, 3) == b"o w"
        assert disk.read("log/1", 9, 100) == b"ld"
        assert disk.size("log/1") == 11

    world.run(body)


def test_what_was_synced_is_there_for_the_next_process(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("log/1", b"kept")
        await disk.sync("log/1")
        disk.close()
        assert world.disk().read("log/1") == b"kept"

    world.run(body)


def test_a_file_is_written_at_any_place_and_in_any_order(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.write_at("blobs/b", 6, memoryview(b"world"))
        assert disk.read("blobs/b") == bytes(6) + b"world"
        disk.write_at("blobs/b", 0, bytearray(b"hello "))
        disk.write_at("blobs/b", 4, b"O")
        await disk.sync("blobs/b")
        assert disk.read("blobs/b") == b"hellO world"
        assert disk.size("blobs/b") == 11
        disk.append("blobs/b", b"!")
        assert disk.read("blobs/b", 6) == b"world!"
        disk.close()
        assert world.disk().read("blobs/b") == b"hellO world!"

    world.run(body)


def test_nothing_written_anywhere_is_an_empty_file(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.write_at("empty", 0, b"")
        await disk.sync("empty")
        assert disk.size("empty") == 0
        assert disk.view("empty") == b""

    world.run(body)


def test_a_view_is_the_whole_file_and_outlives_its_name(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.write_at("blobs/b.part", 0, b"some bytes")
        await disk.sync("blobs/b.part")
        disk.rename("blobs/b.part", "blobs/b")
        view = disk.view("blobs/b")
        assert view.readonly and view[5:] == b"bytes" and len(view) == 10
        disk.unlink("blobs/b")
        assert view == b"some bytes"
        with pytest.raises(NoSuchFile):
            disk.view("blobs/b")

    world.run(body)


def test_a_file_is_in_use_while_any_part_of_a_view_of_it_is_held(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        for name in ("d/viewed", "d/other"):
            disk.write_at(name, 0, b"some bytes")
            await disk.sync(name)
        view = disk.view("d/viewed")
        part = view[5:]
        view.release()
        assert disk.in_use("d/viewed") and not disk.in_use("d/other")
        disk.rename("d/viewed", "d/renamed")
        disk.rename("d/other", "d/viewed")
        assert disk.in_use("d/renamed") and not disk.in_use("d/viewed")
        assert part == b"bytes"
        part.release()
        del view, part
        assert not disk.in_use("d/renamed")
        with pytest.raises(NoSuchFile):
            disk.in_use("d/other")

    world.run(body)


def test_a_missing_file_is_missed(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        assert disk.size("none") is None
        with pytest.raises(NoSuchFile):
            disk.read("none")
        with pytest.raises(NoSuchFile):
            await disk.sync("none")
        with pytest.raises(NoSuchFile):
            disk.unlink("none")
        with pytest.raises(NoSuchFile):
            disk.rename("none", "other")

    world.run(body)


def test_truncated_files_go_on_from_their_new_end(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("f", b"0123456789")
        disk.truncate("f", 4)
        disk.append("f", b"x")
        await disk.sync("f")
        assert disk.read("f") == b"0123x"
        with pytest.raises(ValueError, match="cannot be cut"):
            disk.truncate("f", 100)

    world.run(body)


def test_a_rename_replaces_and_carries_the_file(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("d/new", b"new")
        disk.append("d/old", b"old")
        assert disk.read("d/old") == b"old"
        disk.rename("d/new", "d/old")
        await disk.sync("d/old")
        disk.append("d/old", b"er")
        assert disk.read("d/old") == b"newer"
        assert disk.size("d/new") is None
        with pytest.raises(ValueError, match="different directories"):
            disk.rename("d/old", "old")

    world.run(body)


def test_an_unlinked_file_is_gone_and_its_name_free(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("f", b"one")
        disk.unlink("f")
        assert disk.size("f") is None
        disk.append("f", b"two")
        assert disk.read("f") == b"two"

    world.run(body)


def test_lists_are_sorted_and_by_prefix(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        for name in ("b", "journal/2", "journal/1", "jot", "a"):
            disk.append(name, b".")
        assert disk.list() == ["a", "b", "jot", "journal/1", "journal/2"]
        assert disk.list("journal/") == ["journal/1", "journal/2"]
        assert disk.list("journal/2") == ["journal/2"]
        assert disk.list("jo") == ["jot", "journal/1", "journal/2"]
        assert disk.list("none/") == []

    world.run(body)


def test_a_file_written_whole_replaces_the_old_one(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        await disk.write_whole("d/f", b"first")
        await disk.write_whole("d/f", b"second")
        assert disk.read("d/f") == b"second"
        assert disk.list() == ["d/f"]
        disk.append("d/f", b"!")
        assert disk.read("d/f") == b"second!"

    world.run(body)


def test_the_second_process_does_not_get_the_lock(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.lock("lock")
        with pytest.raises(AlreadyLocked):
            world.disk().lock("lock")
        disk.close()
        world.disk().lock("lock")

    world.run(body)


@pytest.mark.parametrize("name", ["../f", "/f", "a/b/c", "", "a/", ".f", "a b", "f.tmp"])
def test_no_name_leads_out_of_the_disk(world: World, name: str) -> None:
    async def body() -> None:
        disk = world.disk()
        with pytest.raises(ValueError, match="file name"):
            disk.append(name, b"x")
        with pytest.raises(ValueError, match="file name"):
            disk.write_at(name, 0, b"x")
        with pytest.raises(ValueError, match="file name"):
            await disk.write_whole(name, b"x")

    world.run(body)


def test_free_space_is_known(world: World) -> None:
    async def body() -> None:
        assert world.disk().free_bytes() > 0

    world.run(body)


def test_two_syncs_of_one_file_at_once_are_both_true(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("f", b"one")
        first = asyncio.ensure_future(disk.sync("f"))
        await asyncio.sleep(0)
        disk.append("f", b"two")
        await asyncio.gather(first, disk.sync("f"))
        assert disk.read("f") == b"onetwo"

    world.run(body)


def test_a_cancelled_sync_leaves_the_file_usable(world: World) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("f", b"one")
        task = asyncio.ensure_future(disk.sync("f"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        disk.append("f", b"two")
        await disk.sync("f")
        disk.unlink("f")

    world.run(body)


# Kv


def test_rows_are_put_deleted_and_found(world: World) -> None:
    async def body() -> None:
        kv = world.kv()
        kv.write({b"a": b"1", b"b": b"", b"c": b"3"})
        kv.write({b"a": b"2"}, deletes=[b"c", b"never"])
        assert kv.get(b"a") == b"2"
        assert kv.get(b"b") == b""
        assert kv.get(b"c") is None
        kv.close()

    world.run(body)


def test_ranges_are_ordered_and_exclude_their_stop(world: World) -> None:
    async def body() -> None:
        kv = world.kv()
        kv.write({bytes([n]): b"%d" % n for n in (5, 1, 9, 3, 7)})
        assert [key[0] for key, _ in kv.iterate(b"\x03", b"\x09")] == [3, 5, 7]
        assert [key[0] for key, _ in kv.iterate(b"\x03", b"\x09", reverse=True)] == [7, 5, 3]
        assert list(kv.iterate(b"\x06", b"\x06")) == []
        kv.close()

    world.run(body)


def test_a_range_shows_the_rows_of_the_moment_when_it_was_asked_for(world: World) -> None:
    async def body() -> None:
        kv = world.kv()
        kv.write({b"a": b"1", b"b": b"1"})
        rows = kv.iterate(b"a", b"z")
        kv.write({b"b": b"2", b"c": b"2"}, deletes=[b"a"])
        assert list(rows) == [(b"a", b"1"), (b"b", b"1")]
        kv.close()

    world.run(body)


def test_a_key_cannot_be_put_and_deleted_at_once(world: World) -> None:
    async def body() -> None:
        kv = world.kv()
        with pytest.raises(ValueError, match="both put and deleted"):
            kv.write({b"a": b"1"}, deletes=[b"a"])
        assert kv.get(b"a") is None
        kv.close()

    world.run(body)


def test_synced_rows_are_there_for_the_next_process(world: World) -> None:
    async def body() -> None:
        kv = world.kv()
        kv.write({b"a": b"1"})
        kv.write({b"b": b"2"}, sync=True)
        kv.close()
        kv = world.kv()
        assert (kv.get(b"a"), kv.get(b"b")) == (b"1", b"2")
        kv.close()

    world.run(body)


# Offload and clock


def test_offloaded_work_returns_and_raises_as_called(world: World) -> None:
    async def body() -> None:
        offload = world.offload()
        assert await offload.run(divmod, 17, 5) == (3, 2)
        with pytest.raises(ZeroDivisionError):
            await offload.run(divmod, 1, 0)
        results = await asyncio.gather(*(offload.run(pow, n, 2) for n in range(100)))
        assert results == [n * n for n in range(100)]
        offload.close()

    world.run(body)


def test_the_loop_goes_on_while_work_is_offloaded(world: World) -> None:
    async def body() -> None:
        offload = world.offload()
        work = asyncio.ensure_future(offload.run(sum, range(1000)))
        await asyncio.sleep(0)
        assert not work.done()
        assert await work == 499_500
        offload.close()

    world.run(body)


def test_time_passes_and_never_goes_back(world: World) -> None:
    async def body() -> None:
        clock = world.clock()
        before = clock.now()
        await asyncio.sleep(0.02)
        after = clock.now()
        assert after.mono_ms - before.mono_ms >= 19
        assert before.wall_ms > 1_700_000_000_000

    world.run(body)


def test_entropy_does_not_repeat(world: World) -> None:
    async def body() -> None:
        clock = world.clock()
        drawn = {clock.entropy(16) for _ in range(100)}
        assert len(drawn) == 100
        assert {len(each) for each in drawn} == {16}

    world.run(body)


def test_a_failed_sync_is_failed_for_good(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        disk = world.disk()
        disk.append("journal/1", b"vote")
        break_syncs(world, monkeypatch, broken=True)
        with pytest.raises(DiskFailure):
            await disk.sync("journal/1")
        break_syncs(world, monkeypatch, broken=False)
        with pytest.raises(DiskFailure):
            await disk.sync("journal/1")
        with pytest.raises(DiskFailure):
            disk.append("journal/1", b"vote")
        disk.append("other/1", b"fine")
        await disk.sync("other/1")

    world.run(body)


def break_syncs(world: World, monkeypatch: pytest.MonkeyPatch, *, broken: bool) -> None:
    if isinstance(world, Simulated):
        world.break_syncs(broken)
        return

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    if broken:
        monkeypatch.setattr("os.fdatasync", fail)
    else:
        monkeypatch.undo()
