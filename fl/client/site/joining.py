"""What the chain would answer if this account joined a job: its own code says so, over rows that are proven."""

from __future__ import annotations

from chain.genesis import Genesis
from chain.hashing import ZERO_DIGEST
from fl.client.reader import Reader
from fl.errors import Refused
from fl.execution import BlockInput, Call, Execution
from fl.jobs import JoinJob, join_job

_MOST_ROWS = 64
"""Joining reads a handful."""


class _Lacking(Exception):
    """A row that has not been read yet."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key.hex())
        self.key = key


async def answer_to_joining(reader: Reader, genesis: Genesis, account: bytes, body: JoinJob) -> Refused | None:
    """None if it would be accepted. Nothing is sent."""
    rows: dict[bytes, bytes | None] = {}

    def read(key: bytes) -> bytes | None:
        if key not in rows:
            raise _Lacking(key)
        return rows[key]

    block = _next_block(genesis, reader)
    call = Call(tx_id=ZERO_DIGEST, sender=account, key=b"", batch=ZERO_DIGEST, place=0)
    while len(rows) < _MOST_ROWS:
        try:
            join_job(Execution(read, block), call, body)
        except _Lacking as lacking:
            rows[lacking.key] = (await reader.state(lacking.key)).value
        except Refused as refused:
            return refused
        else:
            return None
    raise RuntimeError(f"joining read more than {_MOST_ROWS} rows")


def _next_block(genesis: Genesis, reader: Reader) -> BlockInput:
    validators = reader.checkpoint.validators
    return BlockInput(
        chain_id=genesis.chain_id,
        params=genesis.params,
        height=reader.head + 1,
        digest=ZERO_DIGEST,
        time_ms=genesis.time_ms,
        epoch=validators.epoch,
        proposer=0,
        f=validators.f,
        within_window=True,
        beacon=ZERO_DIGEST,
        batches=(),
        items=(),
    )
