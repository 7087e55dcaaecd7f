"""The checkers themselves: each finds the one thing that it is for, and nothing in what is sound."""

from __future__ import annotations

from dataclasses import replace

from chain.availability import AvailabilityCertificate
from chain.batch import Batch, SignedBatch, batch_digest, sign_batch
from chain.block import EMPTY_BODY, HEADER_VERSION, Block, Body, Header, block_digest, body_roots
from chain.certificate import (
    Certificate,
    Executed,
    Finalize,
    Notarize,
    Nullify,
    Vote,
    VoteKind,
    assemble,
    sign_vote,
)
from chain.codec import decode, encode
from chain.genesis import genesis_header
from chain.hashing import ZERO_DIGEST, Domain, digest
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from consensus.messages import BatchOffer
from fl.members import RegisterMember
from tests.fl.builders import actor, signing_key
from tests.simulation.audit import Books
from tests.simulation.checkers import Chain, Findings, Wire, check_certified_blocks, check_durable
from tests.simulation.cluster import consensus_key, genesis_of
from tests.simulation.ports import EPOCH_MS

N = 4
GENESIS = genesis_of(N)
CHAIN = GENESIS.chain_id
SET = GENESIS.validator_set
BLOCK = digest(Domain.HEADER, b"a")
OTHER = digest(Domain.HEADER, b"b")


def vote(kind: VoteKind, subject: object, signer: int) -> Vote:
    return sign_vote(consensus_key(signer), CHAIN, kind, 0, encode(subject), signer)


def certificate(kind: VoteKind, subject: object, signers: tuple[int, ...] = (0, 1, 2)) -> Certificate:
    return assemble(SET, [vote(kind, subject, signer) for signer in signers])


class Watch:
    def __init__(self) -> None:
        self.findings = Findings(lambda: 0.0)
        self.wire = Wire(CHAIN, {0: SET}, self.findings)
        self.root = block_digest(genesis_header(GENESIS))
        self.chain = Chain(self.root, 50, self.wire, self.findings)

    @property
    def found(self) -> list[str]:
        return self.findings.violations

    def block(self, parent: bytes, height: int, **changes: object) -> Block:
        body = changes.pop("body", EMPTY_BODY)
        assert isinstance(body, Body)
        batch_root, item_root = body_roots(body)
        header = Header(
            version=HEADER_VERSION,
            chain=CHAIN,
            epoch=0,
            height=height,
            view=height,
            parent=parent,
            log_root=ZERO_DIGEST,
            batch_root=batch_root,
            item_root=item_root,
            executed_height=0,
            executed_root=ZERO_DIGEST,
            time_ms=EPOCH_MS + 100 * height,
            rules_version=1,
            reveal=ZERO_DIGEST,
            commit=ZERO_DIGEST,
            next_set=b"",
        )
        return Block(replace(header, **changes), body)  # type: ignore[arg-type]

    def finalize(self, *blocks: Block, who: str = "n0") -> None:
        last = blocks[-1].header
        subject = Finalize(last.view, block_digest(last))
        self.chain.final(who, blocks, certificate(VoteKind.FINALIZE, subject))


# Votes


def test_votes_that_go_together_are_nobody_s_offence() -> None:
    watch = Watch()
    for kind, subject in (
        (VoteKind.NOTARIZE, Notarize(1, 0, BLOCK)),
        (VoteKind.NULLIFY, Nullify(1)),
        (VoteKind.NOTARIZE, Notarize(2, 0, OTHER)),
        (VoteKind.FINALIZE, Finalize(2, OTHER)),
    ):
        watch.wire.sent(0, vote(kind, subject, 0))
    assert not watch.found


def test_two_notarizes_of_an_honest_validator_are_found() -> None:
    watch = Watch()
    watch.wire.sent(0, vote(VoteKind.NOTARIZE, Notarize(1, 0, BLOCK), 0))
    watch.wire.sent(0, vote(VoteKind.NOTARIZE, Notarize(1, 0, OTHER), 0))
    assert len(watch.found) == 1


def test_a_nullify_beside_a_finalize_is_found_in_either_order() -> None:
    for kinds in ((0, 1), (1, 0)):
        watch = Watch()
        votes = (vote(VoteKind.NULLIFY, Nullify(1), 0), vote(VoteKind.FINALIZE, Finalize(1, BLOCK), 0))
        for place in kinds:
            watch.wire.sent(0, votes[place])
        assert len(watch.found) == 1


def test_what_a_validator_gives_back_of_another_s_votes_binds_nobody() -> None:
    watch = Watch()
    watch.wire.sent(0, vote(VoteKind.NOTARIZE, Notarize(1, 0, BLOCK), 1))
    watch.wire.sent(0, vote(VoteKind.NOTARIZE, Notarize(1, 0, OTHER), 1))
    assert not watch.found


