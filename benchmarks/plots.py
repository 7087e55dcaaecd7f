"""A report as pictures: its curves, and the repetitions of its figures beside one another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl.client.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _PANEL = 7.2, 2.6
_COLOURS = ("#0b6e99", "#d1590f", "#3d8b40", "#8e44ad", "#6b6b6b", "#c0392b", "#b8860b")
_HEAD, _BAR = 0.75, 0.3
_DOTTED = 16
_PANELS = 16


def draw(report: Mapping[str, Any], directory: Path) -> list[Path]:
    """PNG files, one for each case's curves and one for the figures of all cases."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return [_saved(figure, directory / f"{name}.png") for name, figure in _pictures(report)]
    except OSError as error:
        raise BadInput("UNWRITABLE", f"{directory} cannot be written to: {error.strerror}.", "Name another.") from error


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, format="png")
    return path


def _pictures(report: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    scenario = report["scenario"]
    for case in report["cases"]:
        if case["curves"]:
            yield _file_name(scenario, case["name"]), _curves(f"{scenario}: {case['name']}", case["curves"])
    if figures := _shared_figures(report["cases"]):
        yield _file_name(scenario, "figures"), _bars(report, figures)


def _file_name(*words: str) -> str:
    return "-".join(re.sub(r"[^\w.]+", "-", word).strip("-") for word in words)


def _panels(title: str, count: int, height: float = _PANEL) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height * count + 0.6), dpi=150, layout="constrained")
    panels = figure.subplots(count, 1, squeeze=False)[:, 0]
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        panel.set_axisbelow(True)
    return figure, list(panels)


def _curves(title: str, curves: Mapping[str, Any]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, panels = _panels(title, len(curves))
    for panel, (name, curve) in zip(panels, curves.items(), strict=True):
        for place, (line, values) in enumerate(curve["lines"].items()):
            dot = "o" if len(values) <= _DOTTED else ""
            panel.plot(curve["at"], values, marker=dot, markersize=4, color=_colour(place), linewidth=1.5, label=line)
        if all(each.is_integer() for each in map(float, curve["at"])):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.set_title(name, fontsize=9, loc="left")
        panel.set_xlabel(curve["along"], fontsize=8)
        panel.set_ylabel(curve["unit"], fontsize=8)
        panel.set_ylim(bottom=0)
        if len(curve["lines"]) > 1:
            panel.legend(frameon=False, fontsize=8, ncols=3, loc="best")
    return figure


def _shared_figures(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that can be good or bad, in the order of the cases."""
    names = [name for case in cases for name, each in case["figures"].items() if each["better"]]
    return list(dict.fromkeys(names))


def _bars(report: Mapping[str, Any], figures: Sequence[str]) -> Figure:
    """Of each figure, the median of every case; the line on it reaches from the lowest value to the highest."""
    title = f"{report['scenario']}: medians, lowest and highest"
    if len(figures) > _PANELS:
        title += f"; the first {_PANELS} of {len(figures)} figures"
    figure, panels = _panels(title, min(len(figures), _PANELS), _HEAD + _BAR * len(report["cases"]))
    for panel, name in zip(panels, figures, strict=False):
        cases = [case for case in report["cases"] if name in case["figures"]]
        found = [case["figures"][name] for case in cases]
        medians = [each["median"] for each in found]
        errors = [
            [each["median"] - each["low"] for each in found],
            [each["high"] - each["median"] for each in found],
        ]
        places = range(len(cases))
        panel.barh(places, medians, 0.55, xerr=errors, color=_colour(0), ecolor="#333333", capsize=3)
        for place, each in zip(places, found, strict=True):
            panel.plot(each["values"], [place] * len(each["values"]), ".", color="#d1590f", markersize=4)
        panel.set_yticks(list(places), [case["name"] for case in cases], fontsize=8)
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        panel.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        panel.set_title(f"{name} [{found[0]['unit']}], {found[0]['better']} is better", fontsize=9, loc="left")
    return figure


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]
