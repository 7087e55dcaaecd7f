"""Transactions of every kind, ordinary, mutated and hostile, in any order over many blocks: nothing raises, nothing is
a fault of ours, and what must hold holds after each block (`tests.fl.invariants`)."""

from __future__ import annotations

from collections import Counter

import pytest

from fl.execution import BlockInput, BlockOutcome, Execution
from fl.machine import execute_block
from fl.records import EvaluationPhase, EventKind, Kind, Phase
from tests.fl.builders import Ledger
from tests.fl.scenario import evaluation_phases, executed_kinds, play, refused_codes, round_count

SEEDS = range(12)
NIGHTLY = range(1_000, 1_400)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_play_never_raises_and_keeps_its_totals(seed: int) -> None:
    play(seed, blocks=50)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", NIGHTLY)
def test_a_long_random_play_never_raises_and_keeps_its_totals(seed: int) -> None:
    play(seed, blocks=250)


@pytest.mark.parametrize("seed", range(20, 28))
def test_what_is_looked_up_once_for_many_transactions_is_what_each_would_find(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, mark = Ledger.execute, Execution.mark

    def forgetting(self: Execution) -> None:
        self.state.derived.clear()
        mark(self)

    def executed_twice(self: Ledger, block: BlockInput) -> BlockOutcome:
        with monkeypatch.context() as patch:
            patch.setattr(Execution, "mark", forgetting)
            forgetful = execute_block(self.read, block)
        outcome = execute(self, block)
        assert outcome == forgetful
        return outcome

    monkeypatch.setattr(Ledger, "execute", executed_twice)
    play(seed, blocks=60)


def reached(chains: list[Ledger]) -> Counter[int]:
    phases = Counter[int]()
    for chain in chains:
        phases.update({phase: round_count(chain, phase) for phase in Phase})
    return phases


def test_the_plays_reach_what_they_are_meant_to_reach() -> None:
    chains = [play(seed, blocks=90) for seed in range(100, 112)]
    phases = reached(chains)
    assert phases[Phase.CLOSED] and phases[Phase.FAILED]
    assert set().union(*map(evaluation_phases, chains)) >= {EvaluationPhase.CLOSED, EvaluationPhase.FAILED}
    assert set().union(*(executed_kinds(chain) for chain in chains)) == set(Kind)
    codes = set().union(*(refused_codes(chain) for chain in chains))
    assert codes >= {"LATE", "DUPLICATE", "NOT_JOINED", "WRONG_ROUND", "WRONG_BASE", "NOT_MEMBER", "REVOKED"}
    assert codes >= {"NOT_COLLECTING", "NOT_CHECKED_IN", "NOT_DRAWN", "NO_CHECK_IN", "NO_EVALUATION", "NO_WEIGHT"}
    assert codes >= {"TOO_STALE", "BUFFER_CLOSED", "UNKNOWN_DATASET", "JOB_PAUSED"}
    assert codes >= {"BAD_EXAMPLES", "BAD_METRICS", "UNKNOWN_GROUP"}, "what check.py keeps out must not raise either"
    kinds = set().union(*({event.kind for event in chain.events} for chain in chains))
    assert kinds >= {EventKind.ROUND_DRAWN, EventKind.ROUND_COLLECTING, EventKind.UPDATE_REFUSED, EventKind.JOB_PAUSED}
