"""A report: everything that a scenario found and what it was found with, as JSON of a fixed form and as Markdown.

The form is `report.schema.json`, which every report is held against before it is written and after it was read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.figures import PERCENTILES, Case, Curve, Figure, Latency, Value, rounded
from benchmarks.schema import check
from fl.client.errors import BadFile

FORMAT = "quorate-bench-1"
SCHEMA: dict[str, Any] = json.loads((Path(__file__).parent / "report.schema.json").read_text())
_LIMIT_BYTES = 64 * 1024 * 1024


def report_of(
    scenario: str,
    about: str,
    command: str,
    settings: Mapping[str, Value],
    began: datetime,
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    cases: Sequence[Case],
) -> dict[str, Any]:
    made = {
        "format": FORMAT,
        "scenario": scenario,
        "about": about,
        "command": command,
        "began": began.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - began).total_seconds(), 1),
        "settings": dict(settings),
        "machine": dict(machine),
        "versions": dict(versions),
        "holds": all(case.holds for case in cases),
        "cases": [_case(case) for case in cases],
    }
    check(made, SCHEMA)
    return made


def _case(case: Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "settings": dict(case.settings),
        "figures": {name: _figure(each) for name, each in case.figures.items()},
        "latencies_ms": {name: _latency(each) for name, each in case.latencies.items() if each.samples_ms},
        "processes": [
            {
                "role": each.role,
                "kind": each.kind,
                "cpu_s": each.cpu_s,
                "resident_mib": each.resident_mib,
                "anonymous_mib": each.anonymous_mib,
            }
            for each in case.processes
        ],
        "curves": {name: _curve(each) for name, each in case.curves.items()},
        "checks": [{"what": each.what, "holds": each.holds} for each in case.checks],
        "floors": [
            {
                "name": each.name,
                "of": each.of,
                "unit": each.unit,
                "value": rounded(each.value),
                "share": round(each.share, 3),
                "cpu_s_by_step": {name: rounded(seconds) for name, seconds in each.steps.items()},
            }
            for each in case.floors
        ],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "unit": figure.unit,
        "better": figure.better,
        "median": rounded(figure.median),
        "low": rounded(min(figure.values)),
        "high": rounded(max(figure.values)),
        "values": [rounded(each) for each in figure.values],
    }


def _latency(latency: Latency) -> dict[str, Any]:
    percentiles = {f"p{share}": rounded(latency.percentile(share)) for share in PERCENTILES}
    return {"samples": len(latency.samples_ms), **percentiles, "max": rounded(max(latency.samples_ms))}


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "along": curve.along,
        "unit": curve.unit,
        "at": [rounded(each) for each in curve.at],
        "lines": {name: [rounded(each) for each in values] for name, values in curve.lines.items()},
    }


def read_report(path: Path) -> dict[str, Any]:
    """Raises BadFile."""
    advice = "Make it with: quorate bench SCENARIO --json FILE"
    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
        found: Any = json.loads(data) if len(data) <= _LIMIT_BYTES else None
        check(found, SCHEMA)
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise BadFile("BAD_REPORT", f"{path} is no report of a benchmark: {error}.", advice) from error
    return dict(found)


# One table


Row = tuple[str, ...]
COLUMNS: Row = ("case", "figure", "median", "low", "high", "unit")


def rows(report: Mapping[str, Any]) -> Iterator[Row]:
    """All figures of a report, latencies and floors among them, as text."""
    for case in report["cases"]:
        name = case["name"]
        for figure, each in case["figures"].items():
            yield name, figure, shown(each["median"]), shown(each["low"]), shown(each["high"]), each["unit"]
        for latency, each in case["latencies_ms"].items():
            yield name, f"{latency} (high: p99)", shown(each["p50"]), "", shown(each["p99"]), "ms"
        for floor in case["floors"]:
            label = f"share of the floor ({floor['name']}): {floor['of']}"
            yield name, label, f"{floor['share']:.0%}", "", "", f"of {shown(floor['value'])} {floor['unit']}"


def shown(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(report: Mapping[str, Any]) -> str:
    """What stands under it is the command and the machine: a figure without them means nothing."""
    found = list(rows(report))
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row)} |" for row in found]
    machine, versions = report["machine"], report["versions"]
    lines += [
        "",
        f"`{report['command']}`: {machine['cores']} cores of {machine['processor']}, {machine['system']}, "
        f"Python {versions['python']}, commit {versions['commit']}, load {machine['load_before']} before.",
    ]
    return "\n".join(lines) + "\n"
