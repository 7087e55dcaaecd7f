"""The transactions of one account: signed once, under nonces of their own, and sent until their fate is proven.

sign ─ keep ─▶ the courier ─▶ receipt with proof
  ▲               └── the nonce went to another transaction, or its time is over: sign again under the next
  └───────────────┘
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable

from chain.genesis import Params
from chain.transaction import account_id
from chain.unixfs import Buffer
from fl.client.courier import MAX_PAUSE_S, PAUSE_S, Courier, NonceTaken
from fl.client.errors import BadFile, BadInput, RefusedByChain, TimedOut, Unreachable
from fl.client.home import Home, Pending, StoredReceipt
from fl.client.signing import check_bytes, now_ms, signed
from fl.client.transfer.blobs import AsyncBlobs, blob_named
from fl.client.transfer.doors import Signer
from fl.errors import PendingJob
from fl.records import Account
from fl.state import RulesOf
from fl.transactions import read_body

log = logging.getLogger("quorate.client")

VALID_FOR_MS = 3_600_000
"""How long a transaction is good for, and so how long it is tried."""
_EXPIRED_AT_MOST = 3
"""Signings of one body: after an outage a fresh one helps, with a wrong clock none does."""


class Sender:
    def __init__(
        self,
        courier: Courier,
        home: Home,
        signer: Signer,
        params: Params,
        rules_of: RulesOf,
        blobs: AsyncBlobs,
    ) -> None:
        self._courier = courier
        self._home = home
        self._signer = signer
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
                    self._courier.drop_blob(body)
                    raise
            except (BadInput, RefusedByChain):
                self._courier.drop_blob(body)
                raise
            except Unreachable as error:
                if time.monotonic() - began > patience_s:
                    raise
                log.warning("waiting for the network: %s", error)

    async def _sign(self, body: object, valid_for_ms: int) -> Pending:
        valid_until_ms = now_ms() + min(valid_for_ms, self._params.max_validity_ms // 2)
        async with self._signing:
            while True:
                pending = signed(self._signer, await self._free_nonce(), valid_until_ms, body)
                try:
                    check_bytes(pending, self._signer.chain, self._params, self._rules_of)
                except PendingJob:
                    raise RefusedByChain.of("UNKNOWN_JOB") from None
                if await asyncio.to_thread(self._home.keep, pending):
                    self._home.note("signed", pending)
                    return pending

    async def _free_nonce(self) -> int:
        """The lowest that is neither executed nor in flight; waits while the account's window is full."""
        pause = PAUSE_S
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
            pause = min(2 * pause, MAX_PAUSE_S)

    async def _account(self) -> Account:
        known, key = await self._courier.account(self.account), self._signer.key.public
        if known.key != key and (known.key or account_id(key) != self.account):
            raise RefusedByChain.of("WRONG_KEY", "The key file is not the account's present key.")
        return known

    # Sending

    async def settle(self, pending: Pending, patience_s: float = math.inf) -> StoredReceipt:
        """As the courier does it; the nonce is not free again before the account's record says that it is used."""
        stored = await self._courier.settle(pending, patience_s)
        self._spent.add(pending.tx.nonce)
        return stored

    async def resume_one(self, pending: Pending) -> StoredReceipt | None:
        """Settle what an earlier life left in the outbox; None when it can no longer be executed, and it is not there
        any more."""
        if pending.tx.chain != self._signer.chain or pending.tx.sender != self.account:
            raise BadFile("BAD_OUTBOX", "The outbox holds a transaction of another account.", "Use another home.")
        try:
            return await self.settle(pending)
        except (NonceTaken, RefusedByChain, TimedOut) as error:
            log.warning("transaction %s, kept from an earlier run, is given up: %s", pending.id.hex()[:16], error)
            self._courier.drop_blob(read_body(pending.tx)[1])
            return None

    # Blobs that transactions name

    def keep_blob(self, parts: Iterable[Buffer]) -> bytes:
        """Its CID, once it is in the outbox for a transaction that is about to name it."""
        in_flight = (blob_named(read_body(each.tx)[1]) for each in self._home.pending())
        self._home.drop_abandoned_blobs({each.cid for each in in_flight if each is not None})
        cid, manifest = self._home.keep_blob(parts)
        self._blobs.made(cid, manifest)
        return cid
