from __future__ import annotations

import re
from pathlib import Path

from node.admission import Status
from node.rpc.problems import PROBLEMS
from node.rpc.routes import ADMIN, PUBLIC

PAGE = (Path(__file__).parents[3] / "docs" / "rpc.md").read_text()


def test_the_page_lists_every_route_with_its_query_and_no_other() -> None:
    routes = set()
    for route in PUBLIC:
        names = [f"`{param.name}`" for param in route.params if param.where == "query"]
        routes.add((f"{route.method} {route.path}", ", ".join(names)))
    assert set(re.findall(r"^\| `(\w+ /[^`]*)` \| ([^|]*?) ?\| ", PAGE, re.M)) >= routes
    listed = set(re.findall(r"^\| `(\w+ /[^`]*)`", PAGE, re.M))
    assert listed == {f"{route.method} {route.path}" for route in (*PUBLIC, *ADMIN)}


def test_the_page_lists_every_status_and_every_code_of_the_rpc() -> None:
    assert all(f"| `{status.value}` |" in PAGE for status in Status)
    unnamed = {code for code in PROBLEMS if f"`{code}`" not in PAGE and not code.startswith("UNKNOWN_")}
    assert unnamed == {"INTERNAL"}
