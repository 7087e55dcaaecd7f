"""Who is at the other end of a link: TLS 1.3 pinned to link keys, without a certificate authority.

Python's ssl can neither pin a raw public key nor use one. But OpenSSL does not check the signature of a trust
anchor, so an anchor can be made for a key by someone who does not have it: a self-issued CA certificate that
names the key and holds it. Each validator presents a leaf for a key that lives in its memory only, signed by
its link key, and OpenSSL accepts it under the anchor of that key.

OpenSSL's verdict is not the last word: `link_key_of` checks the leaf's own signature against the key of the
anchor that it names, so that a validator which uses its link key to certify another's name gains nothing.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chain.keys import ED25519, SigningKey, check_public_key

PROTOCOL = "quorate/1"
BULK_PROTOCOL = "quorate-bulk/1"
"""What a connection is for is agreed in its handshake, so that none can be taken for one of another kind."""
LEAF_LIFE = timedelta(days=14)
CLOCK_TOLERANCE = timedelta(days=1)
"""How far the clocks of two validators may be apart for them to connect; far more than consensus bears."""

_ORGANISATION = "quorate link key"
_ANCHOR_DATES = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2999, 12, 31, tzinfo=UTC))


class Impostor(Exception):
    """The other end did not prove to hold a link key that is known here."""


def _name(link_key: bytes) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            # A common name has at most 64 characters: the key without its type byte.
            x509.NameAttribute(NameOID.COMMON_NAME, link_key[1:].hex()),
        ]
    )


def _usage(*, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certifies,
        key_cert_sign=certifies,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def anchor(link_key: bytes) -> bytes:
    """A CA certificate (DER) for a key that somebody else holds; its signature is worth nothing and never
    looked at."""
    check_public_key(link_key)
    public = Ed25519PublicKey.from_public_bytes(link_key[1:])
    name = _name(link_key)
    return (
        x509.CertificateBuilder(name, name, public, 1, *_ANCHOR_DATES)
        # No certificate authority below this one: a link key certifies leaves of its own and nothing else.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certifies=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(Ed25519PrivateKey.generate(), None)
        .public_bytes(Encoding.DER)
    )


def leaf(key: SigningKey, now: datetime) -> bytes:
    """A fresh key and its certificate by the link key (PEM, both)."""
    ephemeral = Ed25519PrivateKey.generate()
    link = Ed25519PrivateKey.from_private_bytes(key.seed)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "quorate link")]))
        .issuer_name(_name(key.public))
        .public_key(ephemeral.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_TOLERANCE)
        .not_valid_after(now + LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certifies=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(link.public_key()), critical=False)
        .sign(link, None)
    )
    secret = ephemeral.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret + certificate.public_bytes(Encoding.PEM)


@contextmanager
def _readable(pem: bytes) -> Iterator[str]:
    """A path for the bytes, because ssl loads keys from files only; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, pem)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(pem)
            file.flush()
            yield file.name


class LinkIdentity:
    """This validator's end of its links: its key, the keys that it trusts, and TLS contexts made of both."""

    def __init__(self, key: SigningKey, trusted: Iterable[bytes], protocol: str = PROTOCOL) -> None:
        self._key = key
        self._protocol = protocol
        self._anchors = b"".join(anchor(link_key) for link_key in sorted(trusted))
        self._made = datetime.fromtimestamp(0, UTC)
        self._contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None = None

    def server(self) -> ssl.SSLContext:
        return self._current()[0]

    def client(self) -> ssl.SSLContext:
        return self._current()[1]

    def _current(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        now = datetime.now(UTC)
        if self._contexts is None or not timedelta() <= now - self._made < LEAF_LIFE / 2:
            with _readable(leaf(self._key, now)) as path:
                self._contexts = (
                    self._context(ssl.PROTOCOL_TLS_SERVER, path),
                    self._context(ssl.PROTOCOL_TLS_CLIENT, path),
                )
            self._made = now
        return self._contexts

    def _context(self, side: int, path: str) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols([self._protocol])
        if side == ssl.PROTOCOL_TLS_SERVER:
            # A resumed session would carry the identity of an earlier handshake.
            context.num_tickets = 0
        if self._anchors:
            context.load_verify_locations(cadata=self._anchors)
        context.load_cert_chain(path)
        return context


def link_key_of(connection: ssl.SSLObject | ssl.SSLSocket, protocol: str = PROTOCOL) -> bytes:
    """The link key that the other end proved to hold. Raises Impostor."""
    if connection.version() != "TLSv1.3" or connection.selected_alpn_protocol() != protocol:
        raise Impostor(f"it speaks {connection.version()} / {connection.selected_alpn_protocol()}")
    data = connection.getpeercert(binary_form=True)
    if data is None:
        raise Impostor("it presented no certificate")
    try:
        certificate = x509.load_der_x509_certificate(data)
        names = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
        link_key = ED25519 + bytes.fromhex(str(names[0].value))
        check_public_key(link_key)
        public = Ed25519PublicKey.from_public_bytes(link_key[1:])
        public.verify(certificate.signature, certificate.tbs_certificate_bytes)
    except (ValueError, IndexError, InvalidSignature) as error:
        raise Impostor("its certificate is not signed by the link key that it names") from error
    return link_key
