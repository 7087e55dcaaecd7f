"""As much of JSON Schema as the report needs: types, enumerations, required and other properties, items, references.

A schema that says more than that is refused, so that nothing in it is taken for checked that is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
_SILENT = {"$schema", "$id", "$defs", "title", "description"}
_KNOWN = {"type", "const", "enum", "required", "properties", "additionalProperties", "items", "minItems", "$ref"}


class Invalid(ValueError):
    """The sentence says where, and what would be valid."""


def check(document: object, schema: Mapping[str, Any]) -> None:
    _check(document, schema, schema, "the report")


def _check(value: object, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> None:
    unknown = schema.keys() - _SILENT - _KNOWN
    if unknown:
        raise Invalid(f"the schema says {', '.join(sorted(unknown))} of {where}, which is not looked at here")
    if "$ref" in schema:
        _check(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
    if "type" in schema:
        _check_type(value, schema["type"], where)
    if "const" in schema and value != schema["const"]:
        raise Invalid(f"{where} must be {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        raise Invalid(f"{where} must be one of {', '.join(map(repr, schema['enum']))}")
    if isinstance(value, dict):
        _check_object(value, schema, root, where)
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            raise Invalid(f"{where} must have {schema['minItems']} entries or more")
        for place, each in enumerate(value):
            _check(each, schema.get("items", {}), root, f"{where}[{place}]")


def _check_type(value: object, wanted: str | list[str], where: str) -> None:
    names = [wanted] if isinstance(wanted, str) else wanted
    if not any(isinstance(value, _TYPES[name]) and (name == "boolean" or value is not True) for name in names):
        raise Invalid(f"{where} must be of type {' or '.join(names)}")
    if isinstance(value, bool) and "boolean" not in names:
        raise Invalid(f"{where} must be of type {' or '.join(names)}")


def _check_object(value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> None:
    properties = schema.get("properties", {})
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        raise Invalid(f"{where} lacks {', '.join(missing)}")
    others = schema.get("additionalProperties", True)
    for name, each in value.items():
        if name in properties:
            _check(each, properties[name], root, f"{where}.{name}")
        elif others is False:
            raise Invalid(f"{where} may not have {name!r}")
        elif others is not True:
            _check(each, others, root, f"{where}.{name}")
