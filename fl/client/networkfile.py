"""consortium.toml: which chain, who validates it, where they answer. It is all that a client trusts.

    name = "hospitals"
    chain_id = "…64 hex digits…"
    epoch = 0

    [[validator]]
    name = "org-a"
    consensus_key = "01…"
    link_key = "01…"
    operator_key = "01…"
    beacon_commit = "…"
    address = "a.example:7000"
    rpc = "https://a.example"

`rpc` may be empty for a validator that does not answer clients.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chain.certificate import MAX_VALIDATORS, Validator, ValidatorSet
from chain.codec import CodecError, encode
from chain.genesis import Genesis
from chain.keys import WeakKey, check_public_key
from chain.light import Checkpoint
from fl.client.errors import BadFile

NETWORK_FILE = "consortium.toml"
_LIMIT_BYTES = 1024 * 1024
_KEYS = ("consensus_key", "link_key", "operator_key", "beacon_commit")
_ASK = "Ask a member for the file, or export it again: quorate network export"


@dataclass(frozen=True, slots=True)
class NetworkFile:
    name: str
    checkpoint: Checkpoint

    @property
    def validators(self) -> ValidatorSet:
        return self.checkpoint.validators


def network_of(genesis: Genesis) -> NetworkFile:
    return NetworkFile(genesis.name, Checkpoint(genesis.chain_id, genesis.validator_set))


def read_network(path: Path) -> NetworkFile:
    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", _ASK) from error
    if len(data) > _LIMIT_BYTES:
        raise BadFile("BAD_NETWORK_FILE", f"{path} is far longer than a network file can be.", _ASK)
    try:
        return parse_network(data.decode())
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise BadFile("BAD_NETWORK_FILE", f"{path} is no network file: {reason}.", _ASK) from error


def parse_network(text: str) -> NetworkFile:
    """Raises ValueError, KeyError, TypeError, AttributeError, OverflowError or RecursionError for what is none."""
    fields = tomllib.loads(text)
    members = tuple(_validator(each) for each in fields["validator"])
    chain_id = bytes.fromhex(fields["chain_id"])
    if len(chain_id) != 32:
        raise ValueError("the chain id has 64 hex digits")
    if not 1 <= len(members) <= MAX_VALIDATORS:
        raise ValueError(f"there are 1 to {MAX_VALIDATORS} validators")
    checkpoint = Checkpoint(chain_id, ValidatorSet(int(fields.get("epoch", 0)), members))
    encode(checkpoint)
    return NetworkFile(str(fields["name"]), checkpoint)


def render_network(network: NetworkFile) -> str:
    lines = [
        f"name = {_quoted(network.name)}",
        f"chain_id = {_quoted(network.checkpoint.chain_id.hex())}",
        f"epoch = {network.validators.epoch}",
    ]
    for each in network.validators.members:
        lines += ["", "[[validator]]", f"name = {_quoted(each.name)}"]
        lines += [f"{key} = {_quoted(getattr(each, key).hex())}" for key in _KEYS]
        lines += [f"address = {_quoted(each.address)}", f"rpc = {_quoted(each.rpc)}"]
    return "\n".join(lines) + "\n"


def _validator(fields: dict[str, Any]) -> Validator:
    consensus_key, link_key, operator_key, beacon_commit = (bytes.fromhex(fields[key]) for key in _KEYS)
    validator = Validator(
        name=str(fields["name"]),
        consensus_key=consensus_key,
        link_key=link_key,
        operator_key=operator_key,
        beacon_commit=beacon_commit,
        address=str(fields["address"]),
        rpc=str(fields["rpc"]),
    )
    try:
        encode(validator)
        check_public_key(consensus_key)
    except (CodecError, WeakKey) as error:
        raise ValueError(f"validator {validator.name}: {error}") from None
    return validator


def _quoted(text: str) -> str:
    # A JSON string is a TOML basic string; only DEL is escaped in one and not in the other.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
