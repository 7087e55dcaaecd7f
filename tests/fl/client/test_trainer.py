from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from fl.client import digits
from fl.client.digits import CLASSES, FEATURES, deal, load_digits, read, save
from fl.client.errors import BadFile, BadInput
from fl.client.jobdraft import draft_job
from fl.client.keyfile import save_key
from fl.client.perceptron import Data, accuracy, initial_model, train
from fl.client.sync import connect
from fl.client.trainer import main
from fl.records import JobStatus
from tests.fl.builders import signing_key
from tests.fl.client.chainlet import Running

NUMBERS = {"lr": 0.05, "epochs": 3, "batch": 16, "momentum": 0.9}


@pytest.fixture(scope="module")
def pictures() -> tuple[Data, Data]:
    return load_digits()


def test_shares_are_uneven_and_lose_no_picture(pictures: tuple[Data, Data]) -> None:
    training, held_out = pictures
    shares = deal(training, 8)
    assert sum(map(len, shares)) == len(training)
    rows = np.concatenate([share.x for share in shares])
    assert np.array_equal(np.sort(rows, axis=0), np.sort(training.x, axis=0))
    by_label = np.array([np.bincount(share.y, minlength=CLASSES) for share in shares])
    assert (by_label.max(axis=0) > 2 * by_label.mean(axis=0)).all(), "each digit is mostly somebody's"
    assert len(held_out) == digits.HELD_OUT


def test_training_from_one_seed_gives_the_same_numbers(pictures: tuple[Data, Data]) -> None:
    share = deal(pictures[0], 8)[0]
    model = initial_model(FEATURES, 16, CLASSES, 1)
    first, loss = train(model, share, [1, 2], lr=0.05, epochs=2, batch=16, momentum=0.9)
    again, same = train(model, share, [1, 2], lr=0.05, epochs=2, batch=16, momentum=0.9)
    other, _ = train(model, share, [1, 3], lr=0.05, epochs=2, batch=16, momentum=0.9)
    assert loss == same and all(np.array_equal(first[name], again[name]) for name in model)
    assert not np.array_equal(first["output.weight"], other["output.weight"])


def test_the_gradient_is_that_of_the_loss() -> None:
    source = np.random.default_rng(5)
    data = Data(source.random((6, 5)).astype(np.float32), source.integers(0, 3, 6))
    model = {name: array.astype(np.float64) for name, array in initial_model(5, 4, 3, 2).items()}
    step = 1e-5
    moved, _ = train(model, data, 0, lr=1.0, epochs=1, batch=6, momentum=0.0)

    def loss(name: str, place: tuple[int, ...], change: float) -> float:
        changed = {each: array.copy() for each, array in model.items()}
        changed[name][place] += change
        return train(changed, data, 0, lr=0.0, epochs=1, batch=6, momentum=0.0)[1]

    for name, array in model.items():
        for place in np.ndindex(array.shape):
            slope = (loss(name, place, step) - loss(name, place, -step)) / (2 * step)
            assert model[name][place] - moved[name][place] == pytest.approx(slope, abs=1e-6)


def test_a_share_comes_back_from_its_file(tmp_path: Path, pictures: tuple[Data, Data]) -> None:
    share = deal(pictures[0], 3)[1]
    save(share, tmp_path / "here" / "share.npz")
    found = read(tmp_path / "here" / "share.npz")
    assert np.array_equal(found.x, share.x) and np.array_equal(found.y, share.y)


def test_data_that_is_none_is_refused(tmp_path: Path) -> None:
    for name, content in (("a", b""), ("b", b"PK\x03\x04"), ("c", b"text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadFile):
            read(tmp_path / name)
    np.savez(tmp_path / "d.npz", x=np.zeros(3), y=np.zeros(3))
    with pytest.raises(BadFile):
        read(tmp_path / "d.npz")


def arguments(chain: Running, index: int, **changes: str) -> list[str]:
    key = chain.directory / f"{index}.key"
    if not key.exists():
        save_key(key, signing_key(f"trainer-{index:03}"), None)
    given = {
        "--network": str(chain.network_file()),
        "--key": str(key),
        "--job": "digits",
        "--digits": f"{index + 1}/3",
        "--home": str(chain.directory / f"home{index}"),
        "--seed": str(index),
        "--wait": "10",
        **changes,
    }
    return [word for name, value in given.items() for word in (name, value)]


def test_trainer_processes_wait_for_a_job_and_learn(
    chain: Running, pictures: tuple[Data, Data], capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda index=index: codes.append(main(arguments(chain, index)))) for index in range(3)
    ]
    for thread in threads:
        thread.start()
    draft = draft_job(
        "digits",
        initial_model(FEATURES, 32, CLASSES, 1),
        rounds=3,
        target=3,
        privacy="visible-to-validators",
        metrics=["loss"],
        config=NUMBERS,
    )
    chain.create(draft.rules, draft.model)
    for thread in threads:
        thread.join(60)
    assert codes == [0, 0, 0]
    with connect(**chain.settings(None)) as network:
        job = network.job("digits")
        assert job.status().status == JobStatus.FINISHED
        assert accuracy(job.model(3), pictures[1]) > accuracy(job.model(1), pictures[1]) > 0.5
    assert "round 3: loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"--digits": "0/3"}, BadInput.exit_code),
        ({"--digits": "3"}, BadInput.exit_code),
        ({"--data": "nothing.npz"}, BadInput.exit_code),
        ({"--network": "nothing.toml"}, BadFile.exit_code),
        ({"--wait": "0"}, 4),
    ],
)
def test_a_trainer_that_cannot_begin_ends_with_the_codes_of_the_command(
    chain: Running, changes: dict[str, str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(chain, 0, **changes)) == code
    assert capsys.readouterr().err
