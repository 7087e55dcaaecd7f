"""Updates and models that no transaction carries: they wait in the outbox, and nodes are given them as blobs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chain.unixfs import cid_of
from fl.blobs import BlobKind
from fl.client.errors import RefusedByChain
from fl.client.network import AsyncNetwork, connect_async
from fl.client.sync import Network, connect
from fl.client.tasks import Difference
from fl.datasets import RegisterDataset
from fl.records import JobStatus
from fl.tensors.layout import AVERAGED, Schema, TensorSpec
from tests.fl.builders import make_rules
from tests.fl.client.blobdoor import Door
from tests.fl.client.chainlet import Running

LARGE = Schema((TensorSpec("weight", "F32", (700, 512), AVERAGED),))
"""1.4 MB a model or an update: two leaves."""


@pytest.fixture
def joined(chain: Running) -> Iterator[tuple[Network, Any]]:
    chain.create(make_rules(schema=LARGE, target=1, minimum=1, maximum=1))
    with connect(**chain.settings()) as network:
        job = network.job("digits")
        job.join()
        yield network, job


def outbox(network: Network | AsyncNetwork) -> list[str]:
    return sorted(path.suffix for path in (network.home / "outbox").iterdir())


def change(value: float) -> dict[str, Any]:
    return {"weight": np.full((700, 512), value, np.float32)}


def preferred(chain: Running, network: AsyncNetwork) -> list[Door]:
    by_url = {face.url: face.door for face in chain.faces}
    return [by_url[node.url] for node in network.nodes.in_order()]


def taken(chain: Running) -> list[int]:
    return [index for face in chain.faces for index in face.door.taken]


def test_a_job_of_large_updates_is_trained_to_its_end(chain: Running, joined: tuple[Network, Any]) -> None:
    network, job = joined
    for task in job.tasks():
        assert task.submit(weights=change(task.round), examples=1, metrics={"loss": 1}).accepted
        assert outbox(network) == [], "what is proven needs its bytes no more"
    assert job.status().status == JobStatus.FINISHED
    assert np.array_equal(job.model()["weight"], change(3)["weight"])
    assert sorted(taken(chain)) == [0, 0, 0, 1, 1, 1], "each leaf goes to one node, and the swarm does the rest"


def test_a_task_s_model_is_its_trainer_s_own(chain: Running, joined: tuple[Network, Any]) -> None:
    _, job = joined
    task = next(iter(job.tasks()))
    _, path = job.model_file()
    before = path.read_bytes()
    task.model["weight"] += 1
    task.model["weight"][0, 0] = 3
    assert path.read_bytes() == before, "pages are copied when they are written to"
    assert task.submit(weights=task.model, examples=1, metrics={"loss": 1}).accepted
    assert job.model(1)["weight"][0, :2].tolist() == [3, 1]


def test_an_update_that_cannot_be_sent_leaves_nothing_behind(chain: Running, joined: tuple[Network, Any]) -> None:
    network, job = joined
    task = next(iter(job.tasks()))
    beyond = change(1.0)
    beyond["weight"][-1, -1] = 1e30
    with pytest.raises(RefusedByChain, match="range"):
        task.submit(delta=beyond, examples=1, metrics={"loss": 1})
    assert outbox(network) == []


def test_few_models_are_kept_and_none_is_fetched_twice(chain: Running, joined: tuple[Network, Any]) -> None:
    network, job = joined
    for task in job.tasks():
        task.submit(delta=change(1.0), examples=1, metrics={"loss": 1})
    job.model()
    given = sum(len(face.door.given) for face in chain.faces)
    for number in (1, 2, 3):
        job.model(number)
    cid, path = job.model_file(3)
    assert sum(len(face.door.given) for face in chain.faces) == given
    assert path.name == cid and path.read_bytes() == job.model_bytes(3)[1]
    kept = list((network.home.parent / "models").iterdir())
    assert 1 <= len(kept) <= 4


async def test_a_node_that_lacks_the_blob_is_given_it_and_the_transaction_again(
    chain: Running, joined: tuple[Network, Any]
) -> None:
    """The node that has the blob dies before it has the transaction."""
    async with await connect_async(**chain.settings()) as network:
        task = await anext((await network.job("digits")).tasks())
        first = preferred(chain, network)[0]
        face = next(each for each in chain.faces if each.door is first)

        def die(blob: bytes) -> None:
            face.down = first.down = True

        first.published = die
        receipt = await task.submit(delta=change(1.0), examples=1, metrics={"loss": 1})
        assert receipt.accepted
        assert sorted(first.taken) == [0, 1]
        assert sorted(taken(chain)) == [0, 0, 1, 1], "and once more at the next one"
        assert outbox(network) == []


async def test_an_upload_that_dies_half_way_sends_the_rest_elsewhere_or_again(
    chain: Running, joined: tuple[Network, Any]
) -> None:
    async with await connect_async(**chain.settings()) as network:
        task = await anext((await network.job("digits")).tasks())
        preferred(chain, network)[0].takes_at_most = 1
        assert (await task.submit(delta=change(1.0), examples=1, metrics={"loss": 1})).accepted
        assert len(taken(chain)) == 3


async def test_after_a_crash_the_same_bytes_are_sent_from_the_outbox(
    chain: Running, joined: tuple[Network, Any]
) -> None:
    _, job = joined
    for face in chain.faces:
        face.door.takes_at_most = 0
    async with await connect_async(**chain.settings()) as dying:
        task = await anext((await dying.job("digits")).tasks())
        sending = asyncio.create_task(task.submit(delta=change(1.0), examples=1, metrics={"loss": 1}))
        while not any(face.door.down for face in chain.faces):
            await asyncio.sleep(0.01)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert outbox(dying) == [".blob", ".tx"]
        before = {path.name for path in (dying.home / "outbox").iterdir()}
    for face in chain.faces:
        face.door.takes_at_most, face.door.down = None, False
    async with await connect_async(**chain.settings()) as again:
        assert {path.name for path in (again.home / "outbox").iterdir()} == before
        (receipt,) = await again.resume()
        assert receipt.accepted and outbox(again) == []
    assert len({data for face in chain.faces for data in face.submitted if len(data) < 1000}) <= 2
    assert job.round(1).updates.size == 1


async def test_full_disks_delay_an_update_and_do_not_lose_it(chain: Running, joined: tuple[Network, Any]) -> None:
    async with await connect_async(**chain.settings()) as network:
        task = await anext((await network.job("digits")).tasks())
        for face in chain.faces:
            face.door.full = True
        sending = asyncio.create_task(task.submit(delta=change(1.0), examples=1, metrics={"loss": 1}))
        while not all(face.door.offered for face in chain.faces):
            await asyncio.sleep(0.01)
        assert outbox(network) == [".blob", ".tx"]
        for face in chain.faces:
            face.door.full = False
        assert (await sending).accepted and outbox(network) == []


async def test_a_blob_that_nobody_has_is_refused_and_its_transaction_given_up(chain: Running) -> None:
    body = RegisterDataset("none", cid_of(b"nothing"), 7, True, "", "", "")
    async with await connect_async(**chain.settings()) as network:
        with pytest.raises(RefusedByChain) as caught:
            await network.send(body)
        assert caught.value.code == "BLOB_MISSING"
        assert outbox(network) == []


async def test_a_node_that_has_the_blob_is_found_among_those_that_lack_it(chain: Running) -> None:
    async with await connect_async(**chain.settings()) as network:
        cid = preferred(chain, network)[-1].hold(b"here", BlobKind.DATASET)
        assert (await network.send(RegisterDataset("some", cid, 4, True, "", "", ""))).accepted


def test_a_blob_that_comes_too_late_leaves_the_outbox_too(joined: tuple[Network, Any]) -> None:
    network, job = joined
    late, quick = next(job.tasks()), next(job.tasks())
    assert quick.submit(delta=change(1.0), examples=1, metrics={"loss": 1}).accepted
    assert late.submit(delta=change(2.0), examples=1, metrics={"loss": 1}).status == "DUPLICATE"
    assert outbox(network) == []


def test_a_large_update_that_cannot_be_meant_leaves_nothing_behind(chain: Running, joined: tuple[Network, Any]) -> None:
    network, job = joined
    task = next(job.tasks())
    with pytest.raises(RefusedByChain):
        task.submit(delta=change(300.0), examples=1, metrics={"loss": 1})
    with pytest.raises(RefusedByChain):
        task.submit(delta=change(1.0), examples=0, metrics={"loss": 1})
    assert outbox(network) == []


def test_a_job_begins_with_a_model_of_any_size(chain: Running, tmp_path: Path) -> None:
    start = {"w": np.random.default_rng(1).random((700, 512)).astype(np.float32)}
    with connect(**chain.settings("creator")) as network:
        job = network.create_job("large", start, rounds=1, target=1, privacy="visible-to-validators")
        assert outbox(network) == []
        assert np.array_equal(job.model(0)["w"], start["w"])
    with connect(**chain.settings(None, home="reader")) as network:
        assert np.array_equal(network.job("large").model()["w"], start["w"])


def test_a_large_model_of_zeros_is_made_here(chain: Running) -> None:
    with connect(**chain.settings("creator")) as network:
        rules: dict[str, Any] = {"rounds": 1, "target": 1, "privacy": "visible-to-validators"}
        job = network.create_job("zeros", {"w": np.zeros((700, 512))}, **rules)
        assert not job.model()["w"].any()
        assert not any(face.door.given or face.door.taken for face in chain.faces)


def test_differences_are_made_one_at_a_time() -> None:
    trained, base = {"a": np.full(3, 1.5, np.float32), "b": np.zeros(2)}, {"a": np.ones(3), "b": np.ones(2)}
    difference = Difference(trained, base)
    assert list(difference) == ["a", "b"] and len(difference) == 2
    assert difference["a"].tolist() == [0.5] * 3 and difference["b"].tolist() == [-1.0] * 2
    assert trained["a"].tolist() == [1.5] * 3
