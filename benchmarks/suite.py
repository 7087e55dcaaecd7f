"""A scenario performed from its name to its report; `quorate bench` is the face of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, versions
from benchmarks.network import Stage
from benchmarks.report import report_of
from benchmarks.scenario import Scenario, Settings
from benchmarks.scenarios import scenarios
from fl.client.errors import BadInput


def scenario_named(name: str) -> Scenario:
    known = scenarios()
    if name not in known:
        raise BadInput("UNKNOWN_SCENARIO", f"There is no scenario {name}.", f"There are: {', '.join(known)}.")
    return known[name]


def perform(
    name: str,
    quick: bool = False,
    given: Mapping[str, str] | None = None,
    directory: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The report. Validators' disks are in a temporary place below the directory."""
    scenario = scenario_named(name)
    settings = scenario.chosen(quick, given or {})
    before, began = machine(), datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="quorate-bench-", dir=directory) as place:
        cases = scenario.perform(settings, Stage(Path(place), say))
    command = _command(scenario, settings)
    return report_of(name, scenario.about, command, settings, began, before, versions(), cases)


def _command(scenario: Scenario, settings: Settings) -> str:
    """That measures the same: with the settings that are not the usual ones."""
    words = ["quorate", "bench", scenario.name]
    for name, each in scenario.settings.items():
        if settings[name] != each.usual:
            words += ["--set", f"{name}={settings[name]}"]
    return " ".join(words)
