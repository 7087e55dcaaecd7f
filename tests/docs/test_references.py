"""What docs/generate.py writes is what the program says, and the program says something of everything public."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import quorate
from node.data.door.routes import BLOBS, OPERATOR
from node.rpc.problems import PROBLEMS
from node.rpc.routes import ADMIN, PUBLIC
from node.rpc.table import Route

ROOT = Path(__file__).parents[2]
PAGES = ["sdk.md", "rpc-reference.md"]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_references_are_what_the_program_says(generate: ModuleType) -> None:
    written = (generate.sdk_page(), generate.rpc_page())
    assert [(ROOT / "docs" / page).read_text() for page in PAGES] == list(written), "make docs"


def test_everything_public_has_a_docstring(generate: ModuleType) -> None:
    assert generate.undescribed() == []


def test_every_public_name_of_the_sdk_is_in_its_reference() -> None:
    titles = re.findall(r"^### (\w+)$", (ROOT / "docs" / "sdk.md").read_text(), re.MULTILINE)
    assert set(quorate.__all__) <= set(titles)


def test_every_operation_and_every_code_of_the_rpc_is_in_its_reference() -> None:
    page = (ROOT / "docs" / "rpc-reference.md").read_text()
    routes: list[Route[Any]] = [*(route for route in PUBLIC if not route.passed_on), *BLOBS, *ADMIN, *OPERATOR]
    served = {f"{route.method} {route.path.replace('...}', '}')}" for route in routes}
    assert set(re.findall(r"^### (\w+ /.*)$", page, re.MULTILINE)) == served
    assert [code for code in PROBLEMS if f"| `{code}` |" not in page] == []


def test_the_faces_of_frameworks_are_described_without_importing_them(generate: ModuleType) -> None:
    page = generate.sdk_page()
    assert [face for face in generate.faces() if f"## {face}\n" not in page] == []
