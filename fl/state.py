"""The keys of the state, and the overlay through which a block reads and writes it.

Only these rows are under the state root. Rows under another root (the entries of a round's log, the nodes of
logs) leave execution beside them and are never read by it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from chain.codec import CodecError, decode, encode
from fl.records import Evaluation, Job, JobRules, OpenJobs, Round

T = TypeVar("T")
Read = Callable[[bytes], bytes | None]
Rows = Callable[[bytes], Iterator[tuple[bytes, bytes]]]
"""The rows of the state whose keys begin with a prefix, by key."""
Leaves = Callable[[bytes, int, int], Sequence[bytes]]
"""Of the log of this name, from a position up to another: all of them, or LookupError. They are beside the state."""
RulesOf = Callable[[bytes], JobRules | None]
"""The rules of a job, immutable, by its id; None while the job is unknown."""

META = b"meta"
RECEIPTS = b"receipts"
EVENTS = b"events"
REGISTRARS = b"registrars"
VALIDATORS = b"validators"
NEXT_VALIDATORS = b"validators/next"
SET_SCHEDULE = b"validators/schedule"
OPEN_JOBS = b"jobs/open"
JOBS = b"job/"
DATASETS = b"dataset/"
ROUNDS = b"round/"

MAX_VALUE_BYTES = 2**20
"""The largest values are validator sets, some hundred bytes a validator."""
KNOWN_BYTES = 8 * 1024 * 1024
"""Of rows that are kept in memory, some five times as much as records."""
KNOWN_ENTRY_BYTES = 256
"""What an entry takes beside its row."""


class CorruptState(Exception):
    """A stored row does not decode: this node's store is damaged, and no other's."""


def set_change_key(number: int) -> bytes:
    return b"validators/change/" + number.to_bytes(4, "big")


def account_key(account: bytes) -> bytes:
    return b"acct/" + account


def member_key(account: bytes) -> bytes:
    return b"member/" + account


def member_name_key(name: str) -> bytes:
    return b"name/member/" + name.encode()


def job_name_key(name: str) -> bytes:
    """Holds the newest job of this name."""
    return b"name/job/" + name.encode()


def job_key(job: bytes) -> bytes:
    return JOBS + job


def rules_key(job: bytes) -> bytes:
    return b"rules/" + job


def dataset_key(dataset: bytes) -> bytes:
    return DATASETS + dataset


def stored_key(owner: bytes) -> bytes:
    return b"stored/" + owner


def dataset_name_key(owner: bytes, name: str) -> bytes:
    """Holds the newest data set of this owner that has this name."""
    return b"name/dataset/" + owner + name.encode()


def joined_key(job: bytes, account: bytes) -> bytes:
    return b"joined/" + job + account


def seated_key(job: bytes) -> bytes:
    return b"seated/" + job


def candidates_key(job: bytes) -> bytes:
    """Of the newest round: a job has one at a time."""
    return b"candidates/" + job


def answered_key(job: bytes) -> bytes:
    return b"answered/" + job


def organisation_key(job: bytes, name: str) -> bytes:
    return b"organisation/" + job + name.encode()


def round_key(job: bytes, number: int) -> bytes:
    return ROUNDS + job + number.to_bytes(8, "big")


def evaluators_key(job: bytes) -> bytes:
    return b"evaluators/" + job


def evaluation_key(job: bytes, round: int) -> bytes:
    return b"evaluation/" + job + round.to_bytes(8, "big")


def evaluation_cohort_key(job: bytes) -> bytes:
    """Of the evaluation that is open: a job has one at a time."""
    return b"measuring/" + job


def answer_key(job: bytes, account: bytes) -> bytes:
    """Of an answer to the evaluation that is open."""
    return b"answer/" + job + account


def answers_log(job: bytes, round: int) -> bytes:
    """The name of an evaluation's log of answers."""
    return b"answers/" + job + round.to_bytes(8, "big")


def convicted_key(epoch: int, signer: int) -> bytes:
    return b"convicted/" + epoch.to_bytes(8, "big") + signer.to_bytes(2, "big")


def ready_key(consensus_key: bytes) -> bytes:
    return b"ready/" + consensus_key


def updates_log(job: bytes, number: int) -> bytes:
    """The name of a round's log of accepted updates."""
    return b"updates/" + job + number.to_bytes(8, "big")


def read_record(read: Read, cls: type[T], key: bytes) -> T | None:
    data = read(key)
    if data is None:
        return None
    try:
        return decode(cls, data, MAX_VALUE_BYTES)
    except CodecError as error:
        raise CorruptState(f"the row {key!r} of the store is damaged: {error}") from None


def job_of(read: Read, job: bytes) -> Job | None:
    return read_record(read, Job, job_key(job))


def rules_of(read: Read, job: bytes) -> JobRules | None:
    """Immutable once there, so a caller may keep what it got."""
    return read_record(read, JobRules, rules_key(job))


def round_of(read: Read, job: bytes, number: int) -> Round | None:
    return read_record(read, Round, round_key(job, number))


def evaluation_of(read: Read, job: bytes, round: int) -> Evaluation | None:
    return read_record(read, Evaluation, evaluation_key(job, round))


def open_jobs(read: Read) -> OpenJobs:
    return read_record(read, OpenJobs, OPEN_JOBS) or OpenJobs(())


Row = tuple[bytes | None, object | None]
"""With the record in it; None where there is none."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a block does to the rows of the state, by key: what they are from it on, and what they were."""

    rows: dict[bytes, Row]
    writes: dict[bytes, bytes | None]
    replaced: dict[bytes, bytes | None]


