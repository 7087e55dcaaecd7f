"""Finds an app of Flower's, and what the pyproject.toml beside it says: its config and its ServerApp.

[tool.flwr.app.components]
serverapp = "package.server_app:app"

[tool.flwr.app.config]               # the run config, which text as "lr=0.1 optimizer='sgd'" overrides
num-server-rounds = 3
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import sysconfig
import tomllib
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fl.client.appguard import blamed
from fl.client.errors import BadFile, BadInput

Scalar = bool | int | float | str
Overrides = str | Mapping[str, Any] | None

_MOST_BYTES = 1024 * 1024
_MOST_DEPTH = 16
"""Tables in one another in a config, and directories above a module in which its pyproject.toml may be."""
_OLDEST = (1, 30)
_MOST_SAID = 200
_PAIR = re.compile(r"""([\w.-]+)\s*=\s*("[^"]*"|'[^']*'|\S+)""")


@dataclass(frozen=True, slots=True)
class Project:
    """`root` is where the app's modules are imported from, `config` is None where no pyproject.toml tells one."""

    name: str
    root: Path
    config: Mapping[str, Scalar] | None = None
    server: str = ""


def check_flower() -> None:
    """Raises BadInput where there is no Flower, or one that is too old."""
    try:
        found = version("flwr")
    except PackageNotFoundError:
        raise BadInput(
            "MISSING_PACKAGE", "Flower is not installed here.", "Install it: pip install 'quorate[flower]'"
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < _OLDEST:
        raise BadInput(
            "MISSING_PACKAGE", f"Flower {found} is too old.", "Install a newer one: pip install 'quorate[flower]'"
        )


def found_at(reference: Any) -> tuple[Any, Project]:
    """The object of this name, `package.module:object`, and where it comes from; anything else is the object itself."""
    if not isinstance(reference, str):
        return reference, Project(getattr(reference, "__name__", type(reference).__name__), Path.cwd())
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise BadInput("UNKNOWN_APP", f"'{reference}' names no object.", "As in package.client_app:app.")
    module = _imported(reference, module_name)
    found = getattr(module, attribute, None)
    if found is None:
        raise BadInput(
            "UNKNOWN_APP", f"{module_name} has no '{attribute}'.", "Name the object: package.client_app:app."
        )
    file = getattr(module, "__file__", None)
    if file is None:
        return found, Project(reference, Path.cwd())
    path = Path(file).resolve()
    depth = module_name.count(".") + (path.name == "__init__.py")
    root = path.parents[min(depth, len(path.parents) - 1)]
    # Modules that the app imports as it runs are beside those that it came with.
    if str(root) not in sys.path[1:]:
        sys.path.append(str(root))
    return found, _project(reference, path, root)


def _imported(reference: str, module_name: str) -> Any:
    with blamed(reference, Path.cwd()):
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                # The module is there, and lacks a package that it uses.
                raise
            raise BadInput(
                "UNKNOWN_APP", f"There is no module {error.name}.", "Start this in the directory that has it."
            ) from None


def client_app(found: Any, project: Project) -> Any:
    """A ClientApp, whatever of Flower's it is made of."""
    check_flower()
    from flwr.client import Client, NumPyClient
    from flwr.clientapp import ClientApp

    if isinstance(found, ClientApp):
        return found
    if isinstance(found, NumPyClient | Client):
        return ClientApp(client_fn=lambda context: found.to_client())
    if inspect.isroutine(found):
        try:
            return ClientApp(client_fn=found)
        except ValueError:
            raise BadInput(
                "BAD_APP",
                f"{project.name} is a function that Flower does not call.",
                "A client_fn takes one argument: def client_fn(context: Context).",
            ) from None
    kind = "a class" if inspect.isclass(found) else f"of the type {type(found).__name__}"
    raise BadInput(
        "BAD_APP",
        f"{project.name} is {kind}, which Flower does not run.",
        "Name a ClientApp, a NumPyClient that is made, or a client_fn.",
    )


@contextmanager
def told_apart(name: str) -> Iterator[None]:
    """What Flower itself raises of an app is about what the app gives it, and not a fault in the app's own lines."""
    try:
        yield
    except Exception as error:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if not all(map(_is_flowers, files)):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = f"{type(error).__name__}: {lines[0][:_MOST_SAID]}" if lines else type(error).__name__
        raise BadInput(
            "BAD_APP",
            f"Flower refuses what {name} does. {said.rstrip('.')}.",
            "Compare its functions, and what they return, with Flower's documentation.",
        ) from error


def _is_flowers(file: str) -> bool:
    """Or ours, or of what Flower calls; a cell of a notebook is the app's."""
    import flwr

    path, standard = Path(file), Path(sysconfig.get_path("stdlib"))
    if any(path.is_relative_to(Path(str(each)).parent) for each in (flwr.__file__, np.__file__, __file__)):
        return True
    return file.startswith("<frozen ") or (path.is_relative_to(standard) and "site-packages" not in path.parts)


# Configs


def _project(reference: str, module: Path, root: Path) -> Project:
    for directory in list(module.parents)[:_MOST_DEPTH]:
        path = directory / "pyproject.toml"
        if not path.is_file():
            continue
        tool = _toml(path).get("tool")
        flwr = tool.get("flwr") if isinstance(tool, dict) else None
        app = flwr.get("app") if isinstance(flwr, dict) else None
        if not isinstance(app, dict):
            continue
        components, config = app.get("components", {}), app.get("config", {})
        if not isinstance(components, dict) or not isinstance(config, dict):
            raise BadFile("BAD_APP", f"{path} has no tables in [tool.flwr.app].", "See docs/flower.md.")
        return Project(reference, root, _flat(config, str(path)), str(components.get("serverapp", "")))
    return Project(reference, root)


def _toml(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise BadFile("BAD_APP", f"{path} is longer than {_MOST_BYTES} bytes.", "Make it shorter.")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except ValueError as error:
        raise BadFile("BAD_APP", f"{path} is no TOML: {error}.", "Mend it.") from None


def merged(project: Project, overrides: Overrides) -> dict[str, Scalar]:
    """The app's own config, with these values in place of its own."""
    given = config_of(overrides, "run config")
    if project.config is None:
        return given
    for key in given:
        if key not in project.config:
            near = get_close_matches(key, project.config, n=1)
            known = ", ".join(project.config) or "none"
            advice = f"Did you mean '{near[0]}'?" if near else f"There are: {known}."
            raise BadInput("UNKNOWN_KEY", f"The app's run config has no '{key}'.", advice)
    return {**project.config, **given}


def config_of(given: Overrides, place: str) -> dict[str, Scalar]:
    """Of text as in "lr=0.1 epochs=2 optimizer='sgd'", or of a mapping."""
    if given is None:
        return {}
    if not isinstance(given, str):
        return _flat(given, place)
    pairs = _PAIR.findall(given)
    if _PAIR.sub("", given).strip():
        raise BadInput("BAD_CONFIG", f"The {place} {given!r} is not made of pairs.", """As in "lr=0.1 name='x'".""")
    try:
        return _flat(tomllib.loads("\n".join(f"{key} = {value}" for key, value in pairs)), place)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(
            "BAD_CONFIG", f"The {place} {given!r} cannot be read: {error}.", """Quote text, as in "name='x'"."""
        ) from None


def _flat(given: Mapping[str, Any], place: str, depth: int = 0) -> dict[str, Scalar]:
    """Tables in it become names with dots, as Flower has them."""
    found: dict[str, Scalar] = {}
    for key, value in given.items():
        if isinstance(value, Mapping) and depth < _MOST_DEPTH:
            found |= {f"{key}.{name}": each for name, each in _flat(value, place, depth + 1).items()}
        elif isinstance(value, Scalar):
            found[key] = value
        else:
            raise BadInput(
                "BAD_CONFIG", f"'{key}' in {place} is {value!r}.", "Flower takes numbers, text, true and false."
            )
    return found
