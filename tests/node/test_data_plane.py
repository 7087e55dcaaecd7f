"""Blobs and large updates on real validators: two processes each, any of which may be killed at any moment."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from benchmarks.processes import MIB, Watch, roles
from chain.cid import cid_text, parse_cid
from chain.codec import encode
from chain.transaction import account_id
from chain.unixfs import manifest_of
from cli.http import Place, ask
from cli.localnets import LocalNetwork, Plan
from fl.blobs import BlobKind
from fl.client.keyfile import load_key
from fl.client.network import AsyncNetwork, connect_async
from fl.client.transfer.blobs import cid_of_file
from fl.client.transfer.doors import Signer
from fl.datasets import RegisterDataset
from fl.records import JobStatus
from tests.node.load import HANG_S, check_no_divergence, height, settle, until
from tests.node.networks import data_pid, door_of, kill_data, local_network, start_all

LEAF = 1024 * 1024


def write_random(path: Path, size: int, seed: int) -> Path:
    """Never whole in memory."""
    chance = random.Random(seed)
    with open(path, "wb") as file:
        while size > 0:
            part = chance.randbytes(min(size, 8 * MIB))
            file.write(part)
            size -= len(part)
    return path


def digest_of(path: Path) -> str:
    running = sha256()
    with open(path, "rb") as file:
        while part := file.read(MIB):
            running.update(part)
    return running.hexdigest()


def digest_at(network: LocalNetwork, name: str, cid: str) -> str:
    running = sha256()
    with urlopen(f"{door_of(network, name)}/v1/blobs/{cid}", timeout=120) as answer:
        while part := answer.read(MIB):
            running.update(part)
    return running.hexdigest()


def held_at(network: LocalNetwork, name: str, cid: str) -> bool:
    try:
        with urlopen(f"{door_of(network, name)}/v1/blobs/{cid}/stat", timeout=30) as answer:
            return bool(answer.status == 200)
    except HTTPError as error:
        assert error.code == 404
        return False


def has_come(network: LocalNetwork, name: str, cid: str) -> bool:
    """Asked of a validator that may be starting."""
    try:
        return held_at(network, name, cid)
    except (OSError, ValueError):
        return False


def digest_to_come(network: LocalNetwork, name: str, cid: str) -> str:
    """What the chain names is held by a quorum; the others fetch it then."""
    until(f"{name} has {cid}", partial(has_come, network, name, cid))
    return digest_at(network, name, cid)


async def connected(network: LocalNetwork, account: str) -> AsyncNetwork:
    home = network.directory / "homes" / account
    return await connect_async(network.network_file, network.key_file(account), home=home)


async def create_large_job(network: LocalNetwork, parameters: int, trainers: int, rounds: int) -> None:
    creator = await connected(network, "creator")
    model = {"w": np.linspace(-1, 1, parameters, dtype=np.float32)}
    await creator.create_job(
        "large", model, rounds=rounds, target=trainers, privacy="visible-to-validators", encoding="f32", cap=100
    )
    await creator.close()


async def train(network: LocalNetwork, account: str, parameters: int, seed: int) -> None:
    member = await connected(network, account)
    job = await member.job("large")
    await job.join()
    async for task in job.tasks():
        change = np.random.default_rng([seed, task.round]).normal(0, 0.01, parameters).astype(np.float32)
        await task.submit(delta={"w": change}, examples=10 + seed)
    await member.close()


async def one_model(network: LocalNetwork, rounds: int) -> None:
    """The job is finished, and each validator comes to have the same bytes of its model: one that was down when the
    others made it fetches it as soon as it knows of it."""
    reader = await connected(network, "creator")
    job = await reader.job("large")
    status = await job.status()
    assert status.status == JobStatus.FINISHED and status.completed == rounds
    cid = cid_text(status.model)
    await reader.close()
    found = {name: await asyncio.to_thread(digest_to_come, network, name, cid) for name in network.members}
    assert len(set(found.values())) == 1, found


async def whole_job(network: LocalNetwork, parameters: int, trainers: int, rounds: int) -> None:
    await create_large_job(network, parameters, trainers, rounds)
    accounts = network.trainers[:trainers]
    await asyncio.gather(*(train(network, account, parameters, seed) for seed, account in enumerate(accounts)))
    await one_model(network, rounds)


@pytest.mark.slow
def test_rounds_of_large_updates_close_with_one_model_on_all_validators() -> None:
    with local_network(Plan(validators=4, trainers=4)) as network:
        asyncio.run(whole_job(network, parameters=700_000, trainers=4, rounds=2))
        settle(network)
        check_no_divergence(network)


def kill_either_process(rounds: int) -> None:
    seed = int(os.environ.get("QUORATE_KILL_SEED", time.time_ns() % 2**32))
    print(f"\nkills from seed {seed}")
    chance = random.Random(seed)

    async def killing(network: LocalNetwork, over: asyncio.Event) -> int:
        kills = 0
        while not over.is_set():
            await asyncio.sleep(chance.uniform(0.2, 1.5))
            name = chance.choice(list(network.members))
            kills += 1
            if chance.random() < 0.6:
                await asyncio.to_thread(kill_data, network, name)
            else:
                await asyncio.to_thread(network.kill, name)
                await asyncio.sleep(chance.uniform(0.0, 1.0))
                await asyncio.to_thread(network.start, name)
                await asyncio.to_thread(network.wait_ready, [name], HANG_S)
        return kills

    async def story(network: LocalNetwork) -> None:
        over = asyncio.Event()
        await create_large_job(network, 700_000, 4, rounds)
        killer = asyncio.create_task(killing(network, over))
        await asyncio.gather(*(train(network, each, 700_000, place) for place, each in enumerate(network.trainers)))
        over.set()
        print(f"{await killer} kills")
        await one_model(network, rounds)

    with local_network(Plan(validators=4, trainers=4)) as network:
        asyncio.run(asyncio.wait_for(story(network), 75 * rounds))
        settle(network)
        check_no_divergence(network)


@pytest.mark.slow
def test_killing_either_process_at_random_loses_no_acknowledged_blob() -> None:
    kill_either_process(rounds=4)


@pytest.mark.nightly
def test_killing_either_process_for_forty_rounds_loses_no_acknowledged_blob() -> None:
    kill_either_process(rounds=40)


async def stored(network: LocalNetwork, file: Path, directory: Path) -> None:
    """A file becomes a data set that the chain keeps, and comes back from another validator byte for byte."""
    member = await connected(network, network.trainers[0])
    receipt = await member.blobs.put(file, BlobKind.DATASET, patience_s=120)
    body = RegisterDataset(
        name="scans",
        cid=parse_cid(receipt.cid),
        size_bytes=file.stat().st_size,
        stored=True,
        schema="bytes",
        policy="",
        licence="",
    )
    assert (await member.send(body)).accepted
    await member.close()
    assert receipt.cid == cid_of_file(file)
    wanted = digest_of(file)
    for name in list(network.members)[1:3]:
        assert await asyncio.to_thread(digest_to_come, network, name, receipt.cid) == wanted
    other = await connected(network, network.trainers[1])
    fetched = directory / "fetched"
    await other.blobs.get(receipt.cid, fetched)
    await other.close()
    assert digest_of(fetched) == wanted


def store_and_fetch(tmp_path: Path, size: int) -> None:
    file = write_random(tmp_path / "scans", size, seed=5)
    with local_network(Plan(validators=4, trainers=2)) as network:
        with Watch(lambda: roles(network), 0.05) as watch:
            asyncio.run(stored(network, file, tmp_path))
        print(f"\nRssAnon: core {watch.most_mib('core')} MiB, data {watch.most_mib('data')} MiB")
        assert 0 < watch.most_mib("core") < 200 and 0 < watch.most_mib("data") < 200


@pytest.mark.slow
def test_a_blob_of_64_mib_is_stored_certified_and_fetched_in_bounded_memory(tmp_path: Path) -> None:
    store_and_fetch(tmp_path, 64 * MIB)


@pytest.mark.nightly
def test_a_blob_of_2_gib_is_stored_certified_and_fetched_in_bounded_memory(tmp_path: Path) -> None:
    store_and_fetch(tmp_path, 2048 * MIB)


@pytest.mark.slow
def test_the_others_finish_when_the_entry_node_is_killed_after_the_certificate(tmp_path: Path) -> None:
    """Availability is the others' from the certificate on: an acknowledged data set is ordered and held by them."""

    async def story(network: LocalNetwork) -> None:
        file = write_random(tmp_path / "scans", 24 * MIB, seed=6)
        member = await connected(network, network.trainers[0])
        receipt = await member.blobs.put(file, BlobKind.DATASET)
        body = RegisterDataset("scans", parse_cid(receipt.cid), 24 * MIB, True, "", "", "")
        sending = asyncio.create_task(member.send(body))
        while not list(member.pending()):
            await asyncio.sleep(0.01)
        identity = next(iter(member.pending())).id.hex()
        entry = receipt.node
        while True:
            said = await asyncio.to_thread(_standing, network, entry, identity)
            if said in ("available", "final", "executed", "proven"):
                break
            await asyncio.sleep(0.01)
        await asyncio.to_thread(network.kill, entry)
        assert (await sending).accepted
        await member.close()
        wanted = digest_of(file)
        for name in network.members:
            if name != entry:
                assert await asyncio.to_thread(digest_to_come, network, name, receipt.cid) == wanted

    with local_network(Plan(validators=4, trainers=1)) as network:
        asyncio.run(asyncio.wait_for(story(network), 2 * HANG_S))


