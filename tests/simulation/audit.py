"""The books at the end of a run: every ordered transaction, by a model of its own, against what the nodes kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from chain.batch import SignedBatch, batch_digest
from chain.block import Block
from chain.codec import CodecError, decode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction, account_id, tx_id
from chain.unixfs import cid_of
from fl.errors import Refused
from fl.records import JobRules, Kind, Receipt
from fl.rounds import SubmitUpdate
from fl.tensors.encodings import Place, decode_update
from fl.updates import form_of
from tests.simulation.checkers import Chain, Findings, signed_by


@dataclass(slots=True)
class _Nonces:
    floor: int = 0
    used: set[int] = field(default_factory=set)

    def take(self, nonce: int, window: int) -> bool:
        if nonce < self.floor or nonce in self.used or nonce >= self.floor + window:
            return False
        self.used.add(nonce)
        while self.floor in self.used:
            self.floor += 1
        return True


class Books:
    """What the chain orders, read from the bytes of the batches, and what it must therefore leave behind."""

    def __init__(self, chain_id: bytes, nonce_window: int, horizon: int, findings: Findings) -> None:
        self._chain_id = chain_id
        self._window = nonce_window
        self._horizon = horizon
        self._findings = findings
        self._accounts: dict[bytes, _Nonces] = {}
        self._read: dict[bytes, Transaction | None] = {}
        self.rules_of: Callable[[bytes], JobRules | None] = lambda job: None
        """Of the jobs that clients have created; no update of any other may be voted for."""
        self.payload_of: Callable[[bytes], bytes | None] = lambda cid: None
        """Of the updates that clients have made, by CID; no other blob may be voted for."""
        self.height = 0
        self.ordered: set[bytes] = set()
        """Ids of all transactions in final batches."""
        self.executed: dict[int, list[bytes]] = {}
        """By height, the ids that must leave a receipt, in order."""

    def read_on(self, chain: Chain, batch_of: Callable[[bytes], SignedBatch | None], height: int) -> bool:
        """Goes on up to this height; False where nobody has the bytes of a batch."""
        while self.height < height:
            block = chain.blocks[self.height + 1]
            batches = [batch_of(digest) for digest in block.body.batches]
            if any(signed is None for signed in batches):
                return False
            self.height += 1
            self.executed[self.height] = []
            for digest, signed in zip(block.body.batches, batches, strict=True):
                assert signed is not None
                self._take(block, digest, signed)
        return True

    def _take(self, block: Block, digest: bytes, signed: SignedBatch) -> None:
        batch, height = signed.batch, block.header.height
        if batch_digest(batch) != digest:
            self._findings.report(f"the batch stored for height {height} is not the one that the block names")
        if batch.expiry != batch.created + self._horizon or height > batch.expiry:
            self._findings.report(f"height {height} orders a batch that expired at {batch.expiry}")
        for data in batch.transactions:
            tx = self._transaction(data)
            if tx is None:
                self._findings.report(f"height {height} orders a transaction that no validator may vote for")
                continue
            self.ordered.add(tx_id(tx))
            account = self._accounts.setdefault(tx.sender, _Nonces())
            if block.header.time_ms <= tx.valid_until_ms and account.take(tx.nonce, self._window):
                self.executed[height].append(tx_id(tx))

    def _transaction(self, data: bytes) -> Transaction | None:
        """None unless every honest validator accepts these bytes, whatever the state."""
        if data not in self._read:
            self._read[data] = self._judged(data)
        return self._read[data]

    def _judged(self, data: bytes) -> Transaction | None:
        try:
            tx = decode(Transaction, data, MAX_TRANSACTION_BYTES)
            if tx.chain != self._chain_id or account_id(tx.key) != tx.sender or tx.kind not in set(Kind):
                return None
            if not signed_by(tx.key, b"quorate/tx", tx.chain, 0, tx_id(tx), tx.signature):
                return None
            if tx.kind == Kind.SUBMIT_UPDATE and not self._is_sound(tx):
                return None
        except (CodecError, Refused):
            return None
        return tx

    def _is_sound(self, tx: Transaction) -> bool:
        update = decode(SubmitUpdate, tx.body, len(tx.body))
        payload = update.payload or self.payload_of(update.cid)
        return payload is not None and _is_sound(update, payload, tx.sender, self.rules_of(update.job))


def _is_sound(update: SubmitUpdate, payload: bytes, sender: bytes, rules: JobRules | None) -> bool:
    if rules is None or cid_of(payload) != update.cid:
        return False
    values = decode_update(form_of(rules, update.group), Place(update.job, update.round, sender), payload)
    return all(bool(np.isfinite(each).all()) for each in values.values())


def check_receipts(books: Books, chain: Chain, findings: Findings) -> None:
    """Each transaction that could be executed was, once, in its place, and no other left a receipt."""
    seen: dict[bytes, int] = {}
    for height in sorted(chain.receipts):
        receipts = [decode(Receipt, data, 4096) for data in chain.receipts[height]]
        for receipt in receipts:
            if receipt.tx_id in seen:
                findings.report(f"a transaction executed at {seen[receipt.tx_id]} was executed again at {height}")
            seen[receipt.tx_id] = height
            findings.counts[f"receipts {receipt.status}"] += 1
        if height in books.executed and [receipt.tx_id for receipt in receipts] != books.executed[height]:
            findings.report(f"the receipts of height {height} are not those of the transactions that it orders")
