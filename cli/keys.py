"""`quorate keys`: made where they are used, encrypted, and never moved."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from chain.genesis import MAX_GENESIS_BYTES
from chain.transaction import account_id
from cli.explain import explained
from cli.founding import read_limited
from cli.output import fields, line, reading, remark, tell
from fl.client.errors import BadFile, BadInput
from fl.client.keyfile import new_key
from node.config import host_port
from node.keystore import (
    ROLES,
    VALIDATOR_FILE,
    Passphrase,
    describe,
    generate,
    key_path,
    load_claim,
    load_keys,
    read_passphrase,
    save_claim,
    save_keys,
)

INSECURE = "insecure-no-passphrase"


@click.group()
def keys() -> None:
    """A validator's keys, and the keys of accounts."""


def _passphrase(source: str, insecure: bool, *, confirm: bool) -> Passphrase:
    if insecure:
        remark("The key is not encrypted: whoever reads the file has it. Use this on local networks only.")
    return read_passphrase(INSECURE if insecure else source, confirm=confirm)


passphrase_option = click.option(
    "--passphrase",
    default="prompt",
    show_default=True,
    envvar="QUORATE_PASSPHRASE_FROM",
    help="Where it comes from: prompt, file:PATH or credential:NAME.",
)
insecure_option = click.option("--insecure-no-passphrase", "insecure", is_flag=True, help="Leave the key unencrypted.")


@keys.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=Path("keys"))
@click.option("--name", required=True, help="Of the validator: what the other members call it.")
@click.option("--address", required=True, help="host:port where the other validators reach it.")
@click.option("--rpc", default="", help="URL where clients reach it, if it answers clients.")
@passphrase_option
@insecure_option
@reading
def new(directory: Path, name: str, address: str, rpc: str, passphrase: str, insecure: bool) -> None:
    """Make a validator's keys in DIRECTORY, and the validator.json to send to the other members.

    Three keys: consensus (signs votes), link (proves who connects) and operator (the organisation's account). None of
    them is ever overwritten. validator.json holds no secret; it proves that its sender holds the keys.
    """
    _check_public(name, address, rpc)
    with explained():
        if any(key_path(directory, role).exists() for role in ROLES):
            raise BadInput("KEY_EXISTS", f"There are keys in {directory}; they are never overwritten.", "Name another.")
        secret = _passphrase(passphrase, insecure, confirm=True)
        made = generate(os.urandom)
        save_keys(directory, made, secret, os.urandom)
        path = save_claim(directory, describe(made, name, address, rpc))

    def show() -> None:
        line(f"Keys of {name} are in {directory}.")
        line(f"Send {path} to the other members, and keep a copy of {directory} where nobody else can read it.")

    tell({"name": name, "directory": str(directory), "claim": str(path)}, show)


@keys.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=Path("keys"))
@click.option("--address", help="host:port where the other validators reach it.")
@click.option("--rpc", help="URL where clients reach it.")
@passphrase_option
@reading
def claim(directory: Path, address: str | None, rpc: str | None, passphrase: str) -> None:
    """Write validator.json again, with another address: before there is a genesis, that is all it takes."""
    with explained():
        known = load_claim(directory / VALIDATOR_FILE).validator
        address, rpc = address or known.address, known.rpc if rpc is None else rpc
        _check_public(known.name, address, rpc)
        path = save_claim(
            directory, describe(load_keys(directory, read_passphrase(passphrase)), known.name, address, rpc)
        )
    data = {"name": known.name, "address": address, "rpc": rpc, "claim": str(path)}
    tell(data, lambda: line(f"Send {path} to the other members, in place of the one before."))


@keys.command()
@click.argument("place", type=click.Path(path_type=Path, exists=True), default=Path("keys"))
@reading
def show(place: Path) -> None:
    """Show what others may know: of a validator's directory, a validator.json, or an account's key file."""
    if place.is_dir():
        place = place / VALIDATOR_FILE
    if _format(place) != "quorate-validator-1":
        data = {"role": _fields(place).get("role", ""), "public": _public(place), "account": _account(place)}
    else:
        with explained():
            validator = load_claim(place).validator
        data = {
            "name": validator.name,
            "address": validator.address,
            "rpc": validator.rpc,
            "consensus_key": validator.consensus_key.hex(),
            "link_key": validator.link_key.hex(),
            "operator_key": validator.operator_key.hex(),
            "operator_account": account_id(validator.operator_key).hex(),
        }
    tell(data, lambda: fields(data))


@keys.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@reading
def public(file: Path) -> None:
    """Print the public key of a key file, as params.toml and registrars need it."""
    text = _public(file)
    tell({"public": text, "account": _account(file)}, lambda: line(text))


@keys.command("new-account")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@passphrase_option
@insecure_option
@reading
def new_account(file: Path, passphrase: str, insecure: bool) -> None:
    """Make the key of an account: of a trainer, a job's creator, a registrar."""
    if file.exists():
        raise BadInput("KEY_EXISTS", f"{file} exists; a key is never overwritten.", "Name another file.")
    with explained():
        secret = _passphrase(passphrase, insecure, confirm=True).secret
    key = new_key(file, secret)
    data = {"public": key.public.hex(), "account": account_id(key.public).hex(), "file": str(file)}
    tell(data, lambda: fields({name: data[name] for name in ("public", "account")}))


def _check_public(name: str, address: str, rpc: str) -> None:
    if not 0 < len(name.encode()) <= 64:
        raise BadInput(
            "BAD_NAME", "The name takes 1 to 64 bytes.", "Choose a shorter one, such as your organisation's."
        )
    try:
        host_port(address)
    except ValueError as error:
        raise BadInput("BAD_ADDRESS", f"The address is '{address}'; {error}.", "Name where others reach it.") from None
    if rpc and not rpc.startswith(("http://", "https://")):
        raise BadInput("BAD_URL", f"'{rpc}' is no URL.", "It begins with https:// or, on a trusted network, http://.")


def _fields(file: Path) -> dict[str, object]:
    try:
        found = json.loads(read_limited(file, MAX_GENESIS_BYTES))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadFile("BAD_KEY_FILE", f"{file} is neither a key file nor a validator.json.", "Name another file.")
    return found


def _format(file: Path) -> object:
    return _fields(file).get("format")


def _public(file: Path) -> str:
    public = _fields(file).get("public")
    if not isinstance(public, str):
        raise BadFile("BAD_KEY_FILE", f"{file} is no key file.", "Name another file.")
    return public


def _account(file: Path) -> str:
    return account_id(bytes.fromhex(_public(file))).hex()
