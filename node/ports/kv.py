"""Rows in LevelDB, one write batch a write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import plyvel

from node.ports import AlreadyLocked, DiskFailure, DiskFull

WRITE_LIMIT_BYTES = 64 * 1024 * 1024
"""A write is built in memory at once: anything larger is a defect of the caller, not a load to be borne."""

_CACHE_BYTES = 32 * 1024 * 1024
_WRITE_BUFFER_BYTES = 16 * 1024 * 1024
_OPEN_FILES = 256
_BLOOM_BITS = 10


def _failure(error: Exception, what: str) -> DiskFailure:
    # LevelDB has one exception for every I/O error; only its text tells a full disk from a broken one.
    text = str(error)
    if "No space left" in text or "quota exceeded" in text.lower():
        return DiskFull(f"{what}: no space left on the device; free some and restart ({text})")
    return DiskFailure(f"{what}: {text}")


class LevelKv:
    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._db = plyvel.DB(
                str(path),
                create_if_missing=True,
                lru_cache_size=_CACHE_BYTES,
                write_buffer_size=_WRITE_BUFFER_BYTES,
                max_open_files=_OPEN_FILES,
                bloom_filter_bits=_BLOOM_BITS,
                # Rows are mostly digests: it would spare a sixteenth of the disk for a fifteenth of the time.
                compression=None,
            )
        except plyvel.Error as error:
            if "lock" in str(error).lower():
                raise AlreadyLocked(f"{path} is open in another process; stop that one first") from error
            raise _failure(error, f"cannot open {path}") from error

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._db.get(key)
        except plyvel.Error as error:
            raise _failure(error, "cannot read a row") from error
        return value

    def iterate(self, start: bytes, stop: bytes, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        # Made here and not in the generator: the rows are those of this moment.
        return self._rows(self._db.iterator(start=start, stop=stop, reverse=reverse))

    def _rows(self, rows: plyvel.Iterator) -> Iterator[tuple[bytes, bytes]]:
        with closing(rows):
            try:
                yield from rows
            except plyvel.Error as error:
                raise _failure(error, "cannot read rows") from error

    def write(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = (), sync: bool = False) -> None:
        size_bytes = sum(map(len, puts)) + sum(map(len, puts.values()))
        if size_bytes > WRITE_LIMIT_BYTES:
            raise ValueError(f"a write of {size_bytes} bytes is over the limit of {WRITE_LIMIT_BYTES}")
        batch = self._db.write_batch(sync=sync)
        for key in deletes:
            if key in puts:
                raise ValueError(f"row {key.hex()} is both put and deleted in one write")
            batch.delete(key)
        put = batch.put
        for key, value in puts.items():
            put(key, value)
        try:
            batch.write()
        except plyvel.Error as error:
            raise _failure(error, "cannot write rows") from error

    def close(self) -> None:
        self._db.close()
