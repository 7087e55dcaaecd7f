from __future__ import annotations

from benchmarks.execution import measure


def test_blocks_are_executed_and_every_step_is_counted() -> None:
    first, again = (measure(updates=(8,), members=(16,), jobs=2, blocks=2)[0] for _ in range(2))
    assert first["state_root"] == again["state_root"]
    assert first["us_an_update"] > 0
    steps = first["us_an_update_by_step"]
    assert {"state machine", "tree", "rows written", "receipts and logs", "aggregator"} <= steps.keys()
    assert all(spent >= 0 for spent in steps.values())
