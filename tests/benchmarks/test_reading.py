from __future__ import annotations

from benchmarks.reading import steps, together
from chain.codec import encode
from chain.transaction import Transaction
from fl.check import Checked


def test_every_step_runs_on_an_update_of_the_size_that_small_updates_have() -> None:
    done = {name: step() for name, step in steps(1_000, 3).items()}
    tx, checked = done["decode Transaction"], done["check_transaction"]
    assert isinstance(tx, Transaction) and 1_500 < len(encode(tx)) < 1_650
    assert done["raw_cid"] is True and done["verify_transaction"] is True
    assert isinstance(checked, Checked) and checked.reading == done["read"]
    assert done["id_of"] == checked.reading.id


def test_what_is_read_together_is_read_whole() -> None:
    done = {name: step() for name, step in together(1_000, 12).items()}
    read, checked = done["read, each of 12"], done["check, each of 12"]
    assert isinstance(read, tuple) and isinstance(checked, list)
    assert all(isinstance(each, Checked) and each.demand is None for each in checked)
    assert len({each.id for each in read}) == 12 and [each.reading for each in checked] == list(read)
