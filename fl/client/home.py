"""What a client keeps on disk for one account on one chain, so that a crash costs nothing and proofs outlive nodes.

    outbox/<nonce>.tx       signed transactions whose fate is not yet proven: sent again, byte for byte, after a restart
    outbox/<cid>.blob       what such a transaction names instead of carrying it
    feedback/<job>/<group>/ what lossy encodings have left out of updates: see `fl.client.feedback`
    receipts/<tx id>.bin    what became of each, with its proof: see `fl.client.receiptfile`
    journal.jsonl           one line an event: signed, acknowledged, proven, given_up
    head                    the newest height that was proven

The accounts of a chain share

    genesis.bin
    handovers/<epoch>.bin   how the validators of that epoch named those of the next
    models/<cid>            the models that were needed last

A file in the outbox is made by linking it under its nonce, which fails if the nonce is taken: so several processes of
one account share the nonces without a lock.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from chain.cid import CidError, cid_text, parse_cid
from chain.codec import CodecError, decode, encode
from chain.genesis import MAX_GENESIS_BYTES, Genesis
from chain.light import HandOver
from chain.transaction import MAX_TRANSACTION_BYTES, Transaction, id_of
from chain.unixfs import Buffer, Hasher, Manifest, manifest_cid
from fl.client.errors import BadFile
from fl.client.keyfile import sync_directory
from fl.client.receiptfile import MAX_HAND_OVERS, ReceiptFile, read_receipt_file, receipt_of
from fl.records import Receipt

T = TypeVar("T")

_MAX_RECORD_BYTES = 4 * 1024 * 1024
_NAMED_BYTES = 8
"""Of the chain id and of the account id, in the directory's name."""
_MODELS_KEPT = 4
_ABANDONED_S = 3_600.0
"""What nobody has touched for so long, and nothing names, was left by a run that died."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A signed transaction whose fate is not yet proven."""

    tx: Transaction
    id: bytes
    data: bytes

    def save(self, path: str | os.PathLike[str]) -> Path:
        """As a file, to be sent from elsewhere: `send_signed`, or `quorate tx send FILE`."""
        try:
            Path(path).write_bytes(self.data)
        except OSError as error:
            raise BadFile("UNWRITABLE", f"{path} cannot be written: {error.strerror}.", "Name another file.") from None
        return Path(path)


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    receipt: Receipt
    file: ReceiptFile
    path: Path


def default_root() -> Path:
    """QUORATE_HOME, or ~/.quorate."""
    named = os.environ.get("QUORATE_HOME")
    return Path(named) if named else Path.home() / ".quorate"


def kept_receipts(root: Path | None, chain_id: bytes) -> list[Path]:
    """Of every account that has a home here on this chain."""
    chain = _chain_directory(root if root is not None else default_root(), chain_id)
    return sorted(chain.glob("*/receipts/*.bin"))


def in_flight(root: Path, chain_id: bytes, account: bytes) -> int:
    """How many transactions of the account are in its outbox; nothing is made for that."""
    return len(list((_chain_directory(root, chain_id) / account[:_NAMED_BYTES].hex() / "outbox").glob("*.tx")))


def _chain_directory(root: Path, chain_id: bytes) -> Path:
    return root / chain_id[:_NAMED_BYTES].hex()