class Known:
    """Rows of the newest state as they were read or written last, each with the record in it, as far as there is room:
    those who sent something lately are likely to do so again. It says what the rows say, or nothing."""

    __slots__ = ("_earlier", "_size_bytes", "lately")

    def __init__(self) -> None:
        self.lately: dict[bytes, Row] = {}
        """Most of them."""
        self._earlier: dict[bytes, Row] = {}
        self._size_bytes = 0

    @property
    def rows(self) -> dict[bytes, Row]:
        return {**self._earlier, **self.lately}

    def get(self, key: bytes) -> Row | None:
        found = self.lately.get(key)
        if found is None and (found := self._earlier.get(key)) is not None:
            self.keep(key, found)
        return found

    def follow(self, changes: Changes) -> None:
        """A block was executed and kept."""
        rows, before = self.lately, len(self.lately)
        rows.update(changes.rows)
        if added := len(rows) - before:
            size_bytes = sum([len(data or b"") for data in changes.writes.values()])
            self._grow(added * (KNOWN_ENTRY_BYTES + size_bytes // len(changes.rows)))

    def keep(self, key: bytes, row: Row) -> None:
        self.lately[key] = row
        self._grow(KNOWN_ENTRY_BYTES + len(row[0] or b""))

    def _grow(self, size_bytes: int) -> None:
        """Of those that nobody has asked for since the room was last used up, none is kept."""
        self._size_bytes += size_bytes
        if self._size_bytes > KNOWN_BYTES // 2:
            self._earlier, self.lately, self._size_bytes = self.lately, {}, 0


class Gathering(ABC):
    """What stands in the place of a record while transactions of one block add to it, and becomes the record once
    somebody asks for that. A transaction that adds to it can no longer be refused: nothing that was added is taken
    back."""

    __slots__ = ()

    @abstractmethod
    def gathered(self) -> object:
        """The record, as often as it is asked for."""


_NOT_PUT = object()


class State:
    """Records decoded once, written once a block, and put back when a transaction is refused."""

    __slots__ = ("_gatherings", "_known", "_read", "_records", "_stored", "_undo", "derived")

    def __init__(self, read: Read, known: Known | None = None) -> None:
        self._read = read
        self._known = known or Known()
        self._gatherings: set[bytes] = set()
        self._records: dict[bytes, object | None] = {}
        """Those that were put, if only for a while."""
        self._stored: dict[bytes, bytes | None] = {}
        """What the rows of these hold."""
        self._undo: dict[bytes, object | None] = {}
        """What was there when the mark was set."""
        self.derived: dict[bytes, Any] = {}
        """What handlers have made of several records, by whatever they look for. It is dropped when a record changes,
        unless by `settle` or `gather`."""

    def get(self, cls: type[T], key: bytes) -> T | None:
        record = self._records.get(key, _NOT_PUT)
        if record is _NOT_PUT:
            record = (self._known.lately.get(key) or self._row(cls, key))[1]
        if record is None or type(record) is cls:
            return record
        if not isinstance(record, Gathering):
            raise TypeError(f"{key!r} holds {type(record).__name__}, not {cls.__name__}")
        self.put(key, record.gathered())
        return self.get(cls, key)

    def gathering(self, cls: type[T], key: bytes) -> T | None:
        """What stands for the record under this key, if that is of this kind."""
        record = self._records.get(key)
        return record if type(record) is cls else None

    def _row(self, cls: type[object], key: bytes) -> Row:
        known = self._known.get(key)
        if known is not None:
            return known
        data = self._read(key)
        row = data, read_record(lambda _: data, cls, key)
        self._known.keep(key, row)
        return row

    def put(self, key: bytes, record: object) -> None:
        self._replace(type(record), key, record)
        self.derived.clear()

    def settle(self, key: bytes, record: object) -> None:
        """A record that nothing is derived from, for good: the mark is set behind it."""
        if key not in self._records:
            self._stored[key] = (self._known.lately.get(key) or self._row(type(record), key))[0]
        self._records[key] = record

    def gather(self, cls: type[object], key: bytes, gathering: Gathering) -> None:
        """`gathering` stands for the record of this kind."""
        self._gatherings.add(key)
        self._replace(cls, key, gathering)

    def delete(self, key: bytes, cls: type[object]) -> None:
        self._replace(cls, key, None)
        self.derived.clear()

    def _replace(self, cls: type[object], key: bytes, record: object | None) -> None:
        if key not in self._records:
            self._stored[key], self._records[key] = self._row(cls, key)
        if key not in self._undo:
            self._undo[key] = self._records[key]
        self._records[key] = record

    def mark(self) -> None:
        """What came before stays. One row may be put by every transaction of a block: no two versions are kept."""
        self._undo.clear()

    def roll_back(self) -> None:
        """To the mark."""
        if self._undo:
            self._records.update(self._undo)
            self._undo.clear()
            self.derived.clear()

    def changes(self) -> Changes:
        """What differs from the rows read. Nothing is put back after that."""
        # A gathering may know the execution that this state belongs to: the block's garbage would be a cycle.
        self._undo.clear()
        self.derived.clear()
        for key in self._gatherings:
            if isinstance(record := self._records[key], Gathering):
                self._records[key] = record.gathered()
        changes = Changes({}, {}, {})
        for key in sorted(self._stored):
            record, before = self._records[key], self._stored[key]
            data = None if record is None else encode(record)
            if data != before:
                changes.rows[key], changes.writes[key], changes.replaced[key] = (data, record), data, before
        return changes
