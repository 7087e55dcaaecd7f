"""Aggregation of a round: updates stream in, the next model streams out, the closing record follows.

Under a streaming rule the memory is one int64 sum for each parameter, however many updates a round takes: 8 bytes ×
parameters for a round in progress, and beside that one chunk of the model while it is written (`CHUNK_BYTES`) and some
hundred bytes an update. Under a rule that looks at all updates at once, the sums come into being when the round is
finished, and beside them each thread holds one tile of all updates (`TILE_BYTES`). Updates, the base model and moments
are read where they lie, in mapped files as a rule; nobody holds a model whole.

Sums are exact, so the order of updates, the number of threads and the cut into tiles or chunks leave no trace in the
result: every honest validator computes the same bytes. Nothing in here decides which updates count; the frozen log of
the round does, and payloads were checked (`fl.tensors.encodings`, `fl.blobs`) before a batch with them was voted for.

    sums = Aggregation(rules)
    sums.add(update, ...)                          as they are accepted, in any order
    closing = sums.finish(log_root, base, moments) once the log is frozen and all of it is added
    for chunk in closing.moments() or (): ...      the rule's memory, if it has any
    for chunk in closing.model(new_moments): ...   both raise Refused("MODEL_RANGE"): discard what was written
    closing.closed(model_cid, base_cid, ...)       or closing.failed("MODEL_RANGE", base_cid): the outcome, with record
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import isqrt
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from fl.closing import AggregationOutcome, AggregationRules, Closing, Found, GroupMean
from fl.errors import Refused
from fl.jobrules import grid_of
from fl.kernels import FUSED
from fl.kernels.distances import LIMBS, exact
from fl.kernels.payloads import PAYLOADS, Payloads
from fl.rules import rule_of
from fl.rules.rule import AtOnce, Spread, Streaming, Work, settings_of
from fl.tensors.encodings import Place, UpdateForm, check_frame
from fl.tensors.grid import Grid
from fl.tensors.layout import Bytes
from fl.updates import form_of, groups_of

__all__ = [
    "Aggregation",
    "AggregationOutcome",
    "AggregationRules",
    "Closing",
    "Spread",
    "Update",
    "Work",
    "in_turn",
]

SPAN_TILES = 64
"""Tiles in one piece of work: about a million values, so that a thread is worth waking for it."""

TILE_BYTES = 4 * 1024 * 1024
"""Decoded values of all updates that a thread holds for a rule that looks at them at once, but for a round of so many
updates that this gives fewer than `_NARROWEST` values of each."""
_NARROWEST, _WIDEST = 1024, 32768
_LINE_VALUES = 8
"""Sums in a cache line of 64 bytes, which a vector is at the widest."""


def in_turn(pieces: Sequence[Work]) -> Iterable[int]:
    return [piece() for piece in pieces]


@dataclass(frozen=True, slots=True)
class Update:
    """An entry of the round's log with its payload."""

    index: int
    """In the log."""
    round: int
    """That its header names: another one than the log's only in a job without rounds."""
    member: bytes
    weight: int
    group: int
    payload: Bytes
    fingerprint: bytes
    """As `fl.tensors.closing` makes it, from the payload or from the digests of its leaves."""


