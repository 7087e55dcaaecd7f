"""Blobs of real processes: put, spread, damaged, mended; and a job whose updates no transaction carries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chain.cid import cid_text
from chain.unixfs import LEAF_BYTES, cid_of
from cli.localnets import LocalNetwork
from tests.cli.run import done, quorate
from tests.node.load import until

pytestmark = pytest.mark.slow

DATA = np.random.default_rng(12).bytes(3 * LEAF_BYTES + 5)
CID = cid_text(cid_of(DATA))
SHAPE = (300, 1000)

JOB = """
name = "large"
rounds = 2
target = 1
privacy = "visible-to-validators"
encoding = "f32"
[model]
file = "model.npz"
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("blobs") / "net"
    done("localnet", "init", place, "--trainers", 1)
    try:
        done("localnet", "up", place)
        yield place
    finally:
        network = LocalNetwork.open(place)
        for name in network.members:
            network.kill(name)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_HOME", str(tmp_path / "home"))


def as_account(net: Path, name: str) -> tuple[object, ...]:
    return ("--network", net / "consortium.toml", "--key", net / "keys" / f"{name}.key")


def test_a_stored_data_set_is_at_every_validator_and_what_a_disk_damages_is_mended(net: Path, tmp_path: Path) -> None:
    trainer, file = as_account(net, "trainer-0"), tmp_path / "data.bin"
    file.write_bytes(DATA)
    assert done("blob", "put", file, *trainer, "--json").data["cid"] == CID
    made = done("dataset", "register", "data", "--cid", CID, "--stored", *trainer, "--json").data
    assert (made["cid"], made["size_bytes"]) == (CID, len(DATA))

    def everywhere() -> bool:
        seen = done("blob", "stat", CID, *trainer, "--json").data
        return [each["held"] for each in seen] == [True] * 4

    until("every validator has it", everywhere)
    (stored,) = (net / "v1" / "data").rglob(CID)
    with open(stored, "r+b") as opened:
        opened.seek(2 * LEAF_BYTES + 9)
        opened.write(b"damage")
    assert quorate("blob", "verify", stored, CID).code == 6
    mended = done("blob", "verify", "--repair", "--config", net / "v1" / "node.toml", "--json").data
    assert mended["repaired"] == [{"cid": CID, "leaves": [2]}]
    named = done("blob", "verify", "--repair", CID, "--config", net / "v1" / "node.toml", "--json").data
    assert named == {"read": 1, "repaired": []}
    (stored,) = (net / "v1" / "data").rglob(CID)
    assert done("blob", "verify", stored, CID).code == 0
    done("blob", "get", CID, "-o", tmp_path / "back", "--network", net / "consortium.toml")
    assert (tmp_path / "back").read_bytes() == DATA
    done("dataset", "withdraw", "data", *trainer)

    file.write_bytes(b"here alone")
    put = done("blob", "put", file, *trainer, "--json").data
    (stored,) = (net / put["node"] / "data").rglob(put["cid"])
    stored.write_bytes(b"here  gone")
    config = net / put["node"] / "node.toml"
    ran = quorate("blob", "verify", "--repair", "--timeout", "1", "--config", config, "--json")
    assert (ran.code, ran.data["code"]) == (5, "NOT_REPAIRED") and put["cid"] in ran.data["message"]
    assert done("blob", "put", file, *trainer, "--json").data["node"] == put["node"]
    assert done("blob", "verify", "--repair", put["cid"], "--config", config, "--json").data["repaired"] == []
    (listed,) = done("dataset", "list", *trainer, "--json").data
    assert (listed["id"], listed["cid"], listed["withdrawn_height"] > 0) == (made["id"], CID, True)


def test_a_job_of_large_updates_from_files(net: Path, tmp_path: Path) -> None:
    start = np.random.default_rng(4).random(SHAPE).astype(np.float32)
    np.savez(tmp_path / "model.npz", w=start)
    (tmp_path / "job.toml").write_text(JOB)
    done("job", "create", tmp_path / "job.toml", *as_account(net, "creator"))
    trainer = as_account(net, "trainer-0")
    done("job", "join", "large", *trainer)
    np.savez(tmp_path / "delta.npz", w=np.full(SHAPE, 0.5, np.float32))
    for _ in range(2):
        done("submit", "large", "--file", tmp_path / "delta.npz", "--delta", "--examples", 1, *trainer)
    until("its rounds are over", lambda: len(_models(net)) == 2)
    got = done("model", "get", "large", "-o", tmp_path / "m.safetensors", *trainer, "--json").data
    assert got["cid"] == _models(net)[-1]["model"]
    assert done("blob", "cid", tmp_path / "m.safetensors").out == f"{got['cid']}\n"
    done("model", "get", "large", "-o", tmp_path / "m.npz", *trainer)
    with np.load(tmp_path / "m.npz") as arrays:
        assert np.allclose(arrays["w"], start + 1.0)


def _models(net: Path) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = done(
        "model", "list", "large", "--network", net / "consortium.toml", "--json"
    ).data
    return [each for each in listed if each["state"] == "closed"]
