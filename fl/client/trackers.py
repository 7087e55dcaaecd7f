"""Those who are told of a job as it goes on: TensorBoard, or functions of your own.

    job.follow(TensorBoard("runs/digits"))                    until the job is over
    train_for(job, app, part, seed, trackers=[TensorBoard("runs/digits")])
    job.follow(Calls(on_round=lambda report: print(report.round, report.metrics)))

A tracker has two methods. `round_done(report)` is called once for each round, in order, when nothing more is to come of
it: it is over, and its evaluation is too, if evaluators were asked. `update_sent(receipt, metrics)` is called when the
fate of an own update is proven. One that keeps what it was told from run to run says so by `newest_round`, and is told
of later rounds only. What a tracker raises is logged, and ends no training.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fl.client.errors import BadInput, QuorateError
from fl.client.eventfile import VERSION, Event, framed, read_events
from fl.client.receipt import Receipt
from fl.client.report import RoundReport

log = logging.getLogger("quorate.client")

Metrics = Mapping[str, float]


class Tracker(Protocol):
    """Whoever wants to be told."""

    def round_done(self, report: RoundReport) -> None:
        """Nothing more is to come of this round."""

    def update_sent(self, receipt: Receipt, metrics: Metrics) -> None:
        """An own update with these metrics has the fate that the receipt proves."""


def _nothing(*told: object) -> None:
    pass


class Calls:
    """Functions as a tracker."""

    def __init__(
        self,
        on_round: Callable[[RoundReport], object] = _nothing,
        on_update: Callable[[Receipt, Metrics], object] = _nothing,
    ) -> None:
        self._on_round = on_round
        self._on_update = on_update

    def round_done(self, report: RoundReport) -> None:
        """Calls the one for rounds."""
        self._on_round(report)

    def update_sent(self, receipt: Receipt, metrics: Metrics) -> None:
        """Calls the one for updates."""
        self._on_update(receipt, metrics)


class TensorBoard:
    """Writes event files for TensorBoard into a directory, which belongs to one job: the round is the step.

        metrics/NAME      the trainers' mean, as the chain has it
        evaluation/NAME   what evaluators found, as the chain has it
        held_out/NAME     what was measured here
        round/closed      1, or 0 for a round that failed; beside it updates, cohort, examples, weight, seconds
        own/NAME          what this trainer reported with its update; own/accepted is 1 if the update was taken

    A directory that an earlier run of the same job has written is gone on with: no round is written twice."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._lock = threading.Lock()
        self._path: Path | None = None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._written = {each for path in self._earlier().values() for each in _scalars(path)}
        except OSError as error:
            raise _unwritable(self._directory, error) from error

    @property
    def newest_round(self) -> int:
        """Of those that are there."""
        with self._lock:
            return max((step for tag, step in self._written if tag == _LAST), default=0)

    def round_done(self, report: RoundReport) -> None:
        """Writes what was reported and measured, and how the round went."""
        tables = {"metrics": report.metrics, "evaluation": report.evaluation, "held_out": report.held_out}
        scalars = {f"{table}/{name}": value for table, found in tables.items() for name, value in found.items()}
        counts = ("updates", "cohort", "examples", "weight", "seconds")
        scalars |= {f"round/{name}": float(getattr(report, name)) for name in counts}
        self._write(report.round, scalars | {_LAST: float(report.state == "closed")})

    def update_sent(self, receipt: Receipt, metrics: Metrics) -> None:
        """Writes the own metrics, and whether the update counts."""
        own = {f"own/{name}": value for name, value in metrics.items()}
        self._write(receipt.round, own | {"own/accepted": float(receipt.accepted)})

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        with self._lock:
            fresh = {tag: value for tag, value in scalars.items() if (tag, step) not in self._written}
            if not fresh:
                return
            now = time.time()
            try:
                if self._path is None:
                    self._path = self._begin(now)
                with open(self._path, "ab") as file:
                    file.write(framed(Event(now, step, scalars=fresh)))
            except OSError as error:
                raise _unwritable(self._directory, error) from error
            self._written |= {(tag, step) for tag in fresh}

    def _begin(self, now: float) -> Path:
        """A file of this run's own: TensorBoard reads those of a directory in the order of their names."""
        began = max(int(now), 1 + max(self._earlier(), default=0))
        path = self._directory / f"events.out.tfevents.{began:010}.{os.getpid()}.quorate"
        with open(path, "xb") as file:
            file.write(framed(Event(now, version=VERSION)))
        return path

    def _earlier(self) -> dict[int, Path]:
        """Files by when they were begun."""
        named = ((_NAME.fullmatch(path.name), path) for path in self._directory.iterdir())
        return {int(match[1]): path for match, path in named if match is not None}


_NAME = re.compile(r"events\.out\.tfevents\.([0-9]{10,12})\.[0-9]+\.quorate")
_LAST = "round/closed"


def _scalars(path: Path) -> Iterable[tuple[str, int]]:
    with open(path, "rb") as file:
        for event in read_events(file):
            for tag in event.scalars:
                yield tag, event.step


def _unwritable(directory: Path, error: OSError) -> QuorateError:
    return QuorateError("UNWRITABLE", f"{directory} cannot be used: {error.strerror}.", "Name another directory.")


def tracker_of(text: str) -> Tracker:
    """The one that a command line names: `tensorboard:DIRECTORY`."""
    kind, _, place = text.partition(":")
    if kind != "tensorboard" or not place:
        raise BadInput("UNKNOWN_TRACKER", f"There is no tracker '{text}'.", "As in tensorboard:runs/digits.")
    return TensorBoard(place)


def newest_told(trackers: Iterable[Tracker]) -> int:
    """The round up to which all of them have been told already, in earlier runs."""
    return min((int(getattr(each, "newest_round", 0)) for each in trackers), default=0)


def tell_round(trackers: Sequence[Tracker], report: RoundReport) -> None:
    for each in trackers:
        _guarded(each.round_done, report)


def tell_update(trackers: Sequence[Tracker], receipt: Receipt, metrics: Metrics) -> None:
    for each in trackers:
        _guarded(each.update_sent, receipt, metrics)


def _guarded(tell: Callable[..., None], *told: object) -> None:
    try:
        tell(*told)
    except Exception:
        log.exception("a tracker failed; the job goes on")
