"""What peers lack and this node holds: blocks, rows of final blocks, batches, each in a frame of its own."""

from __future__ import annotations

from consensus.messages import BatchAnswer, BlockAnswer, FinalBlock, RangeAnswer, channel_of, to_frame
from consensus.replica import ServeBatch, ServeBlock, ServeRange
from node.batchlog import BatchLog
from node.ports import Links, Peer
from node.store import Store

RANGE_BYTES = 900 * 1024


class Serving:
    def __init__(self, store: Store, batches: BatchLog, links: Links) -> None:
        self._store = store
        self._batches = batches
        self._links = links

    def serve(self, asked: ServeRange | ServeBlock | ServeBatch) -> None:
        """Nothing is sent where nothing is here."""
        answer: object = None
        match asked:
            case ServeRange(peer, first, last):
                answer = self._range(first, last)
            case ServeBlock(peer, identity):
                height = self._store.height_of(identity)
                block = self._store.block(height) if height is not None else None
                answer = BlockAnswer(block) if block is not None else None
            case ServeBatch(peer, digest):
                signed = self._batches.read(digest)
                answer = BatchAnswer(signed) if signed is not None else None
        if answer is not None:
            self._send(peer, answer)

    def _send(self, peer: Peer, answer: object) -> None:
        self._links.send(peer, channel_of(answer), to_frame(answer))

    def _range(self, first: int, last: int) -> RangeAnswer | None:
        """As many blocks as one frame holds, up to one that has a finalization."""
        rows: list[FinalBlock] = []
        size, whole = 0, 0
        for block in self._store.blocks(max(1, first), last):
            row = FinalBlock(block, self._store.finalization(block.header.height))
            size += len(to_frame(RangeAnswer(first, (row,))))
            if size > RANGE_BYTES:
                break
            rows.append(row)
            if row.finalization is not None:
                whole = len(rows)
        return RangeAnswer(first, tuple(rows[:whole])) if whole else None
