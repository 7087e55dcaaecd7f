"""The bounds in docs/limits.md are those in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chain.batch import MAX_BATCH_BYTES
from chain.block import MAX_BLOCK_REFERENCES
from chain.certificate import MAX_VALIDATORS
from chain.genesis import Params
from chain.transaction import MAX_TRANSACTION_BYTES
from chain.unixfs import MAX_FILE_BYTES
from cli.localnets import MOST_VALIDATORS
from fl.records import MAX_OPEN_JOBS, MAX_ROUNDS
from fl.tensors.grid import MAX_UPDATES
from fl.tensors.layout import MAX_TENSORS

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
ROWS = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \| (?:chain|chain, never more)? ?\|$", PAGE, re.MULTILINE))
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
P = Params()

BOUNDS = {
    "validators": [MAX_VALIDATORS],
    "of them that `quorate localnet` starts on one machine": [MOST_VALIDATORS],
    "a transaction": [P.transaction_bytes, MAX_TRANSACTION_BYTES],
    "an update inside of one; larger ones are blobs": [P.inline_bytes],
    "a batch": [P.batch_bytes, MAX_BATCH_BYTES],
    "batches that a block names": [P.block_references, MAX_BLOCK_REFERENCES],
    "bytes of these batches together": [P.block_bytes],
    "blocks until a batch expires": [P.horizon],
    "a blob": [MAX_FILE_BYTES],
    "parameters of a job": [P.job_parameters],
    "parameters of all open jobs together": [P.open_parameters],
    "open jobs": [MAX_OPEN_JOBS],
    "updates of a round": [MAX_UPDATES],
    "tensors of a model": [MAX_TENSORS],
    "rounds of a job": [MAX_ROUNDS],
}


def number(text: str) -> int:
    count, _, unit = text.strip().partition(" ")
    return int(count.replace(",", "")) * UNITS.get(unit, 1)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_of_the_page_is_the_one_in_the_code(name: str) -> None:
    assert {number(ROWS[name])} == set(BOUNDS[name])


def test_what_a_validator_may_have_waiting() -> None:
    row = ROWS["batches of one validator that wait to be ordered"].strip()
    assert row == f"{P.creator_quota_batches}, and {P.creator_quota_bytes // 2**20} MiB"


def test_the_page_has_no_bound_that_is_not_compared() -> None:
    table = PAGE.partition("## Bounds in the code")[2]
    named = set(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)) - {" ", "---"}
    assert named - {""} == {*BOUNDS, "batches of one validator that wait to be ordered"}