def test_two_states_of_one_height_are_found() -> None:
    watch = Watch()
    watch.wire.sent(0, vote(VoteKind.EXECUTED, Executed(1, BLOCK, BLOCK), 0))
    watch.wire.sent(0, vote(VoteKind.EXECUTED, Executed(1, BLOCK, OTHER), 0))
    assert len(watch.found) == 1


# Certificates


def test_a_certificate_with_a_signature_too_few_does_not_verify() -> None:
    watch = Watch()
    whole = certificate(VoteKind.NULLIFY, Nullify(1))
    assert watch.wire.verifies(whole)
    short = replace(whole, signers=b"\x03", signatures=whole.signatures[:2])
    repeated = replace(whole, signers=b"\x03", signatures=whole.signatures)
    forged = replace(whole, signatures=(bytes(64), *whole.signatures[1:]))
    beyond = replace(whole, signers=b"\x13")
    for bad in (short, repeated, forged, beyond):
        assert not watch.wire.verifies(bad)
        watch.wire.sent(0, bad)
    assert len(watch.found) == 4


def test_a_liar_s_false_certificate_is_no_violation_and_proves_nothing() -> None:
    watch = Watch()
    whole = certificate(VoteKind.NULLIFY, Nullify(1))
    watch.wire.overheard(replace(whole, signatures=(bytes(64), *whole.signatures[1:])))
    assert not watch.found and not watch.wire.nullified


def batch_of(*transactions: bytes) -> SignedBatch:
    return sign_batch(consensus_key(1), Batch(CHAIN, 0, 1, 0, 0, 64, transactions))


def availability(signed: SignedBatch, looked: int = 2) -> AvailabilityCertificate:
    kinds = [VoteKind.AVAILABLE if signer < looked else VoteKind.HELD for signer in range(3)]
    votes = [vote(kind, signed.reference, signer) for signer, kind in enumerate(kinds)]
    bits = bytes([sum(1 << signer for signer in range(looked))])
    return AvailabilityCertificate(0, encode(signed.reference), b"\x07", bits, tuple(each.signature for each in votes))


def test_a_certificate_of_a_batch_needs_f_and_one_who_looked_and_said_so() -> None:
    watch = Watch()
    signed = batch_of(_registration(1))
    assert watch.wire.verifies(availability(signed)) and watch.wire.verifies(availability(signed, 3))
    for bad in (
        availability(signed, 1),
        replace(availability(signed), looked=b"\x07"),
        replace(availability(signed), looked=b"\x0b"),
        replace(availability(signed), signers=b"\x0b"),
        Certificate(VoteKind.AVAILABLE, 0, encode(signed.reference), b"\x07", availability(signed, 3).signatures),
    ):
        assert not watch.wire.verifies(bad)
        watch.wire.sent(0, bad)
    assert len(watch.found) == 5


def test_a_certified_batch_that_holds_what_nobody_signed_is_found() -> None:
    tx = decode(Transaction, _registration(2), MAX_TRANSACTION_BYTES)
    for bad in (encode(replace(tx, signature=bytes(64))), b"no transaction"):
        watch = Watch()
        for signed in (batch_of(_registration(1)), batch_of(_registration(1), bad)):
            assert not watch.found
            watch.wire.sent(1, BatchOffer(signed))
            watch.wire.overheard(availability(signed))
        assert len(watch.found) == 1


def test_two_notarizations_of_a_view_are_found_whoever_shows_them() -> None:
    watch = Watch()
    watch.wire.overheard(certificate(VoteKind.NOTARIZE, Notarize(1, 0, BLOCK), (0, 1, 2)))
    watch.wire.overheard(certificate(VoteKind.NOTARIZE, Notarize(1, 0, OTHER), (1, 2, 3)))
    assert len(watch.found) == 1


def test_a_finalization_and_a_nullification_of_one_view_are_found_in_either_order() -> None:
    pair = (certificate(VoteKind.NULLIFY, Nullify(1)), certificate(VoteKind.FINALIZE, Finalize(1, BLOCK)))
    for order in (pair, pair[::-1]):
        watch = Watch()
        for each in order:
            watch.wire.overheard(each)
        assert len(watch.found) == 1


def test_a_notarized_block_that_passes_over_a_final_one_is_found_in_either_order() -> None:
    final = certificate(VoteKind.FINALIZE, Finalize(2, BLOCK))
    over, on_it = Notarize(3, 1, OTHER), Notarize(3, 2, OTHER)
    for order in ((final, certificate(VoteKind.NOTARIZE, over)), (certificate(VoteKind.NOTARIZE, over), final)):
        watch = Watch()
        for each in order:
            watch.wire.overheard(each)
        assert len(watch.found) == 1
    watch = Watch()
    watch.wire.overheard(final)
    watch.wire.overheard(certificate(VoteKind.NOTARIZE, on_it))
    assert not watch.found


