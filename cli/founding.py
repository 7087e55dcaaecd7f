"""From claims and a params.toml to a genesis: the same files give the same bytes, in whatever order they are named.

    name = "north"
    time = 2026-01-01T00:00:00Z
    admission = "registrars"          # or "open"
    registrars = ["01…"]              # public keys

    [params]                          # only what differs from the defaults
    delta_ms = 250

    [[member]]
    name = "alice"
    key = "01…"
    roles = ["trainer"]

    [[set_change]]                    # validator sets that are decided beforehand
    due_height = 100000
    validators = ["a", "b", "c", "e"]

The first validator set is `validators = [names]`; without that line it is everyone who handed in a claim.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from chain.certificate import Validator
from chain.codec import CodecError, decode
from chain.genesis import (
    GENESIS_VERSION,
    MAX_GENESIS_BYTES,
    Claim,
    Genesis,
    GenesisError,
    GenesisMember,
    Params,
    SetChange,
    check_genesis,
)
from fl.client.errors import BadFile

_FILE_LIMIT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Founding:
    """All of a genesis but the validators' claims."""

    name: str
    time_ms: int
    admission: str = "registrars"
    registrars: tuple[bytes, ...] = ()
    validators: tuple[str, ...] | None = None
    params: Params = field(default_factory=Params)
    members: tuple[GenesisMember, ...] = ()
    set_changes: tuple[tuple[int, tuple[str, ...]], ...] = ()


def found(claims: Iterable[Claim], founding: Founding) -> Genesis:
    """Raises GenesisError."""
    known = _by_name(claims)
    first = founding.validators if founding.validators is not None else tuple(known)
    genesis = Genesis(
        version=GENESIS_VERSION,
        name=founding.name,
        time_ms=founding.time_ms,
        params=founding.params,
        validators=_chosen(known, first),
        set_changes=tuple(SetChange(due, _chosen(known, names)) for due, names in founding.set_changes),
        registrars=tuple(sorted(founding.registrars)),
        admission=founding.admission,
        members=tuple(sorted(founding.members, key=lambda member: member.name)),
    )
    check_genesis(genesis)
    unused = known.keys() - set(first).union(*(names for _, names in founding.set_changes))
    if unused:
        raise GenesisError(f"Nothing is said of {', '.join(sorted(unused))}, who handed in a claim.")
    return genesis


def _by_name(claims: Iterable[Claim]) -> dict[str, Validator]:
    known: dict[str, Validator] = {}
    for claim in claims:
        validator = claim.validator
        if known.setdefault(validator.name, validator) != validator:
            raise GenesisError(f"Two claims are named '{validator.name}' and differ.")
    return dict(sorted(known.items()))


def _chosen(known: Mapping[str, Validator], names: Iterable[str]) -> tuple[Validator, ...]:
    missing = sorted(set(names) - known.keys())
    if missing:
        raise GenesisError(f"There is no validator.json of {', '.join(missing)}.")
    return tuple(known[name] for name in sorted(set(names)))


def read_founding(path: Path) -> Founding:
    try:
        return parse_founding(read_limited(path).decode())
    except ValueError as error:
        raise BadFile(
            "BAD_PARAMS", f"{path} cannot be used: {error}.", "See the example in docs/operators.md."
        ) from None


def parse_founding(text: str) -> Founding:
    """Raises ValueError with what is wrong."""
    content = _Table(tomllib.loads(text), "the file")
    founding = Founding(
        name=content.take("name", str),
        time_ms=_time_ms(content.take("time", datetime)),
        admission=content.take("admission", str, "registrars"),
        registrars=tuple(_key(key, "registrars") for key in content.take("registrars", list, [])),
        validators=content.names("validators") if "validators" in content.rest else None,
        params=_params(content.take("params", dict, {})),
        members=tuple(_member(_Table(each, "[[member]]")) for each in content.take("member", list, [])),
        set_changes=tuple(_set_change(_Table(each, "[[set_change]]")) for each in content.take("set_change", list, [])),
    )
    content.done()
    return founding


