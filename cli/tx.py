"""`quorate tx`: how far a transaction is; and signing one on a machine that has no network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.client import FILE, Client, client_options
from cli.job import tell_receipt
from cli.output import fields, line, reading, tell
from fl.client.errors import BadInput

if TYPE_CHECKING:
    from fl.client.network import AsyncNetwork
    from fl.client.receipt import Receipt


_FAR = ("accepted", "available", "final", "expired", "executed", "proven")
"""A node that another's batch has not reached yet takes what was executed for expired."""


@click.group()
def tx() -> None:
    """How far a transaction is; signing one offline, and sending it."""


def _id(_: click.Context, __: click.Parameter, text: str) -> bytes:
    try:
        identity = bytes.fromhex(text)
    except ValueError:
        identity = b""
    if len(identity) != 32:
        raise BadInput("BAD_ID", f"'{text}' is no transaction's id.", "It has 64 hexadecimal digits.")
    return identity


@tx.command()
@click.argument("identity", metavar="ID", callback=_id)
@client_options
@reading
def status(client: Client, identity: bytes) -> None:
    """Say how far a transaction is, as the node tells it that knows most: accepted, available, final, executed, proven
    or expired."""
    found = _furthest(client.ask_each(f"/v1/transactions/{identity.hex()}"))
    receipt = found.get("receipt") or {}
    shown = {
        "id": found["id"],
        "status": found["status"],
        **{f"receipt {name}": value for name, value in receipt.items()},
    }
    tell(found, lambda: fields(shown))


def _furthest(told: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Each node has its own part of what is on its way, and one of them may be behind the others."""
    found: dict[str, Any] = {}
    for each in told:
        if not found or _far(each) > _far(found):
            found = each
        if found["status"] == _FAR[-1]:
            break
    return found


def _far(told: dict[str, Any]) -> int:
    return _FAR.index(told["status"]) if told["status"] in _FAR else -1


@tx.command()
@click.argument("account", required=False)
@client_options
@reading
def nonce(client: Client, account: str | None) -> None:
    """Say the next nonce of an account (default: the key's), proven: what signing offline needs."""

    async def work(network: AsyncNetwork) -> tuple[str, int]:
        who = account if account is not None else network.account
        return who, await network.next_nonce(who)

    who, found = client.run(work)
    tell({"account": who, "nonce": found}, lambda: line(str(found)))


@tx.command()
@click.argument("body", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The file for `quorate tx send`.")
@click.option("--nonce", type=click.IntRange(min=0), help="[default: the one after the last that was signed here]")
@click.option("--valid-for", "valid_for_h", default=12.0, show_default=True, help="Hours within which it is executed.")
@click.option("--account", help="Needed once its key was rotated.")
@client_options
@reading
def sign(client: Client, body: Path, output: Path, nonce: int | None, valid_for_h: float, account: str | None) -> None:
    """Sign what a TOML file says, asking nobody: the machine needs the network file and the key, and no network."""
    from fl.client.bodies import kind_name, read_body_file
    from fl.client.signing import sign_offline

    said = read_body_file(body)
    signed = sign_offline(
        client.network,
        client.key,
        said,
        nonce=nonce,
        valid_for_s=3600 * valid_for_h,
        passphrase=client.secret(),
        account=account,
        home=client.home,
    )
    signed.save(output)
    data = {
        "tx": signed.id.hex(),
        "kind": kind_name(signed.tx.kind),
        "sender": signed.tx.sender.hex(),
        "nonce": signed.tx.nonce,
        "valid_until_ms": signed.tx.valid_until_ms,
        "file": str(output),
    }
    tell(data, lambda: fields(data))


@tx.command()
@click.argument("file", type=FILE)
@client_options
@reading
def send(client: Client, file: Path) -> None:
    """Send a transaction that was signed elsewhere, and wait for its proven receipt. It needs no key."""

    async def work(network: AsyncNetwork) -> Receipt:
        return await network.send_signed(file)

    tell_receipt(client.run(work))