class Home:
    def __init__(self, root: Path, chain_id: bytes, account: bytes | None) -> None:
        self._root, self._chain_id = root, chain_id
        self.chain_directory = _chain_directory(root, chain_id)
        who = account[:_NAMED_BYTES].hex() if account is not None else "reader"
        self.directory = self.chain_directory / who
        self._outbox = self.directory / "outbox"
        self._receipts = self.directory / "receipts"
        self._models = self.chain_directory / "models"
        self._hand_overs = self.chain_directory / "handovers"
        try:
            for each in (self._outbox, self._receipts, self._models, self._hand_overs):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadFile(
                "UNWRITABLE",
                f"{self.directory} cannot be made: {error.strerror}.",
                "Name another directory by `home` or QUORATE_HOME.",
            ) from error

    def of(self, account: bytes) -> Home:
        """Another account's, on the same chain."""
        return Home(self._root, self._chain_id, account)

    # The outbox

    def keep(self, pending: Pending) -> bool:
        """Durable when it returns True; False when the nonce is taken."""
        path = self._outbox_path(pending.tx.nonce)
        temporary = self._write_beside(path, pending.data, durable=True)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        sync_directory(self._outbox)
        return True

    def drop(self, pending: Pending) -> None:
        # Another process may have taken the nonce for a transaction of its own since.
        if self.holds(pending):
            self._outbox_path(pending.tx.nonce).unlink(missing_ok=True)

    def pending(self) -> Iterator[Pending]:
        """By rising nonce."""
        for path in sorted(self._outbox.glob("*.tx")):
            data = _read(path)
            if data is None:
                continue
            try:
                tx = decode(Transaction, data, MAX_TRANSACTION_BYTES)
            except CodecError as error:
                raise BadFile("BAD_OUTBOX", f"{path} is damaged: {error}.", "Delete it and submit again.") from None
            yield Pending(tx, id_of(data), data)

    def nonces_in_flight(self) -> set[int]:
        return {int(path.stem) for path in self._outbox.glob("*.tx")}

    def next_nonce(self) -> int | None:
        """After all that were signed with here; None if none was."""
        used = self.nonces_in_flight() | {each.receipt.nonce for each in self.receipts()}
        return max(used) + 1 if used else None

    def holds(self, pending: Pending) -> bool:
        """Whether the outbox has these very bytes under their nonce."""
        return _read(self._outbox_path(pending.tx.nonce)) == pending.data

    def _outbox_path(self, nonce: int) -> Path:
        return self._outbox / f"{nonce:020}.tx"

    # Blobs

    def keep_blob(self, parts: Iterable[Buffer]) -> tuple[bytes, Manifest]:
        """A file in the outbox, durable when this returns its CID and manifest."""
        hasher = Hasher()
        temporary = self._outbox / f".blob.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            with open(temporary, "xb") as file:
                for part in parts:
                    hasher.update(part)
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            manifest = hasher.finish()
            cid = manifest_cid(manifest)
            os.replace(temporary, self.blob_path(cid))
        except OSError as error:
            raise BadFile(
                "UNWRITABLE", f"{self._outbox} takes no more: {error.strerror}.", "Make room, or use another home."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(self._outbox)
        return cid, manifest

    def blob_path(self, cid: bytes) -> Path:
        return self._outbox / f"{cid_text(cid)}.blob"

    def drop_blob(self, cid: bytes) -> None:
        self.blob_path(cid).unlink(missing_ok=True)

    def drop_abandoned_blobs(self, named: set[bytes]) -> None:
        for path in [*self._outbox.glob("*.blob"), *self._outbox.glob(".*"), *self._receipts.glob(".*")]:
            try:
                wanted = path.name.endswith(".blob") and parse_cid(path.stem) in named
                if not wanted and path.stat().st_mtime < time.time() - _ABANDONED_S:
                    path.unlink(missing_ok=True)
            except (CidError, FileNotFoundError):
                continue

    def model_path(self, cid: bytes) -> Path:
        """Where this model is, or is to be put. The ones that were wanted longest ago make room; whoever works with one
        of them keeps its bytes."""
        path = self._models / cid_text(cid)
        if path.exists():
            os.utime(path)
        whole = [each for each in self._models.iterdir() if each != path and not each.name.startswith(".")]
        for each in sorted(whole, key=_changed, reverse=True)[_MODELS_KEPT - 1 :]:
            each.unlink(missing_ok=True)
        for each in self._models.glob(".*"):
            if _changed(each) < time.time() - _ABANDONED_S:
                each.unlink(missing_ok=True)
        return path

    def keep_zeros(self, path: Path, header: bytes, size_bytes: int) -> None:
        """A model of zeros takes no room on most disks."""
        temporary = self._write_beside(path, header, durable=False)
        os.truncate(temporary, size_bytes)
        os.replace(temporary, path)

    def feedback_directory(self, job: bytes, group: int) -> Path:
        return self.directory / "feedback" / job.hex() / str(group)

    # Receipts

    def receipt_path(self, identity: bytes) -> Path:
        return self._receipts / f"{identity.hex()}.bin"

    def keep_receipt(self, file: ReceiptFile) -> StoredReceipt:
        path = self.receipt_path(file.id)
        os.replace(self._write_beside(path, encode(file), durable=True), path)
        sync_directory(self._receipts)
        return StoredReceipt(receipt_of(file), file, path)

    def receipts(self) -> Iterator[StoredReceipt]:
        for path in sorted(self._receipts.glob("*.bin")):
            yield read_receipt(path)

    # The journal

    def note(self, event: str, pending: Pending, **more: str | int) -> None:
        line = {
            "time_ms": time.time_ns() // 1_000_000,
            "event": event,
            "tx": pending.id.hex(),
            "nonce": pending.tx.nonce,
            "kind": pending.tx.kind,
            **more,
        }
        with open(self.directory / "journal.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    # What was proven before

    def genesis(self) -> Genesis | None:
        return self._decoded(Genesis, self.chain_directory / "genesis.bin", MAX_GENESIS_BYTES)

    def keep_genesis(self, genesis: Genesis) -> None:
        self._replace(self.chain_directory / "genesis.bin", encode(genesis))

    def hand_overs(self, epoch: int) -> list[HandOver]:
        """From this epoch on, without a gap; as they were kept, to be followed anew."""
        found: list[HandOver] = []
        while len(found) < MAX_HAND_OVERS:
            each = self._decoded(HandOver, self._hand_over_path(epoch + len(found)), _MAX_RECORD_BYTES)
            if each is None:
                break
            found.append(each)
        return found

    def keep_hand_over(self, hand_over: HandOver) -> None:
        self._replace(self._hand_over_path(hand_over.header.epoch), encode(hand_over))

    def _hand_over_path(self, epoch: int) -> Path:
        return self._hand_overs / f"{epoch:020}.bin"

    def head(self) -> int:
        data = _read(self.directory / "head")
        try:
            return int(data) if data is not None else 0
        except ValueError:
            return 0

    def keep_head(self, height: int) -> None:
        self._replace(self.directory / "head", b"%d\n" % height)

    def _decoded(self, cls: type[T], path: Path, limit: int) -> T | None:
        data = _read(path)
        try:
            return None if data is None else decode(cls, data, limit)
        except CodecError:
            # Only a copy of what the network proves: it is fetched again.
            return None

    def _replace(self, path: Path, data: bytes) -> None:
        os.replace(self._write_beside(path, data, durable=False), path)

    @staticmethod
    def _write_beside(path: Path, data: bytes, *, durable: bool) -> Path:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with open(temporary, "xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        return temporary


def read_receipt(path: Path) -> StoredReceipt:
    """A receipt as it was kept; `Network.verify_receipt` checks its proof again."""
    file = read_receipt_file(path)
    return StoredReceipt(receipt_of(file), file, path)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
