"""Members after the genesis: registered, shown, revoked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chain.transaction import account_id
from fl.client.keyfile import save_key
from tests.cli.run import Ran, done, quorate
from tests.fl.builders import signing_key
from tests.fl.client.chainlet import Running, running

NEW = signing_key("somebody new")


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.chdir(tmp_path)
    for name in ("registrar", "creator", "somebody new"):
        save_key(tmp_path / f"{name}.key", signing_key(name), None)
    with running(tmp_path) as started:
        yield started


def run(chain: Running, *arguments: object, key: str = "registrar.key") -> Ran:
    return quorate("member", *arguments, "--network", chain.network_file(), "--key", key, "--home", "home", "--json")


@pytest.mark.parametrize("given", [NEW.public.hex(), "somebody new.key", "new.pub"])
def test_a_registrar_registers_a_member_for_an_organisation(chain: Running, tmp_path: Path, given: str) -> None:
    (tmp_path / "new.pub").write_text(done("keys", "public", "somebody new.key").out)
    options = ("--role", "trainer", "--role", "evaluator", "--organisation", "st-mary")
    account = account_id(NEW.public).hex()
    assert run(chain, "register", "alice", given, *options).data["account"] == account
    for who in ("alice", account):
        found = run(chain, "show", who).data
        assert (found["roles"], found["organisation"], found["revoked"]) == (
            *(["evaluator", "trainer"], "st-mary", False),
        )
    run(chain, "revoke", "alice", "--yes")
    assert run(chain, "show", "alice").data["revoked"]


def test_what_the_chain_refuses_is_said_with_its_code(chain: Running) -> None:
    assert run(chain, "register", "alice", NEW.public.hex(), key="creator.key").data["code"] == "UNAUTHORISED"
    assert run(chain, "register", "creator", NEW.public.hex()).data["code"] == "NAME_TAKEN"
    ran = run(chain, "show", "nobody")
    assert (ran.code, ran.data["code"]) == (4, "UNKNOWN_MEMBER")
    ran = run(chain, "register", "alice", "01ab")
    assert (ran.code, ran.data["code"]) == (2, "BAD_KEY")
    ran = run(chain, "revoke", "creator")
    assert (ran.code, ran.data["code"]) == (2, "NOT_CONFIRMED")


def test_a_member_is_listed_from_its_registration_on_whichever_node_is_behind(chain: Running) -> None:
    run(chain, "register", "alice", NEW.public.hex())
    for current in chain.faces:
        for face in chain.faces:
            face.frozen_at = None if face is current else chain.chain.height - 1
        assert "alice" in {each["name"] for each in run(chain, "list").data}


def test_a_transaction_is_as_far_as_any_node_knows(chain: Running) -> None:
    made = run(chain, "register", "alice", NEW.public.hex()).data
    network = ("--network", chain.network_file(), "--home", "home", "--json")

    def standing() -> str:
        return str(quorate("tx", "status", made["tx"], *network).data.get("status"))

    for current in chain.faces:
        for face in chain.faces:
            face.frozen_at = None if face is current else chain.chain.height - 1
        assert standing() == "proven"
    for face in chain.faces:
        face.frozen_at = chain.chain.height - 1
    (taker,) = (face for face in chain.faces if face.submitted)
    assert standing() == "available"
    taker.down = True
    ran = quorate("tx", "status", made["tx"], *network)
    assert (ran.code, ran.data["code"]) == (1, "UNKNOWN_TRANSACTION")
