"""Transactions that are signed on a machine without a network, and sent from another one."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quorate as sdk
from chain.cid import raw_cid
from chain.codec import encode
from chain.unixfs import cid_of
from fl.accounts import RotateKey
from fl.client.bodies import body_of, said_by
from fl.client.errors import BadFile, BadInput, RefusedByChain
from fl.client.home import Pending
from fl.client.keyfile import save_key
from fl.client.signing import read_signed, sign_offline
from fl.client.sync import connect
from fl.datasets import RegisterDataset
from fl.evaluation import SubmitEvaluation
from fl.jobrules import rules_hash
from fl.jobs import CreateJob, JoinJob, LeaveJob, StopJob
from fl.members import RegisterMember
from fl.records import METRIC_NAN, TensorGroup
from fl.rounds import SubmitUpdate
from fl.tensors.encodings import Place, encode_update
from fl.tensors.layout import Schema, TensorSpec
from fl.transactions import read_body
from fl.updates import form_of
from tests.cli.run import done, quorate
from tests.fl.builders import make_rules, signing_key
from tests.fl.client.chainlet import Running

LARGE = Schema((TensorSpec("w", "F32", (20_000,), "averaged"),))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a socket fails."""

    def unreachable(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("it asked somebody")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)


def registration(name: str) -> RegisterMember:
    return RegisterMember(name, signing_key(name).public, ("trainer",))


def apart(chain: Running, body: object, **changes: Any) -> Pending:
    """Signed by the registrar, at home offline."""
    settings = {"network": chain.network_file(), "key": signing_key("registrar"), "home": chain.directory / "apart"}
    return sign_offline(**{**settings, "body": body, **changes})


def test_what_was_signed_offline_is_sent_from_elsewhere_by_somebody_without_the_key(
    chain: Running, tmp_path: Path
) -> None:
    signed = apart(chain, registration("eve"), nonce=0)
    path = signed.save(tmp_path / "eve.tx")
    assert read_signed(path) == signed
    with connect(**chain.settings(None)) as network:
        receipt = network.send_signed(path)
        assert receipt.accepted and receipt.tx == signed.id.hex()
        assert network.verify_receipt(receipt.path) == receipt
        account = signed.tx.sender.hex()
        assert receipt.path.parent.parent.name == account[:16], "in the home of its account"
        assert network.next_nonce(account) == 1
        assert network.send_signed(path) == receipt, "sending it again is harmless"


def test_nothing_is_asked_when_signing(chain: Running, offline: None) -> None:
    signed = sdk.sign_offline(chain.network_file(), signing_key("registrar"), registration("eve"), nonce=3,
                              home=chain.directory / "apart")  # fmt: skip
    assert signed.tx.nonce == 3 and read_body(signed.tx)[1] == registration("eve")


def test_each_one_signed_here_takes_the_nonce_after_the_last(chain: Running) -> None:
    with pytest.raises(BadInput) as caught:
        apart(chain, registration("eve"))
    assert caught.value.code == "NO_NONCE" and "quorate tx nonce" in caught.value.todo
    assert apart(chain, registration("eve"), nonce=0).tx.nonce == 0
    assert apart(chain, registration("mallory")).tx.nonce == 1
    with pytest.raises(BadInput) as taken:
        apart(chain, registration("trent"), nonce=1)
    assert taken.value.code == "NONCE_TAKEN"


def test_a_home_that_comes_online_sends_what_it_signed_and_its_receipts_say_the_next_nonce(chain: Running) -> None:
    apart(chain, registration("eve"), nonce=0)
    with connect(**chain.settings("registrar", home="apart")) as network:
        assert [each.accepted for each in network.resume()] == [True]
        assert network.send(registration("mallory")).nonce == 1
    assert apart(chain, registration("trent")).tx.nonce == 2


def test_a_nonce_that_was_used_elsewhere_is_told_with_the_next_one(chain: Running) -> None:
    with connect(**chain.settings("registrar")) as network:
        network.send(registration("first"))
    late = apart(chain, registration("eve"), nonce=0)
    with connect(**chain.settings(None, home="other")) as network:
        with pytest.raises(RefusedByChain) as caught:
            network.send_signed(late)
        assert caught.value.code == "NONCE_USED" and caught.value.todo.endswith("--nonce 1")


