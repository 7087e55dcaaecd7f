"""Whoever asks the core for a blob is sent to the door of the data process."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from node.data.messages import Opened
from node.rpc.blobs import door_url
from node.rpc.problems import Problem
from node.rpc.requests import Response
from tests.node.rpc.calls import Caller
from tests.simulation.cluster import Cluster, genesis_of
from tests.simulation.loop import simulate

CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


async def asked(caller: Caller, method: str, target: str, host: str = "") -> Response:
    """The answer to a request that came with this Host."""
    route, request = caller.request(method, target.partition("?")[0])
    assert route.handler is not None and route.passed_on
    return await route.handler(caller.api, replace(request, headers={"Host": host}, target=target))


def with_door(host: str, script: Callable[[Caller], Coroutine[Any, Any, None]]) -> None:
    """A node whose data process has its door at this host."""

    async def main() -> None:
        cluster = Cluster(genesis_of(1), seed=51)
        await cluster.start()
        caller, data = Caller(cluster.node(0)), cluster.node(0).data
        data.opened = None
        with pytest.raises(Problem) as caught:
            await asked(caller, "GET", f"/v1/blobs/{CID}")
        assert caught.value.code == "DATA_DOWN" and caught.value.kind.status == 503
        status = await caller.get("/v1/status")
        assert status["data"] == {"up": False, "full": False, "door": None}
        data.opened = Opened(7001, host, 7002)
        await script(caller)

    simulate(main)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", f"/v1/blobs/{CID}"),
        ("GET", "/v1/blobs?limit=3&cursor=x"),
        ("GET", f"/v1/blobs/{CID}/stat"),
        ("POST", f"/v1/blobs/{CID}"),
        ("PUT", f"/v1/blobs/{CID}/leaves/7"),
        ("PUT", f"/v1/blobs/{CID}"),
        ("GET", "/v1/leases"),
        ("GET", f"/v1/models/{CID}"),
        ("GET", f"/ipfs/{CID}?format=car&dag-scope=all"),
    ],
)
def test_whatever_is_asked_of_a_blob_is_asked_again_at_the_other_door(method: str, target: str) -> None:
    async def script(caller: Caller) -> None:
        response = await asked(caller, method, target)
        assert response.status == 307
        assert response.headers["Location"] == f"http://10.0.0.7:7002{target}"

    with_door("10.0.0.7", script)


@pytest.mark.parametrize(
    ("door", "asked_host", "url"),
    [
        ("0.0.0.0", "node.example:8080", "http://node.example:7002"),
        ("0.0.0.0", "[2001:db8::1]:8080", "http://[2001:db8::1]:7002"),
        ("::", "node.example", "http://node.example:7002"),
        ("::", "", "http://127.0.0.1:7002"),
        ("2001:db8::2", "node.example:8080", "http://[2001:db8::2]:7002"),
    ],
)
def test_a_door_that_listens_everywhere_is_where_the_client_found_the_node(
    door: str, asked_host: str, url: str
) -> None:
    async def script(caller: Caller) -> None:
        assert door_url(caller.api, asked_host) == url

    with_door(door, script)


def test_the_address_that_the_operator_names_goes_before_all_others() -> None:
    async def script(caller: Caller) -> None:
        caller.api.tls = True
        assert door_url(caller.api, "") == "https://10.0.0.7:7002"
        caller.api.door_url = "https://blobs.example"
        assert door_url(caller.api, "") == "https://blobs.example"

    with_door("10.0.0.7", script)
