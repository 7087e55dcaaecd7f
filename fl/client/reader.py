"""Verified reads: a node hands over a value with its proof, and the proof leads back to the network file.

A true but outdated answer would pass every proof, so each read has a floor: the newest state that f + 1 nodes had
proven shortly before. One of those nodes is honest. A node below the floor is asked again or passed over.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from chain.batch import MAX_BATCH_BYTES, SignedBatch, batch_digest
from chain.certificate import Certificate, Executed
from chain.codec import CodecError, decode
from chain.genesis import MAX_GENESIS_BYTES, Genesis
from chain.light import (
    Checkpoint,
    Flaw,
    HandOver,
    ReceiptBundle,
    StateBundle,
    Unproven,
    follow,
    verify_executed,
    verify_receipt_bundle,
    verify_state_bundle,
)
from fl.client.errors import Unreachable, Unverified
from fl.client.nodes import Behind, Node, Nodes, Reply, Request, Stale, Untrue, Unusable, from_base64
from fl.client.receiptfile import MAX_HAND_OVERS
from fl.records import Receipt
from fl.state import MAX_VALUE_BYTES

T = TypeVar("T")

HEAD_MAX_AGE_S = 1.0
"""Heads are compared again when the last comparison is older than this."""
MAX_BUNDLE_BYTES = 4 * 1024 * 1024
STALE_BLOCKS = 8
"""An honest node is a block or two behind the others."""
_BATCH_BYTES = MAX_BATCH_BYTES + 1024
_MAX_RECEIPT_BYTES = 64 * 1024
_ROOTS_KEPT = 256
_ANYWHERE_S = 2.0
_ANY_EPOCH = 2**64


@dataclass(frozen=True, slots=True)
class Proven:
    """A key's value (None: it has none) in the state at a height."""

    value: bytes | None
    height: int


class _NewEpoch(Exception):
    """A proof is of an epoch that was not reached yet."""


