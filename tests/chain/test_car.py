from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.car import MAX_ROOTS, CarError, CarReader, car_header, write_car
from chain.cid import raw_cid
from chain.unixfs import MAX_BLOCK_BYTES, node_cid
from chain.varint import to_varint

EMPTY_IDENTITY = b"\x01\x55\x00\x00"
ROOT = raw_cid(b"root")


def archive(*blocks: bytes) -> bytes:
    return b"".join(bytes(piece) for piece in write_car([ROOT], [(raw_cid(block), block) for block in blocks]))


def read(data: bytes) -> list[tuple[bytes, bytes]]:
    reader = CarReader()
    blocks = reader.feed(data)
    reader.finish()
    return blocks


def test_the_header_is_the_one_of_the_specification() -> None:
    assert car_header([EMPTY_IDENTITY]).hex() == "19a265726f6f747381d82a4500015500006776657273696f6e01"
    assert car_header([ROOT]).hex() == "3aa265726f6f747381d82a582500" + ROOT.hex() + "6776657273696f6e01"


@given(st.lists(st.binary(max_size=80), max_size=6), st.data())
def test_blocks_come_whole_whatever_the_pieces(blocks: list[bytes], data: st.DataObject) -> None:
    written = archive(*blocks)
    reader = CarReader()
    out = []
    at = 0
    while at < len(written):
        size = data.draw(st.integers(1, 60))
        out += reader.feed(memoryview(written)[at : at + size])
        at += size
    reader.finish()
    assert reader.roots == (ROOT,)
    assert out == [(raw_cid(block), block) for block in blocks]


def test_any_number_of_roots_up_to_a_limit_is_read_back() -> None:
    for roots in ([], [EMPTY_IDENTITY], [ROOT, EMPTY_IDENTITY], [ROOT] * MAX_ROOTS):
        reader = CarReader()
        assert reader.feed(car_header(roots)) == []
        assert reader.roots == tuple(roots)
    with pytest.raises(CarError):
        car_header([ROOT] * (MAX_ROOTS + 1))
    with pytest.raises(CarError):
        car_header([b""])


def test_an_old_name_is_given_as_a_new_one() -> None:
    cid = node_cid(b"block")
    section = cid[2:] + b"block"
    assert read(car_header([]) + to_varint(len(section)) + section) == [(cid, b"block")]


def test_a_block_that_is_not_what_its_name_says_is_refused() -> None:
    good = archive(b"one", b"two")
    for place in range(len(car_header([ROOT])), len(good)):
        bad = bytearray(good)
        bad[place] ^= 1
        with pytest.raises(CarError):
            read(bytes(bad))


def test_an_archive_that_is_cut_short_is_not_whole() -> None:
    good = archive(b"one", b"two")
    ends = {len(car_header([ROOT])), len(archive(b"one")), len(good)}
    for cut in set(range(len(good))) - ends:
        with pytest.raises(CarError):
            read(good[:cut])


@pytest.mark.parametrize(
    "data",
    [
        to_varint(9000) + bytes(9000),
        b"\x00",
        b"\x80\x00",
        b"\xff\xff\xff\xff\x01",
        car_header([ROOT])[:-1] + b"\x02",
        car_header([ROOT]) + to_varint(MAX_BLOCK_BYTES + 37),
        car_header([ROOT]) + b"\x00",
        car_header([ROOT]) + b"\x03abc",
        b"\x1aa265726f6f7473",
        b"\x0a\xa2\x65roots\x81\xd8\x2a",
        b"\x0b\xa2\x65roots\x81\xd8\x2a\x58",
        b"\x0b\xa2\x65roots\x81\xd8\x2a\x40",
    ],
)
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(CarError):
        read(data)


@given(st.binary(max_size=100))
def test_whatever_the_header_one_form_is_read(data: bytes) -> None:
    reader = CarReader()
    try:
        reader.feed(to_varint(len(data)) + data if data else b"")
    except CarError:
        return
    assert reader.roots is None or car_header(reader.roots) == to_varint(len(data)) + data


@given(st.integers(1, 70), st.integers(0, 255))
def test_a_header_with_a_byte_changed_is_refused_or_read_as_written(place: int, byte: int) -> None:
    header = bytearray(car_header([ROOT, EMPTY_IDENTITY]))
    header[place % len(header)] = byte
    reader = CarReader()
    try:
        reader.feed(bytes(header))
    except CarError:
        return
    assert reader.roots is None or car_header(reader.roots) == bytes(header)
