"""Aggregation of a round: updates stream in, the next model streams out, the closing record follows.

However many updates a round takes, the memory is one int64 sum for each parameter: 8 bytes × parameters for a round in
progress, and beside that one chunk of the model while it is written (`CHUNK_BYTES`) and some hundred bytes an update.
Updates and the base model are read where they lie, in mapped files as a rule; nobody holds a model whole.

Sums are exact, so the order of updates, the number of threads and the cut into tiles or chunks leave no trace in the
result: every honest validator computes the same bytes. Nothing in here decides which updates count; the frozen log of
the round does, and payloads were checked (`fl.tensors.encodings`, `fl.blobs`) before a batch with them was voted for.

    sums = Aggregation(rules)
    sums.add(update, ...)                    as they are accepted, in any order
    closing = sums.finish(log_root, base)    once the log is frozen and all of it is added
    for chunk in closing.model(): ...        raises Refused("MODEL_RANGE"): discard what was written
    closing.closed(model_cid, base_cid)      or closing.failed("MODEL_RANGE", base_cid): the outcome with the record
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from chain.cid import raw_cid
from chain.codec import encode
from fl.errors import Refused
from fl.kernels import FUSED, KERNEL_VERSION, apply_mean, sum_f32, sum_q8
from fl.tensors.closing import CLOSING_VERSION, ClosingRecord
from fl.tensors.coding import Coding
from fl.tensors.encodings import Place, UpdateForm, check_frame, update_form
from fl.tensors.f32 import F32
from fl.tensors.floats import INFINITY_BITS, range_bits_as_f32
from fl.tensors.grid import Grid
from fl.tensors.layout import Bytes, Schema, array_at
from fl.tensors.model import check_model_frame, model_form
from fl.tensors.q8 import Q8

RULE = "fedavg"

SPAN_TILES = 64
"""Tiles in one piece of work: about a million values, so that a thread is worth waking for it."""

CHUNK_BYTES = 1024 * 1024
"""Of the model at a time, a multiple of 8. Hashing and writing a chunk takes longer than computing it, so it is not
spread."""

Work: TypeAlias = Callable[[], int]
Spread: TypeAlias = Callable[[Sequence[Work]], Iterable[int]]
"""Runs every piece of work once, in any order and on any threads, and returns their results."""


def in_turn(pieces: Sequence[Work]) -> Iterable[int]:
    return [piece() for piece in pieces]


@dataclass(frozen=True, slots=True)
class AggregationRules:
    """What the job fixes for the sums of one round."""

    job: bytes
    round: int
    schema: Schema
    encoding: str
    grid: Grid


@dataclass(frozen=True, slots=True)
class Update:
    """An entry of the round's log with its payload."""

    index: int
    """In the log."""
    member: bytes
    weight: int
    payload: Bytes


@dataclass(frozen=True, slots=True)
class AggregationOutcome:
    ok: bool
    code: str
    """Why the round failed; empty when it did not."""
    model_cid: bytes
    """Empty when the round failed."""
    record: bytes
    """The closing record's blob; made in either case."""
    record_cid: bytes


