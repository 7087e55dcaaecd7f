"""`quorate blob`: files that are named by what is in them, put to the nodes and got from any of them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.client import FILE, Client, client_options
from cli.explain import explained
from cli.http import Place, ask, fetch
from cli.output import fields, line, on_terminal, reading, table, tell, waiting
from cli.transfer import size_text, time_text, transferring
from fl.client.errors import BadInput, QuorateError, TimedOut, Unreachable, Unverified

if TYPE_CHECKING:
    from fl.client.network import AsyncNetwork
    from fl.client.transfer.blobs import BlobReceipt, BlobStat, Progress
    from fl.client.transfer.download import Fetched

_CHUNK_BYTES = 1024 * 1024
_READ_S = 3_600.0
"""A node answers when it has read all of a blob."""


@click.group()
def blob() -> None:
    """Put, get and check blobs: files of any size, named by their CIDs.

    A CID is made of a file's bytes alone (IPFS, profile unixfs-v1-2025), so whoever has one can check what it is given.
    Transfers that broke off go on when the same command is run again.
    """


@blob.command()
@click.argument("file", type=FILE)
@click.option(
    "--kind",
    type=click.Choice(["dataset", "model", "update"]),
    default="dataset",
    show_default=True,
    help="Data sets and models are given to anyone, an update to its member only.",
)
@client_options
@reading
def put(client: Client, file: Path, kind: str) -> None:
    """Put FILE to a node, which keeps it at least until its lease ends.

    For longer, a transaction has to name it: `quorate dataset register`, for example. The leaves that a node has
    already are not sent again; where a node fails, the next one takes over.
    """
    with transferring() as progress:

        async def work(network: AsyncNetwork) -> BlobReceipt:
            return await network.blobs.put(file, kind, progress=progress)

        receipt = client.run(work)
    data: dict[str, object] = {
        "cid": receipt.cid,
        "size_bytes": receipt.size_bytes,
        "kind": kind,
        "node": receipt.node,
        "lease_until_ms": receipt.lease_until_ms,
    }

    def show() -> None:
        until = {"lease until": time_text(receipt.lease_until_ms)} if on_terminal() else {}
        fields({**data, **until})

    tell(data, show)


@blob.command()
@click.argument("cid")
@click.option("-o", "--output", type=FILE, help="File to write.  [default: the CID, in this directory]")
@click.option("--gateway", "gateways", multiple=True, metavar="URL", help="Get it from this IPFS gateway; repeatable.")
@click.option("--kubo", "kubos", multiple=True, metavar="URL", help="Get it from the RPC API of this Kubo node.")
@client_options
@reading
def get(client: Client, cid: str, output: Path | None, gateways: tuple[str, ...], kubos: tuple[str, ...]) -> None:
    """Get the blob CID from the nodes, several at once, or from IPFS. Every byte is checked.

    The file appears under its name when it is whole; what a broken transfer leaves beside it is taken up by the next
    one. Exit code 6 if all nodes sent wrong bytes; those that did are named in any case.
    """
    path = output if output is not None else Path(cid)
    with transferring() as progress:
        if gateways or kubos:
            data: dict[str, object] = _from_ipfs(cid, path, gateways, kubos, progress)
        else:

            async def work(network: AsyncNetwork) -> Fetched:
                return await network.blobs.get(cid, path, progress=progress)

            fetched = client.run(work)
            data = {
                "cid": cid,
                "size_bytes": fetched.size_bytes,
                "file": str(path),
                "lied": list(fetched.lied),
            }
    tell(data, lambda: fields({name: value for name, value in data.items() if value != []}))


def _from_ipfs(
    cid: str, path: Path, gateways: tuple[str, ...], kubos: tuple[str, ...], progress: Progress
) -> dict[str, object]:
    from fl.client.transfer.blobs import known_cid
    from fl.client.transfer.gateways import get_from_ipfs
    from fl.client.transfer.ipfs import Source

    sources = [Source.of(url) for url in gateways] + [Source.of(_rpc(url)) for url in kubos]
    size_bytes = asyncio.run(get_from_ipfs(known_cid(cid), sources, path, progress))
    return {"cid": cid, "size_bytes": size_bytes, "file": str(path)}


def _rpc(url: str) -> str:
    bare = url.rstrip("/")
    return bare if bare.endswith("/api/v0") else f"{bare}/api/v0"


@blob.command()
@click.argument("cid")
@client_options
@reading
def stat(client: Client, cid: str) -> None:
    """Say which nodes have the blob CID, and what it is, as each of them tells it."""

    async def work(network: AsyncNetwork) -> list[BlobStat]:
        return await network.blobs.stat(cid)

    found = client.run(work)
    data = [{"node": each.node, "held": each.held, **each.fields} for each in found]
    rows = [
        (each.node, "yes" if each.held else "no", each.fields.get("kind"), each.fields.get("size_bytes"))
        for each in found
    ]
    tell(data, lambda: table(("NODE", "HAS IT", "KIND", "BYTES"), rows))


@blob.command()
@client_options
@reading
def ls(client: Client) -> None:
    """List the blobs of one node, the first that answers: what is public, and what is this account's."""

    async def work(network: AsyncNetwork) -> list[dict[str, Any]]:
        return [each async for each in network.blobs.ls()]

    found = client.run(work)
    rows = [(each.get("cid"), each.get("kind"), each.get("size_bytes"), each.get("node")) for each in found]
    tell(found, lambda: table(("CID", "KIND", "BYTES", "NODE"), rows))


