"""The end of a round: from its sums to the next model, and the record of how that came about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chain.codec import encode
from chain.unixfs import cid_of
from fl.errors import Refused
from fl.kernels import KERNEL_VERSION, apply_mean
from fl.kernels.denormals import check_denormals
from fl.records import JobRules
from fl.rules import rule_of
from fl.rules.rule import Optimising, settings_of
from fl.tensors.closing import CLOSING_VERSION, ClosingRecord, copies_of, score_bytes
from fl.tensors.floats import INFINITY_BITS
from fl.tensors.layout import Bytes, Schema, array_at
from fl.tensors.model import ModelForm, Run, check_model_frame, model_form
from fl.tensors.moments import check_moments_frame, moment_form
from fl.updates import schema_of

CHUNK_BYTES = 1024 * 1024
"""Of a blob at a time, a multiple of 8. Hashing and writing a chunk takes longer than computing it, so it is not
spread."""

Write = Callable[[NDArray[np.float32], NDArray[np.float32], int], int]
"""Fills the first array, from the second one, which holds what is written over, for the places of the flat vector from
a number on. Returns the largest magnitude written, as F32 bits."""


@dataclass(frozen=True, slots=True)
class AggregationRules:
    """What is fixed for the sums of one round. `step` is 1 more than the rounds of the job that were closed."""

    job: bytes
    round: int
    rules: JobRules
    step: int


@dataclass(frozen=True, slots=True)
class AggregationOutcome:
    ok: bool
    code: str
    """Why the round failed; empty when it did not."""
    model_cid: bytes
    """Empty when the round failed."""
    optimizer_cid: bytes
    """Empty when the round failed, or the rule keeps no moments."""
    record: bytes
    """The closing record's blob; made in either case."""
    record_cid: bytes


@dataclass(frozen=True, slots=True)
class GroupMean:
    """Of a group of tensors that some update changes."""

    group: int
    sums: NDArray[np.int64]
    denominator: int


@dataclass(frozen=True, slots=True)
class Found:
    """What the round's log and its updates came to, in the order of the log."""

    means: tuple[GroupMean, ...]
    weights: tuple[int, ...]
    scores: tuple[int, ...]
    fingerprints: tuple[tuple[int, bytes], ...]
    """With the group of each."""


