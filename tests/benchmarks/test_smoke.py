"""The suite runs: scenarios in their shortest form, on real validators, and what they find is a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import checks
from benchmarks.campaign import Outcome
from benchmarks.figures import Check
from benchmarks.flower_sites import FLOWER
from benchmarks.network import Validators
from benchmarks.report import read_report
from benchmarks.scenarios import scenarios, small
from cli.output import Exit
from tests.cli.run import quorate

IN_CI = {"medium", "crash", "kernels"}
"""With `small`, below: between them they run every part of the suite."""
PNG = b"\x89PNG"


def performed(scenario: str, tmp_path: Path) -> dict[str, Any]:
    file, plots, table = tmp_path / "report.json", tmp_path / "plots", tmp_path / "report.md"
    ran = quorate("bench", scenario, "--quick", "--json", file, "--plots", plots, "--markdown", table)
    assert ran.code == Exit.OK, ran
    report = read_report(file)
    assert report["scenario"] == scenario and report["holds"]
    assert report["command"].startswith(f"quorate bench {scenario} --set ")
    assert all(each.read_bytes().startswith(PNG) for each in plots.iterdir()) and list(plots.iterdir())
    assert table.read_text().startswith("| case |") and ran.out.startswith("CASE")
    return report


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(name, marks=[] if name in IN_CI else [pytest.mark.nightly])
        for name in scenarios()
        if name not in ("small", "sustained")
    ],
)
def test_a_scenario_runs_and_its_report_is_valid(scenario: str, tmp_path: Path) -> None:
    if scenario == "flower" and not FLOWER.is_dir():
        pytest.skip(f"there is no {FLOWER.parent.name}")
    report = performed(scenario, tmp_path)
    assert all(case["figures"] for case in report["cases"])


@pytest.mark.slow
def test_an_acknowledged_update_that_no_validator_has_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else is wrong with the same run."""
    found: list[Check] = []

    async def one_more(validators: Validators, outcome: Outcome, home: Path) -> list[Check]:
        found.extend(await checks.nothing_lost(validators, outcome, home))
        outcome.acknowledged += 1
        # It would be waited for.
        monkeypatch.setattr(checks, "CERTIFIED_S", 0.0)
        return await checks.nothing_lost(validators, outcome, home)

    monkeypatch.setattr(small, "nothing_lost", one_more)
    file = tmp_path / "report.json"
    ran = quorate("bench", "small", "--quick", "--json", file)
    assert found and all(each.holds for each in found)
    assert ran.code == Exit.UNVERIFIED and "BENCH_BROKEN" in ran.err
    report = read_report(file)
    assert not report["holds"]
    [case] = report["cases"]
    assert sum(not each["holds"] for each in case["checks"]) == 2
    assert {each["kind"] for each in case["processes"]} == {"core", "data", "generator"}
    assert case["floors"] and case["latencies_ms"]
    assert case["figures"]["updates executed a second, by every validator"]["median"] > 0
