"""`quorate tx`: what became of a transaction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from chain.codec import encode
from cli.client import FILE, Client, client_options
from cli.job import tell_receipt
from cli.output import fields, reading, tell
from fl.client.errors import BadFile, BadInput, QuorateError

if TYPE_CHECKING:
    from chain.light import ReceiptBundle
    from fl.client.network import AsyncNetwork
    from fl.records import Receipt


@click.group()
def tx() -> None:
    """What became of a transaction."""


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
    """Say how far a transaction is, as one node tells it: accepted, available, final, executed, proven or expired."""
    found = client.ask(f"/v1/transactions/{identity.hex()}")
    receipt = found.get("receipt") or {}
    shown = {
        "id": found["id"],
        "status": found["status"],
        **{f"receipt {name}": value for name, value in receipt.items()},
    }
    tell(found, lambda: fields(shown))


@tx.command()
@click.argument("identity", metavar="ID", callback=_id)
@click.option("-o", "--output", type=FILE, help="Keep the proof in this file; `quorate tx verify` checks it.")
@client_options
@reading
def receipt(client: Client, identity: bytes, output: Path | None) -> None:
    """Fetch a transaction's receipt with its proof, and check the proof against the network file."""

    async def work(network: AsyncNetwork) -> tuple[Receipt, ReceiptBundle] | None:
        return await network.reader.receipt_anywhere(identity)

    found = client.run(work)
    if found is None:
        raise QuorateError("NO_RECEIPT", "No node has a proven receipt of it.", "See `quorate tx status`.")
    record, bundle = found
    data: dict[str, object] = {
        "tx": record.tx_id.hex(),
        "status": record.status,
        "height": record.height,
        "job": record.job.hex() or None,
        "round": record.round,
        "position": record.position,
        "weight": record.weight,
        "nonce": record.nonce,
        "proof": None if output is None else str(output),
    }
    if output is not None:
        try:
            output.write_bytes(encode(bundle))
        except OSError as error:
            raise BadFile("UNWRITABLE", f"{output} cannot be written: {error.strerror}.", "Name another.") from error
    tell(data, lambda: fields({name: value for name, value in data.items() if value is not None}))


@tx.command()
@click.argument("file", type=FILE)
@client_options
@reading
def verify(client: Client, file: Path) -> None:
    """Check a receipt that is in a file: exit code 0 if it is proven, 6 if not."""

    async def work(network: AsyncNetwork) -> object:
        return network.verify_receipt(file)

    from fl.client.receipt import Receipt

    found = client.run(work)
    assert isinstance(found, Receipt)
    tell_receipt(found)
