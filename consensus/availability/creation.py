"""Own batches: packing what clients submitted, offering it until it is certified, packing it again if it never is."""

from __future__ import annotations

from collections.abc import Iterable

from chain.batch import Batch, SignedBatch, sign_batch
from chain.codec import CodecError, decode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction, tx_id
from consensus.availability import guards
from consensus.availability.certifying import Certifying
from consensus.availability.desk import Desk
from consensus.availability.inputs import Acknowledged, PoolFull, TransactionsExpired
from consensus.availability.lots import Lot, make_lot
from consensus.availability.pool import BATCH_OVERHEAD_BYTES, TRANSACTION_OVERHEAD_BYTES, Pool, Waiting, packed_bytes
from consensus.availability.records import SequenceReserved
from consensus.effects import ALL, Now, Output, Send
from consensus.messages import BatchOffer

OFFER_AGAIN_MS = 1_000
OFFERED_BATCHES_A_SWEEP = 4
CERTIFICATES_A_LINK = 64
SEQUENCES_RESERVED = 1_024


class Creation:
    def __init__(self, desk: Desk, certifying: Certifying) -> None:
        self._desk = desk
        self._certifying = certifying
        self._pool = Pool()
        self._own: dict[bytes, Lot] = {}
        self._carried: dict[bytes, Lot] = {}
        """By transaction id, the own batch whose ordering it waits for."""
        self._offer_ms: dict[bytes, int] = {}
        """When to offer an uncertified own batch again, by digest."""
        self._alone: set[bytes] = set()
        """Own batches of one transaction that names a blob: peers vote once they hold it, which may take a while."""
        self._restored: set[bytes] = set()
        """Replayed, until finality is known."""
        self._last: bytes | None = None
        self._sealed_ms: int | None = None
        self._pace_ms = guards.SEAL_GAP_MS
        self._sequence = 0
        self._reserved = 0

    # The pool

    def room(self) -> int:
        return self._pool.room() if self._speaks else 0

    @property
    def _speaks(self) -> bool:
        return self._desk.committee.me is not None and guards.may_speak(self._desk.muted)

    def submit(self, transactions: tuple[tuple[bytes, bytes, int], ...], alone: bool, out: Output) -> None:
        refused: list[bytes] = []
        pool, carried = self._pool, self._carried
        longest_bytes = self._longest_bytes if self._speaks else 0
        for id, transaction, valid_until_ms in transactions:
            lot = carried.get(id)
            if not guards.may_pack(id in pool, lot is not None):
                if lot is not None and guards.may_acknowledge(lot.own, lot.certificate):
                    # The client's answer was lost: what was acknowledged once may be so again.
                    out.acks.append(Acknowledged((id,), lot.digest))
                continue
            if packed_bytes(transaction) > min(pool.room(), longest_bytes):
                refused.append(id)
            else:
                pool.add(Waiting(id, transaction, valid_until_ms, alone))
        if refused:
            out.events.append(PoolFull(tuple(refused)))

    @property
    def pooled(self) -> int:
        return len(self._pool)

    @property
    def waiting_alone(self) -> tuple[bytes, ...]:
        return self._pool.alone

    @property
    def _longest_bytes(self) -> int:
        """Of a transaction in a batch; anything that the pool takes can be packed while the quota allows this."""
        params = self._desk.params
        return min(params.transaction_bytes + TRANSACTION_OVERHEAD_BYTES, params.batch_bytes - BATCH_OVERHEAD_BYTES)

    # Sealing

    def deadline(self) -> int | None:
        if not self._may_create():
            return None
        if self._pool.has_alone and guards.may_seal_alone(self._alone_in_flight):
            return 0
        if not self._pool.has_shared:
            return None
        return guards.seal_at(self._sealed_ms, self._is_settled, self._is_full, self._in_flight, self._pace_ms)

    def _may_create(self) -> bool:
        """Whether there is something to pack and room for any transaction within my own quota at others."""
        least = self._longest_bytes + BATCH_OVERHEAD_BYTES
        return (
            len(self._pool) > 0 and self._speaks and guards.is_within_quota(self._outstanding, least, self._desk.params)
        )

    @property
    def _outstanding(self) -> guards.Outstanding:
        return self._desk.lots.outstanding(self._desk.committee.key.public)

    @property
    def _is_settled(self) -> bool:
        """Whether the last own batch is certified, or was given up."""
        return self._last is None or self._last not in self._offer_ms

    @property
    def _is_full(self) -> bool:
        return self._pool.shared_bytes + BATCH_OVERHEAD_BYTES >= self._desk.params.batch_bytes

    @property
    def _in_flight(self) -> int:
        return len(self._offer_ms) - self._alone_in_flight

    @property
    def _alone_in_flight(self) -> int:
        return sum(digest in self._alone for digest in self._offer_ms)

    def progress(self, now: Now, out: Output) -> None:
        self._retire_certified()
        while self._pool.has_alone and self._may_create() and guards.may_seal_alone(self._alone_in_flight):
            waiting, expired = self._pool.take_alone(now.wall_ms)
            if expired:
                out.events.append(TransactionsExpired(tuple(expired)))
            if waiting is not None:
                self._alone.add(self._offer([waiting], now, out).digest)
                self._retire_certified()
        if (
            self._pool.has_shared
            and self._may_create()
            and guards.may_seal(
                now.mono_ms, self._sealed_ms, self._is_settled, self._is_full, self._in_flight, self._pace_ms
            )
        ):
            self._seal(now, out)
            self._retire_certified()

    def _seal(self, now: Now, out: Output) -> None:
        desk = self._desk
        left = desk.params.creator_quota_bytes - self._outstanding.size_bytes
        packed, expired = self._pool.pack(min(desk.params.batch_bytes, left), now.wall_ms)
        if expired:
            out.events.append(TransactionsExpired(tuple(expired)))
        if packed:
            self._sealed_ms = now.mono_ms
            self._pace_ms = guards.pace_ms(len(packed), desk.interval_ms(now.mono_ms))
            self._last = self._offer(packed, now, out).digest

    def _offer(self, packed: list[Waiting], now: Now, out: Output) -> Lot:
        desk = self._desk
        signed = self._sign([waiting.transaction for waiting in packed], out)
        lot = make_lot(signed.reference, desk.committee.key.public, signed)
        lot.cargo = tuple((waiting.id, waiting.valid_until_ms) for waiting in packed)
        desk.store(signed, lot.digest, True, out)
        self._enter(lot, now)
        desk.announce(lot, out)
        out.send.append(Send(ALL, BatchOffer(signed)))
        self._certifying.cast(lot, None, now, out)
        return lot

    def _sign(self, transactions: list[bytes], out: Output) -> SignedBatch:
        desk = self._desk
        me = desk.committee.me
        assert me is not None
        if self._sequence >= self._reserved:
            self._reserved = self._sequence + SEQUENCES_RESERVED
            out.persist.append(SequenceReserved(self._reserved))
        batch = Batch(
            chain=desk.committee.chain_id,
            epoch=desk.committee.current.epoch,
            creator=me,
            sequence=self._sequence,
            created=desk.final,
            expiry=desk.final + desk.params.horizon,
            transactions=tuple(transactions),
        )
        self._sequence += 1
        return sign_batch(desk.committee.key, batch)

    def _enter(self, lot: Lot, now: Now) -> None:
        lot.own = True
        lot.stored = True
        lot.looked = True
        self._own[lot.digest] = lot
        for id, _ in lot.cargo:
            self._carried[id] = lot
        self._offer_ms[lot.digest] = now.mono_ms + OFFER_AGAIN_MS
        self._desk.lots.vote(lot, now.mono_ms)

    # Offering again

    def _retire_certified(self) -> None:
        for digest in [digest for digest in self._offer_ms if self._own[digest].certificate is not None]:
            del self._offer_ms[digest]

    def sweep(self, now: Now, out: Output) -> None:
        due = [digest for digest, at_ms in self._offer_ms.items() if now.mono_ms >= at_ms]
        for digest in due[:OFFERED_BATCHES_A_SWEEP]:
            del self._offer_ms[digest]
            # Last in turn again, so that a few hopeless ones do not hold up the others.
            self._offer_ms[digest] = now.mono_ms + OFFER_AGAIN_MS
            for peer in self._desk.committee.peers:
                self._offer_to(peer, self._own[digest], out)

    def connected(self, peer: int, out: Output) -> None:
        """What this peer may have missed while the link was down."""
        for digest in list(self._offer_ms)[:OFFERED_BATCHES_A_SWEEP]:
            self._offer_to(peer, self._own[digest], out)
        certificates = (lot.certificate for lot in self._own.values())
        held = [certificate for certificate in certificates if certificate is not None]
        out.send += [Send(peer, certificate) for certificate in held[:CERTIFICATES_A_LINK]]

    def _offer_to(self, peer: int, lot: Lot, out: Output) -> None:
        voters = lot.votes.get(self._desk.committee.current.epoch, {})
        if peer not in voters and lot.signed is not None:
            out.send.append(Send(peer, BatchOffer(lot.signed)))

    # What becomes of own batches

    def advanced(self, now: Now) -> None:
        """Peers refuse by now what was created too long ago: its transactions are packed again."""
        self._restored.clear()
        self._retire_certified()
        for digest in list(self._offer_ms):
            lot = self._own[digest]
            if guards.is_past_voting(lot.reference, self._desk.final, self._desk.params):
                self._withdraw(lot, now)

    def _withdraw(self, lot: Lot, now: Now) -> None:
        """The batch itself stays in the book: others voted for it, and it may yet be certified and ordered."""
        self._offer_ms.pop(lot.digest, None)
        if lot.signed is None:
            return
        # What a batch of one transaction held goes alone again: it may name a blob, and if not, nothing is lost by it.
        alone = len(lot.cargo) == 1
        returned: list[Waiting] = []
        for (id, valid_until_ms), transaction in zip(lot.cargo, lot.signed.batch.transactions, strict=True):
            if self._carried.get(id) is lot:
                del self._carried[id]
                if valid_until_ms >= now.wall_ms:
                    returned.append(Waiting(id, transaction, valid_until_ms, alone))
        self._pool.put_back(returned)

    def expired(self, lot: Lot, now: Now) -> None:
        if not lot.own:
            return
        if lot.digest not in self._restored:
            self._withdraw(lot, now)
            self._leave(lot)
            return
        # It expired while this validator was down, and whether it had been ordered is not told of so long ago. It had:
        # if it was certified, all the others named it in time.
        self.ordered(lot)

    def ordered(self, lot: Lot) -> None:
        if not lot.own:
            return
        self._offer_ms.pop(lot.digest, None)
        self._leave(lot)
        for id, _ in lot.cargo:
            if self._carried.get(id) is lot:
                del self._carried[id]
        # It may have been withdrawn and been ordered all the same.
        self._pool.discard([id for id, _ in lot.cargo])

    def _leave(self, lot: Lot) -> None:
        del self._own[lot.digest]
        self._alone.discard(lot.digest)

    # After a restart

    def reserve(self, below: int) -> None:
        self._sequence = max(self._sequence, below)
        self._reserved = max(self._reserved, below)

    def restore(self, lot: Lot, signed: SignedBatch, now: Now) -> None:
        lot.signed = signed
        lot.cargo = tuple(_cargo(signed.batch.transactions))
        self._sequence = max(self._sequence, lot.reference.sequence + 1)
        self._enter(lot, now)
        if len(lot.cargo) == 1:
            self._alone.add(lot.digest)
        self._restored.add(lot.digest)
        self._offer_ms[lot.digest] = now.mono_ms


def _cargo(transactions: Iterable[bytes]) -> Iterable[tuple[bytes, int]]:
    for data in transactions:
        try:
            tx = decode(Transaction, data, MAX_TRANSACTION_BYTES)
        except CodecError:
            # Only a log of another make holds such a thing; as it cannot be executed either, it is never repacked.
            yield b"", 0
        else:
            yield tx_id(tx), tx.valid_until_ms
