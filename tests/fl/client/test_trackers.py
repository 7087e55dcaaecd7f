from __future__ import annotations

import asyncio
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl.client.apps import Digits
from fl.client.digits import deal, load_digits
from fl.client.errors import BadInput, QuorateError
from fl.client.eventfile import Event, framed, read_events
from fl.client.jobdraft import draft_job
from fl.client.network import connect_async
from fl.client.report import RoundReport
from fl.client.sync import connect
from fl.client.trackers import Calls, TensorBoard, newest_told, tracker_of
from fl.client.trainer import train_for
from tests.fl.builders import make_rules
from tests.fl.client.chainlet import Running
from tests.fl.client.test_evaluations import register, train
from tests.fl.evaluating import asked


def report(round: int, **changes: Any) -> RoundReport:
    given: dict[str, Any] = {
        "round": round,
        "state": "closed",
        "code": "",
        "cohort": 4,
        "updates": 3,
        "weight": 30,
        "examples": 30,
        "metrics": {"loss": 1 / round},
        "evaluation": {"accuracy": 0.5},
        "model": "bafy",
        "seconds": 2.5,
        "height": 7,
    }
    return RoundReport(**given | changes)


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def scalars(directory: Path) -> list[tuple[str, int, float]]:
    """As our own reader finds them, in the order of the files."""
    found: list[tuple[str, int, float]] = []
    for path in files(directory):
        with open(path, "rb") as file:
            found += [(tag, each.step, value) for each in read_events(file) for tag, value in each.scalars.items()]
    return found


# The format


