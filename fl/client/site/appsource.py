"""The source of an app, looked at without being run: which file it is, its digest, and which packages it lacks."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from fl.client.apps import FLOWER

_MOST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class AppSource:
    """`lacking` are packages that it imports and that are not installed; `fault` says why it cannot be read."""

    file: Path
    digest: bytes
    lacking: tuple[str, ...]
    fault: str = ""


def source_of(name: str, beside: Path) -> AppSource | None:
    """Of an app that a job names; None if no such module is here. Modules in `beside` come first."""
    module = name.removeprefix(FLOWER).partition(":")[0]
    spec = _spec(module, [str(beside.resolve()), *sys.path])
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    file = Path(spec.origin)
    with open(file, "rb") as opened:
        source = opened.read(_MOST_BYTES + 1)
    if len(source) > _MOST_BYTES:
        return AppSource(file, b"", (), f"it is longer than {_MOST_BYTES} bytes")
    digest = sha256(source).digest()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        return AppSource(file, digest, (), f"it is no Python: {error}")
    path = [str(beside.resolve()), *sys.path]
    wanted = {*_imported(tree), *(("flwr",) if name.startswith(FLOWER) else ())}
    lacking = sorted(each for each in wanted if not _is_here(each, path))
    return AppSource(file, digest, tuple(lacking))


def _spec(module: str, path: Sequence[str]) -> ModuleSpec | None:
    """Without importing the packages above it."""
    parts, spec = module.split("."), None
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def _imported(node: ast.AST) -> Iterator[str]:
    """What it cannot do without: an import under a condition, or one that may fail, has another way."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (each.name.partition(".")[0] for each in child.names)
        elif isinstance(child, ast.ImportFrom):
            if child.level == 0 and child.module:
                yield child.module.partition(".")[0]
        elif not isinstance(child, ast.Try | ast.If):
            yield from _imported(child)


def _is_here(package: str, path: Sequence[str]) -> bool:
    if package in sys.stdlib_module_names or package in sys.modules:
        return True
    return PathFinder.find_spec(package, path) is not None
