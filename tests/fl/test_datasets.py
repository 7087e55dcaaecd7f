"""Data sets: who registers and withdraws them, and which bytes are demanded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.cid import LEAF_BYTES, raw_cid
from chain.codec import CodecError, encode
from chain.genesis import Params
from chain.unixfs import MAX_FILE_BYTES, cid_of
from fl.blobs import BlobClaim, BlobKind, Demand, check_blob, check_part
from fl.datasets import RegisterDataset, WithdrawDataset, dataset_id
from fl.errors import Refused
from fl.members import RegisterMember, RevokeMember
from fl.records import Dataset
from fl.state import dataset_key, read_record
from tests.fl.builders import Ledger, ledger, signing_key

SCANS = RegisterDataset("scans", cid_of(b"scans"), 5, True, "png, label", "research only", "CC-BY-4.0")


def registered(chain: Ledger, who: str = "trainer-000", body: RegisterDataset = SCANS) -> bytes:
    data = chain.actor(who).sign(body, nonce=chain.height)
    checked = chain.check(data)
    assert chain.status_of(data) == "ok"
    return dataset_id(checked.reading.id)


def entry(chain: Ledger, dataset: bytes) -> Dataset:
    found = read_record(chain.state.get, Dataset, dataset_key(dataset))
    assert found is not None
    return found


def status(chain: Ledger, who: str, body: object) -> str | None:
    data = chain.actor(who).sign(body, nonce=chain.height)
    chain.check(data)
    return chain.status_of(data)


def refusal(chain: Ledger, body: RegisterDataset) -> str:
    with pytest.raises(Refused) as refused:
        chain.check(chain.actor("trainer-000").sign(body))
    return refused.value.code


def test_a_stored_data_set_is_demanded_as_a_blob_of_any_bytes() -> None:
    chain = ledger()
    trainer = chain.actor("trainer-000")
    demand = chain.check(trainer.sign(SCANS)).demand
    assert demand == Demand(BlobClaim(SCANS.cid, 5, BlobKind.DATASET, trainer.account, b"", 0, 0), None)
    check_blob(demand, b"scans")
    check_part(demand, 0, b"\xff\xff\xff\xff\xff")
    for wrong in (b"scan", b"scans!"):
        with pytest.raises(Refused, match="BAD_DATASET"):
            check_blob(demand, wrong)


def test_what_stays_with_its_owner_or_elsewhere_is_not_demanded() -> None:
    chain = ledger()
    trainer = chain.actor("trainer-000")
    assert chain.check(trainer.sign(replace(SCANS, stored=False))).demand is None
    assert chain.check(trainer.sign(replace(SCANS, cid=b"", stored=False))).demand is None
    # A file of another's cutting: raw, though larger than a leaf.
    assert chain.check(trainer.sign(replace(SCANS, size_bytes=2 * LEAF_BYTES, stored=False))).demand is None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": "my scans"}, "BAD_NAME"),
        ({"cid": b""}, "BAD_DATASET"),
        ({"cid": bytes(36)}, "BAD_CID"),
        ({"cid": raw_cid(b"")[:35]}, "BAD_CID"),
        ({"cid": bytes(36), "stored": False}, "BAD_CID"),
        ({"size_bytes": LEAF_BYTES + 1}, "BAD_CID"),
        ({"cid": cid_of(bytes(LEAF_BYTES + 1))}, "BAD_CID"),
        ({"size_bytes": MAX_FILE_BYTES + 1}, "OVERSIZE"),
    ],
)
def test_an_entry_out_of_its_limits_is_refused_by_its_bytes(change: dict[str, object], code: str) -> None:
    assert refusal(ledger(), replace(SCANS, **change)) == code  # type: ignore[arg-type]


def test_texts_are_bounded() -> None:
    encode(replace(SCANS, schema="x" * 4096, policy="x" * 4096, licence="x" * 64))
    for name in ("schema", "policy", "licence"):
        with pytest.raises(CodecError):
            encode(replace(SCANS, **{name: "x" * 4097}))  # type: ignore[arg-type]


def test_the_entry_says_what_its_owner_said_and_the_event_names_it() -> None:
    chain = ledger()
    dataset = registered(chain)
    assert entry(chain, dataset) == Dataset(
        owner=chain.actor("trainer-000").account,
        name="scans",
        cid=SCANS.cid,
        size_bytes=5,
        stored=True,
        schema="png, label",
        policy="research only",
        licence="CC-BY-4.0",
        height=1,
        withdrawn_height=0,
    )
    assert (chain.events[-1].kind, chain.events[-1].subject) == ("dataset_registered", dataset)


def test_any_member_in_good_standing_registers_and_nobody_else() -> None:
    chain = ledger()
    user = signing_key("user")
    assert status(chain, "stranger", SCANS) == "NOT_MEMBER"
    assert status(chain, "registrar", RegisterMember("user", user.public, ("user",))) == "ok"
    assert status(chain, "user", SCANS) == "ok"
    assert status(chain, "registrar", RevokeMember(chain.actor("user").account)) == "ok"
    assert status(chain, "user", replace(SCANS, name="more")) == "REVOKED"


def test_a_name_is_taken_once_an_owner_until_its_data_set_is_withdrawn() -> None:
    chain = ledger()
    first = registered(chain)
    assert status(chain, "trainer-000", SCANS) == "NAME_TAKEN"
    assert status(chain, "trainer-001", SCANS) == "ok"
    assert status(chain, "trainer-000", WithdrawDataset(first)) == "ok"
    second = registered(chain)
    assert second != first
    assert entry(chain, first).withdrawn_height and not entry(chain, second).withdrawn_height


def test_its_owner_or_a_registrar_withdraws_a_data_set_once() -> None:
    chain = ledger()
    dataset, other = registered(chain), registered(chain, "trainer-001")
    assert status(chain, "trainer-001", WithdrawDataset(dataset)) == "UNAUTHORISED"
    assert status(chain, "trainer-000", WithdrawDataset(dataset)) == "ok"
    assert (chain.events[-1].kind, chain.events[-1].subject) == ("dataset_withdrawn", dataset)
    assert status(chain, "registrar", WithdrawDataset(dataset)) == "WITHDRAWN"
    assert status(chain, "registrar", WithdrawDataset(other)) == "ok"
    assert status(chain, "registrar", WithdrawDataset(bytes(32))) == "UNKNOWN_DATASET"


def test_a_revoked_member_may_still_withdraw_what_is_its_own() -> None:
    chain = ledger()
    dataset = registered(chain)
    assert status(chain, "registrar", RevokeMember(chain.actor("trainer-000").account)) == "ok"
    assert status(chain, "trainer-000", WithdrawDataset(dataset)) == "ok"


def test_what_is_stored_for_one_member_is_bounded_until_it_withdraws() -> None:
    chain = ledger(params=replace(Params(), member_stored_bytes=12))
    first = registered(chain)
    registered(chain, body=replace(SCANS, name="more"))
    assert status(chain, "trainer-000", replace(SCANS, name="too-many")) == "STORED_LIMIT"
    registered(chain, body=replace(SCANS, name="elsewhere", stored=False, size_bytes=10**9))
    registered(chain, "trainer-001")
    assert status(chain, "trainer-000", WithdrawDataset(first)) == "ok"
    registered(chain, body=replace(SCANS, name="another"))
    assert status(chain, "trainer-000", replace(SCANS, name="too-many")) == "STORED_LIMIT"