def bitwise_crc32c(data: bytes) -> int:
    """Bit by bit from the polynomial's definition, beside the table of the product."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 * (value & 1))
    return value ^ 0xFFFFFFFF


def test_the_check_of_this_test_is_the_published_one() -> None:
    assert bitwise_crc32c(b"123456789") == 0xE3069283
    assert bitwise_crc32c(b"123456789") != zlib.crc32(b"123456789")


def test_every_frame_has_its_length_and_both_checksums(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    for number in (1, 2, 300):
        board.round_done(report(number))
    (path,) = files(tmp_path)
    data, frames = path.read_bytes(), 0
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        content, rest = data[12 : 12 + length], data[12 + length :]
        for body, mark in ((data[:8], data[8:12]), (content, rest[:4])):
            crc = bitwise_crc32c(body)
            masked = ((crc >> 15) | (crc << 17)) + 0xA282EAD8 & 0xFFFFFFFF
            assert struct.unpack("<I", mark) == (masked,)
        data, frames = rest[4:], frames + 1
    assert frames == 4, "the version and three rounds"


def test_tensorboard_itself_reads_the_same(tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    board = TensorBoard(tmp_path)
    board.round_done(report(1, metrics={"loss": float("nan")}, evaluation={}))
    board.round_done(report(2, state="failed", held_out={"accuracy": 0.75}))
    again = TensorBoard(tmp_path)
    again.round_done(report(3, seconds=1e300))
    read = reader.EventAccumulator(str(tmp_path))
    read.Reload()
    assert read.file_version == 2.0
    assert {(tag, each.step) for tag in read.Tags()["scalars"] for each in read.Scalars(tag)} == {
        (tag, step) for tag, step, _ in scalars(tmp_path)
    }
    assert np.isnan(read.Scalars("metrics/loss")[0].value)
    assert [(each.step, each.value) for each in read.Scalars("round/closed")] == [(1, 1.0), (2, 0.0), (3, 1.0)]
    assert [(each.step, each.value) for each in read.Scalars("held_out/accuracy")] == [(2, 0.75)]
    assert read.Scalars("round/seconds")[-1].value == float("inf"), "more than float32 holds"
    assert read.Scalars("round/seconds")[0].wall_time > 1e9


@pytest.mark.parametrize("event", [Event(1.5), Event(2.0, 2**40, "", {"ä/b": -0.5, "c": 1.0}), Event(0.0, 0, "v")])
def test_an_event_comes_back_as_it_was_written(event: Event, tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(framed(event) * 2)
    with open(path, "rb") as file:
        assert list(read_events(file)) == [event, event]


def test_reading_ends_at_whatever_is_torn_damaged_or_no_event(tmp_path: Path) -> None:
    first, second = framed(Event(1.0, 1, "", {"a": 1.0})), framed(Event(2.0, 2, "", {"b": 2.0}))
    path = tmp_path / "events"
    wrong = [second[:cut] for cut in range(len(second))]
    wrong += [second[:place] + bytes([second[place] ^ 1]) + second[place + 1 :] for place in range(len(second))]
    wrong += [b"\xff" * 64, framed(Event(2.0))[:8] + b"huge"]
    for each in wrong:
        path.write_bytes(first + each)
        with open(path, "rb") as file:
            assert [event.step for event in read_events(file)] == [1]


# Runs that follow each other


def test_a_run_that_goes_on_writes_no_round_twice(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path)
    for number in (1, 2):
        first.round_done(report(number))
    second = TensorBoard(tmp_path)
    assert second.newest_round == 2
    for number in (1, 2, 3, 3):
        second.round_done(report(number))
    assert second.newest_round == 3 and newest_told([second, TensorBoard(tmp_path)]) == 3
    assert newest_told([second, Calls()]) == 0 == newest_told([])
    told = [(tag, step) for tag, step, _ in scalars(tmp_path)]
    assert len(told) == len(set(told)) and {step for _, step in told} == {1, 2, 3}
    assert len(files(tmp_path)) == 2, "each run has a file of its own, and TensorBoard reads them in this order"


def test_what_a_killed_run_left_half_written_is_written_again(tmp_path: Path) -> None:
    killed = TensorBoard(tmp_path)
    killed.round_done(report(1))
    killed.round_done(report(2))
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    board = TensorBoard(tmp_path)
    assert board.newest_round == 1
    board.round_done(report(2))
    assert [step for tag, step, _ in scalars(tmp_path) if tag == "round/closed"] == [1, 2]


def test_files_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "events.out.tfevents.9999999999.host.1.0"
    other.write_bytes(b"no events")
    board = TensorBoard(tmp_path)
    board.round_done(report(1))
    assert board.newest_round == 1 and other.read_bytes() == b"no events"


def test_a_directory_that_is_none_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QuorateError) as refused:
        TensorBoard(tmp_path / "file" / "runs")
    assert refused.value.code == "UNWRITABLE"


@pytest.mark.parametrize("text", ["", "tensorboard", "tensorboard:", "wandb:x"])
def test_a_tracker_that_is_unknown_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        tracker_of(text)


def test_the_command_lines_word_makes_one(tmp_path: Path) -> None:
    assert isinstance(tracker_of(f"tensorboard:{tmp_path / 'runs'}"), TensorBoard)


# On a chain


def create(chain: Running) -> None:
    model = Digits().model(hidden=0)
    rules: dict[str, Any] = {"rounds": 3, "target": 2, "privacy": "visible-to-validators", "metrics": ["loss"]}
    draft = draft_job("digits", model, **rules, config={"epochs": 1})
    chain.create(draft.rules, draft.model)


def test_trackers_hear_of_each_update_and_each_round_once_and_in_order(chain: Running, tmp_path: Path) -> None:
    create(chain)
    shares = deal(load_digits()[0], 2)
    settings = [chain.settings(f"trainer-{each:03}", home=f"home{each}") for each in range(2)]
    heard: dict[int, list[Any]] = {0: [], 1: []}
    board = TensorBoard(tmp_path / "runs")

    def fails(told: object) -> None:
        raise RuntimeError("a tracker of somebody's")

    def take_part(each: int) -> None:
        with connect(**settings[each]) as network:
            job = network.job("digits")
            job.join()
            calls = Calls(
                lambda report: heard[each].append(report.round),
                lambda receipt, metrics: heard[each].append((receipt.round, sorted(metrics))),
            )
            train_for(
                job, Digits(), shares[each], each, trackers=[Calls(fails), calls, *([board] if each == 0 else [])]
            )

    threads = [threading.Thread(target=take_part, args=(each,)) for each in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for told in heard.values():
        assert [each for each in told if isinstance(each, int)] == [1, 2, 3]
        assert [each for each in told if not isinstance(each, int)] == [(1, ["loss"]), (2, ["loss"]), (3, ["loss"])]
        assert told.index(1) > told.index((1, ["loss"])), "a round is told of after the update to it"
    losses = [value for tag, _, value in scalars(tmp_path / "runs") if tag == "metrics/loss"]
    with connect(**chain.settings(None)) as network:
        job = network.job("digits")
        assert losses == pytest.approx([each.metrics["loss"] for each in job.reports()])
        later: list[int] = []
        job.follow(Calls(lambda report: later.append(report.round)), board)
        assert later == [1, 2, 3], "who knows of none is told of all"
        assert [each.round for each in job.rounds(after=1)] == [2, 3] and job.concluded(3) == []
        assert job.averaged == ["output.weight", "output.bias"]
    known = [(tag, step) for tag, step, _ in scalars(tmp_path / "runs")]
    assert len(known) == len(set(known))


def test_a_round_is_told_of_when_its_model_has_been_measured(chain: Running) -> None:
    evaluation = asked(minimum=1, metrics=("accuracy",))
    chain.create(make_rules(target=1, minimum=1, maximum=1, rounds=2, evaluation=evaluation))
    register(chain, "evaluator")
    told: list[RoundReport] = []
    with connect(**chain.settings()) as trainer, connect(**chain.settings("evaluator", home="other")) as evaluator:
        trainer.job("digits").join()
        job = evaluator.job("digits")
        job.join(role="evaluator")
        following = threading.Thread(target=lambda: trainer.job("digits").follow(Calls(told.append)))
        following.start()
        train(trainer)
        evaluations = job.evaluations()
        first = next(evaluations)
        assert [each.round for each in job.reports()] == [1] and job.concluded() == []
        first.submit(metrics={"accuracy": 0.5}, examples=1)
        assert [each.evaluation for each in job.concluded()] == [{"accuracy": 0.5}]
        train(trainer)
        next(evaluations).submit(metrics={"accuracy": 0.75}, examples=1)
        following.join(20)
    assert [(each.round, each.evaluation["accuracy"]) for each in told] == [(1, 0.5), (2, 0.75)]


def test_the_awaiting_face_follows_in_the_same_way(chain: Running) -> None:
    chain.create(make_rules(target=1, minimum=1, maximum=1, rounds=3))
    told: list[RoundReport] = []

    async def follow() -> None:
        async with await connect_async(**chain.settings("creator", home="creator")) as network:
            job = await network.job("digits")
            following = asyncio.create_task(job.follow(Calls(told.append)))
            await asyncio.to_thread(train_two_rounds)
            await job.stop()
            await asyncio.wait_for(following, 20)

    def train_two_rounds() -> None:
        with connect(**chain.settings()) as network:
            network.job("digits").join()
            train(network, 2)

    asyncio.run(follow())
    assert [(each.round, each.state, each.code) for each in told[:2]] == [(1, "closed", ""), (2, "closed", "")]
    assert [(each.state, each.code) for each in told[2:]] in ([], [("failed", "STOPPED")]), "the last was under way"
