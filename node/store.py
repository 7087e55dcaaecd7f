"""The rows that a validator keeps in its key-value store: final blocks, state, receipts, logs and indexes.

Everything here can lag the journal after a crash and never leads it: a final block is written once its finalization is
durable, and what a lost write held is computed again from the journal and the batches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from chain.block import Block
from chain.certificate import Certificate
from chain.codec import U64, Digest, decode, encode
from chain.log import PAGE_LEAVES, PAGE_LEVEL, leaf_digest, node_over
from consensus.lineage import Lineage
from fl.execution import Growth
from fl.state import EVENTS, RECEIPTS
from node.ports import Kv, PortError, after
from node.segments import Location

FORMAT_VERSION = 3
RECORD_LIMIT_BYTES = 4 * 1024 * 1024
PAGES_KEPT = 64
LOGS_KEPT = 256
"""More than grow in a block."""

_FORMAT = b"m/format"
_CHAIN = b"m/chain"
_EXECUTED = b"m/executed"
_BATCHES = b"m/batches"
_CERTIFICATE = b"m/certificate"
_JOURNAL_FROM = b"m/journal_from"


class WrongStore(PortError):
    """The data directory belongs to another chain or to a newer program."""

    code = "WRONG_STORE"


class StateAhead(PortError):
    """The logs hold less than the state was computed from, so votes of this validator may be missing too."""

    code = "STATE_AHEAD"


@dataclass(frozen=True, slots=True)
class ExecutedTo:
    """The newest executed block, and all that its children inherit."""

    lineage: Lineage
    state_root: Digest
    receipts: U64
    events: U64


@dataclass(frozen=True, slots=True)
class JournalMark:
    """Where the journal stood when a block became final: what a replay has to begin with, and what was durable."""

    replay_from: U64
    durable: U64


@dataclass(frozen=True, slots=True)
class _Marks:
    journal: JournalMark
    batches: U64


_NO_MARKS = _Marks(JournalMark(0, 0), 0)


def _at(prefix: bytes, number: int) -> bytes:
    return prefix + number.to_bytes(8, "big")


def _page_row(log: bytes, page: int) -> bytes:
    return b"p/" + log + b"/" + page.to_bytes(8, "big")


def _node_row(log: bytes, level: int, index: int) -> bytes:
    return b"l/" + log + b"/" + level.to_bytes(1, "big") + index.to_bytes(8, "big")


def leaves_on(page: bytes) -> list[bytes]:
    """Each stands behind its length, so that a page is added to without being read."""
    leaves, at = [], 0
    while at < len(page):
        end = at + 4 + int.from_bytes(page[at : at + 4], "big")
        leaves.append(page[at + 4 : end])
        at = end
    return leaves


def state_row(key: bytes) -> bytes:
    return b"s/" + key


def begin_journal(kv: Kv) -> None:
    """Durably: what the rows say of the numbers in the journal was said of another journal."""
    data = kv.get(_EXECUTED)
    if data is not None:
        height = decode(ExecutedTo, data, RECORD_LIMIT_BYTES).lineage.height
        kv.write({_JOURNAL_FROM: height.to_bytes(8, "big")}, sync=True)


class Store:
    def __init__(self, kv: Kv, chain_id: bytes) -> None:
        self._kv = kv
        self._pages: OrderedDict[bytes, list[bytes]] = OrderedDict()
        """Read lately: receipts are asked for one by one, soon after they were written."""
        self._newest_pages: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        """Those that the next leaves of these logs come onto, and the logs' sizes."""
        self._waiting: dict[bytes, bytes] = {}
        """Rows that go with the next write: without them a crash costs no more than finding them again."""
        known = kv.get(_FORMAT)
        if known is not None and int.from_bytes(known, "big") != FORMAT_VERSION:
            raise WrongStore(
                f"the data directory is in format {int.from_bytes(known, 'big')}, this program reads {FORMAT_VERSION}: "
                "use a program of the version that wrote it"
            )
        chain = kv.get(_CHAIN)
        if chain is not None and chain != chain_id:
            raise WrongStore(f"the data directory belongs to chain {chain.hex()}, not to {chain_id.hex()}")
        if known is None:
            kv.write({_FORMAT: FORMAT_VERSION.to_bytes(2, "big"), _CHAIN: chain_id})

    def write(self, puts: Mapping[bytes, bytes], deletes: list[bytes] | None = None) -> None:
        """What waits goes with it."""
        if self._waiting:
            puts = {**self._waiting, **puts}
        self._kv.write(puts, deletes or ())
        self._waiting = {}

    def write_waiting(self) -> None:
        if self._waiting:
            self.write({})

    def _row(self, key: bytes) -> bytes | None:
        """Of those that may still wait; on any thread."""
        return self._waiting.get(key) or self._kv.get(key)

    def sync(self) -> None:
        """Make every write so far durable."""
        self._kv.write({b"m/synced": b""}, sync=True)

    # State

    def state(self, key: bytes) -> bytes | None:
        return self._kv.get(state_row(key))

    def state_rows(self, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows whose keys begin with the prefix, by key, those before `start` left out."""
        first = state_row(prefix)
        for key, value in self._kv.iterate(max(first, state_row(start)), after(first)):
            yield key[2:], value

    def executed(self) -> ExecutedTo | None:
        data = self._kv.get(_EXECUTED)
        return None if data is None else decode(ExecutedTo, data, RECORD_LIMIT_BYTES)

    def executed_row(self, executed: ExecutedTo) -> tuple[bytes, bytes]:
        return _EXECUTED, encode(executed)

    # Blocks

    def block_rows(self, block: Block, finalization: Certificate | None, identity: bytes) -> dict[bytes, bytes]:
        height = block.header.height
        rows = {_at(b"b/", height): encode(block), b"h/" + identity: height.to_bytes(8, "big")}
        if finalization is not None:
            rows[_at(b"f/", height)] = encode(finalization)
        if block.header.next_set:
            rows[_at(b"z/", block.header.epoch)] = height.to_bytes(8, "big")
        return rows

    def block(self, height: int) -> Block | None:
        data = self._kv.get(_at(b"b/", height))
        return None if data is None else decode(Block, data, RECORD_LIMIT_BYTES)

    def blocks(self, first: int, last: int) -> Iterator[Block]:
        for _, data in self._kv.iterate(_at(b"b/", first), _at(b"b/", last + 1)):
            yield decode(Block, data, RECORD_LIMIT_BYTES)

    def finalization(self, height: int) -> Certificate | None:
        data = self._kv.get(_at(b"f/", height))
        return None if data is None else decode(Certificate, data, RECORD_LIMIT_BYTES)

    def next_finalization(self, height: int) -> tuple[int, Certificate] | None:
        """Of the lowest block at or above `height` that has one of its own: it makes those below final too."""
        for key, data in self._kv.iterate(_at(b"f/", height), after(b"f/")):
            return int.from_bytes(key[2:], "big"), decode(Certificate, data, RECORD_LIMIT_BYTES)
        return None

    def last_height_of(self, epoch: int) -> int | None:
        """The height of the block that ended the epoch, once it has ended."""
        data = self._kv.get(_at(b"z/", epoch))
        return None if data is None else int.from_bytes(data, "big")

    def height_of(self, identity: bytes) -> int | None:
        data = self._kv.get(b"h/" + identity)
        return None if data is None else int.from_bytes(data, "big")

    def keep_certificate(self, certificate: Certificate) -> None:
        """The newest execution certificate: what proofs begin with."""
        self._waiting[_CERTIFICATE] = encode(certificate)

    def newest_certificate(self) -> Certificate | None:
        data = self._row(_CERTIFICATE)
        return None if data is None else decode(Certificate, data, RECORD_LIMIT_BYTES)

    def marks(self, height: int, journal: JournalMark, batches: int) -> dict[bytes, bytes]:
        return {_at(b"n/", height): encode(_Marks(journal, batches))}

    def _marks_at(self, height: int) -> _Marks:
        data = self._kv.get(_at(b"n/", height)) if height > 0 else None
        if data is None:
            return _NO_MARKS
        marks = decode(_Marks, data, 64)
        if height > int.from_bytes(self._kv.get(_JOURNAL_FROM) or b"", "big"):
            return marks
        # Of a journal that is no more.
        return _Marks(_NO_MARKS.journal, marks.batches)

    def replay_from(self, height: int) -> tuple[int, int]:
        """Records of the journal and of the batches' log below these numbers say nothing about later heights."""
        marks = self._marks_at(height)
        return marks.journal.replay_from, marks.batches

    def check_logs(self, journal: int, batches: int) -> None:
        """Raises StateAhead if the logs end before what these rows were computed from."""
        known = self.executed()
        marks = self._marks_at(known.lineage.height) if known is not None else _NO_MARKS
        for log, last, needed in (
            ("journal", journal, marks.journal.durable),
            ("batches", batches, max(marks.batches, self.batches_indexed())),
        ):
            if last < needed:
                raise StateAhead(
                    f"the log in {log}/ ends with record {last}, but the rows were computed from {needed} records of "
                    "it: it is an older copy, or its end was removed. Restore the newest copy of the whole directory, "
                    "or let the validator rejoin with an empty one"
                )

    # Receipts, events and the rows beside the state

    @staticmethod
    def receipt_index_rows(first: int, ids: tuple[bytes, ...]) -> dict[bytes, bytes]:
        return {b"t/" + identity: index.to_bytes(8, "big") for index, identity in enumerate(ids, first)}

    def receipt_index(self, tx: bytes) -> int | None:
        data = self._kv.get(b"t/" + tx)
        return None if data is None else int.from_bytes(data, "big")

    def receipt(self, index: int) -> bytes | None:
        page, place = divmod(index, PAGE_LEAVES)
        leaves = self._page(RECEIPTS, page, place + 1)
        return leaves[place] if place < len(leaves) else None

    def events(self, first: int, limit: int) -> Iterator[tuple[int, bytes]]:
        page, last = first // PAGE_LEAVES, (first + limit - 1) // PAGE_LEAVES
        for _, data in self._kv.iterate(_page_row(EVENTS, page), _page_row(EVENTS, last + 1)):
            for index, leaf in enumerate(leaves_on(data), page * PAGE_LEAVES):
                if first <= index < first + limit:
                    yield index, leaf
            page += 1

    # Logs: their leaves by pages, and the nodes above these

    def log_rows(self, growths: Iterable[Growth]) -> dict[bytes, bytes]:
        """A page that is not full is written again with each block that adds to it."""
        rows: dict[bytes, bytes] = {}
        for growth in growths:
            size, written, data = growth.first, 0, b""
            while written < len(growth.leaves):
                page, place = divmod(size, PAGE_LEAVES)
                row, leaves = _page_row(growth.log, page), growth.leaves[written : written + PAGE_LEAVES - place]
                before = self._newest_page(growth.log, size, row) if place else b""
                data = before + b"".join([len(leaf).to_bytes(4, "big") + leaf for leaf in leaves])
                rows[row] = data
                size, written = size + len(leaves), written + len(leaves)
            if growth.leaves:
                self._keep_newest(growth.log, size, data)
            for level, index, node in growth.nodes:
                rows[_node_row(growth.log, level, index)] = node
        return rows

    def _newest_page(self, log: bytes, size: int, row: bytes) -> bytes:
        """Of a log of so many leaves. A write that failed leaves one of another size, which is not taken for it."""
        known = self._newest_pages.get(log)
        return known[1] if known is not None and known[0] == size else self._kv.get(row) or b""

    def _keep_newest(self, log: bytes, size: int, page: bytes) -> None:
        self._newest_pages.pop(log, None)
        if size % PAGE_LEAVES:
            self._newest_pages[log] = size, page
            if len(self._newest_pages) > LOGS_KEPT:
                self._newest_pages.popitem(last=False)

    def leaves(self, log: bytes, start: int, stop: int) -> list[bytes]:
        """Raises LookupError unless all of them are there."""
        found: list[bytes] = []
        for page in range(start // PAGE_LEAVES, -(-stop // PAGE_LEAVES)):
            first = page * PAGE_LEAVES
            least = min(stop - first, PAGE_LEAVES)
            found += self._page(log, page, least)[max(0, start - first) : least]
        if len(found) != max(0, stop - start):
            raise LookupError(f"log {log!r} has no leaves {start} to {stop}")
        return found

    def _page(self, log: bytes, page: int, least: int) -> list[bytes]:
        """At least so many of its leaves, if it has them: pages only grow, so one read earlier is good as far as it
        goes. On any thread."""
        row = _page_row(log, page)
        leaves = self._pages.get(row)
        if leaves is None or len(leaves) < least:
            leaves = self._pages[row] = leaves_on(self._kv.get(row) or b"")
            if len(self._pages) > PAGES_KEPT:
                self._pages.popitem(last=False)
        return leaves

    def log_node(self, log: bytes, level: int, index: int) -> bytes:
        if level < PAGE_LEVEL:
            return node_over([leaf_digest(leaf) for leaf in self.leaves(log, index << level, index + 1 << level)])
        data = self._kv.get(_node_row(log, level, index))
        if data is None:
            raise LookupError(f"log {log!r} has no node {index} at level {level}")
        return data

    # Batches, whose bytes are in their own log

    def keep_batches(self, number: int, locations: Mapping[bytes, Location]) -> None:
        rows = {b"a/" + digest: encode(location) for digest, location in locations.items()}
        self._waiting.update(rows)
        self._waiting[_BATCHES] = number.to_bytes(8, "big")

    def batch_location(self, digest: bytes) -> Location | None:
        data = self._row(b"a/" + digest)
        return None if data is None else decode(Location, data, 64)

    def batches_indexed(self) -> int:
        """Number of the newest record of the batches' log that has its row here."""
        return int.from_bytes(self._row(_BATCHES) or b"", "big")
