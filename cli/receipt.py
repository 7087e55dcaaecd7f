"""`quorate receipt`: what became of transactions, as files that prove it to whoever has the network file.

`list`, `show` and `verify` ask nobody; only `fetch` needs the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.client import FILE, Client, client_options
from cli.output import fields, reading, remark, table, tell
from fl.client.bodies import kind_name, said_by
from fl.client.errors import BadFile, QuorateError
from fl.client.networkfile import read_network
from fl.client.receiptfile import ReceiptFile, certified_by, check_receipt_file, read_receipt_file, receipt_of

if TYPE_CHECKING:
    from fl.client.network import AsyncNetwork
    from fl.client.receipt import Receipt

_COLUMNS = ("tx", "kind", "status", "height", "job", "round", "account", "file")
_SHOWN_DIGITS = 16


@click.group()
def receipt() -> None:
    """What became of transactions, with proofs that need nobody's word."""


def _data(file: ReceiptFile, path: Path) -> dict[str, Any]:
    """What the file says."""
    tx, entry = file.transaction, receipt_of(file)
    return {
        "tx": file.id.hex(),
        "status": entry.status,
        "kind": kind_name(tx.kind),
        "sender": tx.sender.hex(),
        "key": tx.key.hex(),
        "nonce": tx.nonce,
        "chain": tx.chain.hex(),
        "height": entry.height,
        "job": entry.job.hex() or None,
        "round": entry.round,
        "position": entry.position,
        "weight": entry.weight,
        "body": said_by(tx),
        "certified_height": file.proof.state.height,
        "epoch": file.epoch,
        "hand_overs": len(file.hand_overs),
        "file": str(path),
    }


def _tell(data: dict[str, Any]) -> None:
    of_rounds = () if data["round"] else ("round", "position", "weight")
    shown = {name: value for name, value in data.items() if value is not None and name not in ("body", *of_rounds)}
    said = {f"says {name}": value for name, value in data["body"].items()}
    tell(data, lambda: fields({**shown, **said}))


@receipt.command("list")
@client_options
@reading
def listing(client: Client) -> None:
    """List the receipts that are kept here, of every account on the network's chain. They are not verified anew."""
    from fl.client.home import kept_receipts

    chain_id = read_network(client.network).checkpoint.chain_id
    rows: list[dict[str, Any]] = []
    for path in kept_receipts(client.home, chain_id):
        try:
            rows.append(_data(read_receipt_file(path), path))
        except BadFile as error:
            remark(f"{error.what} {error.todo}")
    rows.sort(key=lambda row: (row["height"], row["nonce"]))
    cells = [
        (
            row["tx"][:_SHOWN_DIGITS],
            row["kind"],
            row["status"],
            row["height"],
            (row["job"] or "")[:_SHOWN_DIGITS],
            row["round"] or "",
            row["sender"][:_SHOWN_DIGITS],
            row["file"],
        )
        for row in rows
    ]
    tell(rows, lambda: table(_COLUMNS, cells, only_telling=True))


@receipt.command()
@click.argument("file", type=FILE)
@reading
def show(file: Path) -> None:
    """Show what a receipt file says: who submitted what, and what became of it. `verify` says whether that is so."""
    _tell(_data(read_receipt_file(file), file))


@receipt.command()
@click.argument("file", type=FILE)
@click.option("--checkpoint", type=FILE, help="The network file that is trusted.  [default: the network's own]")
@client_options
@reading
def verify(client: Client, file: Path, checkpoint: Path | None) -> None:
    """Check a receipt file by the network file alone, offline: exit code 0 if all of it is proven, 6 if not."""
    trusted = checkpoint if checkpoint is not None else client.network
    found = read_receipt_file(file)
    start = read_network(trusted).checkpoint
    check_receipt_file(found, start)
    _tell({**_data(found, file), "signed_by": list(certified_by(found, start)), "proven_by": str(trusted)})


@receipt.command()
@click.argument("identity", metavar="ID")
@click.option("-o", "--output", type=FILE, help="The file.  [default: ID.bin]")
@client_options
@reading
def fetch(client: Client, identity: str, output: Path | None) -> None:
    """Fetch the receipt of any transaction, whoever sent it, as a file that this network file proves."""
    path = output if output is not None else Path(f"{identity}.bin")

    async def work(network: AsyncNetwork) -> Receipt | None:
        return await network.fetch_receipt(identity, path)

    if client.run(work) is None:
        raise QuorateError("NO_RECEIPT", "No node has a proven receipt of it.", "See `quorate tx status`.")
    _tell(_data(read_receipt_file(path), path))
