from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.cid import CID_BYTES, LEAF_BYTES, CidError, check_cid, cid_text, is_raw, parse_cid, raw_cid


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"),
        (b"hello world", "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"),
    ],
)
def test_the_names_are_those_that_ipfs_gives(data: bytes, text: str) -> None:
    assert cid_text(raw_cid(data)) == text
    assert parse_cid(text) == raw_cid(data)


@given(st.binary(max_size=200))
def test_a_cid_is_read_back_from_its_text(data: bytes) -> None:
    cid = raw_cid(data)
    assert len(cid) == CID_BYTES
    assert is_raw(cid)
    assert parse_cid(cid_text(cid)) == cid


@given(st.text(max_size=70) | st.from_regex(r"\Ab[a-z2-7]{58}\Z"))
def test_whatever_the_text_only_one_spelling_of_a_cid_is_read(text: str) -> None:
    try:
        cid = parse_cid(text)
    except CidError:
        return
    assert cid_text(cid) == text


def test_other_spellings_and_kinds_are_refused() -> None:
    text = cid_text(raw_cid(b""))
    foreign = bytes([1, 0x55, 0x13, 0x40]) + bytes(64)
    for wrong in (text.upper(), text[1:], text + "=", text[:-1], text + "a", "", "b", "bé", "QmYwAPJzv5CZsnA"):
        with pytest.raises(CidError):
            parse_cid(wrong)
    for bad in (b"", bytes(36), foreign, raw_cid(b"")[:-1]):
        with pytest.raises(CidError):
            check_cid(bad)


def test_the_root_of_a_larger_file_is_a_name_too() -> None:
    root = bytes([1, 0x70, 0x12, 0x20]) + sha256(b"root").digest()
    assert cid_text(root).startswith("bafybei")
    assert parse_cid(cid_text(root)) == root
    assert not is_raw(root)


def test_more_than_a_leaf_has_no_raw_name() -> None:
    raw_cid(bytes(LEAF_BYTES))
    with pytest.raises(CidError):
        raw_cid(bytes(LEAF_BYTES + 1))
