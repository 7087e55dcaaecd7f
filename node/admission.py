"""Admission: what a node takes from its clients, how much of it, and what it has promised them since.

Bytes that no node will ever accept are refused at once with their code; what only the state can decide is left to
execution. A transaction that was answered with `available` is certified and will be ordered: that is the only
acknowledgement, whatever happens to this node.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from chain.codec import decode, encode
from chain.genesis import Params
from consensus.availability import Submit
from fl.accounts import free_account
from fl.blobs import Demand
from fl.check import Checked, check_all
from fl.errors import CODES, PendingJob, Refused
from fl.members import member_of
from fl.records import JobRules, Receipt, Registrars
from fl.state import REGISTRARS, State, member_key, read_record, rules_of
from node.buckets import Rate, TokenBuckets
from node.data.messages import Finding
from node.dataplane import DataFault, DataGone, DataPlane
from node.ports import Clock, Offload
from node.readings import ReadBatches
from node.store import Store

REMEMBERED = 200_000
"""Transactions whose status this node keeps in memory; receipts are in the store for ever."""
CHECKED_TOGETHER = 64
CHECKED_AT_ONCE = 4
CHECKED_AT_ONCE_BYTES = 16 * 1024
"""So few are checked on the event loop: to a thread and back takes as long as they do."""
RULES_CACHED = 256
RECEIPT_LIMIT_BYTES = 4096
WAITING_WITH_BLOBS = 8
"""Transactions of one sender whose blobs peers have yet to pull: few of all senders' are offered at once, and those
of one whose quota is used up elsewhere must not keep out the others'."""
JUDGED_WITHIN_S = 8.0
"""A blob that takes longer to look through is known when its transaction comes again."""


class Status(StrEnum):
    ACCEPTED = "accepted"
    """In one node's memory; it may vanish with it."""
    AVAILABLE = "available"
    """Certified: f+1 honest nodes hold it durably, and it will be ordered."""
    FINAL = "final"
    EXECUTED = "executed"
    PROVEN = "proven"
    """Executed, under an execution certificate."""
    EXPIRED = "expired"
    """It left no receipt and will leave none: its time was over, or its nonce was used by another."""
    UNKNOWN = "unknown"


_ORDER = [Status.UNKNOWN, Status.ACCEPTED, Status.AVAILABLE, Status.FINAL, Status.EXECUTED, Status.PROVEN]
_RANK = {status: rank for rank, status in enumerate(_ORDER)}
_UNDER_WAY = frozenset({Status.ACCEPTED, Status.AVAILABLE, Status.FINAL})
_OVER = frozenset({Status.UNKNOWN, Status.EXPIRED})
"""There is nothing to wait for."""


class Standing(NamedTuple):
    """Where a transaction is, with its receipt once it is executed."""

    id: bytes
    status: Status
    receipt: Receipt | None = None

    def reached(self, wanted: Status) -> bool:
        return self.status is Status.EXPIRED or _RANK[self.status] >= _RANK[wanted]


class Answer(NamedTuple):
    """To one submitted transaction: its id and standing, or why it was refused. Not taken although nothing is
    wrong with it, its standing is `unknown`; `wait_s` is when its sender's account may send again, and `busy` why
    it alone was not taken."""

    id: bytes | None
    standing: Standing | None
    refused: Refused | None
    wait_s: float = 0.0
    busy: Busy | None = None


class Busy(Exception):
    """Nothing is taken at this time; come again after a while."""

    code = "BUSY"

    def __init__(self, sentence: str = "The node's pool of transactions is full.", retry_after_s: int = 1) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class NoSpace(Busy):
    """The disk is filled up to its mark: the node signs nothing that it would have to keep."""

    code = "DISK_FULL"

    def __init__(self) -> None:
        super().__init__("The node's disk is full up to the reserve; use another node.", 30)


class DataDown(Busy):
    """Nothing can be said about a blob while the data process is not at work."""

    code = "DATA_DOWN"

    def __init__(self) -> None:
        super().__init__("The node cannot look at the blob at this time.", 2)


class _Good(NamedTuple):
    """A transaction that may be taken, as far as bytes and state say. `known`: it has a receipt already."""

    id: bytes
    checked: Checked
    known: bool
    member: bool


