"""What a simulated machine keeps when its power goes: what was synced, and of the rest what chance leaves."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class File:
    """What processes see, what is on the platter, and the operations between the two, numbered from
    `done`."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, bytes) of a write, (size, None) of a truncation."""
    done: int = 0

    def settle(self, number: int) -> None:
        """Makes the operations before this number durable."""
        count = max(0, number - self.done)
        for operation in self.pending[:count]:
            apply(self.durable, operation)
        del self.pending[:count]
        self.done += count

    def survive(self, chance: random.Random) -> None:
        kept = _surviving(self.pending, chance)
        for operation in kept:
            apply(self.durable, operation)
        self.done += len(self.pending)
        self.pending.clear()
        self.data = bytearray(self.durable)


def apply(content: bytearray, operation: tuple[int, bytes | None]) -> None:
    offset, data = operation
    if data is None:
        del content[offset:]
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _surviving(pending: list[tuple[int, bytes | None]], chance: random.Random) -> list[tuple[int, bytes | None]]:
    """Nothing, all, a beginning with a torn end, or any of the writes up to the first truncation that is
    lost."""
    case = chance.randrange(4)
    if case == 0 or not pending:
        return []
    if case == 1:
        return list(pending)
    if case == 2:
        count = chance.randrange(len(pending))
        return pending[:count] + _torn(pending[count], chance)
    kept: list[tuple[int, bytes | None]] = []
    for operation in pending:
        keep = chance.random() < 0.5
        if operation[1] is None and not keep:
            break
        if keep:
            kept += [operation] if chance.random() < 0.8 else _torn(operation, chance)
    return kept


def _torn(operation: tuple[int, bytes | None], chance: random.Random) -> list[tuple[int, bytes | None]]:
    offset, data = operation
    if data is None:
        return []
    cut = chance.randrange(len(data) + 1)
    rest = (b"", bytes(len(data) - cut), chance.randbytes(len(data) - cut))[chance.randrange(3)]
    return [(offset, data[:cut] + rest)]


def parent_of(name: str) -> str:
    return name.rpartition("/")[0]


class DiskMedium:
    """Files and directory entries, those that processes see and those on the platter."""

    def __init__(self) -> None:
        self.entries: dict[str, File] = {}
        self.durable: dict[str, File] = {}
        self.pending: dict[str, list[tuple[str, File | None, str | None]]] = {}
        """By directory: (name, its file or None if the name is gone, the name that it had before)."""
        self.failed: set[str] = set()
        self.locked: dict[str, object] = {}
        """Lock files, each with the process that holds it."""

    def change(self, name: str, file: File | None, old: str | None = None) -> None:
        operation = (name, file, old)
        _enter(self.entries, operation)
        self.pending.setdefault(parent_of(name), []).append(operation)

    def settle(self, directory: str, count: int) -> None:
        operations = self.pending.get(directory, [])
        for operation in operations[:count]:
            _enter(self.durable, operation)
        del operations[:count]

    def survive(self, chance: random.Random) -> None:
        for operations in self.pending.values():
            keep_all_before = chance.randrange(len(operations) + 1) if chance.random() < 0.5 else None
            for place, operation in enumerate(operations):
                if place < keep_all_before if keep_all_before is not None else chance.random() < 0.5:
                    _enter(self.durable, operation)
        self.pending.clear()
        self.entries = dict(self.durable)
        for file in self.entries.values():
            file.survive(chance)
        self.failed.clear()
        self.locked.clear()

    def used_bytes(self) -> int:
        return sum(len(file.data) for file in self.entries.values())


def _enter(entries: dict[str, File], operation: tuple[str, File | None, str | None]) -> None:
    name, file, old = operation
    if file is None:
        entries.pop(name, None)
    else:
        entries[name] = file
    if old is not None and entries.get(old) is file:
        del entries[old]


class KvMedium:
    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.keys: list[bytes] = []
        self.durable: dict[bytes, bytes] = {}
        self.pending: list[tuple[dict[bytes, bytes], tuple[bytes, ...]]] = []

    def settle(self, count: int) -> None:
        for puts, deletes in self.pending[:count]:
            for key in deletes:
                self.durable.pop(key, None)
            self.durable.update(puts)
        del self.pending[:count]

    def survive(self, chance: random.Random) -> None:
        """LevelDB's own log loses its newest batches, and never half of one."""
        self.settle(chance.randrange(len(self.pending) + 1))
        self.pending.clear()
        self.rows = dict(self.durable)
        self.keys = sorted(self.rows)
