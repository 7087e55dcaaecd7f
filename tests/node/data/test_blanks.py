"""Files of deleted blobs that are written again: which of them is taken."""

from pathlib import Path

import pytest

from chain.unixfs import LEAF_BYTES
from node.data.blanks import Blanks
from node.ports.disk import FileDisk

SIZE = LEAF_BYTES


@pytest.fixture
def disk(tmp_path: Path) -> FileDisk:
    return FileDisk(tmp_path)


async def of(disk: FileDisk, *files: tuple[bytes, int]) -> Blanks:
    """One of each, retired in this order; the first byte tells which it was."""
    blanks = Blanks(disk, 1 << 30)
    for mark, size in files:
        name = f"blobs/{mark.hex()}"
        disk.write_at(name, 0, mark + bytes(size - len(mark)))
        assert blanks.retire(name, size)
    await blanks.settle()
    return blanks


def taken(disk: FileDisk, blanks: Blanks, size: int) -> bytes:
    blanks.take("blobs/next.part", size)
    mark = disk.read("blobs/next.part", 0, 1)
    disk.unlink("blobs/next.part")
    return mark


async def test_of_blanks_that_fit_alike_the_newest_is_taken_first(disk: FileDisk) -> None:
    marks = [bytes([number]) for number in range(1, 13)]
    blanks = await of(disk, *((mark, SIZE) for mark in marks))
    assert [taken(disk, blanks, SIZE) for _ in marks] == marks[::-1]


async def test_the_smallest_that_is_large_enough_is_taken_and_else_the_largest(disk: FileDisk) -> None:
    blanks = await of(disk, (b"l", 3 * SIZE), (b"s", SIZE), (b"m", 2 * SIZE))
    assert taken(disk, blanks, SIZE + 1) == b"m"
    assert taken(disk, blanks, 4 * SIZE) == b"l"
    assert taken(disk, blanks, 4 * SIZE) == b"s"
    assert not blanks.size_bytes
