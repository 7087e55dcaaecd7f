"""A member's signed leave for what is done with a blob over RPC: put it here, or read one that is not public."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from chain.codec import U8, U64, Digest, PublicKey, Signature, encode
from chain.hashing import Domain, digest, signing_bytes
from chain.keys import SigningKey, verify
from fl.records import Cid

MAX_LEAVE_BYTES = 512
MAX_LEAVE_MS = 24 * 3_600_000


class Action(IntEnum):
    READ = 1
    PUT = 2


@dataclass(frozen=True, slots=True)
class Leave:
    """`size_bytes` and `kind` are those of the blob to be put, and 0 for reading."""

    chain: Digest
    account: Digest
    key: PublicKey
    action: U8
    cid: Cid
    size_bytes: U64
    kind: U8
    valid_until_ms: U64


@dataclass(frozen=True, slots=True)
class SignedLeave:
    leave: Leave
    signature: Signature


def _message(leave: Leave) -> bytes:
    return signing_bytes(Domain.LEAVE, leave.chain, 0, digest(Domain.LEAVE, encode(leave)))


def sign_leave(key: SigningKey, leave: Leave) -> SignedLeave:
    return SignedLeave(leave, key.sign(_message(leave)))


def verify_leave(signed: SignedLeave) -> bool:
    """Whether the key in it signed it; whether that key speaks for the account is for the state to say."""
    return verify(signed.leave.key, _message(signed.leave), signed.signature)
