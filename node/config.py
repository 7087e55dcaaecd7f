"""One TOML file of settings for one validator, read and checked once, before anything is touched.

Only this node's own resources are set here; whatever nodes have to agree on is in the genesis. Each setting can be
overridden by an environment variable: `[rpc] listen` by `QUORATE_RPC__LISTEN`. Such a variable holds the bare text of
a string or a path, and TOML for everything else. A relative path starts at the directory of the file. All complaints
are raised together, each with what would be accepted.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

ENVIRONMENT = "QUORATE_"
ADMIN_SOCKET = "admin.sock"

_MIB = 1024 * 1024
_SOCKET_PATH_BYTES = 107
"""What Linux takes as the path of a Unix socket."""


class ConfigError(Exception):
    """The configuration cannot be used: one sentence for each thing that is wrong with it."""

    def __init__(self, *sentences: str) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = sentences


class HostPort(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class NodeSection:
    data_dir: Path
    genesis: Path
    keys: Path
    passphrase: str
    drain_ms: int


@dataclass(frozen=True, slots=True)
class LinksSection:
    listen: HostPort
    addresses: Mapping[str, HostPort]


@dataclass(frozen=True, slots=True)
class RpcSection:
    listen: HostPort
    tls_cert: Path | None
    tls_key: Path | None
    cors: tuple[str, ...]
    requests_per_s: int
    submitted_bytes_per_s: int


@dataclass(frozen=True, slots=True)
class DataSection:
    """Of the data process: where bytes in bulk come from and go to, and how many are kept."""

    listen: HostPort | None
    advertise: HostPort | None
    door: HostPort | None
    advertise_door: str | None
    gateways: tuple[str, ...]
    member_bytes: int
    blob_bytes: int
    lease_ms: int
    keep_update_rounds: int
    keep_models: int
    keep_models_every: int
    archive: bool
    sums_bytes: int
    downloads: int


@dataclass(frozen=True, slots=True)
class LogSection:
    level: str
    format: str


@dataclass(frozen=True, slots=True)
class LimitsSection:
    disk_reserve_bytes: int
    journal_keep_blocks: int
    account_transactions_per_s: int
    stranger_transactions_per_s: int
    threads: int


@dataclass(frozen=True, slots=True)
class Config:
    node: NodeSection
    links: LinksSection
    rpc: RpcSection
    data: DataSection
    log: LogSection
    limits: LimitsSection

    @property
    def admin_socket(self) -> Path:
        return self.node.data_dir / ADMIN_SOCKET

    @property
    def bulk_listen(self) -> HostPort:
        """Where other validators pull blobs from: unless set, the port after that of the links."""
        return self.data.listen or _after(self.links.listen)

    @property
    def door_listen(self) -> HostPort:
        """Where clients put and get blobs: unless set, the port after that of the RPC."""
        return self.data.door or _after(self.rpc.listen)


def _after(place: HostPort) -> HostPort:
    # After the last port there is none; the contradiction is reported, for the two are equal then.
    return HostPort(place.host, min(place.port + 1, 2**16 - 1))


Reader = Callable[[object, Path], object]
"""A value of the file and the directory that relative paths start at; raises ValueError with what is accepted."""


class Setting(NamedTuple):
    meaning: str
    read: Reader
    default: object = None
    required: bool = False


def _text(value: object, _: Path) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("it must be a text that is not empty")
    return value


def _path(value: object, base: Path) -> Path:
    return (base / Path(_text(value, base)).expanduser()).absolute()


def host_port(text: str) -> HostPort:
    """Raises ValueError."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or (":" in bare) != (host != bare) or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError("it must be host:port, as in 127.0.0.1:7600 or [::1]:7600")
    return HostPort(bare, int(port))


def _host_port(value: object, base: Path) -> HostPort:
    return host_port(_text(value, base))


def _addresses(value: object, base: Path) -> dict[str, HostPort]:
    if not isinstance(value, dict):
        raise ValueError('it must be a table of validators\' names, as in { "north" = "10.0.0.1:7600" }')
    return {name: _host_port(address, base) for name, address in value.items()}


def _origins(value: object, _: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and "://" in item for item in value):
        raise ValueError('it must be a list of origins, as in ["https://board.example"]')
    return tuple(value)


def _url(value: object, base: Path) -> str:
    text = _text(value, base).rstrip("/")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("it must be a URL, as in https://blobs.north.example")
    return text


