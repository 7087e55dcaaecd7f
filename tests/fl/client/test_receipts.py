"""Receipt files: true ones verify with the network file alone, and each lie in one is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chain.certificate import Certificate
from chain.codec import encode
from chain.keys import SigningKey
from chain.light import Checkpoint, ReceiptBundle
from chain.transaction import sign_transaction, tx_id
from fl.client.errors import BadFile, QuorateError, RefusedByChain, Unverified
from fl.client.networkfile import NetworkFile, render_network
from fl.client.receiptfile import (
    MAX_FILE_BYTES,
    ReceiptFile,
    check_receipt_file,
    read_receipt_file,
    receipt_of,
)
from fl.client.sync import connect
from fl.jobrules import rules_hash
from fl.jobs import JoinJob, StopJob
from fl.state import job_key
from tests.cli.run import done, quorate
from tests.fl.builders import make_rules, signing_key
from tests.fl.client.chainlet import Running, running


@dataclass
class Case:
    """A network file of epoch 0, and receipts of epochs 0 and 2."""

    chain: Running
    first: Path
    later: Path
    start: Checkpoint

    @property
    def file(self) -> ReceiptFile:
        return read_receipt_file(self.later)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """An update in each of two rounds; between them the validators change twice."""
    with running(tmp_path_factory.mktemp("receipts")) as chain:
        chain.create(make_rules(target=1, minimum=1, maximum=1))
        with connect(**chain.settings()) as network:
            job = network.job("digits")
            job.join()
            receipts = []
            for task, _ in zip(job.tasks(), range(2), strict=False):
                delta = {name: np.ones_like(array) for name, array in task.model.items()}
                receipts.append(task.submit(delta=delta, examples=7, metrics={"loss": 0.25}))
                chain.do(chain.chain.hand_over)
                chain.do(chain.chain.hand_over)
            start = network._network.file.checkpoint
        yield Case(chain, receipts[0].path, receipts[1].path, start)


def test_a_receipt_of_epoch_2_verifies_offline_from_a_file_of_epoch_0(case: Case) -> None:
    file = case.file
    assert (case.start.validators.epoch, file.epoch, len(file.hand_overs)) == (0, 2, 2)
    assert check_receipt_file(file, case.start) == receipt_of(file)
    assert read_receipt_file(case.first).hand_overs == ()
    assert check_receipt_file(read_receipt_file(case.first), case.start).status == "ok"


def test_a_later_network_file_needs_fewer_hand_overs_and_one_that_is_too_late_says_so(case: Case) -> None:
    for epoch in (1, 2):
        check_receipt_file(case.file, Checkpoint(case.start.chain_id, case.chain.chain.sets[epoch]))
    with pytest.raises(Unverified) as caught:
        check_receipt_file(case.file, Checkpoint(case.start.chain_id, case.chain.chain.sets[3]))
    assert caught.value.code == "OLD_EPOCH" and "fetch" in caught.value.todo


def test_a_receipt_says_who_submitted_what(case: Case) -> None:
    shown = done("receipt", "show", case.later, "--json").data
    trainer = case.chain.chain.ledger.actor("trainer-000")
    entry = case.chain.chain.ledger.round(bytes.fromhex(shown["job"]), 2)
    assert (shown["sender"], shown["kind"], shown["status"]) == (trainer.account.hex(), "submit_update", "ok")
    body = shown["body"]
    assert (body["job"], body["round"], body["examples"], body["metrics"]) == (shown["job"], 2, 7, [0.25])
    assert body["cid"].startswith("bafkrei") and body["base"].startswith("baf") and entry.number == 2
    assert "says metrics\t0.25" in done("receipt", "show", case.later).out


def resigned(file: ReceiptFile, **changes: Any) -> ReceiptFile:
    """The sender says something else after the fact."""
    tx = replace(file.transaction, **changes)
    key = signing_key("trainer-000")
    again = sign_transaction(key, tx.chain, tx.sender, tx.nonce, tx.valid_until_ms, tx.kind, tx.body)
    return replace(file, id=tx_id(again), transaction=again)


def certified(file: ReceiptFile, change: Callable[[Certificate], Certificate]) -> ReceiptFile:
    return replace(
        file,
        proof=replace(file.proof, state=replace(file.proof.state, certificate=change(file.proof.state.certificate))),
    )


def fewer(certificate: Certificate) -> Certificate:
    return replace(certificate, signers=b"\x03", signatures=certificate.signatures[:2])


def other_key(certificate: Certificate) -> Certificate:
    forger = SigningKey.from_seed(bytes(32))
    return replace(certificate, signatures=(forger.sign(b"lie"), *certificate.signatures[1:]))


def proof(file: ReceiptFile, **changes: Any) -> ReceiptFile:
    bundle: ReceiptBundle = replace(file.proof, **changes)
    return replace(file, proof=bundle)


def better(file: ReceiptFile) -> ReceiptFile:
    return proof(file, receipt=encode(replace(receipt_of(file), weight=1_000_000)))


def swapped(file: ReceiptFile) -> ReceiptFile:
    first, second = file.hand_overs
    return replace(file, hand_overs=(first, replace(second, validators=replace(first.validators, epoch=2))))


LIES: dict[str, tuple[Callable[[ReceiptFile], ReceiptFile], str, str]] = {
    "the transaction was signed by nobody": (
        lambda file: replace(file, transaction=replace(file.transaction, signature=bytes(64))),
        "BAD_SIGNATURE",
        "did not sign",
    ),
    "the transaction is of another chain": (
        lambda file: resigned(file, chain=bytes(32)),
        "OTHER_CHAIN",
        "00" * 32,
    ),
    "the transaction does not hash to the id": (
        lambda file: replace(file, transaction=replace(file.transaction, nonce=77)),
        "WRONG_ID",
        "hashes to",
    ),
    "the receipt is of another transaction": (
        lambda file: resigned(file, nonce=77),
        "OTHER_TRANSACTION",
        "another transaction",
    ),
    "the certificate is below quorum": (
        lambda file: certified(file, fewer),
        "BELOW_QUORUM",
        "2 validators of epoch 2 signed the certificate; a quorum is 3",
    ),
    "a validator did not sign the certificate": (
        lambda file: certified(file, other_key),
        "WRONG_SIGNATURE",
        "org-000 did not make",
    ),
    "the receipt was changed": (better, "WRONG_PROOF", "log proof"),
    "it is another entry of the log": (
        lambda file: proof(file, index=file.proof.index - 1),
        "WRONG_PROOF",
        "log proof",
    ),
    "it is of another key of the state": (
        lambda file: proof(file, state=replace(file.proof.state, key=b"events")),
        "WRONG_PROOF",
        "state proof",
    ),
    "a hand-over is missing": (
        lambda file: replace(file, hand_overs=file.hand_overs[1:]),
        "HAND_OVER_MISSING",
        "from epoch 0 to 1",
    ),
    "all hand-overs are missing": (
        lambda file: replace(file, hand_overs=()),
        "HAND_OVER_MISSING",
        "from epoch 0 to 1",
    ),
    "a hand-over names other validators": (swapped, "WRONG_HAND_OVER", "from epoch 1 to 2"),
    "hand-overs come twice": (
        lambda file: replace(file, hand_overs=(file.hand_overs[0], *file.hand_overs)),
        "WRONG_HAND_OVER",
        "epoch 1",
    ),
    "the certificate is said to be of another epoch": (
        lambda file: certified(file, lambda each: replace(each, epoch=1)),
        "WRONG_SIGNATURE",
        "forged",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_receipt_file_that_lies_is_caught_and_the_lie_is_named(case: Case, lie: str, tmp_path: Path) -> None:
    change, code, said = LIES[lie]
    path = tmp_path / "lie.bin"
    path.write_bytes(encode(change(case.file)))
    with pytest.raises(Unverified) as caught:
        check_receipt_file(read_receipt_file(path), case.start)
    assert caught.value.code == code and said in caught.value.what and caught.value.todo
    ran = quorate("receipt", "verify", path, "--checkpoint", case.chain.network_file())
    assert ran.code == 6 and code in ran.err


def test_who_signed_the_certificate_is_told(case: Case) -> None:
    ran = done("receipt", "verify", case.later, "--checkpoint", case.chain.network_file(), "--json")
    assert ran.data["signed_by"] == ["org-000", "org-001", "org-002"]


def test_a_receipt_of_another_chain_is_refused(case: Case) -> None:
    with pytest.raises(Unverified) as caught:
        check_receipt_file(case.file, Checkpoint(bytes(32), case.start.validators))
    assert caught.value.code == "OTHER_CHAIN" and "--checkpoint" in caught.value.todo


def test_whatever_byte_is_changed_nothing_false_is_believed(case: Case, tmp_path: Path) -> None:
    data, path = case.later.read_bytes(), tmp_path / "changed.bin"
    true = receipt_of(case.file)
    for place in range(0, len(data), 23):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x11]) + data[place + 1 :])
        try:
            found = read_receipt_file(path)
            assert check_receipt_file(found, case.start) == true
            assert tx_id(found.transaction) == true.tx_id
        except QuorateError as error:
            assert isinstance(error, BadFile | Unverified)


@pytest.mark.parametrize("data", [b"", b"\x95", b"{}", b"\x95\xb1quorate-receipt-2", b"\xdd\xff\xff\xff\xff" * 9])
def test_what_is_no_receipt_is_refused_before_anything_is_made_of_it(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r.bin").write_bytes(data)
    with pytest.raises(BadFile) as caught:
        read_receipt_file(tmp_path / "r.bin")
    assert caught.value.code == "BAD_RECEIPT"


def test_a_file_of_any_size_costs_little(tmp_path: Path) -> None:
    with open(tmp_path / "huge.bin", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadFile, match="longer"):
        read_receipt_file(tmp_path / "huge.bin")
    assert MAX_FILE_BYTES <= 16 << 20


def test_another_format_is_named(case: Case, tmp_path: Path) -> None:
    (tmp_path / "r.bin").write_bytes(encode(replace(case.file, format="quorate-receipt-9")))
    with pytest.raises(BadFile, match="quorate-receipt-9"):
        read_receipt_file(tmp_path / "r.bin")


ALONE = """
import socket, sys

