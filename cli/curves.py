"""The course of a job as a picture: one panel a metric, and below them who took part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl.client.errors import BadInput
from fl.client.report import RoundReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SOURCES: tuple[tuple[str, str, str, Callable[[RoundReport], Any]], ...] = (
    ("held out", "#0b6e99", "-", lambda report: report.held_out),
    ("evaluators", "#d1590f", "--", lambda report: report.evaluation),
    ("trainers", "#6b6b6b", "-", lambda report: report.metrics),
)
_FATES: tuple[tuple[str, str, Callable[[RoundReport], int]], ...] = (
    ("counted", "#9fc5d8", lambda report: report.updates),
    ("late", "#f0c987", lambda report: report.late),
    ("failed", "#c9c9c9", lambda report: report.failed),
    ("refused", "#c0392b", lambda report: sum(report.refused.values())),
)
_WIDTH, _PANEL, _BARS = 7.2, 2.4, 1.5


def check_drawing() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BadInput(
            "MISSING_PACKAGE", "Curves are drawn by matplotlib.", "Install it: pip install 'quorate[plot]'"
        ) from None


def draw_curves(reports: Sequence[RoundReport], title: str, path: Path) -> None:
    """Writes a PNG, whatever the file is called."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name for *_, of in _SOURCES for report in reports for name in of(report)))
    heights = [_PANEL] * len(names) + [_BARS]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.9), dpi=150, layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    for panel, name in zip(panels, names, strict=False):
        _draw_metric(panel, reports, name)
    _draw_fates(panels[-1], reports)
    panels[-1].set_xlabel("round")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panels[-1].set_xlim(0.4, max((report.round for report in reports), default=1) + 0.6)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=9)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise BadInput("UNWRITABLE", f"{path} cannot be written: {error.strerror}.", "Name another file.") from error


def _draw_metric(panel: Axes, reports: Sequence[RoundReport], name: str) -> None:
    for label, colour, style, of in _SOURCES:
        points = [(report.round, of(report)[name]) for report in reports if name in of(report)]
        points = [(round_, value) for round_, value in points if math.isfinite(value)]
        if points:
            dot = "o" if len(points) == 1 else ""
            panel.plot(*zip(*points, strict=True), style, marker=dot, color=colour, linewidth=1.6, label=label)
    panel.set_ylabel(name)
    if name == "accuracy":
        panel.set_ylim(0, 1)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    if panel.get_lines():
        panel.legend(frameon=False, fontsize=9, loc="best")


def _draw_fates(panel: Axes, reports: Sequence[RoundReport]) -> None:
    rounds, below = [report.round for report in reports], [0] * len(reports)
    for label, colour, of in _FATES:
        counts = [of(report) for report in reports]
        if any(counts):
            panel.bar(rounds, counts, 0.8, bottom=below, color=colour, label=label)
            below = [sum(each) for each in zip(below, counts, strict=True)]
    for report in reports:
        if report.state != "closed":
            panel.text(report.round, 0, "failed", rotation=90, ha="center", va="bottom", fontsize=7)
    panel.set_ylabel("trainers")
    if rounds:
        panel.legend(frameon=False, fontsize=9, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
