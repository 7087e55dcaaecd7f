"""A receipt as a file: what was submitted, what became of it, and the proof, for whoever has the network file.

    transaction ─ hashes to ─▶ id ◀─ names ─ receipt ─ log proof, state proof ─▶ state root ◀─┐
    network file ─ hand-overs ─▶ validators of the epoch ─ a quorum of them signed ─▶ certificate

Nobody is asked and nothing but the network file is believed. Each way in which a file can lie has a code of its own.
Little is imported here, so that an auditor has little to read: no network, no compiled code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from chain.certificate import signers_of
from chain.codec import CodecError, Count, Digest, Length, decode, encode
from chain.light import Checkpoint, HandOver, ReceiptBundle, Unproven, follow, verify_receipt_bundle
from chain.transaction import Transaction, tx_id, verify_transaction
from fl.client.errors import BadFile, Unverified
from fl.records import Receipt

FORMAT = "quorate-receipt-1"
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_HAND_OVERS = 4096

_AGAIN = "Fetch it again: quorate receipt fetch"
_LIE = "Do not accept this file. Ask for it again, or fetch it yourself: quorate receipt fetch"


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    format: Annotated[str, Length(1, 32)]
    id: Digest
    """Of the transaction."""
    transaction: Transaction
    proof: ReceiptBundle
    hand_overs: Annotated[tuple[HandOver, ...], Count(0, MAX_HAND_OVERS)]
    """By rising epoch, up to the one whose validators signed the certificate."""

    @property
    def epoch(self) -> int:
        """Of the certificate."""
        return self.proof.state.certificate.epoch


def receipt_file(tx: Transaction, proof: ReceiptBundle, hand_overs: Iterable[HandOver]) -> ReceiptFile:
    """Of a proven receipt, with those of the hand-overs that lead to its certificate."""
    epoch = proof.state.certificate.epoch
    led = tuple(each for each in hand_overs if each.header.epoch < epoch)
    return ReceiptFile(FORMAT, tx_id(tx), tx, proof, led)


def read_receipt_file(path: Path) -> ReceiptFile:
    """Raises BadFile for what is no receipt at all; `check_receipt_file` tells a true one from a lie."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadFile("UNREADABLE", f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    if len(data) > MAX_FILE_BYTES:
        raise BadFile("BAD_RECEIPT", f"{path} is far longer than a receipt can be.", _AGAIN)
    try:
        found = decode(ReceiptFile, data, MAX_FILE_BYTES)
        if found.format != FORMAT:
            raise CodecError(f"it is in the format {found.format!r}, not {FORMAT!r}")
        receipt_of(found)
    except CodecError as error:
        raise BadFile("BAD_RECEIPT", f"{path} is no receipt: {error}.", _AGAIN) from None
    return found


def write_receipt_file(path: Path, file: ReceiptFile) -> None:
    """Over whatever was at the path."""
    try:
        path.write_bytes(encode(file))
    except OSError as error:
        raise BadFile("UNWRITABLE", f"{path} cannot be written: {error.strerror}.", "Name another.") from None


def receipt_of(file: ReceiptFile) -> Receipt:
    """What the file says became of the transaction; `check_receipt_file` says whether that is so."""
    return decode(Receipt, file.proof.receipt, len(file.proof.receipt))


def check_receipt_file(file: ReceiptFile, checkpoint: Checkpoint) -> Receipt:
    """Returns what became of the transaction iff all of it follows from the checkpoint; raises Unverified."""
    _check_transaction(file, checkpoint)
    receipt, tx = receipt_of(file), file.transaction
    if (receipt.tx_id, receipt.sender, receipt.nonce, receipt.kind) != (file.id, tx.sender, tx.nonce, tx.kind):
        raise Unverified(
            "OTHER_TRANSACTION",
            f"The receipt is that of another transaction, {receipt.tx_id.hex()}, not of {file.id.hex()}.",
            _LIE,
        )
    reached = _reached(file, checkpoint)
    try:
        verify_receipt_bundle(reached, file.proof)
    except Unproven as error:
        raise Unverified(error.flaw.value, str(error), _LIE) from None
    return receipt


def certified_by(file: ReceiptFile, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The validators that signed the certificate of a file that `check_receipt_file` has accepted, by name."""
    members = _reached(file, checkpoint).validators.members
    return tuple(members[signer].name for signer in signers_of(file.proof.state.certificate))


def _check_transaction(file: ReceiptFile, checkpoint: Checkpoint) -> None:
    tx = file.transaction
    if tx.chain != checkpoint.chain_id:
        raise Unverified(
            "OTHER_CHAIN",
            f"The transaction is for the chain {tx.chain.hex()}, the network file of {checkpoint.chain_id.hex()}.",
            "Name the network file of its chain: --checkpoint FILE",
        )
    if tx_id(tx) != file.id:
        raise Unverified(
            "WRONG_ID", f"The transaction hashes to {tx_id(tx).hex()}, not to the id {file.id.hex()}.", _LIE
        )
    if not verify_transaction(tx, file.id):
        raise Unverified("BAD_SIGNATURE", f"Its sender's key, {tx.key.hex()}, did not sign the transaction.", _LIE)


def _reached(file: ReceiptFile, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of the certificate's epoch."""
    first = checkpoint.validators.epoch
    if file.epoch < first:
        raise Unverified(
            "OLD_EPOCH",
            f"The certificate is of epoch {file.epoch}; the network file knows the validators from epoch {first} on.",
            "Check it with the network file of that time, or fetch it again: quorate receipt fetch",
        )
    ahead = [each for each in file.hand_overs if first <= each.header.epoch < file.epoch]
    missing = set(range(first, file.epoch)) - {each.header.epoch for each in ahead}
    if missing:
        raise Unverified(
            "HAND_OVER_MISSING",
            f"The certificate is of epoch {file.epoch}; no hand-over in the file leads from epoch {min(missing)} to"
            f" {min(missing) + 1}.",
            "Fetch it again with this network file: quorate receipt fetch",
        )
    try:
        return follow(checkpoint, ahead)
    except Unproven as error:
        raise Unverified(error.flaw.value, str(error), _LIE) from None