BLOCKED = {"numba", "llvmlite", "aiohttp", "plyvel", "uvloop", "asyncio", "node", "consensus"}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(name + " is blocked")

def unreachable(*arguments, **named):
    raise OSError("there is no network here")

sys.meta_path.insert(0, Blocked())
socket.socket.connect = socket.create_connection = socket.getaddrinfo = unreachable
from cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["verify", "list"])
def test_receipts_are_verified_without_a_network_and_without_a_nodes_libraries(case: Case, command: str) -> None:
    network, home = case.chain.network_file(), case.chain.directory / "home"
    arguments = {
        "verify": ["receipt", "verify", str(case.later), "--checkpoint", str(network)],
        "list": ["receipt", "list", "--network", str(network), "--home", str(home)],
    }
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments[command]], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert case.file.id.hex()[:16] in done.stdout


def test_receipts_are_listed_and_a_damaged_one_does_not_hide_the_others(case: Case, tmp_path: Path) -> None:
    home = case.chain.directory / "home"
    damaged = case.later.with_name("00.bin")
    damaged.write_bytes(b"damaged")
    try:
        ran = done("receipt", "list", "--network", case.chain.network_file(), "--home", home, "--json")
    finally:
        damaged.unlink()
    assert [row["kind"] for row in ran.data] == ["join_job", "submit_update", "submit_update"]
    assert str(damaged) in ran.err


