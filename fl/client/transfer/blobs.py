"""Blobs as a client has them: files that are named by what is in them, put to a node and got from any.

Enters: a path or bytes. Leaves: a CID with the lease that a node gave for it; or a file whose every byte was compared
with the CID that was asked for. `upload` and `download` are the two ways, `doors` is where they lead.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chain.cid import CID_BYTES, CidError, cid_text, parse_cid
from chain.unixfs import Buffer, Manifest, manifest_cid
from fl.blobs import BlobKind
from fl.client.errors import BadInput, Unreachable
from fl.client.home import Home
from fl.client.nodes import Node, Nodes, Unusable
from fl.client.transfer.blobfile import Source, Told, manifest_of_file, origin_of, untold
from fl.client.transfer.doors import ABSENT, Asked, Doors, Pace, Shown, Signer, blob_path
from fl.client.transfer.download import Download, Fetched
from fl.client.transfer.upload import Busy, Upload
from fl.datasets import RegisterDataset
from fl.jobrules import zero_model_cid
from fl.jobs import CreateJob
from fl.rounds import SubmitUpdate

log = logging.getLogger("quorate.client")

Progress = Callable[[str, int, int], None]
"""Hears what is done ("hash", "send", "check", "fetch"), how many bytes of it and of how many; from any thread."""

KINDS = {kind.name.lower(): kind for kind in (BlobKind.DATASET, BlobKind.MODEL, BlobKind.UPDATE)}
"""What a member puts; the others are made by validators."""

_LIST_BYTES = 1024 * 1024
_PAGE = 100
_NO_BLOB = bytes(CID_BYTES)
"""What a leave to read a list names."""
_LONGEST_WAIT_S = 300.0
"""Whatever a node says of when to come again."""
_SPREADS_S = 30.0
_SPREADS_BYTES_PER_S = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BlobReceipt:
    """A node has the blob durably, and keeps it until then even if no transaction ever names it."""

    cid: str
    size_bytes: int
    lease_until_ms: int
    node: str


@dataclass(frozen=True, slots=True)
class BlobStat:
    """What one node says of a blob; nothing of it is proven but what `get` has checked."""

    node: str
    held: bool
    fields: dict[str, Any]


def quiet(what: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class NamedBlob:
    """What a transaction names instead of carrying it."""

    cid: bytes
    kind: BlobKind


def blob_named(body: object) -> NamedBlob | None:
    if isinstance(body, SubmitUpdate) and not body.payload:
        return NamedBlob(body.cid, BlobKind.UPDATE)
    if isinstance(body, CreateJob) and not body.model and body.rules.initial != zero_model_cid(body.rules.schema):
        return NamedBlob(body.rules.initial, BlobKind.MODEL)
    if isinstance(body, RegisterDataset) and body.stored:
        return NamedBlob(body.cid, BlobKind.DATASET)
    return None


class AsyncBlobs:
    """`network.blobs`. Without a signer only what is public can be got, and nothing put."""

    def __init__(self, nodes: Nodes, home: Home, signer: Signer | None, needed: Callable[[], int]) -> None:
        self._nodes = nodes
        self._home = home
        self._signer = signer
        self._needed = needed
        self._given: dict[bytes, Path] = {}
        self._manifests: dict[bytes, Manifest] = {}
        self._closed_until: dict[str, float] = {}
        self._doors = Doors(nodes)

    @property
    def pace(self) -> Pace:
        return self._doors.pace

    @pace.setter
    def pace(self, pace: Pace) -> None:
        self._doors.pace = pace

    # Putting

    async def put(
        self,
        given: str | os.PathLike[str] | Buffer,
        kind: str | BlobKind = BlobKind.DATASET,
        *,
        progress: Progress = quiet,
        patience_s: float | None = None,
    ) -> BlobReceipt:
        """Give a file, or bytes, to a node; the next one takes over where one fails. Run again after a break, it sends
        what is missing."""
        origin, kind = origin_of(given), kind_of(kind)
        with Source(origin) as source:
            manifest = await asyncio.to_thread(source.manifest, step(progress, "hash"))
            cid = manifest_cid(manifest)
            upload = self._upload(source, cid, manifest, kind)
            grant = await upload.to_any(self._needed(), self._patience(patience_s), step(progress, "send"))
        if isinstance(origin, Path):
            self._given[cid] = origin
        return BlobReceipt(cid_text(cid), manifest.size_bytes, grant.lease_until_ms, grant.node)

    async def supply(self, node: Node, named: NamedBlob) -> bool:
        """This node lacks a blob that a transaction names. False if there is none here to give it; raises Unusable or
        RefusedByChain when the node does not take it."""
        path = self._kept(named.cid)
        if path is None:
            return False
        if time.monotonic() < self._closed_until.get(node.url, 0.0):
            raise Unusable("it has said when to come again")
        with Source(path) as source:
            manifest = await self._manifest(source, named.cid)
            if manifest is None:
                log.warning("%s is not the blob %s any more", path, cid_text(named.cid))
                return False
            try:
                await self._upload(source, named.cid, manifest, named.kind).to(node)
            except Busy as busy:
                self._closed_until[node.url] = time.monotonic() + min(busy.retry_after_s, _LONGEST_WAIT_S)
                raise
        return True

    def made(self, cid: bytes, manifest: Manifest) -> None:
        """The outbox has this blob, which was hashed as it was written."""
        self._manifests = {cid: manifest}

    async def _manifest(self, source: Source, cid: bytes) -> Manifest | None:
        """Kept for the next node. Leaves are compared with it wherever they arrive, so it need not be made anew."""
        if cid not in self._manifests:
            manifest = await asyncio.to_thread(source.manifest)
            if manifest_cid(manifest) != cid:
                return None
            self._manifests = {cid: manifest}
        return self._manifests[cid]

    def spreads_s(self, named: NamedBlob | None) -> float:
        """How long validators may take to give one another the blob."""
        path = self._kept(named.cid) if named is not None else None
        return _SPREADS_S + path.stat().st_size / _SPREADS_BYTES_PER_S if path is not None else 0.0

    def _kept(self, cid: bytes) -> Path | None:
        """Where the blob is, while it is not sure that the chain has it."""
        paths = (self._home.blob_path(cid), self._given.get(cid))
        return next((path for path in paths if path is not None and path.is_file()), None)

    def _upload(self, source: Source, cid: bytes, manifest: Manifest, kind: BlobKind) -> Upload:
        if self._signer is None:
            raise BadInput(
                "NO_KEY", "Only a member can put a blob.", "Name a key: --key FILE, or connect(file, key=FILE)."
            )
        permit = self._signer.put(cid, manifest.size_bytes, kind)
        return Upload(self._doors, source, cid, manifest, permit)

    # Getting

    async def get(
        self,
        cid: str,
        path: str | os.PathLike[str] | None = None,
        *,
        progress: Progress = quiet,
        patience_s: float | None = None,
    ) -> Fetched:
        """A blob as a file: at `path`, or in this directory under its CID. What an earlier attempt left is kept as far
        as it is right, and the file appears under its name only when it is whole."""
        known = known_cid(cid)
        download = Download(self._doors, known, self._shown(known))
        target = Path(path) if path is not None else Path(cid_text(known))
        return await download.to(target, self._patience(patience_s), step(progress, "fetch"), step(progress, "check"))

    async def size_bytes(self, cid: str, patience_s: float | None = None) -> int:
        """As the blob's manifest says, which the CID proves."""
        known = known_cid(cid)
        download = Download(self._doors, known, self._shown(known))
        return (await download.manifest(self._patience(patience_s))).size_bytes

    async def stat(self, cid: str) -> list[BlobStat]:
        """What each node that answers says of it."""
        known = known_cid(cid)
        shown = self._shown(known)

        async def one(node: Node) -> BlobStat | None:
            try:
                reply = await self._doors.read(node, Asked("GET", blob_path(known, "/stat")), shown)
                if reply.status in ABSENT:
                    return BlobStat(node.name, False, {})
                return BlobStat(node.name, True, reply.fields())
            except Unusable as error:
                log.info("node %s does not say what it has: %s", node.name, error)
                return None

        found = await asyncio.gather(*(one(node) for node in self._nodes.in_order()))
        return [each for each in found if each is not None]

    async def ls(self) -> AsyncIterator[dict[str, Any]]:
        """The blobs of the first node that lists its own: what is public, and what is this account's."""
        nodes, query = self._nodes.ready(), {"limit": str(_PAGE)}
        while True:
            node, page = await self._page(nodes, query)
            blobs, following = page.get("blobs"), page.get("next")
            for blob in blobs if isinstance(blobs, list) else []:
                yield {**blob, "node": node.name} if isinstance(blob, dict) else {}
            if not isinstance(following, str):
                return
            # Each has an order of its own, so a list is one node's to its end.
            nodes, query = [node], {"limit": str(_PAGE), "cursor": following}

    async def _page(self, nodes: list[Node], query: dict[str, str]) -> tuple[Node, dict[str, Any]]:
        asked = Asked("GET", "", query, limit_bytes=_LIST_BYTES)
        permit = self._signer.read(_NO_BLOB) if self._signer is not None else None
        failures = {}
        for node in nodes:
            try:
                return node, (await self._doors.ask(node, asked, permit)).fields()
            except Unusable as error:
                node.failed(str(error))
                failures[node.name] = error
        reasons = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise Unreachable("NO_ANSWER", f"No node lists its blobs ({reasons}).", "Check the network.")

    def _shown(self, cid: bytes) -> Shown:
        return Shown(self._signer.read(cid) if self._signer is not None else None)

    def _patience(self, patience_s: float | None) -> float:
        return self._nodes.patience_s if patience_s is None else patience_s


def verify(path: str | os.PathLike[str], cid: str, told: Told = untold) -> bool:
    """Whether the file is this blob. Asks nobody."""
    known = known_cid(cid)
    return manifest_cid(manifest_of_file(Path(path), told)) == known


def cid_of_file(path: str | os.PathLike[str], told: Told = untold) -> str:
    """As any IPFS client with the profile `unixfs-v1-2025` would name it."""
    return cid_text(manifest_cid(manifest_of_file(Path(path), told)))


def known_cid(text: str) -> bytes:
    try:
        return parse_cid(text)
    except CidError as error:
        raise BadInput("BAD_CID", f"'{text}' is no CID that names a blob: {error}.", "As in bafkrei…") from None


def kind_of(given: str | BlobKind) -> BlobKind:
    kind = KINDS.get(given.lower()) if isinstance(given, str) else given
    if kind is None or kind not in KINDS.values():
        raise BadInput("BAD_KIND", f"'{given}' is no kind of blob to put.", f"There are: {', '.join(KINDS)}.")
    return kind


def step(progress: Progress, what: str) -> Told:
    return lambda done, total: progress(what, done, total)
