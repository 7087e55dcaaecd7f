"""Stock flower-supernodes of 1.41, each behind a gateway of its member, train an unmodified app on four validators."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from sklearn.datasets import load_digits

from benchmarks.flower_sites import Site
from cli.localnets import LocalNetwork, Plan
from fl.client.flowergate.fab import build
from fl.client.keyfile import load_key
from fl.client.sync import connect
from fl.records import JobStatus
from tests.flower.versions import ROOT, python_of
from tests.node.networks import local_network

EXAMPLE, LISTS = ROOT / "examples" / "flower", ROOT / "tests" / "flower" / "apps" / "lists"
ROUNDS = 3
PATIENCE_S = 240.0


def accuracy(weights: np.ndarray, bias: np.ndarray) -> float:
    pixels, labels = load_digits(return_X_y=True)
    return float(((pixels / 16 @ weights.T + bias).argmax(axis=1) == labels).mean())


def create(net: LocalNetwork, home: Path, name: str, app: Path, model: Mapping[str, Any], **rules: Any) -> None:
    bundle = build(app)
    with connect(net.network_file, net.key_file("creator"), home=home) as network:
        network.create_job(
            name,
            model,
            rounds=ROUNDS,
            privacy="visible-to-validators",
            app=f"flower:{bundle.client}",
            app_digest=bundle.digest,
            **rules,
        )


def ended_well(*gateways: subprocess.Popen[bytes]) -> None:
    for gateway in gateways:
        assert gateway.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_two_members_with_stock_supernodes_finish_three_rounds_of_an_unmodified_app(tmp_path: Path) -> None:
    python_of("1.41")
    model = {"coef": np.zeros((10, 64), np.float32), "intercept": np.zeros(10, np.float32)}
    with local_network(Plan(4, trainers=2)) as net, Site(tmp_path, "a") as a, Site(tmp_path, "b") as b:
        create(net, tmp_path / "home", "digits", EXAMPLE, model, target=2, config={"lr": 0.03}, metrics=["train_loss"])
        gateways = [
            site.start_gateway(net, f"trainer-{number}", "digits", EXAMPLE, "--run-config", "local-epochs=2")
            for number, site in enumerate((a, b))
        ]
        for number, site in enumerate((a, b)):
            site.start_supernode(f"partition-id={number} num-partitions=2")
        ended_well(*gateways)
        with connect(net.network_file, home=tmp_path / "reader") as network:
            job = network.job("digits")
            assert job.status().status == JobStatus.FINISHED
            assert [report.updates for report in job.reports()] == [2] * ROUNDS
            losses = [report.metrics["train_loss"] for report in job.reports()]
            assert losses == sorted(losses, reverse=True)
            assert accuracy(*job.model(0).values()) < 0.2 and accuracy(*job.model().values()) > 0.85
            accounts = [load_key(net.key_file(f"trainer-{number}")) for number in (0, 1)]
        for site, key in zip((a, b), accounts, strict=True):
            with connect(net.network_file, key, home=site.directory / "home") as network:
                kinds = [each.status for each in network.receipts()]
                assert kinds == ["ok"] * (1 + ROUNDS), "joined once, and an update a round, all by this account"
            assert "Traceback" not in site.log() + site.log("supernode")


@pytest.mark.slow
def test_a_supernode_killed_in_a_round_comes_back_by_its_key_over_tls_and_the_round_goes_on(tmp_path: Path) -> None:
    python_of("1.41")
    identity(tmp_path)
    model = {
        "0": np.zeros((10, 64), np.float32),
        "1": np.zeros(10, np.float32),
        "2": np.array(0, np.int64),
        "3": np.arange(10),
    }
    tls = ("--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "cert.key")
    known = ("--root-certificates", tmp_path / "cert.pem", "--auth-supernode-private-key", tmp_path / "node.key")
    with (
        local_network(Plan(1, trainers=1, evaluators=1)) as net,
        Site(tmp_path, "a") as site,
        Site(tmp_path, "b") as measuring,
    ):
        create(
            *(net, tmp_path / "home", "lists", LISTS, model),
            target=1,
            config={"lr": 0.5, "epochs": 3, "optimizer": "sgd"},
            metrics=["batches"],
            local=["2"],
            frozen=["3"],
            evaluation={"every": 1, "metrics": ["accuracy"], "deadline_s": 120.0, "before_next": True},
        )
        gateway = site.start_gateway(net, "trainer-0", "lists", LISTS, *tls, "--supernode-key", tmp_path / "node.pub")
        other = measuring.start_gateway(net, "evaluator-0", "lists", LISTS)
        site.start_supernode("partition-id=0 num-partitions=1", *known)
        measuring.start_supernode("partition-id=0 num-partitions=2")
        site.wait_for("round 2 given to")
        site.kill_supernode()
        site.start_supernode("partition-id=0 num-partitions=1", *known)
        ended_well(gateway, other)
        assert "round 2 is taken back" in site.log() and "Traceback" not in site.log()
        with connect(net.network_file, home=tmp_path / "reader") as network:
            job = network.job("lists")
            assert [report.updates for report in job.reports()] == [1] * ROUNDS
            assert [report.metrics["batches"] for report in job.reports()] == [0.0, 1.0, 2.0]
            measured = [report.evaluation["accuracy"] for report in job.reports()]
            assert measured[-1] > 0.85
            found = job.model()
            assert accuracy(found["0"], found["1"]) > 0.85 and np.array_equal(found["3"], np.arange(10))


def identity(directory: Path) -> None:
    """A certificate for this machine, and a SuperNode's key as ssh-keygen makes it."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    (directory / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    plain = NoEncryption()
    (directory / "cert.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, plain))
    own = ec.generate_private_key(ec.SECP384R1())
    (directory / "node.key").write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, plain))
    (directory / "node.pub").write_bytes(own.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
