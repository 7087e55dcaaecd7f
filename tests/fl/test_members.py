"""Members: registrars and open admission, names, revocation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.genesis import GenesisError, GenesisMember
from chain.transaction import account_id
from fl.jobs import JoinJob
from fl.machine import genesis_state
from fl.members import RegisterMember, RevokeMember
from tests.fl.builders import Ledger, ledger, make_genesis, running_job, signing_key


def register(chain: Ledger, by: str, who: str, *roles: str, name: str = "") -> str | None:
    body = RegisterMember(name or who, signing_key(who).public, tuple(roles))
    data = chain.actor(by).sign(body, nonce=nonce_of(chain, by))
    chain.check(data)
    return chain.status_of(data)


def nonce_of(chain: Ledger, who: str) -> int:
    account = chain.account(account_id(signing_key(who).public))
    return account.floor if account else 0


def test_a_registrar_registers_a_member_that_can_act_at_once() -> None:
    running = running_job()
    chain = running.ledger
    assert register(chain, "registrar", "newcomer", "trainer") == "ok"
    newcomer = chain.actor("newcomer")
    assert chain.status_of(newcomer.sign(JoinJob(running.job, chain.job(running.job).rules_hash))) == "ok"
    member = chain.member(newcomer.account)
    assert member is not None and member.roles == ("trainer",)


def test_a_member_registers_nobody_where_admission_is_the_registrars() -> None:
    chain = ledger()
    assert register(chain, "creator", "newcomer", "trainer") == "UNAUTHORISED"
    assert register(chain, "newcomer", "newcomer", "trainer") == "UNAUTHORISED"


def test_open_admission_lets_each_key_register_itself_alone() -> None:
    chain = ledger(admission="open")
    assert register(chain, "newcomer", "other", "trainer") == "UNAUTHORISED"
    assert register(chain, "newcomer", "newcomer", "creator", "trainer") == "ok"
    assert register(chain, "newcomer", "newcomer", "trainer") == "ALREADY_MEMBER"


def test_nobody_makes_itself_an_operator() -> None:
    chain = ledger(admission="open")
    assert register(chain, "newcomer", "newcomer", "operator") == "UNAUTHORISED"
    assert register(chain, "registrar", "newcomer", "operator") == "ok"


def test_a_revoked_member_is_out_of_its_jobs_and_only_a_registrar_takes_it_back() -> None:
    running = running_job()
    chain = running.ledger
    gone = running.trainers[0]
    assert chain.status_of(chain.actor("registrar").sign(RevokeMember(gone.account))) == "ok"
    assert chain.job(running.job).members == 3
    assert running.round.cohort == 3
    assert register(chain, gone.name, gone.name, "trainer") == "UNAUTHORISED"
    assert register(chain, "registrar", gone.name, "trainer", name="renamed") == "ok"
    member = chain.member(gone.account)
    assert member is not None and member.name == "renamed" and not member.revoked
    gone.nonce = nonce_of(chain, gone.name)
    assert chain.status_of(running.update(gone)) == "NOT_JOINED"


def test_a_revoked_member_cannot_come_back_through_open_admission() -> None:
    chain = ledger(admission="open")
    account = chain.actor("trainer-000").account
    assert chain.status_of(chain.actor("registrar").sign(RevokeMember(account))) == "ok"
    assert register(chain, "trainer-000", "trainer-000", "trainer") == "REVOKED"


def test_a_revoked_members_name_stays_its_own() -> None:
    chain = ledger()
    account = chain.actor("trainer-000").account
    assert chain.status_of(chain.actor("registrar").sign(RevokeMember(account))) == "ok"
    assert register(chain, "registrar", "impostor", "trainer", name="trainer-000") == "NAME_TAKEN"


def test_only_a_registrar_revokes() -> None:
    chain = ledger()
    assert chain.status_of(chain.actor("creator").sign(RevokeMember(chain.actor("trainer-000").account))) == (
        "UNAUTHORISED"
    )


@pytest.mark.parametrize(
    "member",
    [
        GenesisMember("x", signing_key("x").public, ("king",)),
        GenesisMember("x", signing_key("x").public, ("trainer", "trainer")),
        GenesisMember("x y", signing_key("x").public, ("trainer",)),
    ],
)
def test_a_genesis_with_members_that_no_transaction_could_register_is_refused(member: GenesisMember) -> None:
    with pytest.raises(GenesisError):
        genesis_state(replace(make_genesis(), members=(member,)))