def test_anyone_can_fetch_the_receipt_of_a_transaction(case: Case, tmp_path: Path) -> None:
    network, path = case.chain.network_file(), tmp_path / "fetched.bin"
    options = ["--network", network, "--home", tmp_path / "elsewhere", "--patience", 1]
    ran = done("receipt", "fetch", read_receipt_file(case.first).id.hex(), "-o", path, *options, "--json")
    assert ran.data["body"]["round"] == 1
    fetched = read_receipt_file(path)
    assert fetched.epoch == case.chain.chain.sets[-1].epoch, "it is certified anew, by who validates today"
    assert check_receipt_file(fetched, case.start).tx_id == fetched.id
    unknown = quorate("receipt", "fetch", "00" * 32, "-o", tmp_path / "none", *options)
    assert unknown.code == 1 and "NO_RECEIPT" in unknown.err and not (tmp_path / "none").exists()


def test_a_refusal_has_a_receipt_as_well(chain: Running) -> None:
    with connect(**chain.settings()) as network:
        with pytest.raises(RefusedByChain):
            network.send(StopJob(bytes(32)))
        (receipt,) = network.receipts()
        assert network.verify_receipt(receipt.path).status == "UNKNOWN_JOB"


def test_an_old_network_file_follows_several_hand_overs_and_remembers_them(chain: Running) -> None:
    identity, settings = chain.create(make_rules()), chain.settings()
    for _ in range(4):
        chain.do(chain.chain.hand_over)
    with connect(**settings) as network:
        assert network.state(job_key(identity)).value is not None
        assert network.checkpoint.validators.epoch == 4
        receipt = network.send(JoinJob(identity, rules_hash(make_rules())))
        assert len(read_receipt_file(receipt.path).hand_overs) == 4
    chain.chain.hand_overs = []
    with connect(**settings) as again:
        assert again.checkpoint.validators.epoch == 4, "kept from before"
        assert again.verify_receipt(receipt.path) == receipt


def test_hand_overs_that_were_damaged_on_disk_are_fetched_again(chain: Running) -> None:
    settings = chain.settings()
    for _ in range(3):
        chain.do(chain.chain.hand_over)
    with connect(**settings) as network:
        network.head()
        kept = sorted((network.home.parent / "handovers").iterdir())
    assert len(kept) == 3
    kept[1].write_bytes(kept[0].read_bytes())
    with connect(**settings) as again:
        assert again.checkpoint.validators.epoch == 1
        again.head()
        assert again.checkpoint.validators.epoch == 3


def test_a_newer_network_file_begins_later_and_needs_no_older_hand_overs(chain: Running) -> None:
    for _ in range(2):
        chain.do(chain.chain.hand_over)
    newest = NetworkFile("newer", Checkpoint(chain.chain.genesis.chain_id, chain.chain.sets[1]))
    path = chain.directory / "newer.toml"
    path.write_text(render_network(newest))
    with connect(**chain.settings(network=path)) as network:
        network.head()
        assert [each.header.epoch for each in network._network.reader.hand_overs] == [1]