class Reader:
    """`floor` is a height that was proven in an earlier life, `known` are hand-overs that were followed in it; `moved`
    hears of every new one. `hand_overs` lead from the checkpoint that was given to the one that is reached."""

    def __init__(
        self,
        nodes: Nodes,
        checkpoint: Checkpoint,
        floor: int = 0,
        known: Iterable[HandOver] = (),
        moved: Callable[[HandOver], None] = lambda hand_over: None,
    ) -> None:
        self._nodes = nodes
        self._moved = moved
        self._start = checkpoint.validators.epoch
        self.checkpoint = checkpoint
        self.hand_overs: list[HandOver] = []
        with suppress(Unproven):
            # Kept copies prove themselves like any others, and are fetched again if they do not.
            for each in known:
                self._step(each)
        self.head = floor
        self._compared_at = float("-inf")
        self._roots: OrderedDict[int, Executed] = OrderedDict()

    # Heads

    async def compare_heads(self) -> int:
        """The newest height that is proven, by f + 1 nodes or before; every later read is of that state or a newer
        one."""
        started = time.monotonic()
        wanted = self.checkpoint.validators.f + 1
        await self._nodes.ask_several(Request("GET", "/v1/checkpoint"), self._read_head, wanted)
        self._compared_at = started
        return self.head

    async def head_of(self, node: Node) -> Executed:
        """The newest state that this node proves. Raises Unusable or Behind."""
        height = await self._nodes.ask_one(node, Request("GET", "/v1/checkpoint"), self._read_head)
        return self._roots[height]

    async def _floor(self) -> int:
        if time.monotonic() - self._compared_at > HEAD_MAX_AGE_S:
            await self.compare_heads()
        return self.head

    def _read_head(self, reply: Reply) -> int:
        if reply.status != 200:
            raise Behind(reply.problem())
        fields = reply.fields()
        certificate = _decoded(Certificate, from_base64(fields.get("certificate")))
        hand_overs = fields.get("handovers", [])
        if not isinstance(hand_overs, list):
            raise Unusable("hand-overs that are no list")
        self._follow([_decoded(HandOver, from_base64(each)) for each in hand_overs], certificate.epoch)
        if certificate.epoch < self.checkpoint.validators.epoch:
            raise Behind(f"its head is of epoch {certificate.epoch}")
        try:
            executed = verify_executed(self.checkpoint, certificate)
        except Unproven as error:
            raise Untrue(str(error), "forged head") from None
        if executed.height + STALE_BLOCKS < self.head:
            raise Stale(f"its head is of height {executed.height}, and {self.head} is proven", "stale head")
        self._accept(executed)
        return executed.height

    def _follow(self, hand_overs: list[HandOver], epoch: int) -> None:
        by_epoch = {each.header.epoch: each for each in hand_overs}
        for number in range(self.checkpoint.validators.epoch, min(epoch, self._start + MAX_HAND_OVERS)):
            if number not in by_epoch:
                raise Untrue(
                    f"its head is of epoch {epoch}, and none leads there from epoch {number}", "missing hand-over"
                )
            try:
                self._step(by_epoch[number])
            except Unproven as error:
                raise Untrue(str(error), "wrong hand-over") from None
            self._moved(by_epoch[number])

    def _step(self, hand_over: HandOver) -> None:
        self.checkpoint = follow(self.checkpoint, [hand_over])
        self.hand_overs.append(hand_over)

    def _accept(self, executed: Executed) -> None:
        """What a quorum signed. Two different states of one height are beyond any network's fault."""
        known = self._roots.setdefault(executed.height, executed)
        if known != executed:
            raise Unverified(
                "FORK",
                f"Two states of height {executed.height} are certified: more than a third of the validators lie.",
                "Stop, keep this directory, and tell the members.",
            )
        while len(self._roots) > _ROOTS_KEPT:
            self._roots.popitem(last=False)
        self.head = max(self.head, executed.height)

    # State

    async def state(self, key: bytes) -> Proven:
        floor = await self._floor()

        def read(reply: Reply, latest: int) -> Proven:
            if reply.status in (404, 409):
                raise Behind(reply.problem())
            bundle = _decoded(StateBundle, from_base64(reply.fields().get("bundle")))
            self._check_epoch(bundle.certificate, latest)
            try:
                executed = verify_state_bundle(self.checkpoint, bundle)
            except Unproven as error:
                raise _forged(error) from None
            if bundle.key != key:
                raise Untrue("it is of another key than the one that was asked for", "wrong proof")
            if executed.height < floor:
                what = f"its state is of height {executed.height}, and {floor} is proven"
                raise Behind(what) if executed.height + STALE_BLOCKS >= floor else Stale(what, "stale state")
            self._accept(executed)
            return Proven(bundle.value, executed.height)

        return await self._ask(f"/v1/state/{key.hex()}", read)

    async def record(self, cls: type[T], key: bytes) -> T | None:
        proven = await self.state(key)
        if proven.value is None:
            return None
        try:
            return decode(cls, proven.value, MAX_VALUE_BYTES)
        except CodecError as error:
            raise Unverified(
                "UNKNOWN_RECORD",
                f"The chain holds a {cls.__name__} that this program cannot read ({error}).",
                "Install a newer version of quorate.",
            ) from None

    async def _ask(self, path: str, read: Callable[[Reply, int], T], patience_s: float | None = None) -> T:
        """Ask for something proven, by a certificate of an epoch up to the one that `read` is given."""
        request = Request("GET", path, limit_bytes=MAX_BUNDLE_BYTES)
        try:
            return await self._nodes.ask(request, lambda reply: read(reply, _ANY_EPOCH), patience_s)
        except _NewEpoch:
            # The hand-overs that lead there come with the heads.
            await self.compare_heads()
        return await self._nodes.ask(request, lambda reply: read(reply, self.checkpoint.validators.epoch), patience_s)

    def _check_epoch(self, certificate: Certificate, latest: int) -> None:
        if certificate.epoch > latest:
            raise Behind("no hand-over leads to the epoch of its proof")
        if certificate.epoch > self.checkpoint.validators.epoch:
            raise _NewEpoch

    # Receipts

    async def receipt(self, tx_id: bytes) -> tuple[Receipt, ReceiptBundle] | None:
        """The proven receipt; None as soon as a node says that there is none yet."""
        return await self._ask(_receipt_path(tx_id), partial(self._read_receipt, tx_id))

    async def receipt_anywhere(self, tx_id: bytes) -> tuple[Receipt, ReceiptBundle] | None:
        """None only if no node has come up with one for a while."""

        def read(reply: Reply, latest: int) -> tuple[Receipt, ReceiptBundle]:
            found = self._read_receipt(tx_id, reply, latest)
            if found is None:
                raise Behind("no receipt")
            return found

        try:
            return await self._ask(_receipt_path(tx_id), read, _ANYWHERE_S)
        except Unreachable:
            return None

    def _read_receipt(self, tx_id: bytes, reply: Reply, latest: int) -> tuple[Receipt, ReceiptBundle] | None:
        if reply.status in (404, 409):
            return None
        bundle = _decoded(ReceiptBundle, from_base64(reply.fields().get("bundle")))
        self._check_epoch(bundle.state.certificate, latest)
        return self.check_receipt(tx_id, bundle), bundle

    def check_receipt(self, tx_id: bytes, bundle: ReceiptBundle) -> Receipt:
        try:
            executed = verify_receipt_bundle(self.checkpoint, bundle)
        except Unproven as error:
            raise _forged(error) from None
        receipt = _decoded(Receipt, bundle.receipt)
        if receipt.tx_id != tx_id:
            raise Untrue(f"it is that of another transaction, {receipt.tx_id.hex()}", "wrong receipt")
        self._accept(executed)
        return receipt

    # What names itself

    async def batch(self, digest: bytes, patience_s: float | None = None) -> tuple[bytes, ...]:
        """The transactions of a batch, while a node keeps it."""

        def read(reply: Reply) -> tuple[bytes, ...]:
            if reply.status != 200:
                raise Unusable(reply.problem())
            try:
                batch = decode(SignedBatch, reply.body, _BATCH_BYTES).batch
            except CodecError as error:
                raise Untrue(f"no canonical batch: {error}", "wrong batch") from None
            if batch_digest(batch) != digest:
                raise Untrue("it is another one than the one that was asked for", "wrong batch")
            return batch.transactions

        asked = Request("GET", f"/v1/batches/{digest.hex()}/raw", limit_bytes=_BATCH_BYTES)
        return await self._nodes.ask(asked, read, patience_s)

    async def genesis(self) -> Genesis:
        def read(reply: Reply) -> Genesis:
            if reply.status != 200:
                raise Unusable(reply.problem())
            genesis = _decoded(Genesis, reply.body, MAX_GENESIS_BYTES)
            if genesis.chain_id != self.checkpoint.chain_id:
                raise Untrue(f"it is that of another chain, {genesis.chain_id.hex()}", "wrong genesis")
            return genesis

        return await self._nodes.ask(Request("GET", "/v1/genesis", limit_bytes=MAX_GENESIS_BYTES), read)


def _forged(error: Unproven) -> Untrue:
    return Untrue(str(error), "forged proof" if error.flaw is Flaw.WRONG_PROOF else "forged certificate")


def _receipt_path(tx_id: bytes) -> str:
    return f"/v1/transactions/{tx_id.hex()}/receipt"


def _decoded(cls: type[T], data: bytes, limit: int = MAX_BUNDLE_BYTES) -> T:
    try:
        return decode(cls, data, limit)
    except CodecError as error:
        raise Unusable(f"no canonical {cls.__name__}: {error}") from None