def _urls(value: object, base: Path) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError('it must be a list of URLs, as in ["https://trustless-gateway.link"]')
    return tuple(_url(item, base) for item in value)


def _yes_or_no(value: object, _: Path) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def _number(least: int, most: int) -> Reader:
    def read(value: object, _: Path) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"it must be a whole number from {least} to {most}")
        return value

    return read


def _one_of(*choices: str) -> Reader:
    def read(value: object, _: Path) -> str:
        if value not in choices:
            raise ValueError(f"it must be one of {', '.join(choices)}")
        return str(value)

    return read


def _passphrase(value: object, base: Path) -> str:
    text = _text(value, base)
    kind, _, place = text.partition(":")
    if kind == "file" and place:
        return f"file:{_path(place, base)}"
    if text in ("prompt", "insecure-no-passphrase") or (kind == "credential" and place):
        return text
    raise ValueError("it must be prompt, file:PATH, credential:NAME or insecure-no-passphrase")


SETTINGS: dict[str, dict[str, Setting]] = {
    "node": {
        "data_dir": Setting("where the node keeps its journal, batches, rows and blobs", _path, required=True),
        "genesis": Setting("the genesis that all validators share", _path, required=True),
        "keys": Setting("directory of the three key files", _path, required=True),
        "passphrase": Setting(
            "where their passphrase comes from: prompt, file:PATH, credential:NAME or insecure-no-passphrase",
            _passphrase,
            "prompt",
        ),
        "drain_ms": Setting(
            "how long a stop may wait for accepted transactions to become final", _number(0, 600_000), 5_000
        ),
    },
    "links": {
        "listen": Setting("where other validators connect to", _host_port, required=True),
        "addresses": Setting("addresses of other validators, by name, where the genesis is not right", _addresses, {}),
    },
    "rpc": {
        "listen": Setting("where clients connect to", _host_port, HostPort("127.0.0.1", 7680)),
        "tls_cert": Setting("certificate chain (PEM); with tls_key, clients must use https", _path),
        "tls_key": Setting("its private key (PEM)", _path),
        "cors": Setting("origins whose pages may read from this node; none unless named", _origins, ()),
        "requests_per_s": Setting("requests taken from one address", _number(1, 1_000_000), 500),
        "submitted_bytes_per_s": Setting(
            "bytes of transactions taken from one address", _number(65_536, 2**40), 16 * _MIB
        ),
    },
    "data": {
        "listen": Setting("where other validators pull blobs from; the port after that of [links] listen", _host_port),
        "advertise": Setting("the address at which they reach that, where it is another", _host_port),
        "door": Setting("where clients put and get blobs; the port after that of [rpc] listen", _host_port),
        "advertise_door": Setting("the URL at which they reach that, where it is another", _url),
        "gateways": Setting("IPFS gateways to ask for a data set or model that no validator has", _urls, ()),
        "member_bytes": Setting(
            "blobs that one member may have here before they are ordered", _number(_MIB, 2**60), 8192 * _MIB
        ),
        "blob_bytes": Setting("the largest blob that is taken", _number(_MIB, 2**36), 8192 * _MIB),
        "lease_ms": Setting(
            "how long a blob that was put here waits for the transaction that names it",
            _number(60_000, 30 * 86_400_000),
            3_600_000,
        ),
        "keep_update_rounds": Setting("rounds whose updates are kept after they ended", _number(0, 1_000_000), 2),
        "keep_models": Setting("newest models of a job that are kept, beside its first", _number(1, 1_000_000), 3),
        "keep_models_every": Setting(
            "of older models, the one of every so many rounds is kept; 0 keeps none", _number(0, 1_000_000), 10
        ),
        "archive": Setting("keep every blob that was ever ordered", _yes_or_no, False),
        "sums_bytes": Setting(
            "memory for the sums of rounds that are still open; one that finds none is summed when it closes",
            _number(0, 2**50),
            1024 * _MIB,
        ),
        "downloads": Setting("blobs pulled from other validators at once", _number(1, 256), 8),
    },
    "log": {
        "level": Setting("the least that is written", _one_of("debug", "info", "warning", "error"), "info"),
        "format": Setting("json (a line an event) or text", _one_of("json", "text"), "json"),
    },
    "limits": {
        "disk_reserve_bytes": Setting(
            "below so much free space the node takes no transactions and votes for no batches",
            _number(0, 2**60),
            256 * _MIB,
        ),
        "journal_keep_blocks": Setting(
            "blocks whose journal records are kept for evidence", _number(10_000, 2**60), 100_000
        ),
        "account_transactions_per_s": Setting("transactions taken for one member", _number(1, 1_000_000), 500),
        "stranger_transactions_per_s": Setting(
            "transactions taken for all senders together who are not members", _number(1, 1_000_000), 100
        ),
        "threads": Setting("for hashing, kernels and LevelDB", _number(1, 64), 2),
    },
}