# The chain


def test_a_chain_that_is_linked_and_certified_is_sound() -> None:
    watch = Watch()
    first = watch.block(watch.root, 1)
    second = watch.block(block_digest(first.header), 2)
    watch.finalize(first, second)
    watch.finalize(first, second, who="n1")
    check_certified_blocks(watch.wire, watch.chain, watch.findings)
    assert not watch.found and watch.chain.height == 2


def test_another_block_at_a_final_height_is_found() -> None:
    watch = Watch()
    watch.finalize(watch.block(watch.root, 1))
    watch.finalize(watch.block(watch.root, 1, view=2), who="n1")
    assert any("another block for final" in sentence for sentence in watch.found)


def test_a_final_block_that_does_not_stand_on_the_last_is_found() -> None:
    watch = Watch()
    watch.finalize(watch.block(watch.root, 1))
    watch.finalize(watch.block(watch.root, 2))
    assert len(watch.found) == 1


def test_a_batch_that_is_ordered_twice_is_found() -> None:
    watch = Watch()
    body = Body((BLOCK,), ())
    first = watch.block(watch.root, 1, body=body)
    watch.finalize(first, watch.block(block_digest(first.header), 2, body=body))
    assert len(watch.found) == 1


def test_a_finalization_of_a_block_beside_the_chain_is_found() -> None:
    watch = Watch()
    first = watch.block(watch.root, 1, view=3)
    watch.wire.overheard(certificate(VoteKind.FINALIZE, Finalize(2, OTHER)))
    watch.finalize(first)
    check_certified_blocks(watch.wire, watch.chain, watch.findings)
    assert len(watch.found) == 1


def test_a_state_unlike_the_others_is_found() -> None:
    watch = Watch()
    first = watch.block(watch.root, 1)
    watch.finalize(first)
    watch.chain.executed("n0", 1, block_digest(first.header), BLOCK, ())
    watch.chain.executed("n1", 1, block_digest(first.header), BLOCK, ())
    assert not watch.found
    watch.chain.executed("n2", 1, block_digest(first.header), OTHER, ())
    assert len(watch.found) == 1


# The books


def _books(watch: Watch, transactions: tuple[bytes, ...], height: int = 1, expiry: int = 1_024) -> Books:
    books = Books(CHAIN, 256, expiry, watch.findings)
    signed = sign_batch(consensus_key(0), Batch(CHAIN, 0, 0, 0, 0, expiry, transactions))
    parent = watch.root
    for number in range(1, height + 1):
        body = Body((batch_digest(signed.batch),), ()) if number == height else EMPTY_BODY
        block = watch.block(parent, number, body=body)
        watch.finalize(block)
        parent = block_digest(block.header)
    assert books.read_on(watch.chain, lambda digest: signed, height)
    return books


def _registration(nonce: int, **changes: int) -> bytes:
    name = f"member-{nonce}"
    body = RegisterMember(name, signing_key(name).public, ())
    changes.setdefault("valid_until_ms", EPOCH_MS + 3_600_000)
    return actor("registrar", CHAIN).sign(body, nonce=nonce, **changes)


def test_a_nonce_is_good_for_one_transaction() -> None:
    watch = Watch()
    books = _books(watch, (_registration(1), _registration(0), _registration(1), _registration(300)))
    assert len(books.executed[1]) == 2 and len(books.ordered) == 3
    assert not watch.found


def test_a_transaction_past_its_time_leaves_no_receipt() -> None:
    books = _books(Watch(), (_registration(0, valid_until_ms=EPOCH_MS), _registration(0)))
    assert len(books.executed[1]) == 1


def test_a_batch_past_its_expiry_is_found() -> None:
    watch = Watch()
    _books(watch, (_registration(0),), height=3, expiry=2)
    assert len(watch.found) == 1


def test_a_transaction_that_nobody_signed_is_found() -> None:
    watch = Watch()
    _books(watch, (_registration(0)[:-1] + b"\x00", b"garbage"))
    assert len(watch.found) == 2


# Disks


def test_a_vote_that_leaves_before_it_is_durable_is_found() -> None:
    watch = Watch()
    said = vote(VoteKind.NULLIFY, Nullify(1), 0)
    check_durable("n0", 0, said, lambda prefix: [bytearray(encode(said))], watch.wire, watch.findings)
    assert not watch.found
    check_durable("n0", 0, said, lambda prefix: [bytearray(b"nothing")], watch.wire, watch.findings)
    assert len(watch.found) == 1
