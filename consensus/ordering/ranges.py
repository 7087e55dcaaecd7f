"""Final blocks in a row, as a peer sends them to one that is behind: believed as far as a finalization covers them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chain.block import Block, block_digest, body_roots
from chain.certificate import Certificate, Finalize, ValidatorSet, VoteKind, verify_certificate
from chain.codec import CodecError, decode
from consensus.messages import RangeAnswer


class FalseRange(Exception):
    """No honest peer sends this."""


@dataclass(frozen=True, slots=True)
class Covered:
    """Blocks that one finalization, of the last of them, makes final."""

    blocks: tuple[Block, ...]
    certificate: Certificate
    view: int


def covered_rows(
    answer: RangeAnswer, parent: bytes, height: int, chain_id: bytes, validators: ValidatorSet
) -> Iterator[Covered]:
    """The runs above (height, parent), each ended by its finalization of this epoch. Raises FalseRange."""
    row: list[Block] = []
    for entry in answer.blocks:
        block, certificate = entry.block, entry.finalization
        if block.header.height <= height:
            continue
        if block.header.parent != parent or (block.header.batch_root, block.header.item_root) != body_roots(block.body):
            return
        parent = block_digest(block.header)
        row.append(block)
        if certificate is None or certificate.epoch != validators.epoch:
            continue
        if certificate.kind != VoteKind.FINALIZE or not verify_certificate(chain_id, validators, certificate):
            raise FalseRange("a finalization that does not verify")
        try:
            subject = decode(Finalize, certificate.subject, 256)
        except CodecError:
            raise FalseRange("an undecodable finalization") from None
        if subject.block != parent:
            raise FalseRange("a finalization of another block")
        yield Covered(tuple(row), certificate, subject.view)
        row = []
