"""JSON schemas from the types that the answers are made of, so that document and answer cannot part ways.

A `TypedDict` becomes an object that has all of its keys and no others, unless they are `NotRequired`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a schema says beyond the bare type."""

    pattern: str = ""
    minimum: int | None = None
    maximum: int | None = None
    encoding: str = ""

    def put(self, schema: Schema) -> Schema:
        said = {
            "pattern": self.pattern or None,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "contentEncoding": self.encoding or None,
        }
        return schema | {name: value for name, value in said.items() if value is not None}


MAX_U64 = 2**64 - 1
U64 = Annotated[int, Shape(minimum=0, maximum=MAX_U64)]
I64 = Annotated[int, Shape(minimum=-(2**63), maximum=2**63 - 1)]
HexDigest = Annotated[str, Shape(pattern="^[0-9a-f]{64}$")]
HexKey = Annotated[str, Shape(pattern="^[0-9a-f]{66}$")]
Hex = Annotated[str, Shape(pattern="^([0-9a-f]{2})*$")]
CidText = Annotated[str, Shape(pattern="^b[a-z2-7]{58}$")]
Base64 = Annotated[str, Shape(encoding="base64")]


class Components:
    """The named schemas of one document, collected while types are turned into references to them."""

    def __init__(self) -> None:
        self.schemas: dict[str, Schema] = {}

    def of(self, annotation: Any) -> Schema:
        if annotation in _PLAIN:
            return dict(_PLAIN[annotation])
        if is_typeddict(annotation):
            return self._named(annotation)
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            shape = arguments[1]
            assert isinstance(shape, Shape)
            return shape.put(self.of(arguments[0]))
        if origin in (Union, UnionType):
            return {"anyOf": [self.of(each) for each in arguments]}
        if origin is Literal:
            return {"type": "string", "enum": list(arguments)}
        if origin is list:
            return {"type": "array", "items": self.of(arguments[0])}
        if origin is dict:
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        raise TypeError(f"{annotation!r} has no JSON schema")

    def _named(self, view: Any) -> Schema:
        name = view.__name__
        if name not in self.schemas:
            self.schemas[name] = {}
            hints: Mapping[str, Any] = get_type_hints(view, include_extras=True)
            properties: dict[str, Schema] = {}
            required: list[str] = []
            for key, hint in hints.items():
                if get_origin(hint) is NotRequired:
                    hint = get_args(hint)[0]
                else:
                    required.append(key)
                properties[key] = self.of(hint)
            self.schemas[name] = {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            }
            if view.__doc__:
                self.schemas[name]["description"] = " ".join(view.__doc__.split())
        return {"$ref": f"#/components/schemas/{name}"}


_PLAIN: dict[Any, Schema] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    NoneType: {"type": "null"},
    object: {},
}
