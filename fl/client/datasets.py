"""Data sets on the chain: what members say of the data that they hold, and of the bytes that the chain keeps for them.

An entry names no bytes, bytes that are kept elsewhere, or a blob that the nodes store until the entry is withdrawn.
"""

from __future__ import annotations

import asyncio
import os
import string
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chain.cid import cid_text
from chain.unixfs import manifest_cid
from fl.blobs import BlobKind
from fl.client.errors import BadInput, RefusedByChain
from fl.client.receipt import Receipt
from fl.client.transfer.blobfile import manifest_of_file
from fl.client.transfer.blobs import Progress, known_cid, quiet, step
from fl.datasets import RegisterDataset, WithdrawDataset, dataset_id
from fl.records import Dataset, Named
from fl.state import dataset_key, dataset_name_key

if TYPE_CHECKING:
    from fl.client.network import AsyncNetwork


@dataclass(frozen=True, slots=True)
class Registered:
    """`cid` is empty where no bytes are named."""

    id: str
    cid: str
    size_bytes: int
    receipt: Receipt


class AsyncDatasets:
    """`network.datasets`."""

    def __init__(self, network: AsyncNetwork) -> None:
        self._network = network

    async def register(
        self,
        name: str,
        *,
        file: str | os.PathLike[str] | None = None,
        cid: str | None = None,
        size_bytes: int = 0,
        examples: int = 0,
        stored: bool = False,
        schema: str = "",
        policy: str = "",
        licence: str = "",
        progress: Progress = quiet,
    ) -> Registered:
        """Tell the chain of a data set: of this file, of the one that the CID names, or of one that is not named at all
        (then `size_bytes` is what you say). `examples` is how many it holds, which updates may weigh by. With `stored`,
        the file is put to a node and the validators keep it; named by a CID, it has to be there already."""
        if file is not None and cid is not None:
            raise BadInput("ONE_OF_TWO", "Give a file or a CID, not both.", "The file's CID follows from its bytes.")
        if stored and file is None and cid is None:
            raise BadInput("NOTHING_TO_STORE", "There is nothing to be stored.", "Give a file, or the CID of a blob.")
        named = known_cid(cid) if cid is not None else b""
        if file is not None:
            named, size_bytes = await self._named(Path(file), stored, progress)
        elif named and stored:
            size_bytes = await self._network.blobs.size_bytes(cid_text(named))
        body = RegisterDataset(name, named, size_bytes, stored, schema, policy, licence, examples)
        receipt = await self._network.send(body)
        return Registered(
            dataset_id(bytes.fromhex(receipt.tx)).hex(), cid_text(named) if named else "", size_bytes, receipt
        )

    async def _named(self, file: Path, stored: bool, progress: Progress) -> tuple[bytes, int]:
        if stored:
            put = await self._network.blobs.put(file, BlobKind.DATASET, progress=progress)
            return known_cid(put.cid), put.size_bytes
        manifest = await asyncio.to_thread(manifest_of_file, file, step(progress, "hash"))
        return manifest_cid(manifest), manifest.size_bytes

    async def find(self, name_or_id: str, owner: str | None = None) -> tuple[str, Dataset]:
        """The id and the proven entry of this owner's newest data set of this name (without an owner: one's own), or of
        the one with this id."""
        if _is_id(name_or_id):
            identity = bytes.fromhex(name_or_id)
        else:
            account = self._own(name_or_id) if owner is None else _account(owner)
            named = await self._network.record(Named, dataset_name_key(account, name_or_id))
            if named is None:
                raise RefusedByChain(
                    "UNKNOWN_DATASET",
                    f"The account {account.hex()} has no data set named {name_or_id!r}.",
                    "Name its owner, or its id: `quorate dataset list` has both.",
                )
            identity = named.holder
        found = await self._network.record(Dataset, dataset_key(identity))
        if found is None:
            raise RefusedByChain(
                "UNKNOWN_DATASET",
                f"No data set has the id {identity.hex()}.",
                "`quorate dataset list` has those there are.",
            )
        return identity.hex(), found

    def _own(self, name: str) -> bytes:
        try:
            return bytes.fromhex(self._network.account)
        except BadInput:
            raise BadInput(
                "NO_OWNER", f"Several members may have a data set {name!r}.", "Name its owner, a key, or its id."
            ) from None

    async def withdraw(self, name_or_id: str) -> Receipt:
        """The chain keeps its bytes no longer; the entry stays, marked as withdrawn."""
        identity, _ = await self.find(name_or_id)
        return await self._network.send(WithdrawDataset(bytes.fromhex(identity)))


def _account(text: str) -> bytes:
    if not _is_id(text):
        raise BadInput("BAD_ACCOUNT", f"{text!r} is no account.", "An account is 64 hex digits.")
    return bytes.fromhex(text)


def _is_id(text: str) -> bool:
    return len(text) == 64 and not set(text) - set(string.hexdigits)
