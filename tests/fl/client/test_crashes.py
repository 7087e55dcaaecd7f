"""A trainer that is killed anywhere in a round, or loses the node it talks to, answers the round once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chain.codec import decode, encode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from fl.client.keyfile import save_key
from fl.client.network import AsyncNetwork
from fl.client.networkfile import network_of
from fl.client.receiptfile import ReceiptFile, check_receipt_file, read_receipt_file, receipt_of
from fl.client.sync import connect
from fl.execution import OK
from fl.records import Phase
from fl.rounds import SubmitUpdate
from fl.tensors.layout import Schema, TensorSpec
from fl.transactions import read_body
from tests.fl.builders import make_rules, signing_key
from tests.fl.client.chainlet import NODES, Face, Running, running
from tests.fl.client.steps import Killed, Steps, answer, trained

ENCODING = "q8"
INLINE = Schema((TensorSpec("w", "F32", (40,), "averaged"),))
LARGE = Schema((TensorSpec("w", "F32", (60_000,), "averaged"),))
"""Its updates do not fit into a transaction."""

COMMON = (
    "GET /v1/checkpoint",
    "GET /v1/state/*",
    "GET /v1/blobs/baf*",
    "write models/temporary",
    "replace models/*",
    "trained",
    "replace feedback/*.left",
    "open outbox/temporary",
    "sync outbox/temporary",
    "link outbox/*.tx",
    "sync outbox",
    "open journal.jsonl",
    "POST /v1/transactions",
    "GET /v1/transactions/*/receipt",
    "open receipts/temporary",
    "replace receipts/*.bin",
    "replace feedback/*.owed",
    "unlink outbox/*.tx",
)
ONLY_INLINE = ("open feedback/*.told",)
ONLY_LARGE = (
    "open outbox/temporary.blob",
    "sync outbox/temporary.blob",
    "replace outbox/*.blob",
    "link feedback/*.told",
    "POST /v1/blobs/*",
    "PUT /v1/blobs/*/leaves/0",
    "unlink outbox/*.blob",
)


@dataclass
class Trainer:
    """One home, whose rounds are answered one after another, each with an accident of its own."""

    chain: Running
    job: bytes

    @property
    def round(self) -> int:
        return self.chain.chain.ledger.job(self.job).round

    @property
    def home(self) -> Path:
        return self.chain.directory / "home"

    @property
    def entry(self) -> Face:
        """The node that the trainer asks first."""
        account = self.chain.chain.ledger.actor("trainer-000").account
        return self.chain.faces[int.from_bytes(account[:4], "big") % NODES]

    def live(self, steps: Steps, round: int, seed: int, connected: Any = lambda network: None) -> bool:
        """Whether it was killed."""
        with steps.watched(self.home):
            try:
                asyncio.run(answer(self.chain.settings(), round, seed, steps, connected))
            except Killed:
                return True
        return False

    def signed(self, round: int) -> set[bytes]:
        """Every update for this round that has ever left the trainer's memory."""
        kept = {path.read_bytes() for path in self.home.glob("*/*/outbox/*.tx")}
        sent = {data for face in self.chain.faces for data in face.submitted}
        return {data for data in kept | sent if self._answers(data, round)}

    def receipts(self) -> Iterator[ReceiptFile]:
        yield from map(read_receipt_file, self.home.glob("*/*/receipts/*.bin"))

    @staticmethod
    def _answers(data: bytes, round: int) -> bool:
        body = read_body(decode(Transaction, data, MAX_TRANSACTION_BYTES))[1]
        return isinstance(body, SubmitUpdate) and body.round == round

    def assert_answered_once(self, round: int, before: set[bytes]) -> None:
        assert len(self.signed(round) | before) == 1
        record = self.chain.chain.ledger.round(self.job, round)
        assert record.phase == Phase.CLOSED and record.updates.size == 1
        assert not list(self.home.glob("*/*/outbox/*.tx")), "nothing is in flight"
        (receipt,) = [each for each in self.receipts() if self._answers(encode(each.transaction), round)]
        assert receipt_of(receipt).status == OK
        assert encode(receipt.transaction) in self.signed(round) | before
        check_receipt_file(receipt, network_of(self.chain.chain.genesis).checkpoint)
        for face in self.chain.faces:
            face.submitted.clear()
        # So that the next round takes the same steps: its model may have been fetched already.
        for path in self.home.glob("*/models/*"):
            path.unlink()


@pytest.fixture(params=["inline", pytest.param("large", marks=pytest.mark.slow)])
def schema(request: pytest.FixtureRequest) -> Schema:
    return {"inline": INLINE, "large": LARGE}[request.param]


@pytest.fixture
def trainer(tmp_path: Path, schema: Schema) -> Iterator[Trainer]:
    with running(tmp_path) as chain:
        rules = make_rules(target=1, minimum=1, maximum=1, rounds=1_000, encoding=ENCODING, schema=schema)
        job = chain.create(rules)
        with connect(**chain.settings()) as network:
            network.job("digits").join()
        yield Trainer(chain, job)


def flat(tensors: dict[str, Any]) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(tensors[name], np.float64).ravel() for name in sorted(tensors)])


