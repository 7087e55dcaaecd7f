"""What is recorded of a job's rounds, brought here: records, logs, transactions, blobs.

Everything is compared with what the certified state says of it before it is given out: a record with its proof, the
entries of a log with the root in the round's record, a batch with its digest, a blob with its CID. What does not fit is
asked of the next node, and if none has it, the caller is told which node said what.

Files lie in the account's directory, mapped and never read whole, until `clear`. A run that breaks off leaves them to
the next one.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import secrets
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chain.cid import cid_text
from chain.codec import CodecError, decode, unpack
from chain.light import ReceiptBundle, Unproven, verify_event_bundle
from chain.unixfs import Buffer, Hasher, manifest_cid
from fl.audit.checks import log_of, read_entry
from fl.audit.recorded import History, history_of
from fl.client.errors import BadInput, QuorateError, RefusedByChain, Unverified
from fl.client.nodes import Node, Reply, Request, Untrue, Unusable, from_base64
from fl.client.transfer.blobfile import mapped
from fl.client.transfer.blobs import Progress, quiet
from fl.jobrules import zero_model_cid
from fl.records import Entry, Event, EventKind, Phase, Round
from fl.tensors.model import model_form

if TYPE_CHECKING:
    from fl.client.job import AsyncJob
    from fl.client.network import AsyncNetwork

_ENTRIES = 1_000
_ENTRY_BYTES = 512
_BATCHES_KEPT = 4
_EVENTS = 100
_EVENT_BYTES = 64 * 1024
_BLOB_S = 3.0
"""What a round is made of is at the nodes or not: it is not on its way."""
_SETTLED = frozenset({"UNKNOWN_BLOB", "BLOB_NOT_YOURS"})
"""All nodes have answered, and where one blob is gone others are too: each of those is asked for once."""


class Recordings:
    """Of one job, for the audit of one round of it."""

    def __init__(self, network: AsyncNetwork, job: AsyncJob, number: int, progress: Progress = quiet) -> None:
        self.network = network
        self.job = job
        self._id = bytes.fromhex(job.id)
        self._progress = progress
        self._batches: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()
        self._patience_s = min(_BLOB_S, network.nodes.patience_s)
        self.directory = network.home / "audit" / f"{job.id[:16]}-{number}"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def clear(self) -> None:
        """What was mapped stays readable for whoever holds it."""
        shutil.rmtree(self.directory, ignore_errors=True)

    # Records

    async def round(self, number: int) -> Round:
        found = await self.job.round(number)
        if found is None:
            raise RefusedByChain("UNKNOWN_ROUND", f"{self.job.name} has no round {number}.")
        return found

    async def ended(self, number: int) -> Round:
        """A round of which there is a result, or a reason why there is none."""
        found = await self.round(number)
        if found.phase not in (Phase.CLOSED, Phase.FAILED):
            raise BadInput("NOT_CLOSED", f"Round {number} of {self.job.name} is not over.", "Wait until it is.")
        return found

    async def history(self, number: int) -> History:
        """What the rounds before this one have left to it."""
        before: list[Round] = []
        while number > 1 and not (before and before[-1].phase == Phase.CLOSED):
            number -= 1
            before.append(await self.round(number))
        return history_of(self.job.rules, before)

    # The log

    async def log(self, current: Round) -> list[Entry]:
        """The entries under the root that the round's record holds."""
        size, path = current.updates.size, f"/v1/jobs/{self.job.id}/rounds/{current.number}/updates/raw"

        async def read(node: Node) -> list[bytes]:
            leaves: list[bytes] = []
            while len(leaves) < size:
                query = {"cursor": str(len(leaves)), "limit": str(min(_ENTRIES, size - len(leaves)))}
                asked = Request("GET", path, query, limit_bytes=_ENTRIES * _ENTRY_BYTES)
                page = await self.network.nodes.ask_one(node, asked, _leaves)
                if not page:
                    break
                leaves += page
                self._progress("entries", len(leaves), size)
            if len(leaves) != size:
                raise self._blamed(node, f"it gives {len(leaves)} of {size} entries")
            log = await asyncio.to_thread(log_of, leaves)
            if log != current.updates:
                wanted = current.updates.root().hex()
                raise self._blamed(node, f"its entries have the root {log.root().hex()}, and the state has {wanted}")
            return leaves

        leaves = await self.network.nodes.ask_in_turn(path, read)
        try:
            return [read_entry(each) for each in leaves]
        except CodecError as error:
            raise Unverified(
                "UNKNOWN_RECORD", f"The log of round {current.number} holds what is no entry: {error}."
            ) from None

    @staticmethod
    def _blamed(node: Node, what: str) -> Untrue:
        node.failed(what)
        return Untrue(what)

    # Transactions

    async def transaction(self, entry: Entry) -> bytes | None:
        """The bytes at the entry's place in its batch; None if that has no such place."""
        transactions = self._batches.get(entry.batch)
        if transactions is None:
            transactions = self._batches[entry.batch] = await self.network.reader.batch(entry.batch)
            while len(self._batches) > _BATCHES_KEPT:
                self._batches.popitem(last=False)
        return transactions[entry.index] if entry.index < len(transactions) else None

    # Blobs

    async def blob(self, cid: bytes) -> memoryview:
        """Mapped, every byte of it compared with the CID."""
        path = self.directory / cid_text(cid)
        try:
            await self.network.blobs.get(cid_text(cid), path, progress=self._progress, patience_s=self._patience_s)
        except QuorateError as error:
            if error.code in _SETTLED:
                self._patience_s = 0.0
            raise
        return mapped(path)

    async def model(self, cid: bytes) -> memoryview:
        if cid != zero_model_cid(self.job.rules.schema):
            return await self.blob(cid)
        form, path = model_form(self.job.rules.schema), self.directory / cid_text(cid)
        self.network.kept.keep_zeros(path, form.header, form.size_bytes)
        return mapped(path)

    def keep(self, parts: Iterable[Buffer]) -> tuple[bytes, memoryview]:
        """Puts the parts of a blob into a file: its CID, and the file, mapped."""
        hasher = Hasher()
        temporary = self.directory / f".{os.getpid()}.{secrets.token_hex(4)}"
        try:
            with open(temporary, "xb") as file:
                for part in parts:
                    hasher.update(part)
                    file.write(part)
            return manifest_cid(hasher.finish()), mapped(temporary)
        finally:
            temporary.unlink(missing_ok=True)

    # Events

    async def events(self, current: Round, kinds: Iterable[EventKind]) -> list[tuple[int, Event]]:
        """Those of a round, each proven. That there are no others, nobody proves."""
        wanted = [each.value for each in kinds]
        query = {"job": self.job.id, "kinds": ",".join(wanted), "limit": str(_EVENTS)}
        place = {"from_height": str(current.opened_height)}
        found: list[tuple[int, Event]] = []
        reached = 0
        while True:
            page = await self.network.nodes.ask(Request("GET", "/v1/events", query | place), Reply.fields)
            listed, following, head = page.get("events"), page.get("next"), page.get("head")
            if not (isinstance(listed, list) and isinstance(following, int) and isinstance(head, int)):
                raise Unverified("BAD_ANSWER", "A node's list of events is no list of events.")
            beyond = False
            for each in listed:
                beyond |= bool(current.ended_height) and _number(each, "height") > current.ended_height
                if not beyond and _number(each, "round") == current.number:
                    index = _number(each, "index")
                    found.append((index, await self._event(index)))
            if beyond or following >= head or following <= reached:
                break
            reached = following
            place = {"from": str(following)}
        return [(index, each) for index, each in found if self._is_of(each, current, wanted)]

    def _is_of(self, event: Event, current: Round, kinds: list[str]) -> bool:
        return event.job == self._id and event.round == current.number and event.kind in kinds

    async def _event(self, index: int) -> Event:
        def read(reply: Reply) -> Event:
            data = from_base64(reply.fields().get("bundle"))
            try:
                bundle = decode(ReceiptBundle, data, _EVENT_BYTES)
                verify_event_bundle(self.network.checkpoint, bundle)
                if bundle.index != index:
                    raise Untrue(f"it is of event {bundle.index}, not {index}", "wrong proof")
                return decode(Event, bundle.receipt, len(bundle.receipt))
            except (CodecError, Unproven) as error:
                raise Untrue(str(error), "forged proof") from None

        return await self.network.nodes.ask(Request("GET", f"/v1/events/{index}/proof"), read)


