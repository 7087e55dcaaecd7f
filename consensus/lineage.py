"""What a block inherits: the few facts about its ancestry that its children are judged by.

A lineage is a pure function of the parent's lineage and the block, so it is never agreed on and never trusted: every
validator derives it, and a node that starts takes up the one that it stored with its newest final block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from chain.block import Block, Header, block_digest
from chain.certificate import ValidatorSet
from chain.codec import U64, Count, Digest, Length, PublicKey
from chain.genesis import Genesis, genesis_header
from chain.log import EMPTY, Frontier, append, leaf_digest
from consensus.beacon import commitment, first_beacon, next_beacon


@dataclass(frozen=True, slots=True)
class Reveals:
    """How far one validator has come in its chain of secrets."""

    key: PublicKey
    count: U64
    commit: Digest


@dataclass(frozen=True, slots=True)
class Lineage:
    digest: Digest
    epoch: U64
    epoch_height: U64
    """Of the last block of the epoch before: only states above it can end this one."""
    height: U64
    time_ms: U64
    executed_height: U64
    executed_root: Digest
    next_set: Annotated[bytes, Length(0, 32)]
    log: Frontier
    beacon: Digest
    reveals: Annotated[tuple[Reveals, ...], Count(0, 1024)]
    loaded: Annotated[tuple[U64, ...], Count(0, 1024)]
    """Heights of the newest batch-carrying blocks, at most the execution window of them."""


def first_leader(validators: ValidatorSet) -> int:
    """Who would lead view 0: leaders go by turns from a place that the set itself draws."""
    return int.from_bytes(validators.digest()[:8], "big") % validators.n


def genesis_lineage(genesis: Genesis, validators: ValidatorSet) -> Lineage:
    header = genesis_header(genesis)
    identity = block_digest(header)
    frontier, _ = append(EMPTY, leaf_digest(identity))
    return Lineage(
        digest=identity,
        epoch=0,
        epoch_height=0,
        height=0,
        time_ms=header.time_ms,
        executed_height=0,
        executed_root=header.executed_root,
        next_set=b"",
        log=frontier,
        beacon=first_beacon(genesis.chain_id),
        reveals=_fresh(validators, ()),
        loaded=(),
    )


def _fresh(validators: ValidatorSet, known: tuple[Reveals, ...]) -> tuple[Reveals, ...]:
    by_key = {entry.key: entry for entry in known}
    return tuple(
        by_key.get(member.consensus_key) or Reveals(member.consensus_key, 0, member.beacon_commit)
        for member in validators.members
    )


def rebase(lineage: Lineage, validators: ValidatorSet) -> Lineage:
    """The last block of an epoch as the root of the next: same chain, other proposers."""
    return Lineage(
        digest=lineage.digest,
        epoch=validators.epoch,
        epoch_height=lineage.height,
        height=lineage.height,
        time_ms=lineage.time_ms,
        executed_height=lineage.executed_height,
        executed_root=lineage.executed_root,
        next_set=b"",
        log=lineage.log,
        beacon=lineage.beacon,
        reveals=_fresh(validators, lineage.reveals),
        loaded=lineage.loaded,
    )


def descend(parent: Lineage, block: Block, proposer: int, window: int) -> Lineage:
    header = block.header
    identity = block_digest(header)
    frontier, _ = append(parent.log, leaf_digest(identity))
    reveals = list(parent.reveals)
    mine = reveals[proposer]
    reveals[proposer] = Reveals(mine.key, mine.count + 1, header.commit)
    loaded = parent.loaded
    if block.body.batches:
        loaded = (*loaded, header.height)[-window:]
    return Lineage(
        digest=identity,
        epoch=header.epoch,
        epoch_height=parent.epoch_height,
        height=header.height,
        time_ms=header.time_ms,
        executed_height=header.executed_height,
        executed_root=header.executed_root,
        next_set=header.next_set,
        log=frontier,
        beacon=next_beacon(parent.beacon, header.reveal),
        reveals=tuple(reveals),
        loaded=loaded,
    )


def header_fault(parent: Lineage, header: Header, proposer: int, interval_ms: int) -> str | None:
    """What makes a header impossible as a child of `parent`, whoever asks and whenever; None if nothing does."""
    if header.epoch != parent.epoch:
        return "epoch"
    if header.height != parent.height + 1:
        return "height"
    if header.parent != parent.digest:
        return "parent"
    if header.log_root != parent.log.root():
        return "log root"
    if header.time_ms < parent.time_ms + interval_ms:
        return "time"
    if header.executed_height < parent.executed_height or header.executed_height > parent.height:
        return "executed height"
    if header.executed_height == parent.executed_height and header.executed_root != parent.executed_root:
        return "executed root"
    if commitment(header.reveal) != parent.reveals[proposer].commit:
        return "reveal"
    return None


def unexecuted_loads(lineage: Lineage, executed_height: int) -> int:
    """How many of the newest batch-carrying blocks lie above `executed_height`."""
    return sum(1 for height in lineage.loaded if height > executed_height)
