"""Two reports beside each other: the ratio of each figure, and what of it is noise.

A figure has one value a repetition. Where the values of both reports overlap, what differs may be noise, and it is said
so; where they do not, one is better. With a single value on either side nothing can be said of noise, and is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.report import shown
from fl.client.errors import BadInput

COLUMNS = ("CASE", "FIGURE", "UNIT", "OLD", "SPREAD", "NEW", "SPREAD", "NEW/OLD", "")
BETTER, WORSE, NOISE, OPEN = "better", "worse", "within the spread", "one value only"


@dataclass(frozen=True, slots=True)
class Compared:
    case: str
    figure: str
    unit: str
    old: float
    old_spread: float
    new: float
    new_spread: float
    ratio: float | None
    verdict: str

    def data(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        return (
            self.case,
            self.figure,
            self.unit,
            shown(self.old),
            _percent(self.old_spread),
            shown(self.new),
            _percent(self.new_spread),
            "" if self.ratio is None else f"{self.ratio:.2f}",
            self.verdict,
        )


def _percent(spread: float) -> str:
    return f"±{spread * 50:.0f} %" if spread else ""


def compared(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Compared]:
    """Of all figures that both have. Raises BadInput if they are of different scenarios."""
    if old["scenario"] != new["scenario"]:
        what = f"One report is of {old['scenario']}, the other of {new['scenario']}."
        raise BadInput("OTHER_SCENARIO", what, "Compare two reports of one scenario.")
    return list(_compared(old, new))


def _compared(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Compared]:
    before = {case["name"]: case for case in old["cases"]}
    for case in new["cases"]:
        earlier = before.get(case["name"])
        if earlier is None:
            continue
        for name, figure in case["figures"].items():
            if name in earlier["figures"]:
                yield _of_figures(case["name"], name, earlier["figures"][name], figure)
        for name, latency in case["latencies_ms"].items():
            known = earlier["latencies_ms"].get(name)
            for share in ("p50", "p99") if known is not None else ():
                label = f"{name}, {share}"
                yield _of(case["name"], label, "ms", (known[share], 0.0), (latency[share], 0.0), OPEN)


def _of_figures(case: str, name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Compared:
    return _of(
        case, name, new["unit"], (old["median"], _spread(old)), (new["median"], _spread(new)), _verdict(old, new)
    )


def _of(case: str, name: str, unit: str, old: tuple[float, float], new: tuple[float, float], verdict: str) -> Compared:
    return Compared(case, name, unit, *old, *new, new[0] / old[0] if old[0] else None, verdict)


def _spread(figure: Mapping[str, Any]) -> float:
    return float((figure["high"] - figure["low"]) / abs(figure["median"])) if figure["median"] else 0.0


def _verdict(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if not new["better"]:
        return ""
    if min(len(old["values"]), len(new["values"])) < 2:
        return OPEN
    if old["low"] <= new["high"] and new["low"] <= old["high"]:
        return NOISE
    return BETTER if (new["low"] > old["high"]) == (new["better"] == "more") else WORSE


def remarks(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What makes them hard to compare."""
    for what in ("processor", "cores", "memory_mib"):
        if old["machine"][what] != new["machine"][what]:
            yield f"Other machines: {what} {old['machine'][what]} and {new['machine'][what]}."
    differing = [
        f"{name}={old['settings'].get(name)} and {new['settings'].get(name)}"
        for name in sorted(old["settings"].keys() | new["settings"].keys())
        if old["settings"].get(name) != new["settings"].get(name)
    ]
    if differing:
        yield f"Other settings: {', '.join(differing)}."
    for name in sorted(old["versions"].keys() | new["versions"].keys() - {"commit"}):
        if name != "commit" and old["versions"].get(name) != new["versions"].get(name):
            yield f"Other versions: {name} {old['versions'].get(name)} and {new['versions'].get(name)}."
    loads = old["machine"]["load_before"], new["machine"]["load_before"]
    if max(loads) > old["machine"]["cores"] / 2:
        yield f"Something else ran on the machine: its load was {loads[0]} and {loads[1]} before."
