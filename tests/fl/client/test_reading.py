from __future__ import annotations

from dataclasses import replace

import pytest

from chain.light import Checkpoint
from fl.client.errors import RefusedByChain, Unreachable, Unverified
from fl.client.network import connect_async
from fl.client.networkfile import NetworkFile
from fl.client.sync import connect
from fl.jobrules import rules_hash
from fl.state import job_key
from tests.fl.builders import make_rules
from tests.fl.client.chainlet import NODES, Running


def test_a_job_is_found_by_name_and_by_id_and_is_proven(chain: Running) -> None:
    identity = chain.create(make_rules())
    with connect(**chain.settings(None)) as network:
        for text in ("digits", identity.hex()):
            job = network.job(text)
            assert job.id == identity.hex()
            assert job.rules_hash == rules_hash(make_rules()).hex()
            assert job.status().round == 0
        assert network.head() == chain.chain.height
        assert network.state(b"no such row").value is None


def test_an_unknown_job_is_refused_by_its_code(chain: Running) -> None:
    with connect(**chain.settings(None)) as network:
        for text in ("nothing", "00" * 32):
            with pytest.raises(RefusedByChain) as caught:
                network.job(text)
            assert caught.value.code == "UNKNOWN_JOB"


@pytest.mark.parametrize("liars", [1, NODES - 1])
def test_nodes_that_forge_are_passed_over(chain: Running, liars: int) -> None:
    chain.create(make_rules())
    for face in chain.faces[:liars]:
        face.forges = face.door.wrong_leaves = True
    with connect(**chain.settings(None)) as network:
        job = network.job("digits")
        cid, blob = job.model_bytes()
        assert len(blob) > 0 and cid.startswith("baf")


def test_when_every_node_forges_nothing_is_believed(chain: Running) -> None:
    chain.create(make_rules())
    with connect(**chain.settings(None)) as network:
        for face in chain.faces:
            face.forges = True
        with pytest.raises(Unverified) as caught:
            network.job("digits")
        assert caught.value.code == "NOT_PROVEN"


def test_a_node_that_stands_still_is_passed_over(chain: Running) -> None:
    identity = chain.create(make_rules())
    chain.do(chain.chain.block)
    for stale in range(NODES):
        chain.faces[stale].frozen_at = 1
        with connect(**chain.settings(None, home=f"home{stale}")) as network:
            assert network.state(job_key(identity)).height >= chain.chain.height
        chain.faces[stale].frozen_at = None


def test_a_state_older_than_one_that_was_proven_before_is_refused_even_after_a_restart(chain: Running) -> None:
    identity = chain.create(make_rules())
    with connect(**chain.settings()) as network:
        assert network.state(job_key(identity)).value is not None
    for face in chain.faces:
        face.frozen_at = 1
    with connect(**chain.settings()) as network, pytest.raises(Unreachable):
        network.state(job_key(identity))


def test_one_node_is_not_enough_to_know_what_is_current(chain: Running) -> None:
    with connect(**chain.settings(None)) as network:
        for face in chain.faces[1:]:
            face.down = True
        with pytest.raises(Unreachable) as caught:
            network.head()
        assert caught.value.code == "TOO_FEW_NODES"
        chain.faces[1].down = False
        assert network.head() == chain.chain.height


def test_the_network_file_of_another_chain_is_refused(chain: Running) -> None:
    genesis = chain.chain.genesis
    other = NetworkFile("other", Checkpoint(bytes(32), genesis.validator_set))
    settings = chain.settings(None)
    chain.network_file(other)
    with pytest.raises(Unverified):
        connect(**settings)


def test_a_network_file_with_other_validators_than_its_chain_is_refused(chain: Running) -> None:
    genesis = chain.chain.genesis
    members = tuple(replace(each, name=each.name + "x") for each in genesis.validators)
    other = NetworkFile("other", Checkpoint(genesis.chain_id, replace(genesis.validator_set, members=members)))
    settings = chain.settings(None)
    chain.network_file(other)
    with pytest.raises(Unverified) as caught:
        connect(**settings)
    assert caught.value.code == "WRONG_VALIDATORS"


async def test_two_certified_states_of_one_height_are_a_fork(chain: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await connect_async(**chain.settings(None)) as network:
        await network.head()
        height = chain.chain.height
        forged = chain.chain.certificate(height, root=bytes(32))
        monkeypatch.setattr(chain.chain, "certificate", lambda at: forged)
        with pytest.raises(Unverified) as caught:
            await network.head()
        assert caught.value.code == "FORK"


def test_validators_that_handed_over_are_followed_and_remembered(chain: Running) -> None:
    identity = chain.create(make_rules())
    for epoch in (1, 2):
        chain.do(chain.chain.hand_over)
        with connect(**chain.settings()) as network:
            assert network.state(job_key(identity)).value is not None
            assert network.checkpoint.validators.epoch == epoch
    chain.chain.hand_overs = []
    with connect(**chain.settings()) as network:
        assert network.head() == chain.chain.height


def test_a_hand_over_in_mid_session_is_followed(chain: Running) -> None:
    identity = chain.create(make_rules())
    with connect(**chain.settings()) as network:
        network.state(job_key(identity))
        chain.do(chain.chain.hand_over)
        assert network.state(job_key(identity)).height == chain.chain.height
