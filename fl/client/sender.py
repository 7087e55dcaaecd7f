"""Transactions on their way: signed once, kept before they are sent, sent until their fate is proven.

    sign ─ keep ─▶ send ─ acknowledged (available: it will be ordered) ─▶ wait ─ receipt with proof ─▶ keep, forget
             ▲       └── no answer: the same bytes to the next node
             └── its nonce went to another transaction: sign again under the next

A transaction may name a blob instead of carrying it. A node that lacks the blob says so and is given it, and then the
transaction again; so whichever node takes the transaction has the blob, and nothing is lost if it dies before that.

The same bytes may be sent to any number of nodes any number of times: they are executed once. A refusal counts when
f + 1 nodes agree on it, one of which is honest.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable

from chain.codec import CodecError, encode, pack
from chain.genesis import Params
from chain.transaction import MAX_TRANSACTION_BYTES, account_id, sign_transaction, tx_id
from chain.unixfs import Buffer
from fl.accounts import new_account
from fl.check import check_transaction
from fl.client.blobs import AsyncBlobs, NamedBlob, blob_named
from fl.client.doors import Signer
from fl.client.errors import BadFile, BadInput, RefusedByChain, TimedOut, Unreachable
from fl.client.feedback import Feedback
from fl.client.home import Home, Pending, StoredReceipt
from fl.client.nodes import Behind, Node, Nodes, Reply, Request, Unusable
from fl.client.reader import Reader
from fl.errors import CODES, PendingJob, Refused
from fl.execution import OK
from fl.records import Account, JobRules
from fl.rounds import SubmitUpdate
from fl.state import account_key
from fl.transactions import KIND_OF_BODY, read_body

log = logging.getLogger("quorate.client")

VALID_FOR_MS = 3_600_000
"""How long a transaction is good for, and so how long it is tried."""
_PAUSE_S = 0.05
_MAX_PAUSE_S = 0.5
_SEND_AGAIN_S = 10.0
"""An acknowledged transaction without a receipt is sent once more after this, to whichever node answers."""
_OTHER_NODE_S = 2.0
_NOT_YET = frozenset({"UNKNOWN_JOB", "NONCE_FAR"})
"""Refusals of a node that lags, or of a moment: they may be over in the next."""
_NOT_YET_S = 15.0
_BLOB_MISSING, _BLOB_FULL = "BLOB_MISSING", "BLOB_FULL"
_EXPIRED_AT_MOST = 3
"""Signings of one body: after an outage a fresh one helps, with a wrong clock none does."""

RulesOf = Callable[[bytes], JobRules | None]


class NonceTaken(Exception):
    """Another transaction of the account was executed under this one's nonce: this one never will be."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Sender:
    def __init__(
        self,
        nodes: Nodes,
        reader: Reader,
        home: Home,
        signer: Signer,
        params: Params,
        rules_of: RulesOf,
        blobs: AsyncBlobs,
    ) -> None:
        self._nodes = nodes
        self._reader = reader
        self._home = home
        self._key = signer.key
        self._params = params
        self._rules_of = rules_of
        self._blobs = blobs
        self.account = signer.account
        self._seen: Account | None = None
        self._spent: set[int] = set()
        self._signing = asyncio.Lock()

    # Signing

    async def send(self, body: object, valid_for_ms: int = VALID_FOR_MS, patience_s: float = math.inf) -> StoredReceipt:
        """Sign, keep, send, and wait for the proven receipt, whatever it says. Raises RefusedByChain when the
        transaction is refused before it is ordered, Unreachable when no node takes it in time; it stays in the outbox
        then."""
        began, expired = time.monotonic(), 0
        pending: Pending | None = None
        while True:
            try:
                pending = pending or await self._sign(body, valid_for_ms)
                return await self.settle(pending, patience_s)
            except NonceTaken:
                pending = self._seen = None
            except TimedOut:
                pending, expired = None, expired + 1
                if expired == _EXPIRED_AT_MOST:
                    self._drop_blob(body)
                    raise
            except (BadInput, RefusedByChain):
                self._drop_blob(body)
                raise
            except Unreachable as error:
                if time.monotonic() - began > patience_s:
                    raise
                log.warning("waiting for the network: %s", error)

    async def _sign(self, body: object, valid_for_ms: int) -> Pending:
        valid_until_ms = now_ms() + min(valid_for_ms, self._params.max_validity_ms // 2)
        kind, data = KIND_OF_BODY[type(body)], _encoded(body)
        async with self._signing:
            while True:
                nonce = await self._free_nonce()
                tx = sign_transaction(
                    self._key, self._reader.checkpoint.chain_id, self.account, nonce, valid_until_ms, kind, data
                )
                pending = Pending(tx, tx_id(tx), encode(tx))
                self._check_bytes(pending)
                if await asyncio.to_thread(self._home.keep, pending):
                    self._home.note("signed", pending)
                    return pending

    def _check_bytes(self, pending: Pending) -> None:
        """What every node would refuse is not sent, and takes no nonce."""
        try:
            check_transaction(
                pending.data, self._reader.checkpoint.chain_id, self._params, self._rules_of, verify_signature=False
            )
        except Refused as refused:
            raise RefusedByChain.of(refused.code, refused.sentence) from None
        except PendingJob:
            raise RefusedByChain.of("UNKNOWN_JOB") from None

    async def _free_nonce(self) -> int:
        """The lowest that is neither executed nor in flight; waits while the account's window is full."""
        pause = _PAUSE_S
        while True:
            if self._seen is None:
                self._seen = await self._account()
                self._spent.clear()
            used = int.from_bytes(self._seen.used, "little")
            taken = self._spent | self._home.nonces_in_flight()
            for offset in range(self._params.nonce_window):
                if not used >> offset & 1 and self._seen.floor + offset not in taken:
                    return self._seen.floor + offset
            self._seen = None
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)

    async def _account(self) -> Account:
        known = await self._reader.record(Account, account_key(self.account))
        if known is None and account_id(self._key.public) == self.account:
            known = new_account(self._key.public)
        if known is None or known.key != self._key.public:
            raise RefusedByChain.of("WRONG_KEY", "The key file is not the account's present key.")
        return known

    # Sending

    async def resume(self) -> list[StoredReceipt]:
        """Settle what an earlier life left in the outbox, all at once."""
        settled = await asyncio.gather(*(self.resume_one(each) for each in self._home.pending()))
        return [each for each in settled if each is not None]

    async def resume_one(self, pending: Pending) -> StoredReceipt | None:
        """None when the transaction can no longer be executed; it has left the outbox then."""
        if pending.tx.chain != self._reader.checkpoint.chain_id or pending.tx.sender != self.account:
            raise BadFile("BAD_OUTBOX", "The outbox holds a transaction of another account.", "Use another home.")
        try:
            return await self.settle(pending)
        except (NonceTaken, RefusedByChain, TimedOut) as error:
            log.warning("transaction %s, kept from an earlier run, is given up: %s", pending.id.hex()[:16], error)
            self._drop_blob(read_body(pending.tx)[1])
            return None

    async def settle(self, pending: Pending, patience_s: float = math.inf) -> StoredReceipt:
        """Send the bytes until their receipt is proven. Patience is for the first acknowledgement: what has one will be
        executed."""
        acknowledged = False
        while True:
            await self._send_until_acknowledged(pending, math.inf if acknowledged else patience_s)
            if not acknowledged:
                acknowledged = True
                self._home.note("acknowledged", pending)
            stored = await self._wait_for_receipt(pending)
            if stored is not None:
                return stored

    async def _wait_for_receipt(self, pending: Pending) -> StoredReceipt | None:
        """None when it has been too long: whoever acknowledged the transaction may have lied."""
        pause, ends = _PAUSE_S, time.monotonic() + _SEND_AGAIN_S
        turns = time.monotonic() + _OTHER_NODE_S
        while time.monotonic() < ends:
            stored = await self._receipt(pending)
            if stored is not None:
                return stored
            if time.monotonic() > turns:
                # This node may have lost the others and still answer.
                self._nodes.turn()
                turns = time.monotonic() + _OTHER_NODE_S
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, _MAX_PAUSE_S)
        return None

    async def _receipt(self, pending: Pending) -> StoredReceipt | None:
        try:
            found = await self._reader.receipt(pending.id)
        except Unreachable as error:
            log.warning("%s", error)
            return None
        if found is None:
            return None
        stored = await asyncio.to_thread(self._home.keep_receipt, *found)
        entry = stored.receipt
        self._home.note("proven", pending, status=entry.status, height=entry.height, round=entry.round)
        self._home.keep_head(self._reader.head)
        self._spent.add(pending.tx.nonce)
        body = read_body(pending.tx)[1]
        if entry.status == OK and isinstance(body, SubmitUpdate):
            # While the transaction is in the outbox, so that a crash leaves nothing unsaid.
            feedback = Feedback(self._home.feedback_directory(body.job, body.group))
            await asyncio.to_thread(feedback.accepted, body.round, body.cid)
        self._home.drop(pending)
        self._drop_blob(body)
        return stored

    async def _send_until_acknowledged(self, pending: Pending, patience_s: float) -> None:
        began = time.monotonic()
        while True:
            refused = await self._send_once(pending, patience_s)
            if refused is None:
                return
            if refused.code == "NONCE_USED":
                if await self._receipt_or_taken(pending):
                    return
            elif refused.code not in _NOT_YET or time.monotonic() - began > _NOT_YET_S:
                self._give_up(pending, refused.code)
                raise _expired() if refused.code == "EXPIRED" else refused
            await asyncio.sleep(_MAX_PAUSE_S)

    async def _receipt_or_taken(self, pending: Pending) -> bool:
        """Whether the nonce was used by this very transaction; raises NonceTaken when it was not."""
        if await self._reader.receipt(pending.id) is not None:
            return True
        await self._reader.compare_heads()
        account = await self._account()
        distance = pending.tx.nonce - account.floor
        if distance >= 0 and not int.from_bytes(account.used, "little") >> distance & 1:
            return False
        # The account's state is newer than the first question, so this answer is about what used the nonce.
        if await self._reader.receipt_anywhere(pending.id) is not None:
            return True
        self._give_up(pending, "NONCE_USED")
        raise NonceTaken

    def _give_up(self, pending: Pending, code: str) -> None:
        self._home.note("given_up", pending, code=code)
        self._home.drop(pending)

    async def _send_once(self, pending: Pending, patience_s: float) -> RefusedByChain | None:
        """None once a node has acknowledged it; else the refusal that f + 1 nodes agree on."""
        request = Request("POST", "/v1/transactions", {"wait": "available"}, pack((pending.data,)))
        needed = self._reader.checkpoint.validators.f + 1
        named = blob_named(read_body(pending.tx)[1])
        pause, ends = _PAUSE_S, time.monotonic() + patience_s
        failures: dict[str, str] = {}
        while True:
            refusals: dict[str, RefusedByChain] = {}
            for node in self._nodes.ready():
                try:
                    refusal = await self._offer(node, request, named)
                except (Unusable, Behind) as error:
                    failures[node.name] = str(error)
                    log.info("node %s did not take transaction %s: %s", node.name, pending.id.hex()[:16], error)
                    continue
                if refusal is None:
                    self._nodes.prefer(node)
                    return None
                refusals[node.name] = refusal
                agreed = sum(each.code == refusal.code for each in refusals.values())
                # Which blobs a node has says nothing of the next one.
                if agreed >= needed and refusal.code != _BLOB_MISSING:
                    return refusal
            if len(refusals) >= needed and all(each.code == _BLOB_MISSING for each in refusals.values()):
                return next(iter(refusals.values()))
            if time.monotonic() + pause > ends:
                said = failures | {name: each.code for name, each in refusals.items()}
                reasons = "; ".join(f"{name}: {each}" for name, each in said.items())
                raise Unreachable(
                    "NO_ANSWER",
                    f"No node took transaction {pending.id.hex()} ({reasons}).",
                    "It is kept and sent again by the next run; check the network.",
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, 4 * _MAX_PAUSE_S)

    async def _offer(self, node: Node, request: Request, named: NamedBlob | None) -> RefusedByChain | None:
        refusal = await self._asked(node, request, named)
        if refusal is None or refusal.code != _BLOB_MISSING or named is None:
            return refusal
        try:
            if not await self._blobs.supply(node, named):
                return refusal
        except RefusedByChain as refused:
            return refused
        return await self._asked(node, request, named)

    async def _asked(self, node: Node, request: Request, named: NamedBlob | None) -> RefusedByChain | None:
        """While the other validators pull a blob from the node, it has the transaction only as accepted. Any other node
        would be as far, or ask for the blob once more."""
        ends = time.monotonic() + self._blobs.spreads_s(named)
        while True:
            try:
                return await self._nodes.ask_one(node, request, _read_answer)
            except Behind:
                if time.monotonic() > ends:
                    raise
            await asyncio.sleep(_MAX_PAUSE_S)

    # Blobs that transactions name

    def keep_blob(self, parts: Iterable[Buffer]) -> bytes:
        """Its CID, once it is in the outbox for a transaction that is about to name it."""
        in_flight = (blob_named(read_body(each.tx)[1]) for each in self._home.pending())
        self._home.drop_abandoned_blobs({each.cid for each in in_flight if each is not None})
        cid, manifest = self._home.keep_blob(parts)
        self._blobs.made(cid, manifest)
        return cid

    def _drop_blob(self, body: object) -> None:
        """Nothing needs it for this transaction any more; another one may."""
        named = blob_named(body)
        if named is None or any(blob_named(read_body(each.tx)[1]) == named for each in self._home.pending()):
            return
        self._home.drop_blob(named.cid)


