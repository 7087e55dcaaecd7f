"""The Flower App Bundle: a zip of the app that a SuperNode installs and runs, built from a directory or read from a
file.

Built as `flwr build` of 1.41 does, byte for byte: pyproject.toml without its federations and written anew, the app's
files in the order of their names, and a list of all with hashes and sizes, under one fixed date and not compressed.
"""

from __future__ import annotations

import ast
import os
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from fl.client.errors import BadFile, BadInput
from fl.client.flowergate.forms import Records
from fl.client.flowergate.parcels import Setting
from fl.client.flowergate.patterns import Patterns
from fl.client.flowergate.toml import written

MOST_BYTES = 10 * 1024 * 1024
_MOST_FILES = 1000
_MOST_DEEP = 10

_PROJECT, _LIST = "pyproject.toml", ".info/CONTENT"
_DATE = (2024, 10, 1, 0, 0, 0)
_SOURCES = ("**/*.py", "**/*.toml", "**/*.md", "**/*.yaml", "**/*.yml", "**/*.json", "**/*.jsonl")
_PUBLISHED = Patterns((*_SOURCES, "/.gitignore", "**/.editorconfig", "/LICENSE", "/LICENSE.md"))
_NOT_PUBLISHED = Patterns((".flwr/**", ".venv/**", "**/__pycache__/**"))
_BUNDLED = Patterns((*_SOURCES, "/LICENSE"))
_NOT_BUNDLED = Patterns(
    f".flwr/** **/__pycache__/** {_PROJECT} **/*_test.py **/test_*.py build/** eggs/** .eggs/** lib/** lib64/** "
    "parts/** *.egg .venv/** env/** venv/** ENV/** env.bak/** venv.bak/**".split()
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A FAB's bytes, and what its pyproject.toml says."""

    content: bytes
    publisher: str
    name: str
    version: str
    client: str
    """The client app, as in my_app.client:app."""

    config: Mapping[str, Setting]
    """What the app's [tool.flwr.app.config] sets, with the names of its tables before a dot."""

    source: bytes
    """Of the module with the client app."""

    @property
    def fab_hash(self) -> str:
        return sha256(self.content).hexdigest()

    @property
    def fab_id(self) -> str:
        return f"{self.publisher}/{self.name}"

    @property
    def digest(self) -> bytes:
        """As jobs know an app's: of its module's source."""
        return sha256(self.source).digest()

    def records(self) -> Records:
        """Which records its client app reads: `ClientApp(client_fn)` those of older clients."""
        _, _, attribute = self.client.partition(":")
        try:
            body = ast.parse(self.source).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return Records.MESSAGE
        for each in body:
            targets = each.targets if isinstance(each, ast.Assign) else []
            is_it = any(isinstance(target, ast.Name) and target.id == attribute for target in targets)
            if is_it and isinstance(each, ast.Assign) and isinstance(each.value, ast.Call):
                call = each.value
                has_client = call.args or any(keyword.arg == "client_fn" for keyword in call.keywords)
                return Records.LEGACY if has_client else Records.MESSAGE
        return Records.MESSAGE


def build(directory: Path) -> Bundle:
    try:
        files = dict(sorted(_published(directory).items()))
        if _PROJECT not in files:
            raise BadInput("NO_APP", f"There is no {_PROJECT} in {directory}.", "Name the directory of a Flower app.")
        project = _parsed(files[_PROJECT].read_bytes(), directory)
        project.get("tool", {}).get("flwr", {}).pop("federations", None)
        contents = {_PROJECT: written(project).encode()}
        contents |= {name: files[name].read_bytes() for name in _chosen(files, project)}
    except OSError as error:
        raise BadFile("UNREADABLE", f"{directory} cannot be read: {error.strerror}.", "Check its rights.") from error
    return _bundle(_zipped(contents), contents, str(directory))


def read(path: Path) -> Bundle:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    if len(content) > MOST_BYTES:
        raise _bad(path, f"it has more than {MOST_BYTES} bytes")
    return _bundle(content, _unzipped(content, path), str(path))


def _published(directory: Path) -> dict[str, Path]:
    found = {name: path for name, path in _files(directory) if _PUBLISHED.fit(name) and not _NOT_PUBLISHED.fit(name)}
    ignored = Patterns(found[".gitignore"].read_text(errors="replace").splitlines() if ".gitignore" in found else ())
    found = {name: path for name, path in found.items() if not ignored.fit(name)}
    for name in found:
        if name.count("/") > _MOST_DEEP:
            raise BadInput("BAD_APP", f"{name} is more than {_MOST_DEEP} directories deep.", "Leave it out.")
    return found


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for place, below, names in os.walk(directory, followlinks=False):
        below[:] = [each for each in below if each not in (".git", "__pycache__")]
        for name in names:
            path = Path(place) / name
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(directory).as_posix(), path


def _chosen(files: Mapping[str, Path], project: Mapping[str, Any]) -> list[str]:
    app = _app_of(project)
    names = [name for name in files if _BUNDLED.fit(name) and not _NOT_BUNDLED.fit(name)]
    for key, wanted in (("fab-include", True), ("fab-exclude", False)):
        if key in app:
            lines = app[key]
            if not isinstance(lines, list) or not lines or not all(isinstance(each, str) for each in lines):
                raise BadInput("BAD_APP", f"{key} in {_PROJECT} is no list of patterns.", 'As in ["app/**/*.py"].')
            patterns = Patterns(lines)
            names = [name for name in names if patterns.fit(name) == wanted]
    if len(names) > _MOST_FILES:
        raise BadInput("BAD_APP", f"The app has more than {_MOST_FILES} files.", "Name fewer with fab-include.")
    return names


def _zipped(contents: Mapping[str, bytes]) -> bytes:
    listed = [f"{name},{sha256(content).hexdigest()},{8 * len(content)}" for name, content in contents.items()]
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in {**contents, _LIST: "\n".join(listed).encode()}.items():
            bundle.writestr(zipfile.ZipInfo(name, _DATE), content)
    if out.tell() > MOST_BYTES:
        raise BadInput("BAD_APP", f"The app's bundle has more than {MOST_BYTES} bytes.", "Name less with fab-include.")
    return out.getvalue()


def _unzipped(content: bytes, path: Path) -> dict[str, bytes]:
    """Only as far as its own list says what is in it."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as bundle:
            entries = bundle.infolist()
            if len(entries) > _MOST_FILES + 2 or sum(each.file_size for each in entries) > MOST_BYTES:
                raise _bad(path, "it holds more than an app may")
            if strange := [each.filename for each in entries if not _is_plain(each.filename)]:
                raise _bad(path, f"it holds {strange[0][:200]!r}, which is no place in an app")
            if len({each.filename for each in entries}) < len(entries):
                raise _bad(path, "it holds a file twice")
            found = {each.filename: _content(bundle, each) for each in entries}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise _bad(path, f"it is no zip: {error}") from None
    listed = found.pop(_LIST, b"").decode(errors="replace").splitlines()
    said = {f"{name},{sha256(data).hexdigest()},{8 * len(data)}" for name, data in found.items()}
    if set(listed) != said:
        raise _bad(path, "what is in it differs from its own list")
    return found


def _is_plain(name: str) -> bool:
    """Whether whoever unpacks it finds it under this very name."""
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _content(bundle: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError("a packing that Flower does not use")
    with bundle.open(entry) as file:
        # Without a bound, zipfile unpacks all that is there before it looks at the size.
        return file.read(entry.file_size + 1)


def _bad(path: Path, what: str) -> BadFile:
    return BadFile("BAD_FAB", f"{path} is no Flower App Bundle: {what}.", "Build it with: flwr build")


def _bundle(content: bytes, files: Mapping[str, bytes], where: str) -> Bundle:
    project = _parsed(files.get(_PROJECT, b""), Path(where))
    app, about = _app_of(project), project.get("project", {})
    components = app.get("components")
    client = components.get("clientapp") if isinstance(components, dict) else None
    told = {
        "publisher in [tool.flwr.app]": app.get("publisher"),
        "name in [project]": about.get("name"),
        "version in [project]": about.get("version"),
        "clientapp in [tool.flwr.app.components]": client,
    }
    for what, value in told.items():
        if not isinstance(value, str) or not value:
            raise BadInput("BAD_APP", f"{_PROJECT} of {where} has no {what}.", "Flower's documentation says which.")
    publisher, name, version, client = (str(each) for each in told.values())
    module, _, attribute = client.partition(":")
    stem = module.replace(".", "/")
    # Python looks for a package first.
    source = files.get(f"{stem}/__init__.py", files.get(f"{stem}.py"))
    if source is None or not attribute:
        raise BadInput("BAD_APP", f"The app in {where} has no {client}.", f"Check clientapp in its {_PROJECT}.")
    return Bundle(content, publisher, name, version, client, dict(_flat(app.get("config", {}))), source)


def _app_of(project: Mapping[str, Any]) -> dict[str, Any]:
    found: Any = project
    for key in ("tool", "flwr", "app"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise BadInput("BAD_APP", f"{_PROJECT} has no [tool.flwr.app].", "Name the directory of a Flower app.")
    return found


def _parsed(text: bytes, where: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise BadInput("BAD_APP", f"{_PROJECT} of {where} is no TOML: {error}.", "Correct it.") from None


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Setting]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
