from __future__ import annotations

from benchmarks.batches import measured


def test_every_step_of_a_batch_is_done_and_measured() -> None:
    found = measured(size=4, batches=2, repeats=1)
    assert list(found) == [
        "own: signed and named",
        "own: frame",
        "frame decoded",
        "named",
        "creator's signature",
        "judged, held",
        "judged, looked at",
        "kept for execution",
        "log",
    ]