def _expired() -> TimedOut:
    return TimedOut(
        "EXPIRED",
        "Block time has passed the transaction's valid_until before it was ordered.",
        "Check this machine's clock, and send it again.",
    )


_GOOD = frozenset({"available", "final", "executed", "proven"})


def _encoded(body: object) -> bytes:
    try:
        data = encode(body)
    except CodecError as error:
        raise BadInput("BAD_VALUE", f"A transaction cannot hold this: {error}.", "Keep to its limits.") from None
    if len(data) > MAX_TRANSACTION_BYTES:
        raise RefusedByChain.of("OVERSIZE", f"A transaction may take {MAX_TRANSACTION_BYTES} bytes, not {len(data)}.")
    return data


def _read_answer(reply: Reply) -> RefusedByChain | None:
    """None for an acknowledgement, or the node's refusal."""
    if 400 <= reply.status < 500:
        return _refusal(reply.json())
    if reply.status not in (200, 202):
        raise Unusable(reply.problem())
    answers = reply.json().get("answers")
    if not isinstance(answers, list) or len(answers) != 1 or not isinstance(answers[0], dict):
        raise Unusable("an answer that is not to one transaction")
    if "code" in answers[0]:
        return _refusal(answers[0])
    if answers[0].get("status") not in _GOOD:
        raise Behind(f"it has the transaction only as {answers[0].get('status')}")
    return None


def _refusal(fields: dict[str, object]) -> RefusedByChain:
    code = fields.get("code")
    if not isinstance(code, str) or code not in CODES:
        raise Unusable(f"a refusal without a known code: {code}")
    if code == _BLOB_FULL:
        raise Unusable("it has no room for the blob")
    detail = fields.get("detail")
    return RefusedByChain.of(code, detail if isinstance(detail, str) else "")
