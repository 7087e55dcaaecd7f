"""Networks by name: copies of network files in the home, which of them is the usual one, and whose key acts on each.

    ~/.quorate/networks/NAME.toml   a network file, as it was given
    ~/.quorate/config.toml          network = "NAME", and under [keys] the key file of each: NAME = "/path/to.key"

Wherever a network file is asked for, a name does as well. What has a slash in it, or ends in `.toml`, is a path.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fl.client.errors import BadFile, BadInput
from fl.client.home import default_root
from fl.client.keyfile import sync_directory
from fl.client.networkfile import NETWORK_FILE, NetworkFile, read_network
from fl.members import is_name

SUFFIX = ".toml"
_CONFIG_LIMIT_BYTES = 64 * 1024
_NAMES = "A name has 1 to 64 of A-Z a-z 0-9 . _ and -, and does not end in .toml."
_HEAD = "# Written by `quorate network`; of clients on this machine.\n"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A network file, and the key that acts on it unless another is named."""

    file: Path
    key: Path | None = None
    name: str = ""
    """Empty for a path."""


@dataclass(frozen=True, slots=True)
class Config:
    """What is in config.toml."""

    network: str = ""
    keys: Mapping[str, Path] = field(default_factory=dict)


def is_network_name(text: str) -> bool:
    return is_name(text) and not text.endswith(SUFFIX) and text not in (".", "..")


class Networks:
    """Those that this home knows. `root` is QUORATE_HOME or ~/.quorate unless it is given."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root if root is not None else default_root()

    def names(self) -> list[str]:
        found = (path.stem for path in self._directory.glob(f"*{SUFFIX}"))
        return sorted(name for name in found if is_network_name(name))

    def config(self) -> Config:
        try:
            with open(self._config, "rb") as file:
                data = file.read(_CONFIG_LIMIT_BYTES + 1)
        except FileNotFoundError:
            return Config()
        except OSError as error:
            raise BadFile("UNREADABLE", f"{self._config} cannot be read: {error.strerror}.", "Check it.") from error
        try:
            if len(data) > _CONFIG_LIMIT_BYTES:
                raise ValueError("it is far too long")
            return _config_of(tomllib.loads(data.decode()), self._root)
        except (ValueError, RecursionError) as error:
            raise BadFile("BAD_CONFIG", f"{self._config} cannot be used: {error}.", "Mend it, or delete it.") from error

    # Finding

    def choose(self, given: str | os.PathLike[str] | None = None) -> Chosen:
        """By name or by path; without either the usual one, else the file of this directory."""
        if given is None:
            return self._usual()
        text = os.fspath(given)
        if isinstance(given, str) and is_network_name(text) and (self._path(text).exists() or not Path(text).exists()):
            return self.named(text)
        return Chosen(Path(text))

    def _usual(self) -> Chosen:
        name = self.config().network
        if name:
            return self.named(name)
        if not Path(NETWORK_FILE).exists():
            raise BadInput(
                "NO_NETWORK",
                f"No network is named, none is the usual one, and there is no {NETWORK_FILE} here.",
                f"Name a file or a network (--network), or choose one: quorate network use NAME. {self._there_are()}",
            )
        return Chosen(Path(NETWORK_FILE))

    def _there_are(self) -> str:
        known = ", ".join(self.names())
        return f"There are: {known}." if known else "None has a name yet: quorate network add NAME FILE."

    def named(self, name: str) -> Chosen:
        if not is_network_name(name) or not self._path(name).exists():
            raise BadInput(
                "UNKNOWN_NETWORK",
                f"No network is named {name!r} in {self._root}, and there is no such file.",
                self._there_are(),
            )
        return Chosen(self._path(name), self.config().keys.get(name), name)

    # Changing

    def add(self, name: str, file: Path, key: Path | None = None, *, usual: bool = False) -> NetworkFile:
        """A copy of the file under this name. A newer file of the same chain replaces the one before."""
        if not is_network_name(name):
            raise BadInput("BAD_NAME", f"'{name}' is no name of a network.", _NAMES)
        network = read_network(file)
        path = self._path(name)
        if path.exists():
            known = read_network(path)
            if known.checkpoint.chain_id != network.checkpoint.chain_id:
                raise BadInput(
                    "NETWORK_EXISTS",
                    f"{name} is another chain, {known.checkpoint.chain_id.hex()[:16]}….",
                    f"Choose another name, or forget that one: quorate network remove {name}",
                )
        if key is not None and not key.is_file():
            raise BadFile("UNREADABLE", f"There is no key file {key}.", "Check the path.")
        self._replace(path, file.read_bytes())
        config = self.config()
        if key is not None:
            config = replace(config, keys={**config.keys, name: key.resolve()})
        if usual:
            config = replace(config, network=name)
        self._keep(config)
        return network

    def use(self, name: str) -> None:
        self._keep(replace(self.config(), network=self.named(name).name))

    def remove(self, name: str) -> None:
        """Forgets the name; key, receipts and what is in flight stay."""
        path = self.named(name).file
        config = self.config()
        keys = {each: key for each, key in config.keys.items() if each != name}
        self._keep(Config("" if config.network == name else config.network, keys))
        path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}{SUFFIX}"

    @property
    def _directory(self) -> Path:
        return self._root / "networks"

    @property
    def _config(self) -> Path:
        return self._root / "config.toml"

    def _keep(self, config: Config) -> None:
        if config == self.config():
            return
        lines = [f"network = {json.dumps(config.network)}\n"] if config.network else []
        if config.keys:
            lines += ["\n[keys]\n"]
            lines += [f"{json.dumps(name)} = {json.dumps(str(key))}\n" for name, key in sorted(config.keys.items())]
        self._replace(self._config, (_HEAD + "".join(lines)).encode())

    @staticmethod
    def _replace(path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
            sync_directory(path.parent)
        except OSError as error:
            raise BadFile("UNWRITABLE", f"{path} cannot be written: {error.strerror}.", "Check the home.") from error


def _config_of(content: Mapping[str, Any], root: Path) -> Config:
    unknown = content.keys() - {"network", "keys"}
    if unknown:
        raise ValueError(f"it knows no {', '.join(sorted(unknown))}, only network and [keys]")
    network, keys = content.get("network", ""), content.get("keys", {})
    if not isinstance(network, str) or not (network == "" or is_network_name(network)):
        raise ValueError(f"its network is {network!r}")
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        raise ValueError("[keys] names a file for each network")
    # A path in it starts at the home, whatever directory a command runs in.
    return Config(network, {name: root / Path(key).expanduser() for name, key in keys.items()})
