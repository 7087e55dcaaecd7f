"""The beacon: a chain of secrets, one revealed with each block, that no single leader chooses.

A validator commits to H(s_0) in its record; its k-th block in an ancestry reveals s_k and commits to the next. No
counter is stored, and a proposal that was nullified simply reveals the same secret again. What remains to a leader is
to withhold a block: one bit a slot.
"""

from __future__ import annotations

import hashlib
import hmac

from chain.hashing import Domain, digest
from chain.keys import SigningKey


def beacon_seed(key: SigningKey) -> bytes:
    return hmac.new(key.seed, b"quorate/beacon-seed", hashlib.sha256).digest()


def secret(seed: bytes, chain_id: bytes, count: int) -> bytes:
    """s_k, for a validator that has `count` blocks in the ancestry of the one that it proposes.

    The first is the same on every chain, because a validator's record commits to it before the chain has an id.
    """
    salt = chain_id if count else bytes(32)
    return hmac.new(seed, salt + count.to_bytes(8, "big"), hashlib.sha256).digest()


def commitment(revealed: bytes) -> bytes:
    return digest(Domain.BEACON_SECRET, revealed)


def first_commitment(key: SigningKey) -> bytes:
    """What a validator's record holds."""
    return commitment(secret(beacon_seed(key), bytes(32), 0))


def first_beacon(chain_id: bytes) -> bytes:
    return digest(Domain.BEACON, chain_id)


def next_beacon(beacon: bytes, revealed: bytes) -> bytes:
    return digest(Domain.BEACON, beacon, revealed)