class _Table:
    """A TOML table of which nothing may be left over: a misspelt line must not be a default."""

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, dict):
            raise ValueError(f"{where} is no table")
        self.rest: dict[str, Any] = dict(content)
        self._where = where
        self._known: list[str] = []

    def take(self, name: str, kind: type, default: object = None) -> Any:
        self._known.append(name)
        if name not in self.rest:
            if default is None:
                raise ValueError(f"{self._where} lacks '{name}'")
            return default
        value = self.rest.pop(name)
        if type(value) is not kind:
            raise ValueError(f"'{name}' in {self._where} is not a {kind.__name__}")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        values: Sequence[object] = self.take(name, list)
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"'{name}' in {self._where} must list names")
        return tuple(map(str, values))

    def done(self) -> None:
        for name in self.rest:
            close = get_close_matches(name, self._known, 1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"'{name}' in {self._where} is unknown{hint}")


def _time_ms(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise ValueError("'time' has no time zone; end it with Z")
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _key(text: object, where: str) -> bytes:
    try:
        return bytes.fromhex(str(text))
    except ValueError:
        raise ValueError(f"a key in {where} is not hexadecimal") from None


def _params(values: Mapping[str, object]) -> Params:
    table = _Table(values, "[params]")
    given = {each.name: table.take(each.name, int, getattr(Params(), each.name)) for each in fields(Params)}
    table.done()
    return Params(**given)


def _member(table: _Table) -> GenesisMember:
    name, key = table.take("name", str), _key(table.take("key", str), "[[member]]")
    member = GenesisMember(name, key, table.names("roles"), table.take("organisation", str, ""))
    table.done()
    return member


def _set_change(table: _Table) -> tuple[int, tuple[str, ...]]:
    change = (table.take("due_height", int), table.names("validators"))
    table.done()
    return change


def render_founding(founding: Founding, every_param: bool = False) -> str:
    """The params.toml of it. `every_param` also lists the parameters that have their default."""
    moment = datetime.fromtimestamp(founding.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    lines = [
        f"name = {quoted(founding.name)}",
        f"time = {moment.replace('+00:00', 'Z')}",
        f"admission = {quoted(founding.admission)}",
        f"registrars = [{', '.join(quoted(key.hex()) for key in founding.registrars)}]",
        "",
        "[params]",
    ]
    for each in fields(Params):
        value, default = getattr(founding.params, each.name), getattr(Params(), each.name)
        if value != default or every_param:
            lines.append(f"{each.name} = {value}")
    for member in founding.members:
        roles = ", ".join(map(quoted, member.roles))
        lines += ["", "[[member]]", f"name = {quoted(member.name)}", f"key = {quoted(member.key.hex())}"]
        lines.append(f"roles = [{roles}]")
        if member.organisation:
            lines.append(f"organisation = {quoted(member.organisation)}")
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """As a TOML string."""
    plain = all(character.isprintable() and character not in '"\\' for character in text)
    return f'"{text}"' if plain else '"' + "".join(f"\\U{ord(character):08x}" for character in text) + '"'


def read_limited(path: Path, limit_bytes: int = _FILE_LIMIT_BYTES) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    if len(data) > limit_bytes:
        raise BadFile("TOO_LONG", f"{path} is longer than {limit_bytes} bytes.", "Name another file.")
    return data


def read_genesis(path: Path) -> Genesis:
    """A genesis in its one encoding, checked. Raises GenesisError."""
    try:
        genesis = decode(Genesis, read_limited(path, MAX_GENESIS_BYTES), MAX_GENESIS_BYTES)
    except CodecError as error:
        raise GenesisError(f"{path} is no genesis: {error}. Ask another member for the file.") from None
    check_genesis(genesis)
    return genesis
