"""Accepted updates on their way to the data process: nothing is lost, doubled or mixed up."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from chain.codec import CodecError
from fl.records import Entry
from node.data.bundles import told, unpacked
from node.data.messages import INLINE_BYTES, Add, Bundle, from_frame, to_frame

JOB = b"j" * 32


def entry(index: int, round: int = 1, group: int = 0) -> Entry:
    return Entry(bytes(32), bytes([index]) * 32, round, 100 + index, group, b"c" * 36, bytes(32), 0)


def test_what_is_told_arrives_with_everything_in_its_place() -> None:
    indices = [3, 9, 4, 1, 2, 70_000]
    entries = [entry(0), entry(1, group=1), entry(2, round=10), entry(3), entry(4), entry(5, group=1)]
    payloads = [b"aa", b"bb", b"ccc", b"", b"dd", b"ee"]
    out = told(indices, [each.fields for each in entries], payloads)
    message = from_frame(to_frame(Add(5, JOB, 1, out.blobs, out.bundles)))
    assert isinstance(message, Add) and out.count == 6
    arrived = {}
    for each in message.blobs:
        arrived[each.index] = (each.member, each.round, each.weight, each.group, b"")
    for bundle in message.bundles:
        found = unpacked(bundle, set())
        assert found is not None
        for at, index in enumerate(found.indices):
            member = found.members[32 * at : 32 * at + 32]
            arrived[index] = (member, found.round, found.weights[at], found.group, found.payloads[at].tobytes())
    assert arrived == {
        index: (each.member, each.round, each.weight, each.group, payload)
        for index, each, payload in zip(indices, entries, payloads, strict=True)
    }
    assert len(message.bundles) == 3


def test_updates_of_one_round_and_group_that_differ_in_length_are_apart() -> None:
    out = told(range(3), [entry(index).fields for index in range(3)], [b"aa", b"b", b"cc"])
    assert [bundle.payloads for bundle in out.bundles] == [b"aacc", b"b"]


@pytest.mark.parametrize(("known", "left"), [((), [5, 6, 7]), ((6,), [5, 7]), ((5, 6, 7), None), ((1, 7, 8), [5, 6])])
def test_what_is_known_is_left_out(known: Sequence[int], left: list[int] | None) -> None:
    (bundle,) = told(range(5, 8), [entry(index).fields for index in range(3)], [b"aa", b"bb", b"cc"]).bundles
    found = unpacked(bundle, set(known))
    if left is None:
        assert found is None
        return
    assert found is not None and found.indices == left
    assert found.weights == [100 + index - 5 for index in left]
    assert found.payloads.tobytes() == b"".join((b"aa", b"bb", b"cc")[index - 5] for index in left)
    assert found.members == b"".join(bytes([index - 5]) * 32 for index in left)


@pytest.mark.parametrize(
    "bundle",
    [
        Bundle(1, 0, bytes(16), bytes(32), bytes(8), bytes(2)),
        Bundle(1, 0, bytes(16), bytes(64), bytes(4), bytes(2)),
        Bundle(1, 0, bytes(16), bytes(64), bytes(8), bytes(3)),
        Bundle(1, 0, bytes(15), bytes(64), bytes(8), bytes(2)),
    ],
)
def test_columns_that_do_not_fit_are_refused(bundle: Bundle) -> None:
    with pytest.raises(ValueError):
        unpacked(bundle, set())


def test_a_message_holds_the_longest_inline_updates_and_has_its_bounds() -> None:
    out = told(range(64), [entry(index).fields for index in range(64)], [bytes(INLINE_BYTES)] * 64)
    frame = to_frame(Add(5, JOB, 1, out.blobs, out.bundles))
    assert isinstance(from_frame(frame), Add)
    more = told(range(66), [entry(index).fields for index in range(66)], [bytes(INLINE_BYTES)] * 66)
    with pytest.raises(CodecError):
        to_frame(Add(5, JOB, 1, more.blobs, more.bundles))
