"""Accepted updates on their way from the core, which has them from execution, to the sums.

Those that came inline are many and small. They go as columns, and are summed as rows of one array: what is done for
each of them alone is little more than to take its fingerprint.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

import numpy as np

from fl import aggregation
from fl.records import EntryFields
from fl.tensors.encodings import MEMBER_BYTES
from node.data.messages import Addend, Bundle

_MEMBER: Final = 1
_WEIGHT: Final = 3


@dataclass(frozen=True, slots=True)
class Told:
    """Of a round, what goes in one message."""

    blobs: tuple[Addend, ...]
    bundles: tuple[Bundle, ...]
    count: int


def told(indices: Sequence[int], entries: Sequence[EntryFields], payloads: Sequence[bytes]) -> Told:
    """Entries at these indices of the log. A payload is empty where a blob holds it."""
    blobs = []
    alike: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
    for place, (entry, payload) in enumerate(zip(entries, payloads, strict=True)):
        _, member, round, weight, group, cid, _, _ = entry
        if payload:
            alike[round, group, len(payload)].append(place)
        else:
            blobs.append(Addend(indices[place], round, member, weight, group, cid))
    bundles = [
        Bundle(
            round,
            group,
            struct.pack(f"<{len(places)}Q", *[indices[place] for place in places]),
            b"".join([entries[place][_MEMBER] for place in places]),
            struct.pack(f"<{len(places)}I", *[entries[place][_WEIGHT] for place in places]),
            b"".join([payloads[place] for place in places]),
        )
        for (round, group, _), places in alike.items()
    ]
    return Told(tuple(blobs), tuple(bundles), len(entries))


def unpacked(bundle: Bundle, known: Set[int]) -> aggregation.Bundle | None:
    """Without updates that are known; None if no other is left. Raises ValueError."""
    indices = np.frombuffer(bundle.indices, "<u8")
    weights = np.frombuffer(bundle.weights, "<u4")
    members = np.frombuffer(bundle.members, np.uint8).reshape(indices.size, MEMBER_BYTES)
    payloads = np.frombuffer(bundle.payloads, np.uint8).reshape(indices.size, -1)
    if weights.size != indices.size:
        raise ValueError("columns of a bundle are not of one length")
    places = indices.tolist()
    if not known.isdisjoint(places):
        new = np.array([place not in known for place in places])
        indices, weights, members, payloads = indices[new], weights[new], members[new], payloads[new]
    if not indices.size:
        return None
    return aggregation.Bundle(
        indices.tolist(), bundle.round, members.tobytes(), weights.tolist(), bundle.group, payloads
    )
