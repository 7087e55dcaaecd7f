"""The growth benchmark measures what it says, in virtual time: the same on every machine."""

from __future__ import annotations

from pathlib import Path

from benchmarks.growth import REGIONS, ROUND_TRIPS_MS, delay_ms, grown
from benchmarks.network import Stage
from benchmarks.scenarios import scenarios


def test_the_matrix_is_one_of_round_trips() -> None:
    assert len(ROUND_TRIPS_MS) == len(REGIONS)
    for one, row in enumerate(ROUND_TRIPS_MS):
        assert [each[one] for each in ROUND_TRIPS_MS] == list(row)
        assert row[one] == min(row)


def test_the_first_eight_validators_sit_in_eight_regions() -> None:
    homes = {tuple(delay_ms(one, other) for other in range(8)) for one in range(8)}
    assert len(homes) == 8


def test_empty_blocks_of_four_validators() -> None:
    found = grown(4, blocks=8, batches=0)
    assert found["views_given_up"] == 0 and found["references_a_block"] == 0
    # Votes decide: three kinds, of which each validator hears three others'.
    assert 6 <= found["messages_by_kind"]["Vote"] <= 9
    assert found["messages"] >= found["signatures"] - 3
    # Two delays and three, of the paths that a quorum takes.
    assert 0 < found["block_ms"] < found["finality_ms"] < 3 * max(map(max, ROUND_TRIPS_MS)) / 2


def test_batches_cost_offers_votes_and_certificates() -> None:
    found = grown(4, blocks=8, batches=5)
    assert found["references_a_block"] > 1
    kinds = found["messages_by_kind"]
    assert 0.7 < kinds["BatchOffer"] / (0.75 * found["references_a_block"]) < 1.3
    assert 0.8 < kinds["AvailabilityCertificate"] / kinds["BatchOffer"] < 1.25


def test_a_seed_gives_the_same_figures_again() -> None:
    virtual = ("block_ms", "finality_ms", "messages", "kib", "signatures")
    first, second = (grown(4, blocks=4, batches=3) for _ in range(2))
    assert [first[each] for each in virtual] == [second[each] for each in virtual]


def test_the_scenario_draws_a_line_through_its_cases() -> None:
    scenario = scenarios()["growth"]
    cases = scenario.perform(scenario.chosen(True, {"validators": "4,5"}), Stage(Path()))
    assert [case.name for case in cases] == ["4 validators", "5 validators"]
    name = "messages in, a validator and block"
    curve = cases[-1].curves[name]
    assert curve.at == (4.0, 5.0) and curve.lines[name] == tuple(case.figures[name].median for case in cases)
