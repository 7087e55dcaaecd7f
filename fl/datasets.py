"""Data sets: what members say of the data that they hold, and of the bytes that they give the chain to keep.

An entry may name no bytes at all (they stay with their owner), name the CID of some that are kept elsewhere, or have
the chain store them; only then they are demanded like an update's, and kept until the entry is withdrawn. Withdrawing
ends that and nothing else: whoever has read the bytes has them, and the entry stays in the state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from chain.cid import CidError, check_cid
from chain.codec import U64, Digest, Length
from chain.genesis import Params
from chain.hashing import Domain, digest
from chain.transaction import Transaction
from fl.blobs import Demand, dataset_demand
from fl.errors import Refused
from fl.execution import Call, Effect, Execution
from fl.members import is_name, is_registrar, member_of
from fl.records import MAX_EXAMPLES, Dataset, DatasetText, EventKind, MaybeCid, Name, Named, Stored
from fl.state import RulesOf, dataset_key, dataset_name_key, stored_key


@dataclass(frozen=True, slots=True)
class RegisterDataset:
    """`cid` is empty where no bytes are named; `size_bytes` is then what the owner says, as `examples` always is.
    `schema` and `policy` are for readers, in words or in a notation of theirs."""

    name: Name
    cid: MaybeCid
    size_bytes: U64
    stored: bool
    schema: DatasetText
    policy: DatasetText
    licence: Annotated[str, Length(0, 64)]
    examples: U64 = 0


@dataclass(frozen=True, slots=True)
class WithdrawDataset:
    dataset: Digest


def dataset_id(tx_id: bytes) -> bytes:
    """The id of the data set that this transaction registers."""
    return digest(Domain.DATASET, tx_id)


def check_dataset(body: RegisterDataset, tx: Transaction, params: Params, rules_of: RulesOf) -> Demand | None:
    if not is_name(body.name):
        raise Refused("BAD_NAME")
    if body.examples > MAX_EXAMPLES:
        raise Refused("BAD_DATASET", f"A data set holds at most {MAX_EXAMPLES} examples.")
    if body.stored:
        if not body.cid:
            raise Refused("BAD_DATASET", "A data set that the chain is to store is named by its CID.")
        return dataset_demand(body.cid, body.size_bytes, tx.sender)
    if body.cid:
        # Of another's cutting perhaps: what is not stored here need not have the profile's tree.
        try:
            check_cid(body.cid)
        except CidError as error:
            raise Refused("BAD_CID", f"{error}.") from None
    return None


def register_dataset(execution: Execution, call: Call, body: RegisterDataset) -> Effect:
    """By any member in good standing: a user may own an evaluation set as a trainer owns what it trains on."""
    state = execution.state
    member_of(state, call.sender)
    key = dataset_name_key(call.sender, body.name)
    named = state.get(Named, key)
    if named is not None:
        known = state.get(Dataset, dataset_key(named.holder))
        if known is not None and not known.withdrawn_height:
            raise Refused("NAME_TAKEN")
    if body.stored:
        _store(execution, call.sender, body.size_bytes)
    dataset = dataset_id(call.tx_id)
    state.put(key, Named(dataset))
    state.put(
        dataset_key(dataset),
        Dataset(
            owner=call.sender,
            name=body.name,
            cid=body.cid,
            size_bytes=body.size_bytes,
            stored=body.stored,
            schema=body.schema,
            policy=body.policy,
            licence=body.licence,
            height=execution.block.height,
            withdrawn_height=0,
            examples=body.examples,
        ),
    )
    execution.event(EventKind.DATASET_REGISTERED, subject=dataset, value=body.size_bytes)
    return Effect()


def withdraw_dataset(execution: Execution, call: Call, body: WithdrawDataset) -> Effect:
    """By its owner, revoked or not, or by a registrar."""
    state = execution.state
    known = state.get(Dataset, dataset_key(body.dataset))
    if known is None:
        raise Refused("UNKNOWN_DATASET")
    if call.sender != known.owner and not is_registrar(state, call.sender):
        raise Refused("UNAUTHORISED", "Only a data set's owner or a registrar withdraws it.")
    if known.withdrawn_height:
        raise Refused("WITHDRAWN")
    if known.stored:
        _store(execution, known.owner, -known.size_bytes)
    state.put(dataset_key(body.dataset), replace(known, withdrawn_height=execution.block.height))
    execution.event(EventKind.DATASET_WITHDRAWN, subject=body.dataset)
    return Effect()


def _store(execution: Execution, owner: bytes, size_bytes: int) -> None:
    """So much more, or less, is kept for this member."""
    key = stored_key(owner)
    known = execution.state.get(Stored, key)
    kept = (known.size_bytes if known is not None else 0) + size_bytes
    if kept > execution.block.params.member_stored_bytes:
        raise Refused("STORED_LIMIT")
    execution.state.put(key, Stored(kept))
