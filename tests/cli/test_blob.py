"""`quorate blob` and `quorate dataset` against a small chain that serves blobs."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chain.cid import cid_text
from chain.unixfs import LEAF_BYTES, cid_of
from fl.blobs import BlobKind
from fl.client.keyfile import save_key
from tests.cli.run import done, quorate
from tests.cli.test_output import on_a_terminal
from tests.fl.builders import signing_key
from tests.fl.client.chainlet import Running, running

DATA = np.random.default_rng(3).bytes(2 * LEAF_BYTES + 77)
CID = cid_text(cid_of(DATA))


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as started:
        yield started


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    return path


def options(chain: Running, name: str | None = "trainer-000") -> list[object]:
    given: list[object] = ["--network", chain.network_file(), "--home", chain.directory / "home", "--patience", "2"]
    if name is not None:
        key = chain.directory / f"{name}.key"
        if not key.exists():
            save_key(key, signing_key(name), None)
        given += ["--key", key]
    return given


# Offline


def test_a_cid_is_printed_offline(file: Path) -> None:
    assert done("blob", "cid", file).out == f"{CID}\n"
    assert done("blob", "cid", file, "--json").data == {"cid": CID, "size_bytes": len(DATA)}


def test_a_cid_of_standard_input_is_that_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(DATA)))
    assert done("blob", "cid", "-").out == f"{CID}\n"


def test_a_file_is_verified_offline_and_the_exit_code_says_it(file: Path) -> None:
    assert CID in done("blob", "verify", file, CID).out
    file.write_bytes(DATA[:-1] + b"!")
    ran = quorate("blob", "verify", file, CID, "--json")
    assert (ran.code, ran.data["code"]) == (6, "WRONG_BYTES")
    ran = quorate("blob", "verify", file, "nonsense", "--json")
    assert (ran.code, ran.data["code"]) == (2, "BAD_CID")


def test_a_file_that_is_not_there_is_exit_code_2(tmp_path: Path) -> None:
    assert quorate("blob", "cid", tmp_path / "none").code == 2


# With nodes


def test_what_is_put_is_seen_listed_and_got_again(chain: Running, file: Path, tmp_path: Path) -> None:
    put = done("blob", "put", file, *options(chain), "--json").data
    assert (put["cid"], put["size_bytes"], put["kind"]) == (CID, len(DATA), "dataset")
    assert put["lease_until_ms"] > 0
    seen = done("blob", "stat", CID, *options(chain), "--json").data
    assert [each["node"] for each in seen if each["held"]] == [put["node"]]
    assert CID in [each["cid"] for each in done("blob", "ls", *options(chain), "--json").data]
    listed = done("blob", "ls", *options(chain)).out.splitlines()
    assert listed == ["CID\tKIND\tBYTES\tNODE", f"{CID}\tdataset\t{len(DATA)}\t{put['node']}"]
    got = done("blob", "get", CID, "-o", tmp_path / "back", *options(chain, None), "--json").data
    assert got["lied"] == [] and (tmp_path / "back").read_bytes() == DATA


def test_a_model_is_put_as_one_and_an_unknown_kind_is_not(chain: Running, file: Path) -> None:
    assert done("blob", "put", file, "--kind", "model", *options(chain), "--json").data["kind"] == "model"
    assert quorate("blob", "put", file, "--kind", "record", *options(chain)).code == 2


def test_a_put_without_a_key_and_one_by_a_stranger_are_refused(chain: Running, file: Path) -> None:
    ran = quorate("blob", "put", file, *options(chain, None), "--json")
    assert (ran.code, ran.data["code"]) == (2, "NO_KEY")
    ran = quorate("blob", "put", file, *options(chain, "stranger"), "--json")
    assert (ran.code, ran.data["code"]) == (4, "NO_LEAVE")


def test_nodes_that_lie_are_named_and_when_all_do_it_is_exit_code_6(chain: Running, tmp_path: Path) -> None:
    chain.do(chain.chain.spread, DATA, BlobKind.DATASET)
    chain.faces[2].door.wrong_leaves = True
    got = done("blob", "get", CID, "-o", tmp_path / "back", *options(chain, None), "--json").data
    assert got["lied"] in ([chain.faces[2].name], [])
    for face in chain.faces:
        face.door.wrong_leaves = True
    ran = quorate("blob", "get", CID, "-o", tmp_path / "none", *options(chain, None), "--json")
    assert (ran.code, ran.data["code"]) == (6, "WRONG_BYTES")
    assert not (tmp_path / "none").exists()


def test_a_blob_that_nobody_has_is_exit_code_3(chain: Running, tmp_path: Path) -> None:
    ran = quorate("blob", "get", CID, "-o", tmp_path / "none", *options(chain, None), "--json")
    assert (ran.code, ran.data["code"]) == (3, "UNKNOWN_BLOB")


def test_an_update_of_another_member_is_told_from_one_that_is_nowhere(chain: Running, tmp_path: Path) -> None:
    chain.do(chain.chain.spread, DATA, BlobKind.UPDATE)
    ran = quorate("blob", "get", CID, "-o", tmp_path / "none", *options(chain), "--json")
    assert (ran.code, ran.data["code"]) == (4, "BLOB_NOT_YOURS")
    assert all(face.name in ran.data["message"] for face in chain.faces)


def test_a_transfer_that_is_interrupted_says_that_it_can_be_taken_up(
    chain: Running, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fl.client.transfer.upload.Upload.to_any", interrupt)
    ran = quorate("blob", "put", file, *options(chain))
    assert (ran.code, ran.out) == (130, "")
    assert "goes on where this one was" in ran.err


def test_progress_and_remarks_stay_out_of_pipes(chain: Running, file: Path) -> None:
    ran = done("blob", "put", file, *options(chain))
    assert ran.err == "" and ran.out.splitlines()[0] == f"cid\t{CID}"


def test_a_bar_is_drawn_on_a_terminal(file: Path) -> None:
    shown = on_a_terminal("blob", "cid", file)
    assert "Hashing" in shown and CID in shown


# Data sets


def test_a_data_set_is_registered_stored_and_withdrawn(chain: Running, file: Path) -> None:
    made = done("dataset", "register", "digits", "--file", file, "--stored", *options(chain), "--json").data
    assert (made["cid"], made["size_bytes"], made["stored"]) == (CID, len(DATA), True)
    assert all(cid_of(DATA) in face.door.whole for face in chain.faces)
    shown = done("dataset", "show", "digits", *options(chain), "--json").data
    assert (shown["id"], shown["cid"], shown["withdrawn_height"]) == (made["id"], CID, None)
    assert quorate("dataset", "register", "digits", *options(chain), "--json").data["code"] == "NAME_TAKEN"
    done("dataset", "withdraw", "digits", *options(chain))
    assert done("dataset", "show", made["id"], *options(chain), "--json").data["withdrawn_height"] > 0


def test_a_data_set_may_stay_where_it_is(chain: Running, file: Path) -> None:
    made = done("dataset", "register", "named", "--file", file, *options(chain), "--json").data
    assert (made["cid"], made["size_bytes"], made["stored"]) == (CID, len(DATA), False)
    assert not any(cid_of(DATA) in face.door.whole for face in chain.faces)
    made = done("dataset", "register", "secret", "--size", "12", "--licence", "none", *options(chain), "--json").data
    assert (made["cid"], made["size_bytes"]) == (None, 12)


def test_a_blob_that_a_node_has_becomes_a_data_set_by_its_name(chain: Running, file: Path) -> None:
    done("blob", "put", file, *options(chain))
    made = done("dataset", "register", "put", "--cid", CID, "--stored", *options(chain), "--json").data
    assert made["size_bytes"] == len(DATA)
    ran = quorate("dataset", "register", "nothing", "--stored", *options(chain), "--json")
    assert (ran.code, ran.data["code"]) == (2, "NOTHING_TO_STORE")


def test_a_data_set_of_another_is_found_by_its_owner(chain: Running) -> None:
    made = done("dataset", "register", "theirs", *options(chain, "trainer-001"), "--json").data
    owner = done("dataset", "show", made["id"], *options(chain, None), "--json").data["owner"]
    shown = done("dataset", "show", "theirs", "--owner", owner, *options(chain, None), "--json").data
    assert shown["id"] == made["id"]
    for given, code in (((), "NO_OWNER"), (("--owner", "trainer-001"), "BAD_ACCOUNT")):
        ran = quorate("dataset", "show", "theirs", *given, *options(chain, None), "--json")
        assert (ran.code, ran.data["code"]) == (2, code)


def test_in_a_pipe_a_list_of_data_sets_has_what_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"name": "digits", "size_bytes": 5, "cid": CID, "stored": True, "owner": "aa" * 32, "id": "bb" * 32}
    entries = [entry | {"withdrawn_height": None}, entry | {"withdrawn_height": 7}]
    monkeypatch.setattr("cli.client.Client.pages", lambda *_: entries)
    head, *rows = done("dataset", "list").out.splitlines()
    assert head == "NAME\tBYTES\tSTATE\tCID\tOWNER\tID"
    assert [row.split("\t")[2] for row in rows] == ["stored", "withdrawn"]
    assert rows[0].endswith(f"{CID}\t{'aa' * 32}\t{'bb' * 32}")