class Spool:
    """Payloads that came inline, one after another in a file that vanishes with its last reader."""

    def __init__(self, directory: Path) -> None:
        descriptor, name = tempfile.mkstemp(dir=directory)
        os.unlink(name)
        self._file = os.fdopen(descriptor, "w+b")
        self._size = 0
        self._view: memoryview | None = None

    def put(self, payload: bytes) -> tuple[int, int]:
        """From where to where it lies."""
        start = self._size
        self._file.write(payload)
        self._size += len(payload)
        self._view = None
        return start, self._size

    def part(self, start: int, stop: int) -> memoryview:
        if self._view is None:
            self._file.flush()
            self._view = memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        return self._view[start:stop]


def _leaves(reply: Reply) -> list[bytes]:
    if reply.status != 200:
        raise Unusable(reply.problem())
    try:
        found = unpack(reply.body, _ENTRIES * _ENTRY_BYTES)
    except CodecError as error:
        raise Unusable(f"no canonical list of entries: {error}") from None
    if not isinstance(found, tuple):
        raise Unusable("entries that are no list")
    leaves = [each for each in found if isinstance(each, bytes)]
    if len(leaves) != len(found) or len(leaves) > _ENTRIES:
        raise Unusable("entries that are no bytes, or too many")
    return leaves


def _number(event: Any, name: str) -> int:
    value = event.get(name) if isinstance(event, dict) else None
    if not isinstance(value, int):
        raise Unverified("BAD_ANSWER", "A node's list of events holds what is no event.")
    return value