def load_config(path: Path, environment: Mapping[str, str]) -> Config:
    """Raises ConfigError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration at {path}; name one with --config or QUORATE_CONFIG.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    return read_config(content, path.absolute().parent, environment)


def read_config(content: Mapping[str, object], base: Path, environment: Mapping[str, str]) -> Config:
    """The same, from a file's content. Raises ConfigError."""
    complaints: list[str] = []
    given: dict[str, dict[str, tuple[str, object]]] = {section: {} for section in SETTINGS}
    for section, values in content.items():
        if section not in SETTINGS or not isinstance(values, Mapping):
            complaints.append(_unknown(f"[{section}]", "a section", section, SETTINGS))
            continue
        for name, value in values.items():
            given[section][name] = (f"[{section}] {name}", value)
    for section, name, variable, value in _overrides(environment, complaints):
        given[section][name] = (variable, value)

    read: dict[str, dict[str, Any]] = {}
    for section, settings in SETTINGS.items():
        for name in given[section].keys() - settings.keys():
            complaints.append(_unknown(given[section][name][0], "a setting", name, settings))
        read[section] = _values(section, settings, given[section], base, complaints)
    if not complaints:
        config = Config(
            NodeSection(**read["node"]),
            LinksSection(**read["links"]),
            RpcSection(**read["rpc"]),
            DataSection(**read["data"]),
            LogSection(**read["log"]),
            LimitsSection(**read["limits"]),
        )
        complaints += _contradictions(config)
    if complaints:
        raise ConfigError(*complaints)
    return config


def is_override(variable: str) -> bool:
    return variable.startswith(ENVIRONMENT) and "__" in variable


def _overrides(environment: Mapping[str, str], complaints: list[str]) -> Iterator[tuple[str, str, str, object]]:
    for variable, text in sorted(environment.items()):
        if not is_override(variable):
            continue
        section, _, name = variable.removeprefix(ENVIRONMENT).lower().partition("__")
        setting = SETTINGS.get(section, {}).get(name)
        if setting is None:
            complaints.append(f"The environment variable {variable} names no setting; unset it or mend its name.")
            continue
        yield section, name, variable, _from_environment(text)


def _from_environment(text: str) -> object:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    # Dates and fractions are no settings, but may well be the beginning of a path or a name.
    return value if isinstance(value, bool | int | list | dict | str) else text


def _unknown(what: str, kind: str, name: str, known: Mapping[str, object]) -> str:
    close = get_close_matches(name, known, 1)
    return f"{what} is not {kind}; " + (f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}.")


def _values(
    section: str,
    settings: Mapping[str, Setting],
    given: Mapping[str, tuple[str, object]],
    base: Path,
    complaints: list[str],
) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, setting in settings.items():
        if name not in given:
            values[name] = setting.default
            if setting.required:
                complaints.append(f"[{section}] {name} is missing: {setting.meaning}.")
            continue
        where, value = given[name]
        try:
            values[name] = setting.read(value, base)
        except ValueError as error:
            complaints.append(f"{where} is {value!r}; {error}.")
    return values


def _contradictions(config: Config) -> Iterator[str]:
    if (config.rpc.tls_cert is None) != (config.rpc.tls_key is None):
        yield "[rpc] tls_cert and tls_key belong together; set both or neither."
    places: dict[HostPort, str] = {}
    for name, place in (
        ("[links] listen", config.links.listen),
        ("[rpc] listen", config.rpc.listen),
        ("[data] listen", config.bulk_listen),
        ("[data] door", config.door_listen),
    ):
        if place in places:
            yield f"{places[place]} and {name} are both {place}; give each a port of its own."
        places[place] = name
    socket_bytes = len(str(config.admin_socket).encode())
    if socket_bytes > _SOCKET_PATH_BYTES:
        yield (
            f"[node] data_dir makes the admin socket's path {socket_bytes} bytes long; "
            f"at most {_SOCKET_PATH_BYTES} are possible, so choose a shorter directory."
        )
