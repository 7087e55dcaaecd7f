"""What a transaction says, as plain values that people and files can hold; and back again.

kind = "join_job"                       the name of its kind
job = "91a9…"                           bytes are hexadecimal, or the text of a CID
rules_hash = "07c2…"
role = "trainer"                        a field that has a default may be left out
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from chain.cid import CID_BYTES, CidError, cid_text, parse_cid
from chain.codec import CodecError, decode, encode
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction
from fl.client.errors import BadFile, BadInput
from fl.client.measures import metric_micro, metric_value
from fl.errors import Refused
from fl.evaluation import SubmitEvaluation
from fl.records import Kind
from fl.rounds import SubmitUpdate
from fl.transactions import KINDS, read_body

_LIMIT_BYTES = 4 * MAX_TRANSACTION_BYTES
_SHOWN_BYTES = 64
"""What is longer is told by its length."""
_NUMBERS: dict[type[object], str] = {SubmitUpdate: "metrics", SubmitEvaluation: "values"}
"""What was measured, in millionths there: in the order of the job's names."""


def kind_name(kind: int) -> str:
    try:
        return Kind(kind).name.lower()
    except ValueError:
        return f"kind {kind}"


def said_by(tx: Transaction) -> dict[str, object]:
    """The body, field by field, for eyes. Empty for a kind that this program does not know."""
    try:
        body = read_body(tx)[1]
    except Refused:
        return {}
    shown = _plain(body)
    assert isinstance(shown, dict)
    if name := _NUMBERS.get(type(body)):
        shown[name] = [metric_value(each) for each in getattr(body, name)]
    return shown


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        if len(value) > _SHOWN_BYTES:
            return f"{len(value)} bytes"
        try:
            return cid_text(value) if len(value) == CID_BYTES else value.hex()
        except CidError:
            return value.hex()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return value.value if isinstance(value, Enum) else value


def read_body_file(path: Path) -> object:
    """A transaction's body from a TOML file."""
    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    try:
        if len(data) > _LIMIT_BYTES:
            raise ValueError("it is longer than any transaction")
        return body_of(tomllib.loads(data.decode()))
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadFile("BAD_BODY", f"{path} does not say what to sign: {error}.", "See docs/receipts.md.") from None


def body_of(given: Mapping[str, Any]) -> object:
    """Of plain values, one of them the name of its kind. Raises BadInput."""
    known = {kind_name(number): row.body for number, row in KINDS.items()}
    named = given.get("kind")
    cls = known.get(named) if isinstance(named, str) else None
    if cls is None:
        raise BadInput("UNKNOWN_KIND", f"'kind' is {named!r}.", f"There are: {', '.join(known)}.")
    try:
        said = {name: value for name, value in given.items() if name != "kind"}
        name = _NUMBERS.get(cls, "")
        if isinstance(numbers := said.get(name), list):
            said[name] = [_micro(each, name) for each in numbers]
        body = _record(cls, said, "")
        # The codec knows every limit.
        decode(cls, encode(body), _LIMIT_BYTES)
    except (CodecError, _Unfit) as error:
        raise BadInput("BAD_BODY", f"This is no {named}: {error}.", "See docs/receipts.md.") from None
    return body


def _micro(number: object, where: str) -> int:
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise _Unfit(f"{number!r} in {where} is no number")
    return metric_micro(number)


class _Unfit(Exception):
    """A value that a field cannot hold."""


def _record(cls: type[Any], given: object, where: str) -> Any:
    if not isinstance(given, Mapping):
        raise _Unfit(f"{where or 'it'} is no table")
    hints = get_type_hints(cls)
    names = [each.name for each in fields(cls)]
    if unknown := given.keys() - set(names):
        raise _Unfit(f"it has no field {', '.join(sorted(map(str, unknown)))}; there are {', '.join(names)}")
    try:
        return cls(**{name: _value(hints[name], given[name], name) for name in names if name in given})
    except TypeError as error:
        raise _Unfit(f"{where or 'it'} lacks {str(error).rpartition(':')[2].strip()}") from None


def _value(hint: Any, given: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        (inner,) = [each for each in get_args(hint) if each is not NoneType]
        return _value(inner, given, where)
    if origin is tuple:
        if not isinstance(given, list):
            raise _Unfit(f"{where} is no list")
        return tuple(_value(get_args(hint)[0], each, where) for each in given)
    if is_dataclass(hint) and isinstance(hint, type):
        return _record(hint, given, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _of_enum(hint, given, where)
    if hint is bytes:
        return _bytes(given, where)
    if hint not in (int, str, bool) or type(given) is not hint:
        raise _Unfit(f"{where} is {given!r}")
    return given


def _of_enum(hint: type[Enum], given: object, where: str) -> Enum:
    try:
        return hint(given)
    except ValueError:
        raise _Unfit(f"{where} is {given!r}") from None


def _bytes(given: object, where: str) -> bytes:
    if not isinstance(given, str):
        raise _Unfit(f"{where} is neither hexadecimal nor a CID")
    try:
        return bytes.fromhex(given)
    except ValueError:
        pass
    try:
        return parse_cid(given)
    except CidError:
        raise _Unfit(f"{where} is neither hexadecimal nor a CID") from None
