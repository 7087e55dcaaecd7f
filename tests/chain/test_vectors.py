from __future__ import annotations

from pathlib import Path

import pytest

from chain.hashing import Domain
from tests.chain.vectors import golden_text, vectors

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "encoding.md"

PINNED = {
    "nullify": "91cd012c",
    "transaction id": "54c04898961defc2c1ae37f26ba03549a7d97520ae74a3e334974b88cdb7def3",
    "genesis block digest": "3dc773db3e4d3f783d9907fa0793d818c88927316610878ad8659d06895d131f",
    "state root of a = 1": "d0a3875058613877f0b04edb6d9848fe24bdb947e0380f8d2972f6926b85dae8",
    "log root of a, b, c": "5aeda8dc1bcf11c4e1f55c957e3a10ff36391a3817c6755012ead29c6f4066b0",
}


def test_the_encoding_has_not_drifted_from_the_golden_vectors() -> None:
    assert golden_text() == (HERE / "golden.txt").read_text()


@pytest.mark.parametrize("name", PINNED)
def test_the_vectors_that_everything_else_hangs_on_are_these(name: str) -> None:
    assert vectors()[name].hex() == PINNED[name]


def test_the_page_shows_every_vector_and_every_domain() -> None:
    page = PAGE.read_text()
    assert golden_text() in page
    for domain in Domain:
        assert f"`{domain.value}`" in page