def offered(network: LocalNetwork, name: str, file: Path) -> tuple[int, int]:
    """What this node answers to the offer of a blob: the status, and how many leaves it lacks."""
    key = load_key(network.key_file(network.trainers[0]))
    cid = parse_cid(cid_of_file(file))
    signer = Signer(bytes.fromhex(network.chain_id), account_id(key.public), key)
    permit = signer.put(cid, file.stat().st_size, BlobKind.DATASET)
    headers = {"Content-Type": "application/msgpack", "Authorization": permit.header()}
    url = f"{door_of(network, name)}/v1/blobs/{cid_text(cid)}"
    try:
        offer = Request(url, encode(manifest_of(file.read_bytes())), headers, method="POST")
        with urlopen(offer, timeout=30) as answer:
            missing = base64.b64decode(json.loads(answer.read())["missing"])
            return answer.status, int.from_bytes(missing, "little").bit_count()
    except HTTPError as error:
        assert json.loads(error.read())["code"] == "DISK_FULL"
        return error.code, -1


@contextmanager
def on_a_small_disk(network: LocalNetwork, name: str, size: int) -> Iterator[Path]:
    """The validator's data directory on a file system of its own."""
    directory = network.home(name) / "data"
    copy = directory.with_name("data-before")
    shutil.copytree(directory, copy)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "quorate-test", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root can give a validator a small disk of its own")
    try:
        shutil.copytree(copy, directory, dirs_exist_ok=True)
        yield directory
    finally:
        network.kill(name)
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.mark.slow
def test_a_full_disk_refuses_blobs_with_507_while_ordering_goes_on_and_recovers(tmp_path: Path) -> None:
    async def story(network: LocalNetwork, directory: Path) -> None:
        file = write_random(tmp_path / "scans", 3 * LEAF, seed=8)
        other = write_random(tmp_path / "more scans", 3 * LEAF, seed=9)
        assert offered(network, "v3", file)[0] == 200
        filler = directory / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(directory).free - 100 * MIB))
        before = height(network, "v3")
        until("there is no room", lambda: offered(network, "v3", other)[0] == 507)
        member = await connected(network, network.trainers[0])
        receipt = await member.blobs.put(file, BlobKind.DATASET)
        assert receipt.node != "v3"
        body = RegisterDataset("scans", parse_cid(receipt.cid), 3 * LEAF, True, "", "", "")
        assert (await member.send(body)).accepted
        until("the full node goes on ordering", lambda: height(network, "v3") > before)
        filler.unlink()
        until("there is room again", lambda: offered(network, "v3", other)[0] == 200)
        receipt = await member.blobs.put(other, BlobKind.DATASET)
        body = RegisterDataset("more", parse_cid(receipt.cid), 3 * LEAF, True, "", "", "")
        assert (await member.send(body)).accepted
        await member.close()
        until("the node votes for blobs and holds them", lambda: held_at(network, "v3", receipt.cid))

    with (
        local_network(Plan(validators=4, trainers=1), start=False) as network,
        on_a_small_disk(network, "v3", 600 * MIB) as disk,
    ):
        start_all(network)
        asyncio.run(asyncio.wait_for(story(network, disk), 2 * HANG_S))


