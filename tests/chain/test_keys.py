from __future__ import annotations

from hashlib import sha512

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from chain.keys import ED25519, SigningKey, WeakKey, check_public_key, verify
from tests.chain import build

# An oracle of its own: affine arithmetic on the curve -x² + y² = 1 + d·x²·y².
P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)
Point = tuple[int, int]
IDENTITY: Point = (0, 1)


def add(a: Point, b: Point) -> Point:
    product = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + a[1] * b[0]) * pow(1 + product, -1, P) % P
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, P) % P
    return x, y


def times(scalar: int, point: Point) -> Point:
    result = IDENTITY
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def x_of(y: int) -> int | None:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    for candidate in (x, x * ROOT % P):
        if candidate * candidate % P == square:
            return candidate
    return None


def torsion() -> set[Point]:
    for y in range(2, 1000):
        x = x_of(y)
        if x is not None:
            generator = times(ORDER, (x, y))
            points = {times(k, generator) for k in range(8)}
            if len(points) == 8:
                return points
    raise AssertionError("no point of order eight")


def all_encodings_of_small_order() -> list[bytes]:
    encodings = set()
    for _, y in torsion():
        for representative in (y, y + P):
            if representative < 2**255:
                for sign in (0, 1):
                    encodings.add((representative | sign << 255).to_bytes(32, "little"))
    return sorted(encodings)


SMALL = all_encodings_of_small_order()
IDENTITY_KEY = (1).to_bytes(32, "little")
BASE_Y = 4 * pow(5, -1, P) % P


def encode_point(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def test_the_oracle_finds_every_encoding_of_the_eight_points() -> None:
    # Five values of y with either sign, and the two of them below 19 again unreduced.
    assert len(SMALL) == 14
    assert IDENTITY_KEY in SMALL


@pytest.mark.parametrize("encoding", SMALL, ids=bytes.hex)
def test_no_encoding_of_a_small_order_point_is_a_key(encoding: bytes) -> None:
    with pytest.raises(WeakKey):
        check_public_key(ED25519 + encoding)


@pytest.mark.parametrize("s", [0, 1, 12345])
@pytest.mark.parametrize("message", [b"", b"pay me"])
def test_the_forgery_under_the_identity_key_is_refused_though_openssl_takes_it(s: int, message: bytes) -> None:
    forged = encode_point(times(s, base_point())) + s.to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(IDENTITY_KEY).verify(forged, message)
    assert not verify(ED25519 + IDENTITY_KEY, message, forged)


@pytest.mark.parametrize("y", range(19))
@pytest.mark.parametrize("sign", [0, 1])
def test_an_unreduced_y_is_refused(y: int, sign: int) -> None:
    encoding = (y + P | sign << 255).to_bytes(32, "little")
    with pytest.raises(WeakKey, match="canonical"):
        check_public_key(ED25519 + encoding)
    assert not verify(ED25519 + encoding, b"", bytes(64))


def test_a_y_without_a_point_is_refused_and_one_with_a_point_is_not() -> None:
    for y in range(2, 60):
        public = ED25519 + y.to_bytes(32, "little")
        if x_of(y) is None:
            with pytest.raises(WeakKey, match="curve"):
                check_public_key(public)
        else:
            check_public_key(public)


@pytest.mark.parametrize("public", [b"", ED25519, bytes(33), b"\x02" + bytes(32), ED25519 + bytes(33)])
def test_an_unknown_type_or_length_is_refused(public: bytes) -> None:
    with pytest.raises(WeakKey):
        check_public_key(public)
    assert not verify(public, b"", bytes(64))


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100))
def test_what_a_key_signs_verifies_under_it_alone(seed: bytes, message: bytes) -> None:
    signer = SigningKey.from_seed(seed)
    check_public_key(signer.public)
    signature = signer.sign(message)
    assert verify(signer.public, message, signature)
    assert not verify(signer.public, message + b"!", signature)
    assert not verify(build.key("other").public, message, signature)
    assert not verify(signer.public, message, signature[:-1])


