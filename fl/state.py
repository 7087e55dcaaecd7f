"""The keys of the state, and the overlay through which a block reads and writes it.

Only these rows are under the state root. Rows under another root (the entries of a round's log, the nodes of
logs) leave execution beside them and are never read by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from chain.codec import CodecError, decode, encode
from fl.records import Evaluation, Job, JobRules, OpenJobs, Round

T = TypeVar("T")
Read = Callable[[bytes], bytes | None]
Rows = Callable[[bytes], Iterator[tuple[bytes, bytes]]]
"""The rows of the state whose keys begin with a prefix, by key."""
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

MAX_VALUE_BYTES = 2**20
"""The largest values are validator sets, some hundred bytes a validator."""


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


def organisation_key(job: bytes, name: str) -> bytes:
    return b"organisation/" + job + name.encode()


def round_key(job: bytes, number: int) -> bytes:
    return b"round/" + job + number.to_bytes(8, "big")


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


def answer_row_key(job: bytes, round: int, position: int) -> bytes:
    """Of a row beside the state: the leaf at this position of an evaluation's log."""
    return b"answered/" + job + round.to_bytes(8, "big") + position.to_bytes(8, "big")


def answers_log(job: bytes, round: int) -> bytes:
    """The name of an evaluation's log of answers."""
    return b"answers/" + job + round.to_bytes(8, "big")


def convicted_key(epoch: int, signer: int) -> bytes:
    return b"convicted/" + epoch.to_bytes(8, "big") + signer.to_bytes(2, "big")


def ready_key(consensus_key: bytes) -> bytes:
    return b"ready/" + consensus_key


def entry_key(job: bytes, number: int, position: int) -> bytes:
    """Of a row beside the state: the leaf at this position of a round's log."""
    return b"entry/" + job + number.to_bytes(8, "big") + position.to_bytes(8, "big")


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


class State:
    """Records decoded once a block, written once a block, and put back when a transaction is refused."""

    __slots__ = ("_read", "_records", "_stored", "_touched", "_undo")

    def __init__(self, read: Read) -> None:
        self._read = read
        self._stored: dict[bytes, bytes | None] = {}
        self._records: dict[bytes, object | None] = {}
        self._touched: set[bytes] = set()
        """Keys, of records that may have been put back meanwhile."""
        self._undo: dict[bytes, object | None] = {}
        """What was there when the mark was set."""

    def get(self, cls: type[T], key: bytes) -> T | None:
        if key not in self._records:
            self._records[key] = read_record(self._remembering, cls, key)
        record = self._records[key]
        if record is not None and type(record) is not cls:
            raise TypeError(f"{key!r} holds {type(record).__name__}, not {cls.__name__}")
        return record

    def _remembering(self, key: bytes) -> bytes | None:
        data = self._stored[key] = self._read(key)
        return data

    def put(self, key: bytes, record: object) -> None:
        self._set(type(record), key, record)

    def delete(self, key: bytes, cls: type[object]) -> None:
        self._set(cls, key, None)

    def mark(self) -> None:
        """What came before stays. One row may be put by every transaction of a block: no two versions are kept."""
        self._undo.clear()

    def roll_back(self) -> None:
        """To the mark."""
        self._records.update(self._undo)
        self._undo.clear()

    def writes(self) -> dict[bytes, bytes | None]:
        """What differs from the rows read, sorted by key."""
        changed: dict[bytes, bytes | None] = {}
        for key in sorted(self._touched):
            record = self._records[key]
            data = None if record is None else encode(record)
            if data != self._stored[key]:
                changed[key] = data
        return changed

    def _set(self, cls: type[object], key: bytes, record: object | None) -> None:
        self._undo.setdefault(key, self.get(cls, key))
        self._touched.add(key)
        self._records[key] = record
