from __future__ import annotations

from hashlib import sha256

from chain.hashing import Domain, digest, signing_bytes


def test_no_two_domains_share_a_tag_and_no_prefix_begins_another() -> None:
    prefixes = [domain.prefix for domain in Domain]
    assert len(set(prefixes)) == len(prefixes)
    assert not any(a != b and a.startswith(b) for a in prefixes for b in prefixes)


def test_a_digest_is_sha256_over_the_length_of_the_tag_the_tag_and_the_parts() -> None:
    assert digest(Domain.TX, b"ab", b"c") == sha256(b"\x0aquorate/txabc").digest()


def test_a_signed_message_names_kind_chain_epoch_and_subject() -> None:
    chain = bytes(range(32))
    message = signing_bytes(Domain.NULLIFY, chain, 258, b"subject")
    assert message == b"\x0fquorate/nullify" + chain + b"\x00\x00\x00\x00\x00\x00\x01\x02" + b"subject"
