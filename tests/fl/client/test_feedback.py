"""Error feedback: everything is told in the end, nothing twice, whatever becomes of an update or of the process."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chain.unixfs import cid_of
from fl.client import feedback
from fl.client.errors import BadFile
from fl.client.feedback import FED_BACK, Feedback
from fl.errors import Refused
from fl.tensors.coding import Coding
from fl.tensors.encodings import UpdateForm, check_payload, decode_update, encode_update, update_form
from tests.fl.numbers.builders import PLACE, WIDE, flat_schema, random_tensors

EACH = pytest.mark.parametrize("encoding", sorted(FED_BACK))
SIZE = 5000


def form_of(encoding: str, size: int = SIZE, share_ppm: int = 10_000) -> UpdateForm:
    return update_form(flat_schema(size), Coding(encoding, 8, share_ppm if encoding == "topk" else 0))


class Trainer:
    """Answers rounds, and knows what its payloads mean."""

    def __init__(self, directory: Path, form: UpdateForm, range_bits: int = 8) -> None:
        self.directory = directory
        self.form = form
        self.range_bits = range_bits

    def answer(self, round: int, change: NDArray[Any]) -> tuple[bytes, NDArray[np.float32]]:
        place = replace(PLACE, round=round)
        with Feedback(self.directory).owing(self.form, self.range_bits, round, {"w": change}) as owing:
            payload = encode_update(self.form, place, owing)
            check_payload(self.form, place, payload)
            owing.told(cid_of(payload), payload)
        return cid_of(payload), decode_update(self.form, place, payload)["w"]

    def accepted(self, round: int, cid: bytes) -> None:
        Feedback(self.directory).accepted(round, cid)

    @property
    def owed(self) -> NDArray[np.float32]:
        path = max(self.directory.glob("*.owed"), key=lambda each: int(each.stem))
        return np.fromfile(path, np.float32)


def changes(size: int = SIZE) -> Iterator[NDArray[np.float32]]:
    draw = np.random.default_rng(7)
    while True:
        yield (draw.standard_normal(size) * 2.0 ** draw.integers(-8, 3, size)).astype(np.float32)


def assert_told(told: Any, owed: NDArray[np.float32], given_changes: Any) -> None:
    """Up to the rounding of F32 in what is owed."""
    assert np.allclose(np.asarray(told, np.float64) + owed, np.asarray(given_changes, np.float64), atol=2**-16, rtol=0)


@EACH
def test_what_is_told_and_what_is_owed_is_all_there_was(tmp_path: Path, encoding: str) -> None:
    trainer, source = Trainer(tmp_path / "kept", form_of(encoding)), changes()
    told = total = np.zeros(SIZE)
    for round in range(1, 6):
        change = next(source)
        cid, means = trainer.answer(round, change)
        trainer.accepted(round, cid)
        trainer.accepted(round, cid)
        told, total = told + means, total + change
        assert_told(told, trainer.owed, total)
        assert [path.name for path in trainer.directory.iterdir()] == [f"{round}.owed"]


@EACH
def test_an_update_that_was_not_taken_is_owed_again_with_all_it_meant(tmp_path: Path, encoding: str) -> None:
    trainer, source = Trainer(tmp_path / "kept", form_of(encoding)), changes()
    first, lost, third = next(source), next(source), next(source)
    cid, told = trainer.answer(1, first)
    trainer.accepted(1, cid)
    trainer.answer(2, lost)
    cid, means = trainer.answer(3, third)
    trainer.accepted(3, cid)
    assert_told(told.astype(np.float64) + means, trainer.owed, first.astype(np.float64) + lost + third)


@EACH
def test_a_round_that_is_answered_again_starts_where_it_did_before(tmp_path: Path, encoding: str) -> None:
    """A crash between encoding and submitting: the training is done again, with another result."""
    trainer, source = Trainer(tmp_path / "kept", form_of(encoding)), changes()
    first, never, second = next(source), next(source), next(source)
    cid, told = trainer.answer(1, first)
    trainer.accepted(1, cid)
    unsent, _ = trainer.answer(2, never)
    cid, means = trainer.answer(2, second)
    trainer.accepted(2, unsent)
    assert_told(told, trainer.owed, first)
    trainer.accepted(2, cid)
    assert_told(told.astype(np.float64) + means, trainer.owed, first.astype(np.float64) + second)


def test_a_round_that_took_one_update_leaves_nothing_of_another_to_be_told(tmp_path: Path) -> None:
    trainer, source = Trainer(tmp_path / "kept", form_of("q8")), changes()
    first, duplicate, third = next(source), next(source), next(source)
    cid, told = trainer.answer(1, first)
    trainer.accepted(1, cid)
    trainer.answer(1, duplicate)
    cid, means = trainer.answer(2, third)
    trainer.accepted(2, cid)
    assert_told(told.astype(np.float64) + means, trainer.owed, first.astype(np.float64) + third)


class Crash(BaseException):
    pass


def crashing_at(patch: pytest.MonkeyPatch, step: int) -> Callable[[], int]:
    """The process dies before its `step`-th touch of the disk; returns what counts them."""
    count = 0

    def dying(do: Any) -> Any:
        def touch(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                raise Crash
            return do(*arguments, **options)

        return touch

    # What a `finally` would tidy up stays as it is when a process dies.
    patch.setattr(feedback._Writing, "close", lambda self: None)
    for name in ("replace", "link", "fsync"):
        patch.setattr(feedback.os, name, dying(getattr(os, name)))
    patch.setattr(Path, "unlink", dying(Path.unlink))
    patch.setattr(feedback, "_write", dying(feedback._write))
    return lambda: count


@EACH
def test_a_crash_at_any_step_loses_nothing_and_tells_nothing_twice(tmp_path: Path, encoding: str) -> None:
    form, source = form_of(encoding, 300, 100_000), changes(300)
    first, lost, third = (next(source) for _ in range(3))

    def crashed(step: int) -> tuple[Trainer, bool]:
        """Round 1 was accepted and round 2 lost; the process may have died while round 3 was answered, which then is
        answered anew, or while it learnt that this was accepted, which then is said again."""
        trainer = Trainer(tmp_path / str(step), form)
        cid, told = trainer.answer(1, first)
        trainer.accepted(1, cid)
        trainer.answer(2, lost)
        made: tuple[bytes, NDArray[np.float32]] | None = None
        with pytest.MonkeyPatch.context() as patch:
            touches = crashing_at(patch, step)
            try:
                made = trainer.answer(3, third)
                trainer.accepted(3, made[0])
            except Crash:
                pass
        cid, means = made or trainer.answer(3, third)
        trainer.accepted(3, cid)
        assert_told(told.astype(np.float64) + means, trainer.owed, first.astype(np.float64) + lost + third)
        return trainer, touches() < step

    steps = next(step for step in range(1, 100) if crashed(step)[1])
    assert steps > 10


def test_without_room_on_the_disk_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, source = Trainer(tmp_path / "kept", form_of("q8")), changes()
    cid, _ = trainer.answer(1, next(source))
    trainer.accepted(1, cid)
    owed = trainer.owed

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(feedback.os, "fsync", full)
        with pytest.raises(BadFile, match="takes no more"):
            trainer.answer(2, next(source))
    assert np.array_equal(trainer.owed, owed)
    change = next(source)
    cid, means = trainer.answer(2, change)
    trainer.accepted(2, cid)
    assert_told(means, trainer.owed, owed.astype(np.float64) + change)


@EACH
def test_what_is_owed_may_exceed_what_one_payload_holds(tmp_path: Path, encoding: str) -> None:
    trainer = Trainer(tmp_path / "kept", update_form(flat_schema(20), Coding(encoding, 0, 50_000)), range_bits=0)
    change = np.full(20, 1.0)
    told = np.zeros(20)
    for round in range(1, 4):
        cid, means = trainer.answer(round, change)
        trainer.accepted(round, cid)
        told += means
        assert np.abs(means).max() <= 1
    assert_told(told, trainer.owed, 3 * change)
    before = trainer.owed
    for wrong, code in ((np.full(20, 1.001), "OUT_OF_RANGE"), (np.full(20, np.nan), "NON_FINITE")):
        with pytest.raises(Refused, match=code):
            trainer.answer(4, wrong)
        assert np.array_equal(trainer.owed, before)


def test_a_job_that_is_over_leaves_nothing(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "kept", form_of("q8"))
    Feedback(trainer.directory).forget()
    trainer.answer(1, next(changes()))
    Feedback(trainer.directory).forget()
    assert not trainer.directory.exists()


def test_a_file_of_another_size_is_no_vector_of_this_job(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "kept", form_of("q8"))
    cid, _ = trainer.answer(1, next(changes()))
    trainer.accepted(1, cid)
    os.truncate(trainer.directory / "1.owed", 100)
    with pytest.raises(BadFile, match="damaged"):
        trainer.answer(2, next(changes()))


def test_tensors_are_told_in_their_own_shapes(tmp_path: Path) -> None:
    form = update_form(WIDE, Coding("topk", 8, 100_000))
    delta = random_tensors(WIDE, 1)
    with Feedback(tmp_path / "kept").owing(form, 8, 1, delta) as owing:
        assert {name: part.shape for name, part in owing.items()} == {name: part.shape for name, part in delta.items()}
        assert all(np.array_equal(owing[name], delta[name]) for name in delta)
        assert encode_update(form, PLACE, owing) == encode_update(form, PLACE, delta)


@EACH
def test_feedback_holds_little_of_a_large_model_in_memory(tmp_path: Path, encoding: str) -> None:
    size = 4_000_000
    form = form_of(encoding, size)
    change = np.linspace(-1, 1, size, dtype=np.float32)
    payload = encode_update(form, PLACE, {"w": change})
    path = tmp_path / "payload"
    path.write_bytes(payload)
    tracemalloc.start()
    with Feedback(tmp_path / "kept").owing(form, 8, PLACE.round, {"w": change}) as owing:
        assert len(owing) == 1
        owing.told(cid_of(payload), path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def descended(directory: Path, form: UpdateForm | None, with_feedback: bool, steps: int) -> float:
    """How far a model is from the minimum of the mean of two trainers' losses. These agree on where it is in all
    coordinates but some, in which their gradients are large and cancel."""
    size, loud = 100, 2
    draw = np.random.default_rng(1)
    target = draw.standard_normal(size)
    pull = np.where(np.arange(size) < loud, 4.0, 0.0)
    trainers = [Trainer(directory / str(which), form) for which in range(2)] if form else []
    model = np.zeros(size)
    for round in range(1, steps + 1):
        moves = [-0.02 * (model - target + sign * pull) for sign in (1, -1)]
        if form is not None:
            for which, trainer in enumerate(trainers):
                place = replace(PLACE, round=round)
                if with_feedback:
                    cid, moves[which] = trainer.answer(round, moves[which])
                    trainer.accepted(round, cid)
                else:
                    moves[which] = decode_update(form, place, encode_update(form, place, {"w": moves[which]}))["w"]
        model = model + np.mean(moves, axis=0)
    return float(np.abs(model - target).max())


def test_descent_by_one_value_in_a_hundred_converges_with_feedback_and_not_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback.os, "fsync", lambda _: None)
    form = form_of("topk", 100, 10_000)
    steps = 300
    assert descended(tmp_path / "exact", None, False, steps) < 0.01
    assert descended(tmp_path / "without", form, False, steps) > 2
    assert descended(tmp_path / "with", form, True, steps) < 0.5
