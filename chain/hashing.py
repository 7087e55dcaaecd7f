"""Hashes and signed messages that cannot be taken for one another.

Every digest and every signed message begins with a tag naming what it is, the tag preceded by its length. A
signed message then names the chain and the epoch, so that no signature means anything on another chain, in
another epoch, or for another kind of statement.
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256

DIGEST_BYTES = 32
ZERO_DIGEST = bytes(DIGEST_BYTES)
"""Where there is nothing to point at: the parent of the genesis block, the beacon fields of height 0."""


class Domain(StrEnum):
    prefix: bytes

    def __new__(cls, tag: str) -> Domain:
        member = str.__new__(cls, tag)
        member._value_ = tag
        member.prefix = bytes([len(tag)]) + tag.encode()
        return member

    GENESIS = "quorate/genesis"
    POSSESSION = "quorate/possession"
    VALIDATORS = "quorate/validators"
    ACCOUNT = "quorate/account"
    TX = "quorate/tx"
    BATCH = "quorate/batch"
    HEADER = "quorate/header"
    BODY_BATCHES = "quorate/body-batches"
    BODY_ITEMS = "quorate/body-items"
    ITEM = "quorate/item"
    NOTARIZE = "quorate/notarize"
    NULLIFY = "quorate/nullify"
    FINALIZE = "quorate/finalize"
    AVAILABLE = "quorate/available"
    EXECUTED = "quorate/executed"
    RESULT = "quorate/result"
    HELD = "quorate/held"
    READY = "quorate/ready"
    REJOIN = "quorate/rejoin"
    BEACON = "quorate/beacon"
    BEACON_SECRET = "quorate/beacon-secret"
    JOB = "quorate/job"
    RULES = "quorate/rules"
    DATASET = "quorate/dataset"
    LOT = "quorate/lot"
    LEAVE = "quorate/leave"
    LEAF = "quorate/leaf"
    NODE = "quorate/node"
    LOG_ROOT = "quorate/log-root"
    STATE_KEY = "quorate/state-key"
    STATE_VALUE = "quorate/state-value"
    BUCKET = "quorate/bucket"
    STATE_NODE = "quorate/state-node"


def digest(domain: Domain, *parts: bytes | memoryview) -> bytes:
    """The parts follow each other without separators: at most one of them may vary in length within a domain."""
    state = sha256(domain.prefix)
    for part in parts:
        state.update(part)
    return state.digest()


def signing_bytes(domain: Domain, chain_id: bytes, epoch: int, subject: bytes) -> bytes:
    return b"".join((domain.prefix, chain_id, epoch.to_bytes(8, "big"), subject))