def test_a_used_nonce_of_the_own_account_is_not_given_twice(chain: Running) -> None:
    signed = apart(chain, registration("eve"), nonce=0)
    with connect(**chain.settings("registrar")) as network:
        assert network.send_signed(signed).nonce == 0
        assert network.send(registration("mallory")).nonce == 1


def test_a_file_that_was_changed_is_refused_before_it_is_sent(chain: Running, tmp_path: Path) -> None:
    path = apart(chain, registration("eve"), nonce=0).save(tmp_path / "eve.tx")
    data = path.read_bytes()
    with connect(**chain.settings(None)) as network:
        path.write_bytes(data.replace(b"eve", b"eva"))
        with pytest.raises(RefusedByChain) as caught:
            network.send_signed(path)
        assert caught.value.code == "BAD_SIGNATURE"
        for bad in (data[:-1], b"", bytes(100_000)):
            path.write_bytes(bad)
            with pytest.raises(BadFile, match="no signed transaction"):
                network.send_signed(path)
    assert not any(face.submitted for face in chain.faces)


def test_a_transaction_for_another_chain_is_refused_before_it_is_sent(chain: Running) -> None:
    path = chain.directory / "other.toml"
    text = chain.network_file().read_text()
    path.write_text(text.replace(chain.chain.genesis.chain_id.hex(), "00" * 32))
    signed = apart(chain, registration("eve"), nonce=0, network=path)
    with connect(**chain.settings(None)) as network, pytest.raises(RefusedByChain) as caught:
        network.send_signed(signed)
    assert caught.value.code == "WRONG_CHAIN"
    assert not any(face.submitted for face in chain.faces)


def test_what_depends_on_a_job_is_checked_where_it_is_sent(chain: Running) -> None:
    identity = chain.create(make_rules())
    signed = apart(chain, JoinJob(identity, rules_hash(make_rules())), key=signing_key("trainer-000"), nonce=0)
    with connect(**chain.settings(None)) as network:
        assert network.send_signed(signed).accepted
        with pytest.raises(RefusedByChain) as caught:
            network.send_signed(apart(chain, StopJob(bytes(32)), nonce=0))
        assert caught.value.code == "UNKNOWN_JOB"


def test_limits_are_told_where_it_is_signed(chain: Running) -> None:
    for changes, code in (
        ({"body": RegisterMember("", b"", ())}, "BAD_VALUE"),
        ({"body": object()}, "UNKNOWN_KIND"),
        ({"valid_for_s": 0}, "BAD_VALUE"),
        ({"valid_for_s": float("nan")}, "BAD_VALUE"),
        ({"nonce": -1}, "BAD_VALUE"),
        ({"account": "x"}, "BAD_ACCOUNT"),
    ):
        with pytest.raises(BadInput) as caught:
            apart(chain, **{"body": registration("eve"), "nonce": 0, **changes})
        assert caught.value.code == code
    with connect(**chain.settings("registrar", home="apart")):
        pass
    with pytest.raises(BadInput, match="86400 s at most"):
        apart(chain, registration("eve"), nonce=0, valid_for_s=86_401)
    with pytest.raises(RefusedByChain) as caught_name:
        apart(chain, RegisterMember("no name", signing_key("eve").public, ("trainer",)), nonce=0)
    assert caught_name.value.code == "BAD_NAME", "its bytes are checked as soon as the genesis has been here"


