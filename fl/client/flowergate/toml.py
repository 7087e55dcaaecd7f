"""TOML, written: what Flower's own builder makes of an app's pyproject.toml, byte for byte."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from typing import Any

_BARE = frozenset(string.ascii_letters + string.digits + "-_")
_SHORT = {"\b": "\\b", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_MOST_INLINE = 100
_INDENT = "    "


def written(table: Mapping[str, Any]) -> str:
    return "".join(_table(table, "", False))


def _table(table: Mapping[str, Any], name: str, is_entry: bool) -> Iterator[str]:
    """Plain values first, then tables; arrays of tables in their long form if one is too wide for a line."""
    plain, tables = [], list[tuple[str, Mapping[str, Any], bool]]()
    for key, value in table.items():
        if isinstance(value, Mapping):
            tables.append((key, value, False))
        elif _is_array_of_tables(value) and not all(map(_fits, value)):
            tables += [(key, each, True) for each in value]
        else:
            plain.append((key, value))
    is_first = True
    if is_entry or (name and (plain or not tables)):
        is_first = False
        yield f"[[{name}]]\n" if is_entry else f"[{name}]\n"
    for key, value in plain:
        is_first = False
        yield f"{_key(key)} = {_value(value, 0)}\n"
    for key, each, is_one_of_many in tables:
        yield "" if is_first else "\n"
        is_first = False
        yield from _table(each, f"{name}.{_key(key)}" if name else _key(key), is_one_of_many)


def _value(value: object, level: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | date | datetime | time):
        return str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        entries = ", ".join(f"{_key(key)} = {_value(each, 0)}" for key, each in value.items())
        return f"{{ {entries} }}" if entries else "{}"
    assert isinstance(value, list), f"TOML has no {type(value).__name__}"
    if not value:
        return "[]"
    lines = "".join(f"{_INDENT * (level + 1)}{_value(each, level + 1)},\n" for each in value)
    return f"[\n{lines}{_INDENT * level}]"


def _key(key: str) -> str:
    return key if key and _BARE.issuperset(key) else _text(key)


def _text(text: str) -> str:
    return '"' + "".join(map(_character, text)) + '"'


def _character(each: str) -> str:
    if each in _SHORT:
        return _SHORT[each]
    return f"\\u{ord(each):04x}" if (ord(each) < 32 and each != "\t") or ord(each) == 127 else each


def _is_array_of_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _fits(table: Mapping[str, Any]) -> bool:
    text = f"{_INDENT}{_value(table, 0)},"
    return len(text) <= _MOST_INLINE and "\n" not in text
