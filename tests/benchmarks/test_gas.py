"""docs/gas.md is what its own figures give, by arithmetic that can be followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.floors import LARGE_RATE
from benchmarks.gas import WAYS, Measured, kept_in, measured_of, render
from benchmarks.windows import RATE

PAGE = Path(__file__).parents[2] / "docs" / "gas.md"
SMALL = Measured("small", 4, 1000, "q8", 3500.0, "quorate bench small")
LARGE = Measured("large: q8", 4, 10_000_000, "q8", 10.0, "quorate bench large")


def report(scenario: str, case: str, figure: str, median: float, settings: dict[str, Any]) -> dict[str, Any]:
    figures = {figure: {"unit": "", "better": "more", "median": median, "low": median, "high": median}}
    told = {"validators": 4, "parameters": 1000}
    return {
        "scenario": scenario,
        "command": f"quorate bench {scenario}",
        "settings": told,
        "cases": [{"name": case, "settings": settings, "figures": figures}],
    }


def cells(page: str, row: str, table: int) -> list[str]:
    lines = [line for line in page.splitlines() if line.startswith(f"| {row}")]
    return [cell.strip() for cell in lines[table].strip("|").split("|")]


def test_updates_a_second_are_read_from_a_report() -> None:
    found = list(measured_of(report("small", "small", RATE, 1234.5678, {"update_bytes": 1594})))
    assert found == [Measured("small", 4, 1000, "q8", 1234.568, "quorate bench small")]


def test_bytes_a_second_become_updates_of_their_size() -> None:
    settings = {"update_bytes": 4 * 1024 * 1024, "encoding": "f32", "parameters": 1_000_000}
    found = list(measured_of(report("large", "10M", LARGE_RATE, 100.0, settings)))
    assert found == [Measured("large: 10M", 4, 1_000_000, "f32", 25.0, "quorate bench large")]


def test_a_case_that_tells_neither_is_left_out() -> None:
    assert not list(measured_of(report("kernels", "fedavg", "values a second", 1.0, {})))


@pytest.mark.parametrize(("measured", "ggas_s"), [(SMALL, "0.79"), (LARGE, "22.5")])
def test_gas_is_the_rate_times_what_a_parameter_costs(measured: Measured, ggas_s: str) -> None:
    # 225 gas × 3.5 M p·u/s, and × 100 M.
    assert cells(render([measured]), "each update stored as code", 0)[3] == ggas_s


def test_beside_sei_stands_how_many_times_as_many() -> None:
    # 5 Ggas/s are 22.2 M p·u/s of 225 gas.
    assert cells(render([LARGE]), "each update stored as code", 1)[1:] == ["22.2", "4.50"]
    assert cells(render([LARGE]), "all signed updates", 1)[1:] == ["124 to 248", "0.40 to 0.81"]


def test_no_ratio_is_given_for_values_of_another_width() -> None:
    page = render([Measured("f32", 4, 10_000_000, "f32", 4.0, "quorate bench large"), LARGE])
    assert cells(page, "f32", 0)[3:] == ["f32", "4.00", "40.0"]
    assert len(cells(page, "each update stored as code", 0)) == 4


def test_a_page_can_be_computed_from_itself() -> None:
    page = render([SMALL, LARGE])
    assert kept_in(page) == [SMALL, LARGE]
    assert render(kept_in(page)) == page


def test_the_page_in_docs_is_what_its_figures_give_and_has_every_row() -> None:
    page = PAGE.read_text()
    assert render(kept_in(page)) == page
    assert all(page.count(f"| {way.name} |") == 2 for way in WAYS)