def owed(home: Path) -> NDArray[np.float32]:
    (file,) = home.glob("*/*/feedback/*/0/*.owed")
    return np.fromfile(file, np.float32)


def test_a_trainer_killed_before_any_step_of_a_round_answers_it_once(trainer: Trainer, schema: Schema) -> None:
    died_at: list[str] = []
    told = np.zeros(schema.tensors[0].shape, np.float64)
    for number in range(1, 1_000):

        def kill(step: int, name: str, at: int = number) -> None:
            if step == at:
                raise Killed(name)

        round, steps = trainer.round, Steps(kill)
        died = trainer.live(steps, round, 2 * number)
        before = trainer.signed(round)
        if died:
            died_at.append(steps.taken[-1])
            assert not trainer.live(Steps(), round, 2 * number + 1), "it lives on"
        trainer.assert_answered_once(round, before)
        model = {each.name: np.zeros(each.shape) for each in schema.tensors}
        told += flat(trained(model, 2 * number if before else 2 * number + 1))
        if not died:
            break
    assert number > len(died_at) == number - 1
    for name in COMMON + (ONLY_LARGE if schema is LARGE else ONLY_INLINE):
        assert any(fnmatch(each, name) for each in died_at), f"{name} is none of " + "\n".join(died_at)
    with connect(**trainer.chain.settings()) as network:
        model = network.job("digits").model()
    difference = np.abs(flat(model) + owed(trainer.home) - told).max()
    assert difference < 1e-3, "every training that was sent is in the model or owed, and none twice"


def test_whichever_step_the_entry_node_dies_at_another_one_takes_over(trainer: Trainer) -> None:
    died_at: list[str] = []
    for number in range(1, 1_000):
        fell: list[Face] = []
        connected: list[AsyncNetwork] = []

        def fall(
            step: int,
            name: str,
            at: int = number,
            fell: list[Face] = fell,
            connected: list[AsyncNetwork] = connected,
        ) -> None:
            if step != at:
                return
            entry = connected[0].nodes.in_order()[0].name if connected else trainer.entry.name
            (face,) = [each for each in trainer.chain.faces if each.name == entry]
            face.down = face.door.down = True
            fell.append(face)

        round, steps = trainer.round, Steps(fall)
        assert not trainer.live(steps, round, number, connected.append)
        trainer.assert_answered_once(round, set())
        if not fell:
            break
        died_at.append(steps.taken[number - 1])
        fell[0].down = fell[0].door.down = False
    for name in ("GET /v1/checkpoint", "trained", "POST /v1/transactions", "GET /v1/transactions/*/receipt"):
        assert any(fnmatch(each, name) for each in died_at), name


@pytest.mark.parametrize("path", ["/v1/transactions", "/v1/checkpoint", "/v1/state/*", "/v1/transactions/*/receipt"])
def test_an_entry_node_that_dies_before_it_answers_is_passed_over(trainer: Trainer, path: str) -> None:
    entry = trainer.entry
    entry.dies_after = path
    round = trainer.round
    assert not trainer.live(Steps(), round, 1)
    trainer.assert_answered_once(round, set())
    assert entry.down


async def test_a_round_that_was_answered_and_is_still_open_is_not_trained_again(chain: Running) -> None:
    job = chain.create(make_rules(target=2, minimum=2, maximum=2))
    with connect(**chain.settings()) as network:
        network.job("digits").join()
    with connect(**chain.settings("trainer-001", home="other")) as other:
        other.job("digits").join()
    steps = Steps()
    await answer(chain.settings(), 1, 1, steps)
    assert chain.chain.ledger.round(job).phase == Phase.COLLECTING and steps.taken.count("trained") == 1
    for _ in range(2):
        life = asyncio.create_task(answer(chain.settings(), 1, 2, steps))
        looked = chain.faces[0].asked + 20
        while sum(face.asked for face in chain.faces) < looked and not life.done():
            await asyncio.sleep(0.01)
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
    assert steps.taken.count("trained") == 1, "who comes back is not asked again"


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        "replace models/*",
        "trained",
        "replace feedback/*.left",
        "link outbox/*.tx",
        "POST /v1/transactions",
        "open journal.jsonl",
        "GET /v1/transactions/*/receipt",
        "replace receipts/*.bin",
        "unlink outbox/*.tx",
    ],
)
def test_a_trainer_whose_process_is_killed_answers_the_round_once(trainer: Trainer, step: str) -> None:
    key, settings, round = trainer.chain.directory / "trainer.key", trainer.chain.settings(), trainer.round
    save_key(key, signing_key("trainer-000"), None)

    def process(name: str) -> int:
        arguments = [str(settings["network"]), str(key), str(settings["home"]), str(round), name]
        program = [sys.executable, "-m", "tests.fl.client.steps", *arguments]
        return subprocess.run(program, timeout=50, check=False, cwd=Path(__file__).parents[3]).returncode

    assert process(step) == -signal.SIGKILL
    before = trainer.signed(round)
    assert process("none") == 0
    trainer.assert_answered_once(round, before)
