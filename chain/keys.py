"""Ed25519 signing keys, and the public keys that are refused.

OpenSSL accepts public keys of small order, under which one signature verifies for many messages (under the
identity, for all), and keys whose y is not reduced, so that one point has two names. A proof of possession
helps against neither. Both are refused here, wherever a key is checked and wherever a signature is verified.
So is a y with no point on the curve: it can never verify.

A signature is never an identifier: who holds the key can make many for one message.

Which signatures are valid is OpenSSL's rule. libsodium checks in half the time and takes none that OpenSSL refuses,
so it is asked first, and OpenSSL about what it refuses (docs/decisions/0023-two-libraries-one-rule.md). It signs, which
is one function of key and message (RFC 8032): both make the same bytes.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

ED25519 = b"\x01"
PUBLIC_KEY_BYTES = 33
SIGNATURE_BYTES = 64
SEED_BYTES = 32

_CACHED_KEYS = 16_384
"""Loaded keys kept, about a kilobyte each: every validator, and the trainers of a large job."""

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_ORDER_EIGHT_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _ORDER_EIGHT_Y, _P - _ORDER_EIGHT_Y})
"""The eight points of order 1, 2, 4 and 8 share five values of y: whatever the sign of x, a key with one of
them is refused."""


class WeakKey(ValueError):
    """A public key that nobody may use; the sentence says why."""


class SigningKey:
    __slots__ = ("_secret", "_seed", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        public, self._secret = crypto_sign_seed_keypair(seed)
        self._seed = seed
        self.public: bytes = ED25519 + public

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        return cls(seed)

    @property
    def seed(self) -> bytes:
        return self._seed

    def sign(self, message: bytes) -> bytes:
        return crypto_sign(message, self._secret)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"


def check_public_key(public: bytes) -> None:
    """Raises WeakKey unless `public` is the one name of a point of large order."""
    if len(public) != PUBLIC_KEY_BYTES:
        raise WeakKey(f"a public key has {PUBLIC_KEY_BYTES} bytes, not {len(public)}")
    if public[:1] != ED25519:
        raise WeakKey(f"key type {public[0]} is unknown; 1 is Ed25519")
    y = int.from_bytes(public[1:], "little") & (2**255 - 1)
    if y >= _P:
        raise WeakKey("the key is not in its canonical form")
    if y in _SMALL_ORDER_Y:
        raise WeakKey("the key is a point of small order, for which signatures can be forged")
    # x² = u/v has a root exactly when u·v is a square.
    square = (y * y - 1) * (_D * y * y + 1)
    if pow(square, (_P - 1) // 2, _P) != 1:
        raise WeakKey("the key is not a point on the curve")


@lru_cache(maxsize=_CACHED_KEYS)
def _loaded(public: bytes) -> Ed25519PublicKey | None:
    try:
        check_public_key(public)
        return Ed25519PublicKey.from_public_bytes(public[1:])
    except ValueError:
        return None


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature is the key's, False for every weak or malformed key; never raises."""
    key = _loaded(public)
    if key is None or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public[1:])
        return True
    except BadSignatureError:
        pass
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