def test_the_command_signs_on_one_machine_and_sends_on_another(chain: Running, tmp_path: Path) -> None:
    identity = chain.create(make_rules())
    save_key(tmp_path / "alice.key", signing_key("trainer-000"), None)
    (tmp_path / "join.toml").write_text(
        f'kind = "join_job"\njob = "{identity.hex()}"\nrules_hash = "{rules_hash(make_rules()).hex()}"\n'
    )
    network = ["--network", chain.network_file()]
    there = [*network, "--home", tmp_path / "there", "--patience", 1]
    account = chain.chain.ledger.actor("trainer-000").account.hex()
    assert done("tx", "nonce", account, *there).out == "0\n"
    here = [*network, "--key", tmp_path / "alice.key", "--home", tmp_path / "here"]
    signed = done("tx", "sign", tmp_path / "join.toml", "-o", tmp_path / "join.tx", "--nonce", 0, *here, "--json").data
    sent = done("tx", "send", tmp_path / "join.tx", *there, "--json").data
    assert (sent["tx"], sent["status"]) == (signed["tx"], "ok") and signed["sender"] == account
    assert done("receipt", "verify", sent["proof"], *network, "--json").data["body"]["job"] == identity.hex()
    assert done("tx", "nonce", account, *there).out == "1\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'kind' is None"),
        ('kind = "bribe"', "join_job"),
        ('kind = "stop_job"', "lacks 'job'"),
        ('kind = "stop_job"\njob = "00"', "bytes"),
        ('kind = "stop_job"\njob = 3', "hexadecimal"),
        ('kind = "stop_job"\njob = "zz"', "hexadecimal"),
        ('kind = "stop_job"\njobs = "00"', "no field jobs"),
        ('kind = "register_member"\nname = "eve"\nkey = "00"\nroles = "trainer"', "no list"),
        ("kind = ", "does not say what to sign"),
        ("#" * 200_000, "longer"),
        ("kind = " + "[" * 50_000, "does not say what to sign"),
    ],
)
def test_a_body_that_cannot_be_signed_says_why(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "body.toml").write_text(text)
    ran = quorate("tx", "sign", tmp_path / "body.toml", "-o", tmp_path / "x", "--nonce", 0, "--home", tmp_path)
    assert ran.code == 2 and said in ran.err, ran
    assert not (tmp_path / "x").exists()


def every_kind(job: bytes) -> dict[str, object]:
    cid = raw_cid(b"")
    return {
        "rotate_key": RotateKey(signing_key("new").public, bytes(64)),
        "join_job": JoinJob(job, rules_hash(make_rules()), "evaluator"),
        "leave_job": LeaveJob(job, "trainer"),
        "stop_job": StopJob(job),
        "register_member": registration("eve"),
        "create_job": CreateJob(make_rules(groups=(TensorGroup("head", ("b",)),)), b"model"),
        "register_dataset": RegisterDataset("trials", cid, 10, False, "", "", "CC-BY-4.0", 7),
        "submit_update": SubmitUpdate(job, 3, cid, 5, (250_000, METRIC_NAN), 0, cid, b"payload"),
        "submit_evaluation": SubmitEvaluation(job, 3, cid, 5, (1,)),
    }


@pytest.mark.parametrize("kind", every_kind(bytes(32)))
def test_what_a_transaction_says_can_be_said_again(chain: Running, kind: str) -> None:
    body = every_kind(bytes(range(32)))[kind]
    said = said_by(apart(chain, body, nonce=0).tx)
    assert encode(body_of({"kind": kind, **said})) == encode(body)
    if kind.startswith("submit"):
        with pytest.raises(BadInput, match="no number"):
            body_of({"kind": kind, **said, "metrics" if kind == "submit_update" else "values": ["0.3"]})


def test_an_update_too_large_for_its_transaction_is_put_by_a_member_where_it_is_sent(
    chain: Running, tmp_path: Path
) -> None:
    chain.create(make_rules(schema=LARGE, target=1, minimum=1, maximum=1))
    with connect(**chain.settings()) as network:
        job = network.job("digits")
        job.join()
        task = next(job.tasks())
        record = job.round(1)
    assert record is not None
    form, place = form_of(job.rules, 0), Place(bytes.fromhex(job.id), 1, bytes.fromhex(network.account))
    payload = encode_update(form, place, {"w": np.ones_like(task.model["w"])})
    body = SubmitUpdate(place.job, 1, record.base, 5, (0,), 0, cid_of(payload), b"")
    signed = sign_offline(chain.network_file(), signing_key("trainer-000"), body, home=chain.directory / "home")
    assert signed.tx.nonce == 1, "after the one that joined"
    with connect(**chain.settings("trainer-001", home="gateway")) as gateway:
        with pytest.raises(RefusedByChain) as caught:
            gateway.send_signed(signed)
        assert caught.value.code == "BLOB_MISSING"
        gateway.blobs.put(payload, "update")
        assert gateway.send_signed(signed).accepted
