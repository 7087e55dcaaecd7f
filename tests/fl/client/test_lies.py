"""A node that lies: the client goes on with the others and says who lied how; when all lie, it believes none of them.

Each lie is told by real servers (`chainlet`), and each is a row of one table: what the node does, what a client asks,
what the lie is called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from chain.certificate import Certificate
from chain.codec import decode, encode
from chain.light import HandOver
from fl.client.errors import QuorateError, Unreachable, Unverified
from fl.client.reader import STALE_BLOCKS
from fl.client.sync import Network, connect
from fl.members import RegisterMember
from fl.records import Receipt
from fl.state import RECEIPTS, job_key, round_key
from tests.fl.builders import make_rules, signing_key
from tests.fl.client.chainlet import NODES, Chainlet, Face, Running

AGES = 2 * STALE_BLOCKS
STANDS = 2
"""The height at which a stale node stands still."""
LOSS = {"loss": 1.0}


@dataclass(frozen=True)
class Asked:
    """What the client does, with a job that has an open round."""

    network: Network
    chain: Chainlet
    job: bytes

    def head(self) -> None:
        for _ in range(2):
            assert self.network.head() == self.chain.height

    def status(self) -> None:
        assert self.network.job("digits").status().round == 2

    def round(self) -> None:
        found = self.network.job("digits").round(2)
        assert found is not None and found.number == 2

    def model(self) -> None:
        cid, blob = self.network.job("digits").model_bytes(1)
        assert cid.startswith("baf") and len(blob) > 0

    def send(self) -> None:
        receipt = self.network.send(RegisterMember("eve", signing_key("eve").public, ("trainer",)))
        assert receipt.accepted and receipt.tx == self.chain.ledger.receipts[-1].tx_id.hex()


@dataclass(frozen=True)
class Lie:
    told: Callable[[Chainlet, Face], None]
    ask: Callable[[Asked], None]
    name: str
    """What the client calls it."""
    error: type[QuorateError] = Unverified
    code: str = "NOT_PROVEN"
    """When all nodes tell it."""
    after: Callable[[Chainlet], None] = lambda chain: None
    """What the chain does before, while the client does not look."""
    key: str | None = "trainer-000"


def stale(chain: Chainlet, face: Face) -> None:
    face.frozen_at = STANDS


def withheld(chain: Chainlet, face: Face) -> None:
    """Its head is that of the others; its states are from before the round."""
    face.tells_state = lambda bundle: chain.state_bundle(bundle.key, STANDS)


def wrong_bytes(chain: Chainlet, face: Face) -> None:
    face.door.wrong_leaves = True


def forged_value(chain: Chainlet, face: Face) -> None:
    face.tells_state = lambda bundle: replace(bundle, value=b"\x90")


def forged_absence(chain: Chainlet, face: Face) -> None:
    """It says that there is no such round."""
    face.tells_state = lambda bundle: replace(bundle, value=None)


def other_key(chain: Chainlet, face: Face) -> None:
    face.tells_state = lambda bundle: chain.state_bundle(RECEIPTS, chain.height)


def below_quorum(certificate: Certificate) -> Certificate:
    return replace(certificate, signers=b"\x03", signatures=certificate.signatures[:2])


def forged_certificate(chain: Chainlet, face: Face) -> None:
    face.tells_state = lambda bundle: replace(bundle, certificate=below_quorum(bundle.certificate))


def forged_head(chain: Chainlet, face: Face) -> None:
    face.tells_head = lambda certificate: replace(certificate, subject=certificate.subject[:-1] + b"!")


def unsigned_head(chain: Chainlet, face: Face) -> None:
    face.tells_head = below_quorum


def other_receipt(chain: Chainlet, face: Face) -> None:
    """A true one, of an earlier transaction."""
    face.tells_receipt = lambda bundle: chain.entry_bundle(RECEIPTS, 0, chain.height)


def better_receipt(chain: Chainlet, face: Face) -> None:
    def better(data: bytes) -> bytes:
        return encode(replace(decode(Receipt, data, len(data)), weight=1_000_000))

    face.tells_receipt = lambda bundle: replace(bundle, receipt=better(bundle.receipt))


def other_genesis(chain: Chainlet, face: Face) -> None:
    face.tells_genesis = lambda genesis: replace(genesis, name="forged")


def usurped(hand_overs: list[HandOver]) -> list[HandOver]:
    """The next validators are others than the ones in office named."""
    first, *rest = hand_overs
    members = first.validators.members
    return [replace(first, validators=replace(first.validators, members=members[::-1])), *rest]


def wrong_hand_over(chain: Chainlet, face: Face) -> None:
    face.tells_hand_overs = usurped


def no_hand_over(chain: Chainlet, face: Face) -> None:
    face.tells_hand_overs = lambda hand_overs: hand_overs[1:]


def hand_over(chain: Chainlet) -> None:
    chain.hand_over()
    chain.hand_over()


STALE: dict[str, Any] = {"error": Unreachable}
LIES: dict[str, Lie] = {
    "a stale head": Lie(stale, Asked.head, "stale head", code="TOO_FEW_NODES", **STALE),
    "a stale state": Lie(stale, Asked.status, "stale ", code="TOO_FEW_NODES", **STALE),
    "a withheld round": Lie(withheld, Asked.round, "stale state", code="NO_ANSWER", **STALE),
    "a round that is said not to exist": Lie(forged_absence, Asked.round, "forged proof"),
    "wrong model bytes": Lie(wrong_bytes, Asked.model, "do not lead to the CID", code="WRONG_BYTES"),
    "a forged state": Lie(forged_value, Asked.status, "forged proof"),
    "a state of another key": Lie(other_key, Asked.status, "wrong proof"),
    "a state without a quorum": Lie(forged_certificate, Asked.status, "forged certificate"),
    "a forged head": Lie(forged_head, Asked.head, "forged head"),
    "a head without a quorum": Lie(unsigned_head, Asked.head, "a quorum is 3"),
    "a receipt of another transaction": Lie(other_receipt, Asked.send, "wrong receipt", key="registrar"),
    "a receipt that was changed": Lie(better_receipt, Asked.send, "forged proof", key="registrar"),
    "a genesis of another chain": Lie(other_genesis, Asked.status, "wrong genesis"),
    "a wrong hand-over": Lie(wrong_hand_over, Asked.head, "wrong hand-over", after=hand_over),
    "a missing hand-over": Lie(no_hand_over, Asked.head, "missing hand-over", after=hand_over),
}


def prepared(chain: Running) -> bytes:
    """A job whose first round has made a model, and whose second one opened after the height at which stale nodes stand
    still."""
    job = chain.create(make_rules(target=1, minimum=1, maximum=1))
    with connect(**chain.settings("trainer-001", home="other")) as network:
        network.job("digits").join()
        task = next(network.job("digits").tasks())
        task.submit(delta={name: np.ones_like(each) for name, each in task.model.items()}, examples=1, metrics=LOSS)
    assert chain.chain.height > STANDS
    return job


def told(chain: Running, lie: Lie, liars: list[Face]) -> Callable[[], None]:
    """What is to be asked, once they lie. Whoever asks has been on the chain before, unless it is its genesis that is
    lied about."""
    identity = prepared(chain)
    for _ in range(AGES):
        chain.do(chain.chain.block)
    settings = chain.settings(lie.key)
    if lie.told is not other_genesis:
        with connect(**settings) as network:
            network.head()
    chain.do(lie.after, chain.chain)
    for face in liars:
        lie.told(chain.chain, face)

    def ask() -> None:
        with connect(**settings) as network:
            lie.ask(Asked(network, chain.chain, identity))

    return ask


def first_asked(chain: Running, lie: Lie) -> Face:
    assert lie.key is not None
    account = chain.chain.ledger.actor(lie.key).account
    return chain.faces[int.from_bytes(account[:4], "big") % NODES]


@pytest.mark.parametrize("name", LIES)
def test_one_liar_of_four_is_passed_over_and_named(chain: Running, name: str, caplog: pytest.LogCaptureFixture) -> None:
    lie = LIES[name]
    liar = first_asked(chain, lie)
    ask = told(chain, lie, [liar])
    with caplog.at_level(logging.WARNING, "quorate.client"):
        ask()
    warnings = [record.getMessage() for record in caplog.records]
    named = [each for each in warnings if liar.name in each]
    assert any(lie.name in each for each in named), warnings
    others = [face.name for face in chain.faces if face is not liar]
    assert not any(other in each for other in others for each in warnings), "nobody else is blamed"


@pytest.mark.parametrize("name", LIES)
def test_when_all_lie_nothing_is_believed_and_the_error_says_who_lied_how(chain: Running, name: str) -> None:
    lie = LIES[name]
    ask = told(chain, lie, chain.faces)
    with pytest.raises(lie.error) as caught:
        ask()
    error = caught.value
    assert error.code == lie.code and error.todo
    assert lie.name in error.what or lie.code == "WRONG_BYTES"
    wanted = 3 if lie.error is Unverified and lie.ask is Asked.head else NODES
    assert sum(face.name in error.what for face in chain.faces) >= wanted, error.what


def test_a_liar_is_named_once_for_each_lie(chain: Running, caplog: pytest.LogCaptureFixture) -> None:
    lie = LIES["a forged state"]
    liar = first_asked(chain, lie)
    told(chain, lie, [liar])
    with caplog.at_level(logging.WARNING, "quorate.client"), connect(**chain.settings(lie.key)) as network:
        nodes = network._network.nodes
        (lying,) = [node for node in nodes.in_order() if node.name == liar.name]
        for _ in range(3):
            lying.answered()
            nodes.prefer(lying)
            asked = liar.asked
            network.state(job_key(bytes(32)))
            assert liar.asked > asked
    assert len([record for record in caplog.records if liar.name in record.getMessage()]) == 1


def test_a_node_a_few_blocks_behind_is_not_called_a_liar(chain: Running, caplog: pytest.LogCaptureFixture) -> None:
    identity = prepared(chain)
    lie = LIES["a stale state"]
    first_asked(chain, lie).frozen_at = chain.chain.height
    chain.do(chain.chain.block)
    with caplog.at_level(logging.WARNING, "quorate.client"), connect(**chain.settings(lie.key)) as network:
        assert network.state(round_key(identity, 2)).height == chain.chain.height
    assert not caplog.records
