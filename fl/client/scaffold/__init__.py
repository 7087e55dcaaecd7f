"""What `quorate new` writes: an app that trains at once, on data that it makes up, and a job file that runs everywhere.

Enters: a directory that is not there yet, the name of a template. Leaves: the template's files, with the name in them.
Templates are files below here that end in `.txt`, so that nobody takes them for code of Quorate's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from fl.client.errors import BadFile, BadInput
from fl.members import is_name

TEMPLATES = ("numpy", "torch", "sklearn", "flower")
_COMMON = "common"
_NAME, _APP, _ENDING, _IGNORED = "@NAME@", "@APP@", ".txt", "gitignore"
_APP_WIDTH = 31


def write_scaffold(directory: Path, template: str) -> list[Path]:
    """The files of this template, in a directory whose name becomes the job's."""
    name = directory.resolve().name
    if not is_name(name) or name.startswith((".", "-")):
        raise BadInput("BAD_NAME", f"'{name}' is no name of a job.", "It has 1 to 64 of A-Z a-z 0-9 . _ and -.")
    if template not in TEMPLATES:
        raise BadInput("UNKNOWN_TEMPLATE", f"There is no template '{template}'.", f"There are: {', '.join(TEMPLATES)}.")
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise BadInput("NOT_EMPTY", f"There is something in {directory}.", "Name a directory that is not there.")
        directory.mkdir(parents=True, exist_ok=True)
        app = '"flower:app:app"' if template == "flower" else '"app:app"'
        filled = {_NAME: name, _APP: app.ljust(_APP_WIDTH)}
        return [_write(directory / file, _filled(text, filled)) for file, text in _files(template).items()]
    except OSError as error:
        raise BadFile("UNWRITABLE", f"{directory} cannot be written: {error.strerror}.", "Name another.") from error


def _files(template: str) -> dict[str, str]:
    """A template's own files take the place of common ones."""
    found: dict[str, str] = {}
    for place in (_COMMON, template):
        for each in sorted(files(__package__).joinpath(place).iterdir(), key=lambda entry: entry.name):
            name = each.name.removesuffix(_ENDING)
            found[f".{name}" if name == _IGNORED else name] = each.read_text(encoding="utf-8")
    return found


def _filled(text: str, given: Mapping[str, str]) -> str:
    for mark, value in given.items():
        text = text.replace(mark, value)
    return text


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
