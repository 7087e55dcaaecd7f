"""What the answers look like in JSON: transactions, blocks, the node. Ids and digests are hex, CIDs their text, binary
records base64, times milliseconds since 1970. The types are the contract: the OpenAPI document is made from them."""

from __future__ import annotations

import base64
from typing import Literal, NotRequired, TypedDict

from chain.block import Block, block_digest
from chain.certificate import Certificate, Finalize, Validator, ValidatorSet, read_subject, signers_of
from chain.cid import CidError, cid_text
from chain.codec import encode
from fl.records import Receipt
from node.rpc.schema import U64, Base64, HexDigest, HexKey


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def hex_or_none(data: bytes) -> str | None:
    return data.hex() if data else None


def cid_or_none(data: bytes) -> str | None:
    """A CID that the state machine took without a look at its codec is shown as what it is, in hex."""
    try:
        return cid_text(data) if data else None
    except CidError:
        return data.hex()


class ProblemView(TypedDict):
    """RFC 9457, with a stable code."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: NotRequired[str]
    retry_after: NotRequired[int]
    parameter: NotRequired[str]
    reasons: NotRequired[list[str]]


# Transactions


class ReceiptView(TypedDict):
    """What became of an executed transaction: `status` is "ok" or the code of its refusal."""

    tx_id: HexDigest
    height: U64
    batch: HexDigest
    index: U64
    sender: HexDigest
    nonce: U64
    kind: int
    status: str
    job: HexDigest | None
    round: U64
    position: U64
    weight: U64


def receipt_view(receipt: Receipt) -> ReceiptView:
    return ReceiptView(
        tx_id=receipt.tx_id.hex(),
        height=receipt.height,
        batch=receipt.batch.hex(),
        index=receipt.index,
        sender=receipt.sender.hex(),
        nonce=receipt.nonce,
        kind=receipt.kind,
        status=receipt.status,
        job=hex_or_none(receipt.job),
        round=receipt.round,
        position=receipt.position,
        weight=receipt.weight,
    )


StatusWord = Literal["accepted", "available", "final", "executed", "proven", "expired", "unknown"]


class TransactionView(TypedDict):
    """`nonce` is "used" where the state shows that another transaction has the sender's nonce."""

    id: HexDigest
    status: StatusWord
    receipt: NotRequired[ReceiptView]
    nonce: NotRequired[Literal["used", "free"]]


class TakenView(TypedDict):
    id: HexDigest
    status: StatusWord
    location: str
    receipt: NotRequired[ReceiptView]


class RefusedView(TypedDict):
    code: str
    title: str
    detail: str
    id: NotRequired[HexDigest]
    retry_after: NotRequired[int]


class AnswersView(TypedDict):
    """One answer to each transaction, in their order."""

    answers: list[TakenView | RefusedView]


class ReceiptProofView(TypedDict):
    """`bundle` is the encoded chain.light.ReceiptBundle that proves the receipt."""

    receipt: ReceiptView
    bundle: Base64


# The chain


class PeerView(TypedDict):
    name: str
    key: HexKey
    linked: bool


class QuorumView(TypedDict):
    """So many validators, of which f may be faulty and q make a certificate."""

    n: int
    f: int
    q: int


class SyncView(TypedDict):
    target: U64
    behind: U64
    eta_s: int | None


class PoolView(TypedDict):
    transactions: int
    room_bytes: int
    open_batches: int
    uncertified_batches: int


class DataView(TypedDict):
    """The other process of the node, which keeps the blobs."""

    up: bool
    full: bool
    door: str | None


class NodeStatusView(TypedDict):
    """`version` is that of the program, `kernel_version` that of the formulas by which it aggregates."""

    chain_id: HexDigest
    name: str
    node: str | None
    key: HexKey
    version: str
    kernel_version: int
    epoch: U64
    validators: QuorumView
    view: U64
    final_height: U64
    executed_height: U64
    executed_digest: HexDigest
    state_root: HexDigest
    certified_height: U64
    time_ms: U64
    peers: list[PeerView]
    syncing: SyncView | None
    time_ahead_ms: NotRequired[int]
    disk_full: bool
    data: DataView
    draining: bool
    ready: bool
    reasons: list[str]
    uptime_s: int
    pool: PoolView


