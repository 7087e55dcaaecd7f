"""The plan of the house, enforced: floors, forbidden imports, cycles, sizes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "chain": set[str](),
    "consensus": {"chain"},
    "fl": {"chain"},
    "node": {"chain", "consensus", "fl"},
    "cli": {"chain", "consensus", "fl", "node", "quorate"},
    "quorate": {"fl"},
}
IMPURE = {"asyncio", "aiohttp", "socket", "time", "random", "os", "secrets", "threading", "subprocess", "datetime"}
COMPILED = {"numba", "llvmlite", "plyvel", "uvloop"}
MAX_LINES = 620


def sources(*rooms: str) -> Iterator[Path]:
    for room in rooms or tuple(FLOORS):
        yield from sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: a relative import hides the floor that it reaches for"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("room", FLOORS)
def test_no_room_imports_from_a_floor_that_it_may_not_know(room: str) -> None:
    allowed = FLOORS[room] | {room}
    wrong = [
        f"{named(path)} imports {name}"
        for path in sources(room)
        for name in imports(path)
        if name.split(".")[0] in FLOORS and name.split(".")[0] not in allowed
    ]
    assert not wrong


def test_nothing_below_the_node_reaches_for_the_world() -> None:
    wrong = [
        f"{named(path)} imports {name}"
        for path in sources("chain", "consensus", "fl")
        if not named(path).startswith("fl/client/")
        for name in imports(path)
        if name.split(".")[0] in IMPURE
    ]
    assert not wrong


def test_compiled_libraries_stay_in_the_node_and_the_kernels() -> None:
    wrong = [
        f"{named(path)} imports {name}"
        for path in sources()
        if not named(path).startswith(("node/", "fl/kernels/"))
        for name in imports(path)
        if name.split(".")[0] in COMPILED
    ]
    assert not wrong


def test_the_client_needs_no_kernels() -> None:
    wrong = [
        f"{named(path)} imports {name}"
        for path in sources("fl")
        if named(path).startswith(("fl/client/", "fl/tensors/"))
        for name in imports(path)
        if name.startswith(("fl.kernels", "fl.aggregation"))
    ]
    assert not wrong


def test_there_are_no_import_cycles() -> None:
    modules = {named(path)[:-3].replace("/", ".").removesuffix(".__init__"): path for path in sources()}
    graph = {
        module: {name for name in _top_level_imports(path) if name in modules and name != module}
        for module, path in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def _top_level_imports(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in submodules if (ROOT / f"{name.replace('.', '/')}.py").exists()]
            yield from found or [node.module]


def test_no_file_outgrows_one_concern() -> None:
    long = [f"{named(path)}: {len(path.read_text().splitlines())}" for path in sources(*FLOORS, "tests", "benchmarks")]
    assert not [entry for entry in long if int(entry.rsplit(" ", 1)[1]) > MAX_LINES]


def test_every_room_says_what_it_is_for() -> None:
    silent = [
        named(path)
        for path in sources()
        if path.name == "__init__.py" and not (ast.get_docstring(ast.parse(path.read_text())) or "").strip()
    ]
    assert not silent
