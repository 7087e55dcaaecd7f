"""The chain in one process: a state in memory, members who send transactions, blocks at the times that one asks for.

What a validator would refuse to vote for is refused here with the same code, and what is executed is executed by the
same state machine. Keys are numbers without a private half, because nobody checks a signature.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from chain.block import Item
from chain.certificate import Validator
from chain.codec import decode, encode
from chain.genesis import GENESIS_VERSION, Genesis, GenesisMember, Params
from chain.transaction import Transaction, account_id
from fl.blobs import check_blob
from fl.check import check_transaction
from fl.execution import BlockInput, BlockOutcome, NewModel
from fl.jobrules import zero_model
from fl.kernels import KERNEL_VERSION
from fl.machine import execute_block, genesis_state, wants_block_at
from fl.records import Receipt
from fl.state import read_record, rules_of
from fl.transactions import KIND_OF_BODY, read_all

T = TypeVar("T")

VALIDATORS = 4
BEGINS_MS = 1_700_000_000_000
BLOCK_MS = 100
"""From one block to the next, at least."""
_HOUR_MS = 3_600_000


@dataclass(slots=True)
class Member:
    """Somebody with an account."""

    name: str
    key: bytes
    account: bytes
    nonce: int = 0


def member(name: str) -> Member:
    key = b"\x01" + sha256(b"simulated/" + name.encode()).digest()
    return Member(name, key, account_id(key))


class Chain:
    def __init__(self, members: Iterable[tuple[Member, tuple[str, ...]]], seed: int) -> None:
        """`members` with their roles; `seed` is the beacon's."""
        genesis = _genesis(members)
        self.id = genesis.chain_id
        self.params = genesis.params
        self.height = 0
        self.time_ms = genesis.time_ms
        self.blobs: dict[bytes, bytes] = {}
        """By CID: what transactions and results have named. Whoever put one there takes it away."""
        self._f = genesis.validator_set.f
        self._seed = seed
        self._state = genesis_state(genesis)
        self._logs: dict[bytes, list[bytes]] = {}
        self._waiting: list[bytes] = []

    def read(self, key: bytes) -> bytes | None:
        return self._state.get(key)

    def leaves(self, log: bytes, start: int, stop: int) -> list[bytes]:
        return self._logs.get(log, [])[start:stop]

    def record(self, cls: type[T], key: bytes) -> T | None:
        return read_record(self._state.get, cls, key)

    def wants_block_at(self) -> int | None:
        return wants_block_at(self._state.get)

    def send(self, sender: Member, body: object, blob: bytes = b"") -> bytes:
        """A transaction for the next block; its id. `blob` is what it names, if it does not carry it. Raises Refused
        for what no validator would vote for."""
        unsigned = Transaction(
            chain=self.id,
            sender=sender.account,
            key=sender.key,
            nonce=sender.nonce,
            valid_until_ms=self.time_ms + _HOUR_MS,
            kind=KIND_OF_BODY[type(body)],
            body=encode(body),
            signature=bytes(64),
        )
        data = encode(unsigned)
        checked = check_transaction(
            data, self.id, self.params, lambda job: rules_of(self._state.get, job), verify_signature=False
        )
        if checked.demand is not None:
            check_blob(checked.demand, blob)
        sender.nonce += 1
        self._waiting.append(data)
        return checked.reading.id

    def block(self, time_ms: int, items: Iterable[Item] = ()) -> tuple[BlockOutcome, list[Receipt]]:
        """With all that was sent since the last one."""
        self.height += 1
        self.time_ms = max(time_ms, self.time_ms + BLOCK_MS)
        sent, self._waiting = tuple(self._waiting), []
        outcome = execute_block(
            self._state.get,
            BlockInput(
                chain_id=self.id,
                params=self.params,
                height=self.height,
                digest=_drawn(b"block", self._seed, self.height),
                time_ms=self.time_ms,
                epoch=0,
                proposer=self.height % VALIDATORS,
                f=self._f,
                within_window=True,
                beacon=_drawn(b"beacon", self._seed, self.height),
                batches=((_drawn(b"batch", self._seed, self.height), read_all(sent, self.params)),) if sent else (),
                items=tuple(items),
            ),
        )
        for key, value in outcome.writes.items():
            if value is None:
                del self._state[key]
            else:
                self._state[key] = value
        for growth in outcome.logs:
            self._logs.setdefault(growth.log, []).extend(growth.leaves)
        self.blobs.update((each.cid, _bytes_of(each)) for each in outcome.models if each.inline or each.zeros)
        return outcome, [decode(Receipt, data, len(data)) for data in outcome.receipts]


def _bytes_of(model: NewModel) -> bytes:
    return model.inline or (zero_model(model.zeros) if model.zeros else b"")


def _drawn(what: bytes, seed: int, height: int) -> bytes:
    return sha256(b"%s/%d/%d" % (what, seed, height)).digest()


def _genesis(members: Iterable[tuple[Member, tuple[str, ...]]]) -> Genesis:
    """Never written anywhere, so its validators have neither keys nor addresses."""
    return Genesis(
        version=GENESIS_VERSION,
        name="simulation",
        time_ms=BEGINS_MS,
        params=Params(kernel_version=KERNEL_VERSION),
        validators=tuple(_validator(number) for number in range(VALIDATORS)),
        set_changes=(),
        registrars=(),
        admission="registrars",
        members=tuple(GenesisMember(each.name, each.key, roles) for each, roles in members),
    )


def _validator(number: int) -> Validator:
    consensus, link, operator = (b"\x01" + _drawn(b"validator", key, number) for key in range(3))
    name = f"v{number}"
    return Validator(name, consensus, link, operator, _drawn(b"commit", 0, number), address=f"{name}:1", rpc="")
