"""Signed transactions on their way: kept before they are sent, sent until their fate is proven.

    keep ─▶ send ─ acknowledged (available: it will be ordered) ─▶ wait ─ receipt with proof ─▶ keep, forget
             └── no answer: the same bytes to the next node

A transaction may name a blob instead of carrying it. A node that lacks the blob says so and is given it, and then the
transaction again; so whichever node takes the transaction has the blob, and nothing is lost if it dies before that.

The same bytes may be sent to any number of nodes any number of times: they are executed once. A refusal counts when
f + 1 nodes agree on it, one of which is honest. No key is needed here: who signed, and where, is the sender's affair.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time

from chain.codec import pack
from fl.accounts import new_account
from fl.client.errors import RefusedByChain, TimedOut, Unreachable
from fl.client.feedback import Feedback
from fl.client.home import Home, Pending, StoredReceipt
from fl.client.nodes import Behind, Node, Nodes, Reply, Request, Unusable
from fl.client.reader import Reader
from fl.client.receiptfile import receipt_file
from fl.client.transfer.blobs import AsyncBlobs, NamedBlob, blob_named
from fl.errors import CODES
from fl.execution import OK
from fl.records import Account
from fl.rounds import SubmitUpdate
from fl.state import account_key
from fl.transactions import read_body

log = logging.getLogger("quorate.client")

PAUSE_S = 0.05
MAX_PAUSE_S = 0.5
_SEND_AGAIN_S = 10.0
"""An acknowledged transaction without a receipt is sent once more after this, to whichever node answers."""
_OTHER_NODE_S = 2.0
_NOT_YET = frozenset({"UNKNOWN_JOB", "NONCE_FAR"})
"""Refusals of a node that lags, or of a moment: they may be over in the next."""
_NOT_YET_S = 15.0
_BLOB_MISSING, _BLOB_FULL = "BLOB_MISSING", "BLOB_FULL"


class NonceTaken(Exception):
    """Another transaction of the account was executed under this one's nonce: this one never will be."""


class Courier:
    """For the transactions of one account: the home's."""

    def __init__(self, nodes: Nodes, reader: Reader, home: Home, blobs: AsyncBlobs) -> None:
        self._nodes = nodes
        self._reader = reader
        self._home = home
        self._blobs = blobs

    async def account(self, identity: bytes) -> Account:
        """As it is on the chain; one that has sent nothing yet has no record there."""
        return await self._reader.record(Account, account_key(identity)) or new_account(b"")

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
        pause, ends = PAUSE_S, time.monotonic() + _SEND_AGAIN_S
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
            pause = min(1.5 * pause, MAX_PAUSE_S)
        return None

    async def _receipt(self, pending: Pending) -> StoredReceipt | None:
        try:
            found = await self._reader.receipt(pending.id)
        except Unreachable as error:
            log.warning("%s", error)
            return None
        if found is None:
            return None
        file = receipt_file(pending.tx, found[1], self._reader.hand_overs)
        stored = await asyncio.to_thread(self._home.keep_receipt, file)
        entry = stored.receipt
        self._home.note("proven", pending, status=entry.status, height=entry.height, round=entry.round)
        self._home.keep_head(self._reader.head)
        body = read_body(pending.tx)[1]
        if entry.status == OK and isinstance(body, SubmitUpdate):
            # While the transaction is in the outbox, so that a crash leaves nothing unsaid.
            feedback = Feedback(self._home.feedback_directory(body.job, body.group))
            await asyncio.to_thread(feedback.accepted, body.round, body.cid)
        self._home.drop(pending)
        self.drop_blob(body)
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
            await asyncio.sleep(MAX_PAUSE_S)

    async def _receipt_or_taken(self, pending: Pending) -> bool:
        """Whether the nonce was used by this very transaction; raises NonceTaken when it was not."""
        if await self._reader.receipt(pending.id) is not None:
            return True
        await self._reader.compare_heads()
        account = await self.account(pending.tx.sender)
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
        pause, ends = PAUSE_S, time.monotonic() + patience_s
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
            pause = min(2 * pause, 4 * MAX_PAUSE_S)

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
            await asyncio.sleep(MAX_PAUSE_S)

    def drop_blob(self, body: object) -> None:
        """Nothing needs it for this transaction any more; another one may."""
        named = blob_named(body)
        if named is None or any(blob_named(read_body(each.tx)[1]) == named for each in self._home.pending()):
            return
        self._home.drop_blob(named.cid)


def _expired() -> TimedOut:
    return TimedOut(
        "EXPIRED",
        "Block time has passed the transaction's valid_until before it was ordered.",
        "Check the clock of the machine that signed it, and sign it again.",
    )


_GOOD = frozenset({"available", "final", "executed", "proven"})


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