class News(NamedTuple):
    """How far a transaction has come, with its encoded receipt once it is executed."""

    id: bytes
    status: Status
    receipt: bytes = b""


class Watch:
    """Somebody who waits for many transactions to come as far as `wanted`, and is told of each once."""

    def __init__(self, wanted: Status, moved: asyncio.Event) -> None:
        self.wanted = wanted
        self.waiting: set[bytes] = set()
        """Those it has not been told of."""
        self._told: list[News] = []
        self._moved = moved
        """Set when there is something to take."""

    def tell(self, news: News) -> None:
        if news.id in self.waiting:
            self.waiting.remove(news.id)
            if not self._told:
                self._moved.set()
            self._told.append(news)

    def take(self) -> list[News]:
        """What it was told since the last time."""
        told, self._told = self._told, []
        return told


class Admission:
    def __init__(
        self,
        chain_id: bytes,
        params: Params,
        store: Store,
        offload: Offload,
        clock: Clock,
        data: DataPlane,
        read: ReadBatches,
        *,
        submit: Callable[[Submit], None],
        room: Callable[[], int],
        certified_height: Callable[[], int],
        disk_full: Callable[[], bool],
        account_rate: Rate,
        stranger_rate: Rate,
    ) -> None:
        self._chain_id = chain_id
        self._params = params
        self._store = store
        self._offload = offload
        self._clock = clock
        self._data = data
        self._read = read
        self._submit = submit
        self._room = room
        self._certified_height = certified_height
        self._disk_full = disk_full
        self._members = TokenBuckets(account_rate)
        self._strangers = TokenBuckets(stranger_rate, 1)
        self._standing: OrderedDict[bytes, Status] = OrderedDict()
        self._in_batch: dict[bytes, tuple[bytes, ...]] = {}
        self._in_block: dict[int, list[bytes]] = {}
        """Final and not yet executed, by height."""
        self._watches: dict[Status, dict[bytes, list[Watch]]] = {status: {} for status in _ORDER}
        """By how far a transaction is to come, so that a step that nobody waits for costs nothing."""
        self._unproven: dict[int, list[News]] = {}
        """By height, what is executed and somebody waits for the proof of."""
        self._being_checked: dict[object, set[bytes]] = {}
        """For each check that is under way, what was executed meanwhile."""
        self._with_blobs: dict[bytes, set[bytes]] = {}
        """By sender, transactions that name blobs and were last seen to be accepted."""
        self._rules: OrderedDict[bytes, JobRules] = OrderedDict()
        self.refused: dict[str, int] = {}
        self.draining = False

    # Checking

    def rules_of(self, job: bytes) -> JobRules | None:
        known = self._rules.get(job)
        if known is None and (known := rules_of(self._store.state, job)) is not None:
            self._rules[job] = known
            if len(self._rules) > RULES_CACHED:
                self._rules.popitem(last=False)
        return known

    def check(self, transactions: Sequence[bytes]) -> list[Checked | Refused | PendingJob]:
        return check_all(transactions, self._chain_id, self._params, self.rules_of)

    def _check_all(self, transactions: Sequence[bytes]) -> list[_Good | Refused]:
        verdicts: list[_Good | Refused] = []
        # Who sends several transactions is looked up once.
        state, now_ms = State(self._store.state), self._clock.now().wall_ms
        for found in self.check(transactions):
            if isinstance(found, PendingJob):
                verdicts.append(Refused("UNKNOWN_JOB"))
            elif isinstance(found, Refused):
                verdicts.append(found)
            else:
                verdicts.append(self._check_state(found, state, now_ms))
        return verdicts

    def _check_state(self, checked: Checked, state: State, now_ms: int) -> _Good | Refused:
        """What is hopeless by the state as it is: refusing it here spares its sender a wait, and binds nobody."""
        tx, identity = checked.reading.tx, checked.reading.id
        if tx.valid_until_ms > now_ms + self._params.max_validity_ms:
            return Refused("VALID_UNTIL_FAR")
        try:
            # One that has been executed has used its nonce.
            free_account(state, tx, now_ms, self._params.nonce_window)
            if checked.demand is not None:
                # No node fetches a stranger's blob.
                member_of(state, tx.sender)
        except Refused as refused:
            return refused if self._store.receipt_index(identity) is None else _Good(identity, checked, True, True)
        member = self._store.state(member_key(tx.sender)) is not None or self._is_registrar(tx.sender)
        return _Good(identity, checked, False, member)

    # Taking

    async def submit(self, transactions: Sequence[bytes]) -> list[Answer]:
        """Check and take each; those that are known already are answered as they stand. Raises Busy."""
        size_bytes = sum(map(len, transactions))
        self._check_room(size_bytes)
        fresh: list[tuple[bytes, bytes, int]] = []
        with_blobs: list[tuple[bytes, Checked, Demand]] = []
        held_back: dict[bytes, float] = {}
        verdicts = await self._verdicts(transactions, size_bytes)
        standing, now_s = self._standing, self._clock.now().mono_ms / 1000
        for data, verdict in zip(transactions, verdicts, strict=True):
            if isinstance(verdict, Refused):
                self._count(verdict.code)
                continue
            identity, checked, known, member = verdict
            if known or standing.get(identity, Status.UNKNOWN) not in _OVER:
                continue
            wait_s = self._hold_back(checked.reading.tx.sender, member, now_s)
            if wait_s:
                held_back[identity] = wait_s
                self._count("RATE_LIMITED")
            elif checked.demand is not None:
                with_blobs.append((data, checked, checked.demand))
            else:
                standing[identity] = Status.ACCEPTED
                self._read.taken(data, checked.reading)
                fresh.append((identity, data, checked.reading.tx.valid_until_ms))
        if fresh:
            self._forget_oldest()
            self._submit(Submit(tuple(fresh)))
        reasons = await self._take_with_blobs(with_blobs) if with_blobs else {}
        return [self._answer(verdict, held_back, reasons) for verdict in verdicts]

    async def _verdicts(self, transactions: Sequence[bytes], size_bytes: int) -> list[_Good | Refused]:
        if len(transactions) <= CHECKED_AT_ONCE and size_bytes <= CHECKED_AT_ONCE_BYTES:
            return self._check_all(transactions)
        verdicts: list[_Good | Refused] = []
        for start in range(0, len(transactions), CHECKED_TOGETHER):
            check = object()
            executed = self._being_checked[check] = set()
            try:
                part = await self._offload.run(self._check_all, transactions[start : start + CHECKED_TOGETHER])
            finally:
                del self._being_checked[check]
            verdicts += [self._unless(executed, verdict) for verdict in part] if executed else part
        return verdicts

    @staticmethod
    def _unless(executed: set[bytes], verdict: _Good | Refused) -> _Good | Refused:
        """What was executed while it was checked has a receipt, and is not taken again."""
        if isinstance(verdict, _Good) and verdict.id in executed:
            return verdict._replace(known=True)
        return verdict

    def _answer(
        self, verdict: _Good | Refused, held_back: dict[bytes, float], reasons: dict[bytes, Refused | Busy]
    ) -> Answer:
        if isinstance(verdict, Refused):
            return Answer(None, None, verdict)
        reason = reasons.get(verdict.id)
        if isinstance(reason, Refused):
            return Answer(None, None, reason)
        return Answer(verdict.id, self.standing(verdict.id), None, held_back.get(verdict.id, 0.0), reason)

    # With blobs

    async def _take_with_blobs(self, found: Sequence[tuple[bytes, Checked, Demand]]) -> dict[bytes, Refused | Busy]:
        """Takes those whose blobs are here; why not, of the others."""
        reasons = await asyncio.gather(*(self._take_with_blob(*each) for each in found))
        ids = [checked.reading.id for _, checked, _ in found]
        return {identity: reason for identity, reason in zip(ids, reasons, strict=True) if reason is not None}

    async def _take_with_blob(self, data: bytes, checked: Checked, demand: Demand) -> Refused | Busy | None:
        reason = await self._judge(demand)
        if reason is None and self._has_enough(checked.reading.tx.sender):
            reason = Busy("Others of this account's blobs are still on their way to the other nodes.", 5)
        if reason is not None:
            self._count(reason.code)
            return reason
        self._note((checked.reading.id,), Status.ACCEPTED)
        self._with_blobs.setdefault(checked.reading.tx.sender, set()).add(checked.reading.id)
        self._submit(Submit(((checked.reading.id, data, checked.reading.tx.valid_until_ms),), alone=True))
        return None

    def _has_enough(self, sender: bytes) -> bool:
        waiting = self._with_blobs.pop(sender, set())
        waiting = {identity for identity in waiting if self._standing.get(identity) is Status.ACCEPTED}
        if waiting:
            self._with_blobs[sender] = waiting
        return len(waiting) >= WAITING_WITH_BLOBS

    async def _judge(self, demand: Demand) -> Refused | Busy | None:
        """Whether the blob is whole, good and durable here: what a client has not put here, no peer can pull."""
        try:
            async with asyncio.timeout(JUDGED_WITHIN_S):
                finding, code = await self._data.judge(demand, wait=False)
        except (DataGone, DataFault, TimeoutError):
            return DataDown()
        if finding is Finding.ABSENT:
            return Refused("BLOB_MISSING")
        if finding is Finding.FULL:
            return Refused("BLOB_FULL")
        if finding is Finding.BAD:
            return Refused(code if code in CODES else "BAD_CID")
        return None

    def _check_room(self, size_bytes: int) -> None:
        try:
            if self.draining:
                raise Busy("The node is being stopped and takes no more transactions; use another one.", 30)
            if self._disk_full():
                raise NoSpace
            if self._room() < size_bytes:
                raise Busy
        except Busy as busy:
            self._count(busy.code)
            raise

    def _hold_back(self, sender: bytes, member: bool, now_s: float) -> float:
        """Seconds until this account may have another transaction taken. Asked once the signature is known to
        be good: nobody uses up what is another's."""
        return self._members.take(sender, 1, now_s) if member else self._strangers.take(b"", 1, now_s)

    def _is_registrar(self, sender: bytes) -> bool:
        registrars = read_record(self._store.state, Registrars, REGISTRARS)
        return registrars is not None and sender in registrars.accounts

    def _count(self, code: str) -> None:
        self.refused[code] = self.refused.get(code, 0) + 1

    # Waiting

    def watch(self, watch: Watch, standing: Standing) -> bool:
        """Whether there is something to wait for; if so, `watch` is told when the transaction has come far enough."""
        identity = standing.id
        if standing.status in _OVER or standing.reached(watch.wanted):
            return False
        if identity not in watch.waiting:
            watch.waiting.add(identity)
            self._watches[watch.wanted].setdefault(identity, []).append(watch)
            if standing.receipt is not None:
                proven = News(identity, Status.PROVEN, encode(standing.receipt))
                self._unproven.setdefault(standing.receipt.height, []).append(proven)
        return True

    def unwatch(self, watch: Watch, ids: Iterable[bytes]) -> None:
        """It is not told of these any more."""
        watched = self._watches[watch.wanted]
        for identity in ids:
            watch.waiting.discard(identity)
            watches = [each for each in watched.get(identity, ()) if each is not watch]
            if watches:
                watched[identity] = watches
            else:
                watched.pop(identity, None)

    async def wait(self, standings: Iterable[Standing], wanted: Status, timeout_s: float) -> list[Standing]:
        """Where the transactions are once each has come as far as `wanted`, or when the time is over."""
        moved = asyncio.Event()
        watch = Watch(wanted, moved)
        asked = [(standing, self.watch(watch, standing)) for standing in standings]
        told: dict[bytes, News] = {}
        try:
            async with asyncio.timeout(timeout_s):
                while watch.waiting:
                    moved.clear()
                    await moved.wait()
                    told.update((news.id, news) for news in watch.take())
        except TimeoutError:
            pass
        finally:
            self.unwatch(watch, list(watch.waiting))
        return [self._now(standing.id, told.get(standing.id)) if waited else standing for standing, waited in asked]

    def _now(self, identity: bytes, news: News | None) -> Standing:
        return self.standing(identity) if news is None or not news.receipt else self._by_receipt(identity, news.receipt)

    def standing(self, identity: bytes) -> Standing:
        status = self._standing.get(identity, Status.UNKNOWN)
        if status in _UNDER_WAY:
            return Standing(identity, status)
        index = self._store.receipt_index(identity)
        data = None if index is None else self._store.receipt(index)
        return Standing(identity, status) if data is None else self._by_receipt(identity, data)

    def _by_receipt(self, identity: bytes, data: bytes) -> Standing:
        receipt = decode(Receipt, data, RECEIPT_LIMIT_BYTES)
        proven = receipt.height <= self._certified_height()
        return Standing(identity, Status.PROVEN if proven else Status.EXECUTED, receipt)

    @property
    def unsettled(self) -> int:
        """Transactions taken here that are not yet final."""
        return sum(status in (Status.ACCEPTED, Status.AVAILABLE) for status in self._standing.values())

    # What became of them

    @property
    def watched(self) -> int:
        """Transactions that somebody waits for."""
        return sum(map(len, self._watches.values()))

    def _note(self, ids: Sequence[bytes], status: Status) -> None:
        standing = self._standing
        for identity in ids:
            standing[identity] = status
            standing.move_to_end(identity)
        self._forget_oldest()
        for watched in self._satisfied_by(status):
            for identity in ids:
                self._tell(watched, News(identity, status))

    def _forget_oldest(self) -> None:
        while len(self._standing) > REMEMBERED:
            self._standing.popitem(last=False)

    def _satisfied_by(self, status: Status) -> list[dict[bytes, list[Watch]]]:
        """Watches that need not wait for more than this, where there are any."""
        rank = len(_ORDER) if status in _OVER else _RANK[status]
        return [watched for wanted, watched in self._watches.items() if watched and _RANK[wanted] <= rank]

    @staticmethod
    def _tell(watched: dict[bytes, list[Watch]], news: News) -> None:
        for watch in watched.pop(news.id, ()):
            watch.tell(news)

    def available(self, ids: tuple[bytes, ...], batch: bytes) -> None:
        self._in_batch[batch] = (*self._in_batch.get(batch, ()), *ids)
        self._note([identity for identity in ids if self._becomes_available(identity)], Status.AVAILABLE)

    def _becomes_available(self, identity: bytes) -> bool:
        status = self._standing.get(identity)
        # Of one that is not remembered: another node's batch may have brought it to execution before.
        return status is Status.ACCEPTED or (status is None and self._store.receipt_index(identity) is None)

    def final(self, height: int, batches: tuple[bytes, ...]) -> None:
        mine = [identity for batch in batches for identity in self._in_batch.pop(batch, ())]
        if mine:
            self._note([each for each in mine if self._standing.get(each) is Status.AVAILABLE], Status.FINAL)
            self._in_block[height] = mine

    def executed(self, height: int, ids: Sequence[bytes], receipts: Sequence[bytes]) -> None:
        for executed in self._being_checked.values():
            executed.update(ids)
        for identity in ids:
            self._standing.pop(identity, None)
        for watched in self._satisfied_by(Status.EXECUTED):
            for identity, receipt in zip(ids, receipts, strict=True):
                if identity in watched:
                    self._tell(watched, News(identity, Status.EXECUTED, receipt))
        if watched := self._watches[Status.PROVEN]:
            told = zip(ids, receipts, strict=True)
            proven = [News(identity, Status.PROVEN, receipt) for identity, receipt in told if identity in watched]
            if proven:
                self._unproven.setdefault(height, []).extend(proven)
        over = [each for each in self._in_block.pop(height, ()) if self._standing.get(each) is Status.FINAL]
        self._note(over, Status.EXPIRED)

    def certified(self) -> None:
        """A new execution certificate: whoever waits for a proof has it."""
        certified = self._certified_height()
        for height in [height for height in self._unproven if height <= certified]:
            for news in self._unproven.pop(height):
                self._tell(self._watches[Status.PROVEN], news)

    def not_taken(self, ids: Sequence[bytes]) -> None:
        """The pool was full after all."""
        for identity in ids:
            self._count(Busy.code)
            self._standing.pop(identity, None)
        for watched in self._satisfied_by(Status.UNKNOWN):
            for identity in ids:
                self._tell(watched, News(identity, Status.UNKNOWN))

    def expired(self, ids: Sequence[bytes]) -> None:
        self._note(ids, Status.EXPIRED)
