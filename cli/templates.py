"""A node.toml, made from the table that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap

from cli.founding import quoted
from node.config import SETTINGS, HostPort, Setting


def node_toml(values: Mapping[tuple[str, str], object], *, explain: bool = False) -> str:
    """The settings that are given; `explain` adds what each means, and the others as comments."""
    sections = []
    for section, settings in SETTINGS.items():
        lines = [f"[{section}]"]
        for name, setting in settings.items():
            if explain:
                lines += ["", *(f"# {each}" for each in wrap(_sentence(setting), 100))]
            if (section, name) in values:
                lines.append(f"{name} = {_toml(values[section, name])}")
            elif explain:
                lines.append(f"# {name} = {_toml(setting.default)}")
        if len(lines) > 1:
            sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def _sentence(setting: Setting) -> str:
    return f"{setting.meaning[0].upper()}{setting.meaning[1:]}."


def _toml(value: object) -> str:
    match value:
        case None:
            return '""'
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str() | Path() | HostPort():
            return quoted(str(value))
        case Mapping():
            return f"{{{', '.join(f'{quoted(name)} = {_toml(each)}' for name, each in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
    raise TypeError(f"no setting is a {type(value).__name__}")