@blob.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@reading
def cid(file: Path) -> None:
    """Print the CID of FILE, or of standard input for -. Asks nobody.

    It is the one that `ipfs add` gives under the profile unixfs-v1-2025, and that nodes give a model or an update.
    """
    name, size_bytes = _named(file)
    data = {"cid": name, "size_bytes": size_bytes}
    tell(data, lambda: line(name))


def _named(file: Path) -> tuple[str, int]:
    from chain.cid import cid_text
    from chain.unixfs import Hasher, manifest_cid
    from fl.client.transfer.blobfile import manifest_of_file
    from fl.client.transfer.blobs import step

    with transferring(resumes=False) as progress:
        if str(file) != "-":
            manifest = manifest_of_file(file, step(progress, "hash"))
            return cid_text(manifest_cid(manifest)), manifest.size_bytes
        hasher = Hasher()
        while part := sys.stdin.buffer.read(_CHUNK_BYTES):
            hasher.update(part)
        return cid_text(manifest_cid(hasher.finish())), hasher.size_bytes


@blob.command()
@click.argument("file", type=FILE, required=False)
@click.argument("cid", required=False)
@click.option("--repair", is_flag=True, help="Bring back what this machine's own node has lost of its blobs.")
@click.option(
    "-c",
    "--config",
    "configuration",
    type=FILE,
    default=Path("node.toml"),
    envvar="QUORATE_CONFIG",
    show_default=True,
    help="With --repair: the node's configuration.",
)
@click.option(
    "--timeout", "timeout_s", default=600.0, show_default=True, help="With --repair: seconds to wait for each blob."
)
@reading
def verify(file: Path | None, cid: str | None, repair: bool, configuration: Path, timeout_s: float) -> None:
    """Check that FILE is the blob CID: exit code 0 if it is, 6 if not. Asks nobody.

    `quorate blob verify --repair [CID]` has the node of this machine read its blobs, or the one named, and pull what is
    damaged or lost from the other validators. It is for whoever runs the node, and the node must be running.
    """
    if repair:
        if cid is not None:
            raise BadInput("ONE_OF_TWO", "With --repair the node's own blobs are checked, not a file.", "Name a CID.")
        _repair(configuration, None if file is None else str(file), timeout_s)
        return
    if file is None or cid is None:
        raise BadInput("BAD_ARGUMENTS", "A file and a CID are needed.", "As in: quorate blob verify FILE CID.")
    _check(file, cid)


def _check(file: Path, cid: str) -> None:
    from fl.client.transfer.blobs import known_cid

    known_cid(cid)
    name, size_bytes = _named(file)
    if name != cid:
        raise Unverified("WRONG_BYTES", f"{file} is {name}, not {cid}.", "Get it again.")
    data = {"cid": cid, "file": str(file), "size_bytes": size_bytes}
    tell(data, lambda: line(f"{file} is {cid}, {size_text(size_bytes)}"))


def _repair(configuration: Path, cid: str | None, timeout_s: float) -> None:
    from fl.client.transfer.blobs import known_cid
    from node.config import load_config
    from node.data.door.server import DOOR_SOCKET

    if cid is not None:
        known_cid(cid)
    with explained():
        config = load_config(configuration, os.environ)
    place = Place(socket=config.node.data_dir / DOOR_SOCKET)
    found, nowhere = [], []
    with waiting("Reading the node's blobs") as say:
        cids = [cid] if cid is not None else _held(place)
        for number, each in enumerate(cids, 1):
            if sys.stderr.isatty():
                say(f"{number} of {len(cids)}")
            looked = _looked_at(place, each, named=cid is not None)
            if looked and not looked[0]["sound"]:
                say(f"pulling leaves of {each}, {len(looked[0]['damaged'])} in all")
                try:
                    looked = _looked_at(place, each, named=True, repair_s=timeout_s)
                except Unreachable as error:
                    if not isinstance(error.__cause__, TimeoutError):
                        raise
                    nowhere.append(each)
            found += looked
    if nowhere:
        raise TimedOut(
            "NOT_REPAIRED",
            f"Nobody has given {', '.join(nowhere)} yet.",
            "Run it again later. What a client put and no transaction names, the client has to put again.",
        )
    bad = [each for each in found if each["damaged"]]
    data = {"read": len(found), "repaired": [{"cid": each["cid"], "leaves": each["damaged"]} for each in bad]}

    def show() -> None:
        line(f"read {len(found)} blobs, repaired {len(bad)}")
        for each in bad:
            count = len(each["damaged"])
            line(f"{each['cid']}\t{count} {'leaf' if count == 1 else 'leaves'}")

    tell(data, show)


def _held(place: Place) -> list[str]:
    """What the node has, and what it has lost."""
    cids: list[str] = []
    page = fetch(place, "/v1/admin/blobs?limit=100")
    lost = page["lost"]
    while True:
        cids += [each["cid"] for each in page["blobs"]]
        if page["next"] is None:
            return list(dict.fromkeys([*lost, *cids]))
        page = fetch(place, f"/v1/admin/blobs?limit=100&cursor={page['next']}")


def _looked_at(place: Place, cid: str, *, named: bool, repair_s: float | None = None) -> list[dict[str, Any]]:
    if repair_s is None:
        reply = ask(place, "POST", f"/v1/admin/blobs/{cid}/verify", timeout_s=_READ_S)
    else:
        reply = ask(place, "POST", f"/v1/admin/blobs/{cid}/verify?repair=1", timeout_s=repair_s)
    if reply.status == 404 and not named:
        # It was swept since it was listed.
        return []
    if reply.status != 200:
        todo = "Check the CID." if reply.status == 404 else "See the node's log."
        raise QuorateError(str(reply.data.get("code", "FAILED")), f"{cid}: {reply.problem}", todo)
    return [reply.data]