class Closing:
    """The end of a round whose every update was added. Its sums must stay as they are until it is done with."""

    def __init__(
        self,
        rules: AggregationRules,
        sums: NDArray[np.int64],
        weights: tuple[int, ...],
        log_root: bytes,
        base_model: Bytes,
    ) -> None:
        self._rules = rules
        self._form = model_form(rules.schema)
        check_model_frame(self._form, base_model)
        self._sums = sums
        self._weights = weights
        self._log_root = log_root
        self._base = memoryview(base_model)
        self._denominator = rules.grid.denominator(sum(weights))

    @property
    def size_bytes(self) -> int:
        """Of the new model."""
        return self._form.size_bytes

    def model(self) -> Iterator[bytearray]:
        """The new model's blob in consecutive chunks. Raises Refused("MODEL_RANGE") at the first that holds a value
        beyond the range of F32: then there is no new model, and what came before is to be discarded."""
        for start in range(0, self.size_bytes, CHUNK_BYTES):
            # The header and frozen tensors pass from model to model; averaged ones are written over.
            chunk = bytearray(self._base[start : start + CHUNK_BYTES])
            for run in self._form.runs:
                first, last = max(run.offset, start), min(run.end, start + len(chunk))
                if first < last:
                    self._apply(chunk, first - start, first, run.start + (first - run.offset) // 4, (last - first) // 4)
            yield chunk

    def _apply(self, chunk: bytearray, place: int, offset: int, first: int, count: int) -> None:
        """Writes `count` values of the flat vector from `first` on, which stand at `offset` of a model."""
        new: NDArray[np.float32] = np.frombuffer(chunk, np.float32, count, place)
        old = array_at(self._base, "F32", count, offset).view(np.float32)
        with np.errstate(over="ignore"):
            top = apply_mean(new, old, self._sums[first : first + count], float(self._denominator))
        if top >= INFINITY_BITS:
            raise Refused("MODEL_RANGE")

    def closed(self, model_cid: bytes, base_cid: bytes) -> AggregationOutcome:
        """With the CID of what `model` gave."""
        return self._outcome("", model_cid, base_cid)

    def failed(self, code: str, base_cid: bytes) -> AggregationOutcome:
        return self._outcome(code, b"", base_cid)

    def _outcome(self, code: str, model_cid: bytes, base_cid: bytes) -> AggregationOutcome:
        record = encode(
            ClosingRecord(
                version=CLOSING_VERSION,
                rule=RULE,
                kernel_version=KERNEL_VERSION,
                job=self._rules.job,
                round=self._rules.round,
                log_root=self._log_root,
                ok=not code,
                code=code,
                base=base_cid,
                model=model_cid,
                optimizer=b"",
                denominator=self._denominator,
                weights=self._weights,
            )
        )
        return AggregationOutcome(not code, code, model_cid, record, raw_cid(record))


class Aggregation:
    """The sums of one FedAvg round. Not itself safe to call from several threads; `spread` is where threads
    come in."""

    def __init__(self, rules: AggregationRules, spread: Spread = in_turn) -> None:
        self._rules = rules
        self._spread = spread
        self._form = update_form(rules.schema, Coding(rules.encoding, rules.grid.range_bits))
        if rules.encoding not in _SUMMING:
            raise Refused("NOT_SUPPORTED", f"FedAvg has no kernel for the encoding {rules.encoding!r}.")
        self._sums = np.zeros(self._form.layout.parameters, np.int64)
        self._weights: dict[int, int] = {}
        self._spoilt = False

    @property
    def count(self) -> int:
        return len(self._weights)

    def add(self, *updates: Update) -> None:
        """Adds updates, in any order, each index once; several in one call are summed together, which is
        faster. Raises `Refused` for a payload that should never have got here; after OUT_OF_RANGE the sums
        are spoilt, and with them this object."""
        self._check_usable()
        offsets = [self._checked_offset(update) for update in updates]
        if len({update.index for update in updates} - self._weights.keys()) != len(updates):
            raise ValueError("an update's index was given twice")
        if len(self._weights) + len(updates) > self._rules.grid.max_updates:
            raise ValueError("more updates than the job's rules allow for")
        start = 0
        while start < len(updates):
            stop = start + FUSED if start + FUSED <= len(updates) else start + 1
            self._sum(updates[start:stop], offsets[start:stop])
            start = stop
        self._weights.update((update.index, update.weight) for update in updates)

    def finish(self, log_root: bytes, base_model: Bytes) -> Closing:
        """What closes the round, once every entry of its log was added. The sums stay as they are."""
        self._check_usable()
        if not self._weights or self._weights.keys() != set(range(len(self._weights))):
            raise ValueError("every entry of the round's log must be added, from index 0 on, and at least one")
        weights = tuple(self._weights[index] for index in range(len(self._weights)))
        return Closing(self._rules, self._sums, weights, log_root, base_model)

    def _check_usable(self) -> None:
        if self._spoilt:
            raise ValueError("an earlier update spoilt these sums; start the aggregation again")

    def _checked_offset(self, update: Update) -> int:
        if not 1 <= update.weight <= self._rules.grid.weight_cap:
            raise ValueError(f"the weight {update.weight} is outside 1 to {self._rules.grid.weight_cap}")
        return check_frame(self._form, Place(self._rules.job, self._rules.round, update.member), update.payload)

    def _sum(self, updates: Sequence[Update], offsets: Sequence[int]) -> None:
        rules = self._rules
        payloads = [(update.payload, offset) for update, offset in zip(updates, offsets, strict=True)]
        factors = np.array([rules.grid.factor(update.weight) for update in updates], np.float64)
        piece, limit = _SUMMING[rules.encoding](self._form, self._sums, payloads, factors, rules.grid)
        last = self._form.layout.tiles.size - 1
        pieces = [_over(piece, first, min(first + SPAN_TILES, last)) for first in range(0, last, SPAN_TILES)]
        self._spoilt = True
        if max(self._spread(pieces)) > limit:
            raise Refused("OUT_OF_RANGE", "An update that was voted for holds a value beyond the job's range.")
        self._spoilt = False


_Piece: TypeAlias = Callable[[int, int], int]
_Payloads: TypeAlias = Sequence[tuple[Bytes, int]]


def _over(piece: _Piece, first: int, last: int) -> Work:
    return lambda: piece(first, last)


def _summing_f32(
    form: UpdateForm, sums: NDArray[np.int64], payloads: _Payloads, factors: NDArray[np.float64], grid: Grid
) -> tuple[_Piece, int]:
    encoding, layout = cast(F32, form.encoding), form.layout
    updates = tuple(encoding.values(payload, offset) for payload, offset in payloads)

    def piece(first: int, last: int) -> int:
        return sum_f32(sums, updates, factors, layout.edges, first, last)

    return piece, range_bits_as_f32(grid.range_bits)


def _summing_q8(
    form: UpdateForm, sums: NDArray[np.int64], payloads: _Payloads, factors: NDArray[np.float64], grid: Grid
) -> tuple[_Piece, int]:
    encoding, layout = cast(Q8, form.encoding), form.layout
    updates = tuple(encoding.values(payload, offset) for payload, offset in payloads)
    scales = tuple(encoding.scales(payload, offset) for payload, offset in payloads)

    def piece(first: int, last: int) -> int:
        return sum_q8(sums, updates, scales, factors, layout.tiles, layout.blocks, first, last)

    return piece, range_bits_as_f32(grid.range_bits - 7)


_SUMMING: Mapping[str, Callable[..., tuple[_Piece, int]]] = {"f32": _summing_f32, "q8": _summing_q8}
"""For each encoding: the work over a range of tiles, and the largest bits it may report."""