class AliveView(TypedDict):
    status: Literal["alive"]


class ReadyView(TypedDict):
    status: Literal["ready"]


class ParamsView(TypedDict):
    """The on-chain parameters, by the names that the genesis uses."""

    params: dict[str, int]


class ValidatorView(TypedDict):
    name: str
    consensus_key: HexKey
    link_key: HexKey
    operator_key: HexKey
    beacon_commit: HexDigest
    address: str
    rpc: str


class ValidatorsView(TypedDict):
    """`raw` is the encoded chain.certificate.ValidatorSet."""

    epoch: U64
    n: int
    f: int
    quorum: int
    digest: HexDigest
    validators: list[ValidatorView]
    raw: Base64


def validators_view(validators: ValidatorSet) -> ValidatorsView:
    return ValidatorsView(
        epoch=validators.epoch,
        n=validators.n,
        f=validators.f,
        quorum=validators.quorum,
        digest=validators.digest().hex(),
        validators=[_validator_view(member) for member in validators.members],
        raw=in_base64(encode(validators)),
    )


def _validator_view(member: Validator) -> ValidatorView:
    return ValidatorView(
        name=member.name,
        consensus_key=member.consensus_key.hex(),
        link_key=member.link_key.hex(),
        operator_key=member.operator_key.hex(),
        beacon_commit=member.beacon_commit.hex(),
        address=member.address,
        rpc=member.rpc,
    )


class CheckpointView(TypedDict):
    """The newest certificate of an executed state, and the encoded chain.light.HandOver of each epoch before."""

    epoch: U64
    height: U64
    block: HexDigest
    state_root: HexDigest
    certificate: Base64
    handovers: list[Base64]


class ItemView(TypedDict):
    kind: int
    data: Base64


class FinalizationView(TypedDict):
    epoch: U64
    view: U64
    block: HexDigest
    signers: list[int]


class BlockView(TypedDict):
    """`finalization` is the block's own; a block without one is final by that of a later block."""

    height: U64
    digest: HexDigest
    epoch: U64
    view: U64
    parent: HexDigest
    time_ms: U64
    log_root: HexDigest
    batch_root: HexDigest
    item_root: HexDigest
    executed_height: U64
    executed_root: HexDigest
    rules_version: int
    reveal: HexDigest
    commit: HexDigest
    next_set: HexDigest | None
    batches: list[HexDigest]
    items: list[ItemView]
    finalization: FinalizationView | None


def block_view(block: Block, finalization: Certificate | None) -> BlockView:
    header = block.header
    return BlockView(
        height=header.height,
        digest=block_digest(header).hex(),
        epoch=header.epoch,
        view=header.view,
        parent=header.parent.hex(),
        time_ms=header.time_ms,
        log_root=header.log_root.hex(),
        batch_root=header.batch_root.hex(),
        item_root=header.item_root.hex(),
        executed_height=header.executed_height,
        executed_root=header.executed_root.hex(),
        rules_version=header.rules_version,
        reveal=header.reveal.hex(),
        commit=header.commit.hex(),
        next_set=hex_or_none(header.next_set),
        batches=[digest.hex() for digest in block.body.batches],
        items=[ItemView(kind=item.kind, data=in_base64(item.data)) for item in block.body.items],
        finalization=None if finalization is None else _finalization_view(finalization),
    )


def _finalization_view(certificate: Certificate) -> FinalizationView:
    subject = read_subject(certificate.kind, certificate.subject)
    assert isinstance(subject, Finalize)
    return FinalizationView(
        epoch=certificate.epoch,
        view=subject.view,
        block=subject.block.hex(),
        signers=list(signers_of(certificate)),
    )


class BlocksView(TypedDict):
    blocks: list[BlockView]
    next: U64 | None


class BlockProofView(TypedDict):
    """`bundle` is the encoded chain.light.BlockBundle."""

    height: U64
    digest: HexDigest
    bundle: Base64


# Administration


class DrainedView(TypedDict):
    """`drained` once everything that was accepted is final; otherwise `unsettled` transactions are not."""

    drained: bool
    unsettled: int


class StoppingView(TypedDict):
    status: Literal["stopping"]
