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
    sums.add_rows(bundle)                          many small ones, whose payloads are rows of one array
    closing = sums.finish(log_root, base, moments) once the log is frozen and all of it is added
    for chunk in closing.moments() or (): ...      the rule's memory, if it has any
    for chunk in closing.model(new_moments): ...   both raise Refused("MODEL_RANGE"): discard what was written
    closing.closed(model_cid, base_cid, ...)       or closing.failed("MODEL_RANGE", base_cid): the outcome, with record
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, repeat
from math import isqrt
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.closing import AggregationOutcome, AggregationRules, Closing, Found, GroupMean
from fl.errors import Refused
from fl.jobrules import grid_of
from fl.kernels.distances import LIMBS, exact
from fl.kernels.payloads import PAYLOADS, InRows, Payloads, Placed
from fl.rules import rule_of
from fl.rules.rule import AtOnce, Spread, Streaming, Work, settings_of
from fl.tensors.closing import row_fingerprints
from fl.tensors.encodings import MEMBER_BYTES, Place, UpdateForm, check_frame, check_frames
from fl.tensors.grid import Grid
from fl.tensors.layout import Bytes, Rows
from fl.updates import form_of, groups_of

__all__ = [
    "Aggregation",
    "AggregationOutcome",
    "AggregationRules",
    "Bundle",
    "Closing",
    "Spread",
    "Update",
    "Work",
    "in_turn",
    "new_sums",
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


@dataclass(frozen=True, slots=True)
class Bundle:
    """Entries of the round's log that are of one group and whose headers name one round, so that their payloads are of
    one length; of one leaf at most. Everything in the order of `indices`."""

    indices: Sequence[int]
    round: int
    members: bytes
    """Of each `MEMBER_BYTES`."""
    weights: Sequence[int]
    group: int
    payloads: Rows


class _Counted(NamedTuple):
    """What the end of a round has to know of an update that is summed."""

    weight: int
    group: int
    fingerprint: bytes


class Aggregation:
    """The sums of one round. Not itself safe to call from several threads; `spread` is where threads come in."""

    def __init__(
        self,
        rules: AggregationRules,
        spread: Spread = in_turn,
        zeros: Callable[[int], NDArray[np.int64]] | None = None,
    ) -> None:
        """`zeros` gives the sums; in place of new ones, those that another round is done with."""
        self._zeros = zeros or new_sums
        self._rules = rules
        self._spread = spread
        self._grid = grid_of(rules.rules)
        self._rule = rule_of(rules.rules.rule)
        self._settings = settings_of(self._rule, rules.rules.settings)
        if rules.rules.encoding not in PAYLOADS:
            raise Refused("NOT_SUPPORTED", f"There are no kernels for the encoding {rules.rules.encoding!r}.")
        self._sums: dict[int, NDArray[np.int64]] = {}
        """By group."""
        self._counted: dict[int, _Counted] = {}
        """By index."""
        self._held: dict[int, Update] = {}
        """The same, for a rule that looks at all at once."""
        self._spoilt = False

    @property
    def count(self) -> int:
        return len(self._counted)

    def add(self, *updates: Update) -> None:
        """Adds updates, in any order, each index once; several in one call are summed together, which is
        faster. Raises `Refused` for a payload that should never have got here; after OUT_OF_RANGE the sums
        are spoilt, and with them this object."""
        self._check_usable()
        self._check_new([update.index for update in updates])
        by_group = groupby(sorted(updates, key=attrgetter("group")), attrgetter("group"))
        for group, weights, placed in [self._checked_group(group, list(some)) for group, some in by_group]:
            self._add_to(group, weights, placed)
        if not isinstance(self._rule, Streaming):
            self._held.update((update.index, update) for update in updates)
        self._counted.update(
            (update.index, _Counted(update.weight, update.group, update.fingerprint)) for update in updates
        )

    def add_rows(self, bundle: Bundle) -> None:
        """Adds what is in the bundle as `add` would, and takes the fingerprints itself."""
        self._check_usable()
        self._check_new(bundle.indices)
        self._check(bundle.group, bundle.weights)
        form, rows = self._form(bundle.group), bundle.payloads
        offset = check_frames(form, self._rules.job, bundle.round, bundle.members, rows)
        fingerprints = row_fingerprints(rows, offset)
        self._add_to(bundle.group, bundle.weights, InRows(rows, offset))
        if not isinstance(self._rule, Streaming):
            self._held.update(zip(bundle.indices, _each(bundle, fingerprints), strict=True))
        counted = map(_Counted, bundle.weights, repeat(bundle.group), fingerprints)
        self._counted.update(zip(bundle.indices, counted, strict=True))

    def finish(self, log_root: bytes, base_model: Bytes, moments: Bytes | None = None) -> Closing:
        """What closes the round, once every entry of its log was added: with the moments that the round before left,
        if there are any. The sums stay as they are."""
        self._check_usable()
        if not self._counted or self._counted.keys() != set(range(len(self._counted))):
            raise ValueError("every entry of the round's log must be added, from index 0 on, and at least one")
        log = [self._counted[index] for index in range(len(self._counted))]
        if isinstance(self._rule, AtOnce):
            means, scores = self._reduced(self._rule, [self._held[index] for index in range(len(log))])
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

    def _check_new(self, indices: Collection[int]) -> None:
        new = set(indices)
        if len(new) != len(indices) or not self._counted.keys().isdisjoint(new):
            raise ValueError("an update's index was given twice")
        if len(self._counted) + len(indices) > self._grid.max_updates:
            raise ValueError("more updates than the job's rules allow for")

    def _check(self, group: int, weights: Collection[int]) -> None:
        if not 0 <= group < groups_of(self._rules.rules):
            raise ValueError(f"the job has no group {group}")
        least, most = min(weights), max(weights)
        if least < 1 or most > self._grid.weight_cap:
            raise ValueError(f"weights of {least} to {most} are outside 1 to {self._grid.weight_cap}")

    def _checked_group(self, group: int, updates: Sequence[Update]) -> tuple[int, list[int], Placed]:
        weights = [update.weight for update in updates]
        self._check(group, weights)
        return group, weights, self._placed(updates)

    def _placed(self, updates: Iterable[Update]) -> Placed:
        return [(update.payload, self._offset(update)) for update in updates]

    def _offset(self, update: Update) -> int:
        place = Place(self._rules.job, update.round, update.member)
        return check_frame(self._form(update.group), place, update.payload)

    def _form(self, group: int) -> UpdateForm:
        return form_of(self._rules.rules, group)

    def _payloads(self, group: int, placed: Placed | InRows) -> Payloads:
        return PAYLOADS[self._rules.rules.encoding](self._form(group), placed)

    # Rules that sum updates as they come

    def _add_to(self, group: int, weights: Sequence[int], placed: Placed | InRows) -> None:
        rule = self._rule
        if not isinstance(rule, Streaming):
            return
        if group not in self._sums:
            self._sums[group] = self._zeros(self._form(group).layout.parameters)
        payloads, sums = self._payloads(group, placed), self._sums[group]
        last = self._form(group).layout.tiles.size - 1
        norms = self._norms(payloads, len(weights), sums.size, last) if rule.clips else [0] * len(weights)
        pairs = list(zip(weights, norms, strict=True))
        factor_of = {pair: rule.factor(self._settings, self._grid, *pair) for pair in set(pairs)}
        factors = np.array([factor_of[pair] for pair in pairs], np.float64)

        def piece(first: int) -> int:
            return payloads.sum(sums, factors, first, min(first + SPAN_TILES, last), rule.clips)

        self._spoilt = True
        _checked(self._spread([partial(piece, first) for first in range(0, last, SPAN_TILES)]), payloads.limit)
        self._spoilt = False

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

    def _summed(self, log: Sequence[_Counted]) -> tuple[GroupMean, ...]:
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
            sums = self._zeros(self._form(group).layout.parameters)
            payloads = self._payloads(group, self._placed(updates))
            closed = _Closed(payloads, self._grid, len(updates), sums.size, self._spread)
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


def new_sums(count: int) -> NDArray[np.int64]:
    """They begin where a cache line does, so that no vector of them lies in two."""
    room = np.zeros(count + _LINE_VALUES - 1, np.int64)
    start = -(room.ctypes.data // room.itemsize) % _LINE_VALUES
    return room[start : start + count]


def _checked(tops: Iterable[int], limit: int) -> None:
    if max(tops) > limit:
        raise Refused("OUT_OF_RANGE", "An update that was voted for holds a value beyond the job's range.")


def _each(bundle: Bundle, fingerprints: Iterable[bytes]) -> Iterator[Update]:
    ends = range(MEMBER_BYTES, len(bundle.members) + 1, MEMBER_BYTES)
    members = (bundle.members[end - MEMBER_BYTES : end] for end in ends)
    columns = zip(bundle.indices, members, bundle.weights, bundle.payloads, fingerprints, strict=True)
    for index, member, weight, payload, fingerprint in columns:
        yield Update(index, bundle.round, member, weight, bundle.group, payload.data, fingerprint)
