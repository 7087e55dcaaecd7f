"""Who may call: SuperNodes that sign the time with a key of their own, and if a list is given with a key on it.

That is Flower's way: ECDSA on P-384 over the timestamp, so whoever sees a call can send another in its name for five
minutes. The connection has to keep it from being seen.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from fl.client.errors import BadFile

WINDOW_S, DRIFT_S = 300.0, 5.0
"""How old a signed time may be, and how far in the future; the window has the drift on both sides."""

_KEY, _TIME, _SIGNATURE = "flwr-public-key", "flwr-timestamp", "flwr-signature"
_MOST_HEADER = 1024
_MOST_KEY_FILE = 16 * 1024


class Stranger(Exception):
    """The call is signed wrongly, or not at all."""


@dataclass(frozen=True, slots=True)
class Visitor:
    key: bytes
    """As it was sent, PEM."""

    identity: bytes
    """The key itself, whatever it is written like."""

    @property
    def node_id(self) -> int:
        """Of the key alone, so that a gateway which was started anew knows its SuperNode."""
        return int.from_bytes(sha256(b"quorate-flower-node" + self.identity).digest()[:8], "big") >> 1 | 2


def utc_now() -> datetime:
    return datetime.now(UTC)


class Visitors:
    """Without keys, whoever has one is let in."""

    def __init__(self, keys: Iterable[bytes] = (), now: Callable[[], datetime] = utc_now) -> None:
        self._keys = frozenset(keys)
        self._now = now

    def is_listed(self, visitor: Visitor) -> bool:
        return not self._keys or visitor.identity in self._keys

    def check(self, headers: Mapping[str, str]) -> Visitor:
        """Raises Stranger."""
        key, time, signature = (headers.get(name, "") for name in (_KEY, _TIME, _SIGNATURE))
        if not (key and time and signature) or max(len(key), len(time), len(signature)) > _MOST_HEADER:
            raise Stranger("the call is not signed")
        try:
            plain = b64decode(key, validate=True)
            public = _p384(load_pem_public_key(plain))
            age_s = (self._now() - datetime.fromisoformat(time)).total_seconds()
            public.verify(b64decode(signature, validate=True), time.encode("ascii"), ec.ECDSA(SHA256()))
        except (ValueError, TypeError, OverflowError, binascii.Error, UnsupportedAlgorithm, InvalidSignature):
            raise Stranger("the call is signed wrongly") from None
        if not -DRIFT_S < age_s < WINDOW_S + DRIFT_S:
            raise Stranger(f"the call is signed {age_s:.0f} s ago; one of the two clocks is wrong")
        return Visitor(plain, _identity(public))


def read_public_key(path: Path) -> bytes:
    """A SuperNode's, as `ssh-keygen -t ecdsa -b 384` or openssl writes it."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_KEY_FILE)
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    try:
        load = load_ssh_public_key if data.startswith(b"ecdsa-") else load_pem_public_key
        return _identity(_p384(load(data)))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadFile(
            "BAD_KEY_FILE", f"{path} holds no public key of a SuperNode.", "Name the .pub of an ECDSA key on P-384."
        ) from None


def _p384(key: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("a key of another kind")
    return key


def _identity(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
