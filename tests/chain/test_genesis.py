from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chain.block import EMPTY_BODY, body_roots
from chain.certificate import MAX_VALIDATORS
from chain.codec import decode, encode
from chain.genesis import (
    MAX_GENESIS_BYTES,
    Genesis,
    GenesisError,
    GenesisMember,
    Params,
    SetChange,
    check_genesis,
    check_params,
    genesis_header,
    sign_claim,
    verify_claim,
)
from chain.keys import ED25519
from chain.log import EMPTY
from tests.chain.build import consensus_key, genesis, key, validator, validator_set

GOOD = genesis()
WEAK = ED25519 + (1).to_bytes(32, "little")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 10, MAX_VALIDATORS])
def test_the_defaults_serve_any_number_of_validators(n: int) -> None:
    check_params(Params(), n)


def test_a_good_genesis_is_accepted_and_survives_encoding() -> None:
    check_genesis(GOOD)
    assert decode(Genesis, encode(GOOD), MAX_GENESIS_BYTES) == GOOD
    assert GOOD.validator_set == validator_set(4)


def test_the_chain_id_covers_everything() -> None:
    ids = {
        each.chain_id
        for each in (
            GOOD,
            replace(GOOD, name="other"),
            replace(GOOD, time_ms=1),
            replace(GOOD, params=Params(delta_ms=251)),
            replace(GOOD, registrars=()),
            replace(GOOD, admission="open"),
            replace(GOOD, members=()),
            replace(GOOD, set_changes=(SetChange(9, validator_set(3).members),)),
        )
    }
    assert len(ids) == 8


def test_block_zero_is_implied_by_the_genesis() -> None:
    header = genesis_header(GOOD)
    assert (header.height, header.view, header.epoch, header.chain) == (0, 0, 0, GOOD.chain_id)
    assert (header.batch_root, header.item_root) == body_roots(EMPTY_BODY)
    assert header.log_root == EMPTY.root()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"version": 2}, "version 2 is unknown"),
        ({"admission": "nobody"}, "'registrars' or 'open'"),
        ({"name": ""}, "cannot be written"),
        ({"validators": GOOD.validators[::-1]}, "rising name"),
        ({"validators": (GOOD.validators[0],) * 2}, "rising name"),
        ({"registrars": (WEAK,)}, "small order"),
        ({"registrars": (key("r").public,) * 2}, "listed twice"),
        ({"members": (GenesisMember("m", WEAK, ()),)}, "'m' cannot be used"),
        ({"members": (GenesisMember("m", key("m").public, ()), GenesisMember("m", key("o").public, ()))}, "one name"),
        ({"members": (GenesisMember("m", key("m").public, ()), GenesisMember("o", key("m").public, ()))}, "one key"),
        ({"members": (GenesisMember("m", consensus_key(0).public, ()),)}, "needs its own"),
        ({"set_changes": (SetChange(0, GOOD.validators),)}, "rising height"),
        ({"set_changes": (SetChange(5, GOOD.validators), SetChange(5, GOOD.validators))}, "rising height"),
        ({"set_changes": (SetChange(5, GOOD.validators[::-1]),)}, "due at height 5"),
        ({"params": Params(delta_ms=0)}, "delta_ms"),
    ],
)
def test_a_genesis_that_cannot_work_is_refused_with_a_sentence(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GenesisError, match=sentence):
        check_genesis(replace(GOOD, **changed))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"consensus_key": WEAK}, "consensus key of validator 'org-000'"),
        ({"link_key": ED25519 + (2**255 - 19).to_bytes(32, "little")}, "link key"),
        ({"operator_key": b"\x02" + bytes(32)}, "key type 2"),
        ({"link_key": consensus_key(0).public}, "one key twice"),
        ({"consensus_key": consensus_key(1).public}, "one key twice"),
        ({"address": "org-001.example:7000"}, "one address"),
        ({"address": "nowhere"}, "not host:port"),
        ({"address": "host:0"}, "not host:port"),
        ({"address": "host:70000"}, "not host:port"),
        ({"address": ":7000"}, "not host:port"),
    ],
)
def test_a_validator_that_cannot_serve_is_refused_by_name(changed: dict[str, Any], sentence: str) -> None:
    validators = (replace(GOOD.validators[0], **changed), *GOOD.validators[1:])
    with pytest.raises(GenesisError, match=sentence):
        check_genesis(replace(GOOD, validators=validators))


@pytest.mark.parametrize(
    "changed",
    [
        {"horizon": 15},
        {"horizon": 16, "creator_quota_bytes": 2**20, "creator_quota_batches": 1},
        {"block_bytes": 2**19},
        {"block_references": 0},
        {"block_references": 65},
        {"block_references": 1, "horizon": 1023},
        {"block_items": 0},
        {"item_bytes": 9000},
        {"item_bytes": 100},
        {"transaction_bytes": 40961},
        {"inline_bytes": 40960},
        {"batch_bytes": 2**20 + 1},
        {"batch_bytes": 40960},
        {"creator_quota_bytes": 2**19},
        {"creator_quota_batches": 0},
        {"execution_window": 0},
        {"execution_window": 513, "state_history": 600},
        {"execution_window": 65},
        {"nonce_window": 0},
        {"nonce_window": 12},
        {"nonce_window": 2048},
        {"timeout_cap_ms": 799},
        {"drift_ms": 0},
        {"heartbeat_ms": 0},
        {"heartbeat_ms": 49},
        {"max_validity_ms": 5500},
        {"kernel_version": 0},
        {"rules_version": 2},
        {"aggregation_base_ms": 0},
        {"job_parameters": 0},
        {"job_parameters": 2**31},
    ],
    ids=str,
)
def test_inconsistent_parameters_are_refused_by_name(changed: dict[str, int]) -> None:
    with pytest.raises(GenesisError) as refused:
        check_params(Params(**changed), 4)
    assert any(name in str(refused.value) for name in changed)
    assert str(refused.value).endswith(".")


def test_a_set_of_no_or_too_many_validators_is_refused() -> None:
    for n in (0, MAX_VALIDATORS + 1):
        with pytest.raises(GenesisError, match="validators"):
            check_params(Params(), n)


def test_a_claim_needs_all_three_keys() -> None:
    keys = [consensus_key(0), key("link/0"), key("operator/0")]
    good = sign_claim(validator(0), keys[0], keys[1], keys[2])
    assert verify_claim(good)
    assert not verify_claim(replace(good, by_consensus_key=bytes(64)))
    assert not verify_claim(replace(good, by_link_key=good.by_consensus_key))
    assert not verify_claim(replace(good, by_operator_key=bytes(64)))
    assert not verify_claim(replace(good, validator=replace(validator(0), rpc="")))
