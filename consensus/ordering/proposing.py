"""A leader's block: the header that its parent, the payload and the leader's own secret imply."""

from __future__ import annotations

from chain.block import HEADER_VERSION, Block, Header, body_roots
from chain.genesis import Params
from consensus.beacon import commitment, secret
from consensus.lineage import Lineage
from consensus.ordering.payload import Draft


def block_on(
    parent: Lineage,
    draft: Draft,
    view: int,
    leader: int,
    *,
    chain_id: bytes,
    seed: bytes,
    params: Params,
    next_set: bytes,
    wall_ms: int,
) -> Block:
    batch_root, item_root = body_roots(draft.body)
    count = parent.reveals[leader].count
    header = Header(
        version=HEADER_VERSION,
        chain=chain_id,
        epoch=parent.epoch,
        height=parent.height + 1,
        view=view,
        parent=parent.digest,
        log_root=parent.log.root(),
        batch_root=batch_root,
        item_root=item_root,
        executed_height=draft.executed_height,
        executed_root=draft.executed_root,
        time_ms=max(wall_ms, parent.time_ms + params.min_block_interval_ms),
        rules_version=params.rules_version,
        reveal=secret(seed, chain_id, count),
        commit=commitment(secret(seed, chain_id, count + 1)),
        next_set=next_set,
    )
    return Block(header, draft.body)