@given(st.binary(max_size=40), st.binary(max_size=10), st.binary(max_size=70))
def test_verify_never_raises(public: bytes, message: bytes, signature: bytes) -> None:
    assert not verify(public, message, signature)
    assert not verify(build.key("a").public, message, signature)


def test_a_signature_with_an_unreduced_scalar_is_refused() -> None:
    signer = build.key("a")
    signature = signer.sign(b"m")
    s = int.from_bytes(signature[32:], "little") + ORDER
    assert not verify(signer.public, b"m", signature[:32] + s.to_bytes(32, "little"))


def base_point() -> Point:
    x = x_of(BASE_Y)
    assert x is not None
    return x if x % 2 == 0 else P - x, BASE_Y


def signed_with(signer: SigningKey, message: bytes, nonce: int, extra: Point) -> bytes:
    """A signature whose R is the nonce's point and one more."""
    scalar = int.from_bytes(sha512(signer.seed).digest()[:32], "little") & (2**254 - 8) | 2**254
    point = encode_point(add(times(nonce, base_point()), extra))
    hashed = int.from_bytes(sha512(point + signer.public[1:] + message).digest(), "little")
    return point + ((nonce + hashed * scalar) % ORDER).to_bytes(32, "little")


def openssl(signer: SigningKey, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(signer.public[1:]).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def libsodium(signer: SigningKey, message: bytes, signature: bytes) -> bool:
    try:
        crypto_sign_open(signature + message, signer.public[1:])
    except BadSignatureError:
        return False
    return True


def test_the_oracle_signs_as_the_key_does() -> None:
    signer = build.key("a")
    assert openssl(signer, b"m", signed_with(signer, b"m", 12345, IDENTITY))


@pytest.mark.parametrize("extra", sorted(torsion() - {IDENTITY}))
def test_a_signature_that_is_right_but_for_a_small_order_point_is_refused(extra: Point) -> None:
    # Libraries that multiply by the cofactor take it. libsodium has to stay among those that do not.
    signer = build.key("a")
    signature = signed_with(signer, b"m", 12345, extra)
    assert not openssl(signer, b"m", signature)
    assert not libsodium(signer, b"m", signature)
    assert not verify(signer.public, b"m", signature)


def test_what_libsodium_alone_refuses_is_valid() -> None:
    signer = build.key("a")
    signature = signed_with(signer, b"m", 0, IDENTITY)
    assert not libsodium(signer, b"m", signature)
    assert openssl(signer, b"m", signature)
    assert verify(signer.public, b"m", signature)


@given(st.binary(max_size=20), st.integers(0, ORDER - 1), st.sampled_from(sorted(torsion())), st.integers(-1, 511))
def test_libsodium_takes_nothing_that_openssl_refuses(message: bytes, nonce: int, extra: Point, flip: int) -> None:
    signer = build.key("a")
    signature = bytearray(signed_with(signer, message, nonce, extra))
    if flip >= 0:
        signature[flip // 8] ^= 1 << flip % 8
    said = openssl(signer, message, bytes(signature))
    assert verify(signer.public, message, bytes(signature)) is said
    assert said or not libsodium(signer, message, bytes(signature))


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=2_000))
def test_both_libraries_make_the_same_key_and_signature_of_a_seed(seed: bytes, message: bytes) -> None:
    key, openssl = SigningKey(seed), Ed25519PrivateKey.from_private_bytes(seed)
    assert key.public == ED25519 + openssl.public_key().public_bytes_raw()
    assert key.sign(message) == openssl.sign(message)


def test_printing_a_signing_key_does_not_show_its_seed() -> None:
    signer = build.key("secret")
    assert signer.seed.hex() not in repr(signer)
    assert signer.public.hex() in repr(signer)