class Aggregation:
    """The sums of one round. Not itself safe to call from several threads; `spread` is where threads come in."""

    def __init__(self, rules: AggregationRules, spread: Spread = in_turn) -> None:
        self._rules = rules
        self._spread = spread
        self._grid = grid_of(rules.rules)
        self._rule = rule_of(rules.rules.rule)
        self._settings = settings_of(self._rule, rules.rules.settings)
        if rules.rules.encoding not in PAYLOADS:
            raise Refused("NOT_SUPPORTED", f"There are no kernels for the encoding {rules.rules.encoding!r}.")
        self._sums: dict[int, NDArray[np.int64]] = {}
        """By group."""
        self._added: dict[int, Update] = {}
        """By index; without their payloads once these are summed."""
        self._spoilt = False

    @property
    def count(self) -> int:
        return len(self._added)

    def add(self, *updates: Update) -> None:
        """Adds updates, in any order, each index once; several in one call are summed together, which is
        faster. Raises `Refused` for a payload that should never have got here; after OUT_OF_RANGE the sums
        are spoilt, and with them this object."""
        self._check_usable()
        for update in updates:
            self._check(update)
        if len({update.index for update in updates} - self._added.keys()) != len(updates):
            raise ValueError("an update's index was given twice")
        if len(self._added) + len(updates) > self._grid.max_updates:
            raise ValueError("more updates than the job's rules allow for")
        if not isinstance(self._rule, Streaming):
            self._added.update((update.index, update) for update in updates)
            return
        for group, some in groupby(sorted(updates, key=attrgetter("group")), attrgetter("group")):
            self._add_to(group, list(some), self._rule)
        self._added.update((update.index, _without_payload(update)) for update in updates)

    def finish(self, log_root: bytes, base_model: Bytes, moments: Bytes | None = None) -> Closing:
        """What closes the round, once every entry of its log was added: with the moments that the round before left,
        if there are any. The sums stay as they are."""
        self._check_usable()
        if not self._added or self._added.keys() != set(range(len(self._added))):
            raise ValueError("every entry of the round's log must be added, from index 0 on, and at least one")
        log = [self._added[index] for index in range(len(self._added))]
        if isinstance(self._rule, AtOnce):
            means, scores = self._reduced(self._rule, log)
        else:
            means, scores = self._summed(log), ()
        found = Found(
            means,
            tuple(update.weight for update in log),
            scores,
            tuple((update.group, update.fingerprint) for update in log),
        )
        return Closing(self._rules, found, log_root, base_model, moments)

    def _check_usable(self) -> None:
        if self._spoilt:
            raise ValueError("an earlier update spoilt these sums; start the aggregation again")

    def _check(self, update: Update) -> None:
        if not 1 <= update.weight <= self._grid.weight_cap:
            raise ValueError(f"the weight {update.weight} is outside 1 to {self._grid.weight_cap}")
        if not 0 <= update.group < groups_of(self._rules.rules):
            raise ValueError(f"the job has no group {update.group}")
        self._offset(update)

    def _offset(self, update: Update) -> int:
        place = Place(self._rules.job, update.round, update.member)
        return check_frame(self._form(update.group), place, update.payload)

    def _form(self, group: int) -> UpdateForm:
        return form_of(self._rules.rules, group)

    def _payloads(self, group: int, updates: Sequence[Update]) -> Payloads:
        placed = [(update.payload, self._offset(update)) for update in updates]
        rules = self._rules.rules
        return PAYLOADS[rules.encoding](self._form(group), placed)

    # Rules that sum updates as they come

    def _add_to(self, group: int, updates: Sequence[Update], rule: Streaming) -> None:
        if group not in self._sums:
            self._sums[group] = _zeros(self._form(group).layout.parameters)
        start = 0
        while start < len(updates):
            stop = start + FUSED if start + FUSED <= len(updates) else start + 1
            self._spoilt = True
            self._sum(group, updates[start:stop], rule)
            self._spoilt = False
            start = stop

    def _sum(self, group: int, updates: Sequence[Update], rule: Streaming) -> None:
        payloads, sums = self._payloads(group, updates), self._sums[group]
        last = self._form(group).layout.tiles.size - 1
        norms = self._norms(payloads, len(updates), sums.size, last) if rule.clips else [0] * len(updates)
        factors = np.array(
            [
                rule.factor(self._settings, self._grid, update.weight, norm)
                for update, norm in zip(updates, norms, strict=True)
            ],
            np.float64,
        )

        def piece(first: int) -> int:
            return payloads.sum(sums, factors, first, min(first + SPAN_TILES, last), rule.clips)

        _checked(self._spread([partial(piece, first) for first in range(0, last, SPAN_TILES)]), payloads.limit)

    def _norms(self, payloads: Payloads, count: int, parameters: int, last: int) -> list[int]:
        """Each at least that of the update, in steps of 2^−G0: what rounding takes from it is less than half a step of
        each value. Whether values are within the job's range is for the sum of them to say."""
        starts = range(0, last, SPAN_TILES)
        lengths = np.zeros((count, len(starts), LIMBS), np.int64)
        factor = 2.0**self._grid.unweighted_bits

        def piece(each: int, place: int) -> int:
            stop = min(starts[place] + SPAN_TILES, last)
            payloads.add_norm(lengths[each, place], each, starts[place], stop, factor)
            return 0

        for _ in self._spread([partial(piece, each, place) for each in range(count) for place in range(len(starts))]):
            pass
        return [isqrt(sum(exact(limbs))) + 1 + isqrt(parameters) for limbs in lengths]

    def _summed(self, log: Sequence[Update]) -> tuple[GroupMean, ...]:
        weights = Counter[int]()
        for update in log:
            weights[update.group] += update.weight
        return tuple(
            GroupMean(group, self._sums[group], self._grid.denominator(weights[group])) for group in sorted(weights)
        )

    # Rules that look at all updates at once

    def _reduced(self, rule: AtOnce, log: Sequence[Update]) -> tuple[tuple[GroupMean, ...], tuple[int, ...]]:
        means: list[GroupMean] = []
        scores: dict[int, int] = {}
        for group in sorted({update.group for update in log}):
            updates = [update for update in log if update.group == group]
            sums = _zeros(self._form(group).layout.parameters)
            closed = _Closed(self._payloads(group, updates), self._grid, len(updates), sums.size, self._spread)
            mean = rule.reduce(closed, sums, self._settings)
            means.append(GroupMean(group, sums, mean.denominator))
            scores.update(zip((each.index for each in updates), mean.scores, strict=bool(mean.scores)))
        return tuple(means), tuple(scores[index] for index in sorted(scores))


class _Closed:
    """The updates of one group, as a rule sees them."""

    def __init__(self, payloads: Payloads, grid: Grid, count: int, parameters: int, spread: Spread) -> None:
        self._payloads = payloads
        self.grid = grid
        self.count = count
        self.spread = spread
        width = max(_NARROWEST, min(_WIDEST, TILE_BYTES // (4 * count) // _NARROWEST * _NARROWEST))
        self.edges = (*range(0, parameters, width), parameters)

    def tile(self, tile: int, positions: Sequence[int], out: NDArray[np.float32]) -> None:
        read, start = self._payloads.read, self.edges[tile]
        _checked([read(each, start, row) for each, row in zip(positions, out, strict=True)], self._payloads.limit)


def _zeros(count: int) -> NDArray[np.int64]:
    """They begin where a cache line does, so that no vector of them lies in two."""
    room = np.zeros(count + _LINE_VALUES - 1, np.int64)
    start = -(room.ctypes.data // room.itemsize) % _LINE_VALUES
    return room[start : start + count]


def _checked(tops: Iterable[int], limit: int) -> None:
    if max(tops) > limit:
        raise Refused("OUT_OF_RANGE", "An update that was voted for holds a value beyond the job's range.")


def _without_payload(update: Update) -> Update:
    return Update(update.index, update.round, update.member, update.weight, update.group, b"", update.fingerprint)
