"""The scenarios of the suite, by name. Each file is one, or a few that differ in their settings."""

from __future__ import annotations

from importlib import import_module

from benchmarks.scenario import Scenario

_MODULES = ("small", "large", "mixed", "kernels", "scaling", "growth", "round", "flower", "crash", "soak")


def scenarios() -> dict[str, Scenario]:
    found: dict[str, Scenario] = {}
    for name in _MODULES:
        for each in import_module(f"benchmarks.scenarios.{name}").SCENARIOS:
            found[each.name] = each
    return found
