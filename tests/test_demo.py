"""The demonstration with real processes, and the judgements by which it would fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from chain.cid import cid_text, raw_cid
from cli import demo as command
from cli.demonstration import MARK, Audience, Check, Outcome, Script, judge_acknowledged, judge_roots
from cli.localnets import LocalNetwork, Plan, make_room
from fl.client.digits import deal, load_digits, save
from fl.client.errors import BadInput, QuorateError
from fl.client.jobdraft import draft_job
from fl.client.perceptron import initial_model
from fl.client.sync import connect
from fl.records import JobStatus

HOUSE = Path(__file__).resolve().parent.parent
HANG_S = 240


def spawn(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=file, env=environment)


@pytest.mark.slow
def test_the_demonstration_holds_everything_it_promises(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    arguments = ["-m", "cli.main", "demo", "--directory", str(directory), "--json"]
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HOUSE)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    assert data["holds"] and all(each["holds"] for each in data["checks"])
    assert len(data["checks"]) == 6
    assert [each["on_chain"] for each in data["rounds"]] == pytest.approx([each["accuracy"] for each in data["rounds"]])
    assert [each["round"] for each in data["rounds"]] == list(range(1, 11))
    assert data["accuracy"] >= 0.9 and data["central_accuracy"] - data["accuracy"] <= 0.02
    blob = (directory / "model.safetensors").read_bytes()
    assert cid_text(raw_cid(blob)) == data["model"]
    network = LocalNetwork.open(directory)
    assert not any(network.running(name) for name in network.members)


@pytest.mark.slow
def test_a_trainer_that_is_killed_and_started_again_answers_every_round_once(tmp_path: Path) -> None:
    directory, count, rounds = tmp_path / "net", 3, 6
    local = LocalNetwork.create(directory, Plan(4, count, name="killed"))
    processes: list[subprocess.Popen[bytes]] = []
    shares = deal(load_digits()[0], count)

    def start(index: int) -> subprocess.Popen[bytes]:
        home = tmp_path / str(index)
        save(shares[index], home / "share.npz")
        given = ["--network", str(local.network_file), "--key", str(local.key_file(f"trainer-{index}"))]
        given += ["--job", "digits", "--data", str(home / "share.npz"), "--home", str(home)]
        process = spawn("-m", "fl.client.trainer", *given, log=home / "log.txt")
        processes.append(process)
        return process

    try:
        for name in local.members:
            local.start(name)
        local.wait_ready(local.members, HANG_S)
        with connect(local.network_file, local.key_file("creator"), home=tmp_path / "creator") as network:
            draft = initial_model(64, 16, 10, 1)
            job = network.create_job(
                "digits",
                draft,
                rounds=rounds,
                target=count,
                privacy="visible-to-validators",
                metrics=["loss"],
                deadline_s=120,
            )
            trainers = [start(index) for index in range(count)]
            ends = time.monotonic() + HANG_S
            # As soon as one of these is reached, which may be over before it is seen.
            to_come = [2, 3, 5]
            while (status := job.status()).status != JobStatus.FINISHED and time.monotonic() < ends:
                if to_come and status.round >= to_come[0]:
                    to_come.pop(0)
                    trainers[0].send_signal(signal.SIGKILL)
                    trainers[0].wait()
                    trainers[0] = start(0)
                time.sleep(0.05)
            assert job.status().status == JobStatus.FINISHED
            assert not to_come
            for trainer in trainers:
                assert trainer.wait(HANG_S) == 0
            for number in range(1, rounds + 1):
                found = job.round(number)
                assert found is not None and found.updates.size == count
        with connect(local.network_file, local.key_file("trainer-0"), home=tmp_path / "0") as again:
            answered = [each for each in again.receipts() if each.round > 0 and each.nonce > 0]
            assert sorted(each.round for each in answered if each.accepted) == list(range(1, rounds + 1))
            assert again.resume() == []
    finally:
        for process in processes:
            process.kill()
            process.wait()
        local.stop(local.members)


def outcome(*holds: bool) -> Outcome:
    made = Outcome()
    for each in holds:
        made.check(each, "what must hold")
    return made


@pytest.mark.parametrize(("holds", "code"), [((True, True), 0), ((True, False), 1), ((), 1)])
def test_the_command_succeeds_only_if_every_check_held(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, holds: tuple[bool, ...], code: int
) -> None:
    def perform(script: Script, audience: Audience) -> Outcome:
        return outcome(*holds)

    monkeypatch.setattr(command, "perform", perform)
    result = CliRunner().invoke(command.demo, ["--directory", str(tmp_path / "run")])
    assert (result.exit_code == 0) == (code == 0)
    if code:
        assert isinstance(result.exception, QuorateError) and result.exception.exit_code == code


def test_different_roots_at_one_height_fail() -> None:
    assert judge_roots({7: {"v0": "aa", "v3": "bb"}}, "v3", 1) == Check(
        False, "at height 7 the validators' state roots differ: {'v0': 'aa', 'v3': 'bb'}"
    )


def test_a_root_that_nobody_else_was_seen_with_proves_nothing() -> None:
    assert judge_roots({7: {"v3": "aa"}, 8: {"v0": "bb", "v1": "bb"}}, "v3", 1) is None
    assert judge_roots({7: {"v0": "aa", "v3": "aa"}}, "v3", 8) is None, "before it was killed it agreed too"
    found = judge_roots({7: {"v0": "aa", "v3": "aa"}}, "v3", 7)
    assert found is not None and found.holds


def test_a_lost_or_refused_acknowledgement_fails() -> None:
    receipts = {"a": Path("a"), "b": Path("b")}
    assert judge_acknowledged({"a", "b"}, receipts, lambda path: "ok").holds
    assert not judge_acknowledged({"a", "b", "c"}, receipts, lambda path: "ok").holds
    assert not judge_acknowledged({"a", "b"}, receipts, lambda path: "ok" if path.name == "a" else "LATE").holds
    assert not judge_acknowledged(set(), receipts, lambda path: "ok").holds


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput):
        make_room(tmp_path, MARK)
    assert (tmp_path / "thesis.txt").exists()


def test_an_earlier_run_makes_room_for_the_next(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / MARK).write_text("{}\n")
    (run / "model.safetensors").write_bytes(b"old")
    make_room(run, MARK)
    assert [each.name for each in run.iterdir()] == [MARK]


def test_the_model_that_the_demonstration_trains_fits_into_a_transaction() -> None:
    draft = draft_job("digits", initial_model(64, 64, 10, 1), rounds=1, target=1, privacy="visible-to-validators")
    assert len(draft.model) <= 32 * 1024
