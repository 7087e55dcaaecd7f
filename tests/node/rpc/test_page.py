from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from node.admission import Status
from node.data.door.routes import BLOBS, OPERATOR
from node.rpc.problems import PROBLEMS
from node.rpc.routes import ADMIN, PUBLIC
from node.rpc.table import Route, Table

PAGE = (Path(__file__).parents[3] / "docs" / "rpc.md").read_text()


def test_the_page_lists_every_route_with_its_query_and_no_other() -> None:
    public: list[Route[Any]] = [route for route in PUBLIC if not route.passed_on] + [*BLOBS]
    routes = set()
    for route in public:
        names = [f"`{param.name}`" for param in route.params if param.where == "query"]
        routes.add((f"{route.method} {route.path}", ", ".join(names)))
    assert set(re.findall(r"^\| `(\w+ /[^`]*)` \| ([^|]*?) ?\| ", PAGE, re.M)) >= routes
    listed = set(re.findall(r"^\| `(\w+ /[^`]*)`", PAGE, re.M))
    assert listed == {f"{route.method} {route.path}" for route in (*public, *ADMIN, *OPERATOR)}


def test_whatever_the_door_for_blobs_answers_the_first_address_redirects_there() -> None:
    core, samples = Table(PUBLIC), {"cid": "b", "index": "0", "block...": "b"}
    for route in BLOBS:
        segments = [samples.get(part.strip("{}"), part) for part in route.path[1:].split("/")]
        assert core.find(route.method, segments)[0].passed_on, route.path


def test_the_page_lists_every_status_and_every_code_of_the_rpc() -> None:
    assert all(f"| `{status.value}` |" in PAGE for status in Status)
    unnamed = {code for code in PROBLEMS if f"`{code}`" not in PAGE and not code.startswith("UNKNOWN_")}
    assert unnamed == {"INTERNAL"}