def _standing(network: LocalNetwork, name: str, identity: str) -> str:
    reply = ask(Place(network.members[name].rpc), "GET", f"/v1/transactions/{identity}")
    return str(reply.data.get("status", "")) if reply.status == 200 else ""


@pytest.mark.slow
def test_an_upload_goes_on_elsewhere_when_its_entry_node_is_killed_and_there_too_when_it_is_back(
    tmp_path: Path,
) -> None:
    """Each node is sent only what is missing there."""
    leaves = 48

    async def story(network: LocalNetwork) -> None:
        file = write_random(tmp_path / "scans", leaves * LEAF, seed=10)
        member = await connected(network, network.trainers[0])
        killed: list[str] = []

        def heard(what: str, done: int, total: int) -> None:
            # On the client's own loop, which sends nothing meanwhile.
            if what == "send" and done > 0.4 * total and not killed:
                lacking = {name: offered(network, name, file)[1] for name in network.members}
                killed.append(min(lacking, key=lambda name: lacking[name]))
                network.kill(killed[0])

        receipt = await member.blobs.put(file, BlobKind.DATASET, progress=heard)
        entry = killed[0]
        assert receipt.node != entry
        await member.close()
        await asyncio.to_thread(network.start, entry)
        await asyncio.to_thread(network.wait_ready, [entry], HANG_S)
        _, missing = await asyncio.to_thread(offered, network, entry, file)
        assert 0 < missing < leaves

    with local_network(Plan(validators=4, trainers=1)) as network:
        asyncio.run(asyncio.wait_for(story(network), 2 * HANG_S))


@pytest.mark.slow
def test_the_data_process_comes_back_by_itself_and_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    async def story(network: LocalNetwork) -> None:
        member = await connected(network, network.trainers[0])
        file = write_random(tmp_path / "scans", 5 * LEAF + 17, seed=7)
        receipt = await member.blobs.put(file, BlobKind.DATASET)
        await member.close()
        before = data_pid(network, receipt.node)
        await asyncio.to_thread(kill_data, network, receipt.node)
        while data_pid(network, receipt.node) in (None, before):
            await asyncio.sleep(0.05)
        assert await asyncio.to_thread(digest_at, network, receipt.node, receipt.cid) == digest_of(file)

    with local_network(Plan(validators=4, trainers=1)) as network:
        asyncio.run(asyncio.wait_for(story(network), HANG_S))
