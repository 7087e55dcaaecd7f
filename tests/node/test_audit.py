"""Rounds of real validators, audited by the commands: verified, explained, and replayed without a member."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.localnets import LocalNetwork, Plan
from cli.output import Exit
from fl.client.keyfile import new_key
from fl.client.network import AsyncNetwork, connect_async
from fl.members import RegisterMember
from tests.cli.run import done, quorate
from tests.node.networks import local_network

LARGE = 700_000
"""Parameters: three leaves an update."""
SMALL = 500
ROUNDS = 2

JOBS: dict[str, tuple[int, dict[str, Any]]] = {
    "small": (SMALL, {"cap": 100}),
    "large": (LARGE, {"cap": 100, "encoding": "f32"}),
    "adaptive": (LARGE, {"cap": 100, "encoding": "q8", "rule": "fedadam", "settings": {"learning_rate": 0.01}}),
    "median": (SMALL, {"rule": "median", "encoding": "f32"}),
}


async def connected(network: LocalNetwork, account: str) -> AsyncNetwork:
    home = network.directory / "homes" / account
    return await connect_async(network.network_file, network.key_file(account), home=home)


async def train(network: LocalNetwork, account: str, place: int, name: str) -> None:
    parameters, _ = JOBS[name]
    member = await connected(network, account)
    job = await member.job(name)
    await job.join()
    async for task in job.tasks():
        change = np.random.default_rng([place, task.round]).normal(0, 0.01, parameters).astype(np.float32)
        await task.submit(delta={"w": change}, examples=10 + place)
    await member.close()


async def play(network: LocalNetwork, name: str) -> None:
    parameters, rules = JOBS[name]
    creator = await connected(network, "creator")
    model = {"w": np.linspace(-1, 1, parameters, dtype=np.float32)}
    await creator.create_job(
        name, model, rounds=ROUNDS, target=len(network.trainers), privacy="visible-to-validators", **rules
    )
    await creator.close()
    await asyncio.gather(*(train(network, each, place, name) for place, each in enumerate(network.trainers)))


async def register_auditor(network: LocalNetwork) -> None:
    key = new_key(network.directory / "keys" / "auditor.key", None)
    registrar = await connected(network, "registrar")
    await registrar.send(RegisterMember("auditor", key.public, ("auditor",)))
    await registrar.close()


@pytest.fixture(scope="module")
def played() -> Iterator[LocalNetwork]:
    """All jobs, played to their ends one after another."""

    async def story(network: LocalNetwork) -> None:
        await register_auditor(network)
        for name in JOBS:
            await play(network, name)

    with local_network(Plan(validators=4, trainers=3)) as network:
        asyncio.run(story(network))
        yield network


def options(network: LocalNetwork, account: str = "auditor") -> list[object]:
    home = network.directory / "homes" / f"{account}-of-commands"
    return ["--network", network.network_file, "--key", network.key_file(account), "--home", home]


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_rounds_of_real_validators_are_verified(played: LocalNetwork, name: str) -> None:
    for number in range(1, ROUNDS + 1):
        ran = quorate("verify", name, number, "--json", *options(played))
        assert ran.code == Exit.OK, ran.out
        assert {each["verdict"] for each in ran.data["steps"]} == {"ok"}


@pytest.mark.slow
def test_a_trainer_verifies_what_it_may_read(played: LocalNetwork) -> None:
    done("verify", "small", 1, *options(played, "trainer-0"))
    ran = quorate("verify", "large", 1, "--json", *options(played, "trainer-0"))
    assert ran.code == Exit.UNREACHABLE and ran.data["code"] == "INCOMPLETE"
    verdicts = {each["step"]: each["verdict"] for each in ran.data["steps"]}
    assert (verdicts["payloads"], verdicts["signatures"], verdicts["model"]) == ("missing", "ok", "skipped")


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_rounds_of_real_validators_are_explained(played: LocalNetwork, name: str) -> None:
    data = done("explain", name, ROUNDS, "--json", *options(played)).data
    assert data["remarks"] == []
    assert {each["name"] for each in data["members"]} == set(played.trainers)
    assert sorted(each["rank"] for each in data["members"]) == [1, 2, 3]
    assert all(each["norm"] > 0 and each["distance"] > 0 for each in data["members"])


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_rounds_of_real_validators_are_replayed(played: LocalNetwork, name: str, tmp_path: Path) -> None:
    out = tmp_path / "without.safetensors"
    given = ("--without", "trainer-0", "--rounds", f"1..{ROUNDS}", "--out", out, "--json")
    data = done("replay", name, *given, *options(played)).data
    assert data["reproduced"] and [each["left_out"] for each in data["replayed"]] == [1] * ROUNDS
    last = data["replayed"][-1]
    assert last["model"] != last["model_without"] == done("blob", "cid", out).out.strip()
    assert 0 < last["of_change"] < 2
