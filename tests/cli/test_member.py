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
