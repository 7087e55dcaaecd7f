from __future__ import annotations

from pathlib import Path

from node.admission import Status
from node.data.door.routes import BLOBS
from node.rpc.routes import PUBLIC
from node.rpc.table import Table

PAGE = (Path(__file__).parents[3] / "docs" / "rpc.md").read_text()


def test_whatever_the_door_for_blobs_answers_the_first_address_redirects_there() -> None:
    core, samples = Table(PUBLIC), {"cid": "b", "index": "0", "block...": "b"}
    for route in BLOBS:
        segments = [samples.get(part.strip("{}"), part) for part in route.path[1:].split("/")]
        assert core.find(route.method, segments)[0].passed_on, route.path


def test_the_page_lists_every_status_of_a_transaction() -> None:
    assert all(f"| `{status.value}` |" in PAGE for status in Status)
