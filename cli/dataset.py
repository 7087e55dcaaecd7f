"""`quorate dataset`: what members say of their data, and the bytes of it that the chain keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.client import FILE, Client, client_options
from cli.job import receipt_data, tell_receipt
from cli.output import fields, on_terminal, reading, table, tell
from cli.transfer import transferring

if TYPE_CHECKING:
    from fl.client.datasets import Registered
    from fl.client.network import AsyncNetwork
    from fl.client.receipt import Receipt
    from fl.records import Dataset


@click.group()
def dataset() -> None:
    """Register data sets, list them, and withdraw them."""


@dataset.command()
@click.argument("name")
@click.option("--file", "file", type=FILE, help="Its bytes: they give it its CID and its size.")
@click.option("--cid", help="The CID of its bytes, wherever they are.")
@click.option("--size", "size_bytes", type=click.IntRange(min=0), default=0, help="In bytes, where no file says it.")
@click.option("--examples", type=click.IntRange(min=0), default=0, help="It holds so many; updates may weigh by that.")
@click.option("--stored", is_flag=True, help="The validators keep the bytes and give them to anyone, until withdrawn.")
@click.option("--schema", default="", help="What is in it, for readers.")
@click.option("--policy", default="", help="What it may be used for, for readers.")
@click.option("--licence", default="", help="As in CC-BY-4.0.")
@client_options
@reading
def register(
    client: Client,
    name: str,
    file: Path | None,
    cid: str | None,
    size_bytes: int,
    examples: int,
    stored: bool,
    schema: str,
    policy: str,
    licence: str,
) -> None:
    """Register a data set under NAME.

    Without --file and --cid nothing of its bytes is on the chain, and the entry is all that others learn.
    """
    with transferring() as progress:

        async def work(network: AsyncNetwork) -> Registered:
            return await network.datasets.register(
                name,
                file=file,
                cid=cid,
                size_bytes=size_bytes,
                examples=examples,
                stored=stored,
                schema=schema,
                policy=policy,
                licence=licence,
                progress=progress,
            )

        made = client.run(work)
    data = {
        "id": made.id,
        "name": name,
        "cid": made.cid or None,
        "size_bytes": made.size_bytes,
        "stored": stored,
        "receipt": receipt_data(made.receipt),
    }
    tell(data, lambda: fields({key: value for key, value in data.items() if key != "receipt" and value is not None}))


@dataset.command("list")
@client_options
@reading
def list_datasets(client: Client) -> None:
    """List the data sets, as one node tells them."""
    found = client.pages("/v1/datasets", "datasets")

    def show() -> None:
        columns = ["NAME", "BYTES", "STATE", "CID"]
        rows = [[each["name"], each["size_bytes"], _state(each), each["cid"]] for each in found]
        if not on_terminal():
            # There they would leave no room for names; of one data set `show` has them.
            columns += ["OWNER", "ID"]
            rows = [[*row, each["owner"], each["id"]] for row, each in zip(rows, found, strict=True)]
        table(columns, rows)

    tell(found, show)


def _state(entry: dict[str, Any]) -> str:
    if entry["withdrawn_height"]:
        return "withdrawn"
    return "stored" if entry["stored"] else "elsewhere" if entry["cid"] else "entry only"


@dataset.command()
@click.argument("name_or_id")
@click.option("--owner", help="The account of its owner.  [default: one's own]")
@client_options
@reading
def show(client: Client, name_or_id: str, owner: str | None) -> None:
    """Show a data set's entry, proven."""

    async def work(network: AsyncNetwork) -> tuple[str, Dataset]:
        return await network.datasets.find(name_or_id, owner)

    from chain.cid import cid_text

    identity, entry = client.run(work)
    data = {
        "id": identity,
        "name": entry.name,
        "owner": entry.owner.hex(),
        "cid": cid_text(entry.cid) if entry.cid else None,
        "size_bytes": entry.size_bytes,
        "examples": entry.examples or None,
        "stored": entry.stored,
        "schema": entry.schema,
        "policy": entry.policy,
        "licence": entry.licence,
        "height": entry.height,
        "withdrawn_height": entry.withdrawn_height or None,
    }
    tell(data, lambda: fields({key: value for key, value in data.items() if value is not None and value != ""}))


@dataset.command()
@click.argument("name_or_id")
@client_options
@reading
def withdraw(client: Client, name_or_id: str) -> None:
    """Withdraw a data set: the validators keep its bytes no longer. Its owner and registrars may.

    The entry stays, and whoever has the bytes has them.
    """

    async def work(network: AsyncNetwork) -> Receipt:
        return await network.datasets.withdraw(name_or_id)

    tell_receipt(client.run(work))
