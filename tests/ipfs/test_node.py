"""Real validators and a real IPFS client."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest

from chain.cid import cid_text
from cli.localnets import LocalNetwork, Plan
from fl.client.network import AsyncNetwork, connect_async
from tests.ipfs.others import installed, run
from tests.node.load import until
from tests.node.networks import door_of, local_network

PARAMETERS = 700_000
"""Three leaves of float32."""


async def creator_of(network: LocalNetwork) -> AsyncNetwork:
    home = network.directory / "homes" / "creator"
    return await connect_async(network.network_file, network.key_file("creator"), home=home)


def blob_at(door: str, cid: str) -> bytes:
    """Once it is there: a job is final when a quorum holds its model, and the others fetch it then."""
    found: list[bytes] = []

    def held() -> bool:
        try:
            with urlopen(f"{door}/v1/blobs/{cid}", timeout=60) as answer:
                found.append(answer.read())
        except HTTPError as error:
            assert error.code == 404
        return bool(found)

    until(f"{door} holds {cid}", held)
    return found[0]


@pytest.mark.slow
@installed
def test_an_ipfs_client_fetches_a_model_from_every_node() -> None:
    async def story(network: LocalNetwork) -> None:
        creator = await creator_of(network)
        model = {"w": np.linspace(-1, 1, PARAMETERS, dtype=np.float32)}
        job = await creator.create_job(
            "from-ipfs", model, rounds=1, target=1, privacy="visible-to-validators", encoding="f32"
        )
        cid = cid_text((await job.status()).model)
        await creator.close()
        for name in network.members:
            door = await asyncio.to_thread(door_of, network, name)
            wanted = await asyncio.to_thread(blob_at, door, cid)
            assert len(wanted) > 4 * PARAMETERS
            assert await run("fetch.mjs", door, cid) == [f"{len(wanted)} {sha256(wanted).hexdigest()}"]

    with local_network(Plan(validators=4)) as network:
        asyncio.run(story(network))
