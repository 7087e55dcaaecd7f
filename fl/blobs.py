"""Blobs as the domain sees them: which kinds there are, who may read them, and what a transaction promises of one.

A transaction may name a blob instead of carrying it. Availability votes for such a transaction only once every byte
of the blob is here, verified and checked, so execution relies on a claim as it relies on inline bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from chain.cid import CidError, check_cid, is_raw
from chain.codec import U8, U64, Digest
from chain.unixfs import MAX_FILE_BYTES, leaf_count
from fl.errors import Refused
from fl.records import Cid, JobRules, MaybeDigest
from fl.tensors.encodings import Place, UpdateForm, check_payload
from fl.tensors.encodings import check_joints as check_payload_joints
from fl.tensors.encodings import check_part as check_payload_part
from fl.tensors.layout import Bytes
from fl.tensors.model import check_model, check_model_part, model_form
from fl.updates import form_of


class BlobKind(IntEnum):
    MODEL = 1
    DATASET = 2
    UPDATE = 3
    OPTIMIZER = 4
    RECORD = 5
    """What was computed in a round, and from what."""


PUBLIC_KINDS = frozenset({BlobKind.MODEL, BlobKind.DATASET, BlobKind.RECORD})
"""Given to anyone; the others only to validators, auditors and the member whose they are."""


@dataclass(frozen=True, slots=True)
class BlobClaim:
    """What a transaction says of the blob that it names: all that decides whether the blob's bytes are good."""

    cid: Cid
    size_bytes: U64
    kind: U8
    account: Digest
    """Whose it is: it counts against this account's quota, and an update's header names it."""
    job: MaybeDigest
    round: U64
    group: U8


@dataclass(frozen=True, slots=True)
class Demand:
    """A claim with the immutable rules by which its bytes are judged; none for a data set, of which any bytes are
    good."""

    claim: BlobClaim
    rules: JobRules | None


def claimed(demand: Demand) -> Demand:
    """The demand, once its claim is one that some file can satisfy: raises OVERSIZE or BAD_CID."""
    claim = demand.claim
    if claim.size_bytes > MAX_FILE_BYTES:
        raise Refused("OVERSIZE", f"A blob may take {MAX_FILE_BYTES} bytes, not {claim.size_bytes}.")
    try:
        check_cid(claim.cid)
    except CidError as error:
        raise Refused("BAD_CID", f"{error}.") from None
    if is_raw(claim.cid) != (leaf_count(claim.size_bytes) == 1):
        raise Refused("BAD_CID", f"No blob of {claim.size_bytes} bytes has this CID under the chain's UnixFS profile.")
    return demand


def check_size(demand: Demand, size_bytes: int) -> None:
    """Raises `Refused` unless the blob has the size that the claim implies. Whoever fetches it knows its size before
    its first byte."""
    wanted = demand.claim.size_bytes
    if size_bytes == wanted:
        return
    sentence = f"The blob must have {wanted} bytes, not {size_bytes}."
    if demand.claim.kind == BlobKind.UPDATE:
        raise Refused("OVERSIZE" if size_bytes > wanted else "WRONG_HEADER", sentence)
    raise Refused("BAD_MODEL" if demand.claim.kind == BlobKind.MODEL else "BAD_DATASET", sentence)


def check_part(demand: Demand, start: int, part: Bytes) -> None:
    """Raises `Refused` if these bytes cannot stand at `start` of the blob, with the code that the same fault has in
    an inline payload.

    `start` is a multiple of the leaf's size and `part` ends at another one or at the blob's end. A blob of which each
    part is good, whose size is the claimed one, and in which `check_joints` finds nothing, is good: headers are padded
    to multiples of 8, so no value lies across two parts. Of a blob with several faults, the part that is looked at
    first says which one is reported.
    """
    if start % 8:
        raise ValueError(f"a part begins at a multiple of 8, not at {start}")
    if start + len(part) > demand.claim.size_bytes:
        check_size(demand, start + len(part))
    if demand.claim.kind == BlobKind.MODEL:
        check_model_part(_rules(demand).schema, start, part)
    elif demand.claim.kind == BlobKind.UPDATE:
        check_payload_part(_form(demand), _place(demand), start, part)


def check_joints(demand: Demand, blob: Bytes, part_bytes: int) -> None:
    """Raises `Refused` for a blob of the right size whose parts of this size were all found good, and which is not:
    with the code that it has inline."""
    if demand.claim.kind == BlobKind.UPDATE:
        check_payload_joints(_form(demand), _place(demand), blob, part_bytes)


def check_blob(demand: Demand, blob: Bytes) -> None:
    """Raises `Refused` unless this is the blob that is demanded, its CID apart: as an inline one would be judged."""
    if demand.claim.kind == BlobKind.MODEL:
        check_model(_rules(demand).schema, blob)
    elif demand.claim.kind == BlobKind.UPDATE:
        check_payload(_form(demand), _place(demand), blob)
    check_size(demand, len(blob))


def update_demand(cid: bytes, rules: JobRules, place: Place, group: int) -> Demand:
    """The blob of a member's update: its size follows from the rules and the place that it is for."""
    size_bytes = form_of(rules, group).size_bytes(place)
    claim = BlobClaim(cid, size_bytes, BlobKind.UPDATE, place.member, place.job, place.round, group)
    return claimed(Demand(claim, rules))


def model_demand(rules: JobRules, account: bytes) -> Demand:
    """The blob of the initial model that the rules name."""
    size_bytes = model_form(rules.schema).size_bytes
    return claimed(Demand(BlobClaim(rules.initial, size_bytes, BlobKind.MODEL, account, b"", 0, 0), rules))


def dataset_demand(cid: bytes, size_bytes: int, account: bytes) -> Demand:
    return claimed(Demand(BlobClaim(cid, size_bytes, BlobKind.DATASET, account, b"", 0, 0), None))


def _rules(demand: Demand) -> JobRules:
    if demand.rules is None:
        raise ValueError("a model or an update is judged by its job's rules, and none came with the claim")
    return demand.rules


def _form(demand: Demand) -> UpdateForm:
    return form_of(_rules(demand), demand.claim.group)


def _place(demand: Demand) -> Place:
    """What makes an update's bytes those of its job, round and member."""
    return Place(demand.claim.job, demand.claim.round, demand.claim.account)
