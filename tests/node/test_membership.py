"""Whose a key is, by the newest state: what the data process asks before it takes or gives a member's bytes."""

from __future__ import annotations

from chain.transaction import account_id
from fl.accounts import rotation
from fl.members import RevokeMember
from node.membership import is_member, standing_of
from tests.fl.builders import Actor, Ledger, ledger, signing_key

STRANGER = signing_key("stranger")


def executed(chain: Ledger, who: Actor, body: object) -> None:
    assert chain.status_of(who.sign(body)) == "ok"


def test_a_member_is_known_by_its_roles_and_its_present_key() -> None:
    chain = ledger()
    trainer = chain.actor("trainer-000")
    validators = chain.genesis.validator_set
    assert standing_of(chain.read, validators, trainer.account, trainer.key.public) == (True, ("trainer",))
    assert is_member(chain.read, trainer.account, trainer.key.public)
    assert standing_of(chain.read, validators, trainer.account, STRANGER.public) == (False, ("trainer",))
    assert not is_member(chain.read, trainer.account, STRANGER.public)


def test_after_a_rotation_the_old_key_speaks_for_nobody() -> None:
    chain = ledger()
    trainer, validators = chain.actor("trainer-000"), chain.genesis.validator_set
    old, new = trainer.key, signing_key("a newer key")
    executed(chain, trainer, rotation(new, chain.genesis.chain_id, trainer.account))
    assert standing_of(chain.read, validators, trainer.account, old.public)[0] is False
    assert standing_of(chain.read, validators, trainer.account, new.public) == (True, ("trainer",))


def test_a_revoked_member_has_no_roles() -> None:
    chain = ledger()
    trainer, validators = chain.actor("trainer-000"), chain.genesis.validator_set
    executed(chain, chain.actor("registrar"), RevokeMember(trainer.account))
    assert standing_of(chain.read, validators, trainer.account, trainer.key.public) == (True, ())
    assert not is_member(chain.read, trainer.account, trainer.key.public)


def test_a_stranger_speaks_for_the_account_of_its_key_and_is_nothing() -> None:
    chain = ledger()
    validators = chain.genesis.validator_set
    assert standing_of(chain.read, validators, account_id(STRANGER.public), STRANGER.public) == (True, ())


def test_who_operates_a_validator_in_office_is_known_as_that() -> None:
    chain = ledger()
    validators = chain.genesis.validator_set
    key = validators.members[0].operator_key
    assert standing_of(chain.read, validators, account_id(key), key) == (True, ("validator",))