class Closing:
    """The end of a round whose every update was added. Its sums must stay as they are until it is done with."""

    def __init__(
        self, rules: AggregationRules, found: Found, log_root: bytes, base_model: Bytes, moments: Bytes | None
    ) -> None:
        self._rules = rules
        self.found = found
        self._log_root = log_root
        self._rule = rule_of(rules.rules.rule)
        self._settings = settings_of(self._rule, rules.rules.settings)
        self._form = model_form(rules.rules.schema)
        self._base = memoryview(base_model)
        self._moments = None if moments is None else memoryview(moments)
        check_model_frame(self._form, base_model)
        if isinstance(self._rule, Optimising) and moments is not None:
            check_moments_frame(self._moment_form(0, self._rule.moments[0]), moments)
        elif moments is not None:
            raise ValueError(f"the rule {self._rule.name} keeps no moments")

    @property
    def size_bytes(self) -> int:
        """Of the new model."""
        return self._form.size_bytes

    def moments(self) -> Iterator[memoryview] | None:
        """The new moments' blob in consecutive chunks, if the rule keeps any. Raises Refused("MODEL_RANGE") as `model`
        does."""
        rule = self._rule
        if not isinstance(rule, Optimising):
            return None
        form = self._moment_form(0, rule.moments[0])
        stretches = [
            (self._moment_form(mean.group, moment).runs, self._advancing(rule, moment, mean))
            for mean in self.found.means
            for moment in rule.moments
        ]
        return _rewritten(form.size_bytes, self._old_moments(form), stretches)

    def model(self, new_moments: Bytes | None = None) -> Iterator[memoryview]:
        """The new model's blob in consecutive chunks, from the blob that `moments` gave. Raises Refused("MODEL_RANGE")
        at the first chunk that holds a value beyond the range of F32: then there is no new model, and what came before
        is to be discarded."""
        rule = self._rule
        if isinstance(rule, Optimising):
            if new_moments is None:
                raise ValueError(f"the rule {rule.name} makes the model from its new moments")
            check_moments_frame(self._moment_form(0, rule.moments[0]), new_moments)
            writes = [self._moving(rule, mean, new_moments) for mean in self.found.means]
        else:
            writes = [_applying(mean) for mean in self.found.means]
        stretches = [
            (model_form(self._schema(mean.group)).runs, write)
            for mean, write in zip(self.found.means, writes, strict=True)
        ]
        return _rewritten(self.size_bytes, lambda start, stop: self._base[start:stop], stretches)

    def closed(self, model_cid: bytes, base_cid: bytes, optimizer_cid: bytes = b"") -> AggregationOutcome:
        """With the CIDs of what `model` and `moments` gave."""
        return self._outcome("", model_cid, base_cid, optimizer_cid)

    def failed(self, code: str, base_cid: bytes) -> AggregationOutcome:
        return self._outcome(code, b"", base_cid, b"")

    def _schema(self, group: int) -> Schema:
        return schema_of(self._rules.rules, group)

    def _moment_form(self, group: int, moment: str) -> ModelForm:
        return moment_form(self._rules.rules.schema, self._schema(group), self._rule.moments, moment)

    def _old_moments(self, form: ModelForm) -> Callable[[int, int], Bytes]:
        moments = self._moments
        if moments is not None:
            return lambda start, stop: moments[start:stop]
        return lambda start, stop: form.header[start:stop].ljust(stop - start, b"\0")

    def _advancing(self, rule: Optimising, moment: str, mean: GroupMean) -> Write:
        denominator = float(mean.denominator)

        def write(new: NDArray[np.float32], old: NDArray[np.float32], first: int) -> int:
            return rule.advance(moment, self._settings, new, old, mean.sums[first : first + new.size], denominator)

        return write

    def _moving(self, rule: Optimising, mean: GroupMean, new_moments: Bytes) -> Write:
        runs = [self._moment_form(mean.group, moment).runs for moment in rule.moments]

        def write(new: NDArray[np.float32], old: NDArray[np.float32], first: int) -> int:
            moments = [_values_at(new_moments, each, first, new.size) for each in runs]
            return rule.move(self._settings, self._rules.step, new, old, moments)

        return write

    def _outcome(self, code: str, model_cid: bytes, base_cid: bytes, optimizer_cid: bytes) -> AggregationOutcome:
        denominators = [0] * max(1, len(self._rules.rules.groups))
        for mean in self.found.means:
            denominators[mean.group] = mean.denominator
        record = encode(
            ClosingRecord(
                version=CLOSING_VERSION,
                rule=self._rule.name,
                kernel_version=KERNEL_VERSION,
                job=self._rules.job,
                round=self._rules.round,
                log_root=self._log_root,
                ok=not code,
                code=code,
                base=base_cid,
                model=model_cid,
                optimizer=optimizer_cid,
                denominators=tuple(denominators),
                weights=self.found.weights,
                scores=tuple(map(score_bytes, self.found.scores)),
                copies=copies_of(self.found.fingerprints),
            )
        )
        return AggregationOutcome(not code, code, model_cid, optimizer_cid, record, cid_of(record))


def _applying(mean: GroupMean) -> Write:
    denominator = float(mean.denominator)

    def write(new: NDArray[np.float32], old: NDArray[np.float32], first: int) -> int:
        return apply_mean(new, old, mean.sums[first : first + new.size], denominator)

    return write


def _values_at(blob: Bytes, runs: Sequence[Run], first: int, count: int) -> NDArray[np.float32]:
    """Of the flat vector. A stretch of the model lies within one run of the moments: what parts two tensors there
    parts them in the model too."""
    run = next(each for each in runs if each.start <= first < each.stop)
    return array_at(blob, "F32", count, run.offset + 4 * (first - run.start)).view(np.float32)


def _rewritten(
    size_bytes: int, old_bytes: Callable[[int, int], Bytes], stretches: Iterable[tuple[Sequence[Run], Write]]
) -> Iterator[memoryview]:
    """A blob in chunks: what it was, with its runs written anew. Runs do not overlap."""
    pieces = sorted(((run, write) for runs, write in stretches for run in runs), key=lambda piece: piece[0].offset)
    for start in range(0, size_bytes, CHUNK_BYTES):
        # Each time, for the thread may be another one.
        check_denormals()
        part: NDArray[np.uint8] = np.frombuffer(old_bytes(start, min(start + CHUNK_BYTES, size_bytes)), np.uint8)
        chunk = np.empty_like(part)
        done = 0
        for run, write in pieces:
            begin, end = max(run.offset - start, 0), min(run.end - start, chunk.size)
            if begin < end:
                chunk[done:begin] = part[done:begin]
                _write(chunk[begin:end], part[begin:end], write, run.start + (start + begin - run.offset) // 4)
                done = end
        chunk[done:] = part[done:]
        yield chunk.data


def _write(new: NDArray[np.uint8], old: NDArray[np.uint8], write: Write, first: int) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        top = write(new.view(np.float32), array_at(old.data, "F32", old.size // 4, 0).view(np.float32), first)
    if top >= INFINITY_BITS:
        raise Refused("MODEL_RANGE")
