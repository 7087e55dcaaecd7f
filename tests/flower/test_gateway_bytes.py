"""The gateway's encoding and its objects: exact bytes, and nothing but its own error for any others."""

from __future__ import annotations

import contextlib
import struct
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.client.adapters.flower.app import FlowerRound
from fl.client.errors import BadInput
from fl.client.flowergate import wire
from fl.client.flowergate.arrivals import Arrival, read_npy
from fl.client.flowergate.locals import LocalTensors
from fl.client.flowergate.objects import CHUNK_BYTES, BadObject, closed, ids_in, opened
from fl.client.flowergate.parcels import ArraysRecord, MetricsRecord, Parcel, Record, SettingsRecord, values_of
from fl.client.flowergate.protobuf import MOST_DEPTH, MOST_FIELDS, Malformed, decode, encode
from fl.tensors.layout import AVERAGED, LOCAL, Schema, TensorSpec

FORMS = [
    wire.PushMessages,
    wire.PushObject,
    wire.PullObject,
    wire.Heartbeat,
    wire.ActivateNode,
    wire.GetFab,
    wire.Tree,
    wire.Message,
    wire.Items,
    wire.Run,
]
REPLY = wire.Metadata(7, "", 5, 1, "a" * 64, "3", 60.0, "train", 1.5)


def tree_of(*levels: str) -> wire.Tree:
    found = wire.Tree(levels[-1])
    for each in reversed(levels[:-1]):
        found = wire.Tree(each, (found,))
    return found


# The encoding


def test_a_metric_is_written_as_flower_writes_it() -> None:
    items = wire.Items((wire.Item("num-examples", wire.Value(sint64=3)),))
    assert encode(items).hex() == "0a120a0c" + b"num-examples".hex() + "12021006"


def test_zeros_are_left_out_unless_their_presence_means_something() -> None:
    assert encode(wire.Metadata()) == b""
    assert encode(wire.Metadata(src_task_id=0)).hex() == "5000"
    assert encode(wire.Value(sint64=0)).hex() == "1000"


@given(
    st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans(), st.text()
)
def test_what_is_written_is_read_again(unsigned: int, signed: int, number: float, truth: bool, text: str) -> None:
    value = wire.Value(number, signed, unsigned, truth, text)
    assert decode(wire.Value, encode(value)) == value
    message = wire.Message(wire.Metadata(unsigned, text, created_at=number), wire.Content(), wire.Failure(signed, text))
    assert decode(wire.Message, encode(message)) == message


def test_fields_of_later_versions_are_skipped() -> None:
    later = bytes.fromhex("f80601 f9060000000000000000 fa0603616263 fd0600000000")
    assert decode(wire.Node, later + encode(wire.Node(9)) + later) == wire.Node(9)


@pytest.mark.parametrize(
    "bad",
    [
        "08",
        "08ffffffffffffffffffff01",
        "08ffffffffffffffffff7f",
        "0d00000000",
        "0a0161",
        "12ff",
        "1205aa",
        "0b0c",
        "00",
        "0f",
        "f90600",
    ],
)
def test_what_breaks_the_form_is_refused(bad: str) -> None:
    with pytest.raises(Malformed):
        decode(wire.Node, bytes.fromhex(bad))


def test_text_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(Malformed):
        decode(wire.Tree, bytes.fromhex("0a02c328"))


def test_nesting_and_the_number_of_fields_have_bounds() -> None:
    with pytest.raises(Malformed, match="deep"):
        decode(wire.Tree, encode(tree_of(*["a"] * (MOST_DEPTH + 2))))
    with pytest.raises(Malformed, match="fields"):
        decode(wire.Tree, b"\x12\x00" * (MOST_FIELDS + 1))


@settings(max_examples=400)
@given(st.sampled_from(FORMS), st.binary(max_size=200))
def test_no_bytes_make_reading_fail_in_another_way(form: type[Any], data: bytes) -> None:
    try:
        found = decode(form, data)
    except Malformed:
        return
    assert decode(form, encode(found)) == found or "nan" in repr(found)


@settings(max_examples=400)
@given(st.data())
def test_no_change_to_a_message_makes_reading_fail_in_another_way(data: st.DataObject) -> None:
    message = wire.PushMessages(
        wire.Node(5), (wire.Message(REPLY, wire.Content()),), (tree_of("a" * 64, "b" * 64, "c" * 64),)
    )
    changed = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(changed)))
    with contextlib.suppress(Malformed):
        decode(wire.PushMessages, bytes(changed[:cut]))


# Objects


def test_objects_have_the_bytes_and_ids_that_flower_gives_them() -> None:
    """Recorded from Flower 1.30 and 1.41."""
    arrays = ArraysRecord({"w": np.array([1, 2], np.float32)})
    tree = Parcel({"arrays": arrays, "metrics": MetricsRecord({"num-examples": 3})}).addressed(REPLY).tree.children[0]
    parcel = Parcel({"arrays": arrays, "metrics": MetricsRecord({"num-examples": 3})})
    record, metrics = tree.children
    array = record.children[0]
    chunk = array.children[0]
    found = [(each.object_id[:8], len(parcel.content(each.object_id) or b"")) for each in (chunk, array, record)]
    assert found == [("98cf9890", 152), ("c6eb9247", 157), ("9cc27e52", 153)]
    found = [(each.object_id[:8], len(parcel.content(each.object_id) or b"")) for each in (metrics, tree)]
    assert found == [("3ae7b650", 37), ("20956729", 302)]
    content = parcel.content(chunk.object_id) or b""
    assert content.startswith(b"ArrayChunk  136\0\x93NUMPY") and chunk.object_id.endswith("6377d6")


def arrays_like(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(size).normal(size=size).astype(np.float32)


def whole_of(parcel: Parcel, directory: Path, base: Parcel | None = None) -> dict[str, Record]:
    """As a reply whose root is this message."""
    shipment = parcel.addressed(REPLY)
    arrival = Arrival(shipment.tree, base or Parcel({}), directory)
    for named in list(arrival.wanted):
        arrival.take(named, shipment.content(named) or b"")
    assert arrival.is_whole
    return arrival.records()


def test_what_is_sent_arrives_the_same(tmp_path: Path) -> None:
    arrays = {
        "big": arrays_like(CHUNK_BYTES // 2),
        "scalar": np.array(3, np.int64),
        "matrix": arrays_like(60).reshape(3, 20).astype(np.float64),
        "fortran": np.asfortranarray(arrays_like(6).reshape(2, 3)),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
    }
    settings = {"lr": 0.1, "rounds": 3, "name": "x", "fast": True}
    records: dict[str, Record] = {
        "arrays": ArraysRecord(arrays),
        "config": SettingsRecord(settings),
        "metrics": MetricsRecord({"loss": 0.5, "num-examples": 2**63}),
    }
    parcel = Parcel(records)
    found = whole_of(parcel, tmp_path)
    back = found["arrays"]
    assert isinstance(back, ArraysRecord) and list(back.arrays) == list(arrays)
    for name, array in arrays.items():
        assert back.arrays[name].dtype == array.dtype and np.array_equal(back.arrays[name], array)
    assert found["config"] == records["config"] and found["metrics"] == records["metrics"]


def test_chunks_that_both_sides_have_are_not_sent_again(tmp_path: Path) -> None:
    frozen, trained = arrays_like(CHUNK_BYTES), arrays_like(100)
    sent = Parcel({"arrays": ArraysRecord({"frozen": frozen, "head": np.zeros(100, np.float32)})})
    reply = Parcel({"arrays": ArraysRecord({"frozen": frozen, "head": trained})})
    arrival = Arrival(reply.addressed(REPLY).tree, sent, tmp_path)
    assert len(arrival.wanted) == 5, "message, dictionary, record, array and chunk of what has changed"
    back = whole_of(reply, tmp_path, sent)["arrays"]
    assert isinstance(back, ArraysRecord) and np.array_equal(back.arrays["frozen"], frozen)


def test_a_large_reply_is_mapped_and_not_read(tmp_path: Path) -> None:
    parcel = Parcel({"arrays": ArraysRecord({"w": arrays_like(CHUNK_BYTES)})})
    back = whole_of(parcel, tmp_path)["arrays"]
    assert isinstance(back, ArraysRecord) and isinstance(back.arrays["w"], np.memmap)


@settings(max_examples=400)
@given(
    st.one_of(
        st.binary(max_size=120),
        st.from_regex(rb"\A[A-Za-z]{3,12} [0-9a-f,]{0,70} [0-9]{1,3}\x00.{0,9}", fullmatch=True),
    )
)
def test_no_bytes_make_opening_fail_in_another_way(content: bytes) -> None:
    try:
        found = opened(content)
    except BadObject:
        return
    assert closed(found.kind, found.children, bytes(found.body)) == content


def forged(*contents: bytes) -> tuple[wire.Tree, dict[str, bytes]]:
    """A chain of objects, the root last; each has the one before it as its only child."""
    tree, found = None, {}
    for content in contents:
        named = sha256(content).hexdigest()
        found[named] = content
        tree = wire.Tree(named, (tree,) if tree else ())
    assert tree is not None
    return tree, found


def reply_around(kind: str, body: bytes, children: tuple[str, ...] = ()) -> list[bytes]:
    record = closed(kind, children, body)
    named = sha256(record).hexdigest()
    records = closed("RecordDict", [named], f'{{"r": "{named}"}}'.encode())
    return [record, records, closed("Message", [sha256(records).hexdigest()], encode(wire.Message(REPLY)))]


def arrived(tmp_path: Path, *contents: bytes) -> dict[str, Record]:
    tree, found = forged(*contents)
    arrival = Arrival(tree, Parcel({}), tmp_path)
    for named, content in found.items():
        arrival.take(named, content)
    return arrival.records()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"[" * 100_000, b'{"a": 1}', b'{"a": "b"}', b'{"a": "%s"}' % (b"0" * 64), b"\xff"],
    ids=range(8),
)
def test_json_that_is_not_what_it_should_be_is_a_bad_object(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(BadObject):
        arrived(tmp_path, *reply_around("ArrayRecord", body))


@settings(max_examples=60)
@given(body=st.binary(max_size=40))
def test_no_metrics_make_reading_fail_in_another_way(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    with contextlib.suppress(BadObject):
        arrived(tmp_path_factory.mktemp("reply"), *reply_around("MetricRecord", body))


NPY = np.lib.format.magic(1, 0)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 999999999999999, 999999999999999), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
        "__import__('os')",
        "(" * 5000,
        "",
    ],
)
def test_an_array_that_is_not_plain_numbers_of_its_shape_is_a_bad_object(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.npy"
    line = f"{header}\n".encode()
    path.write_bytes(NPY + struct.pack("<H", len(line)) + line + (b"" if "(0," in header else b"\0\0\0\0"))
    with pytest.raises(BadObject):
        read_npy(path)


@settings(max_examples=150)
@given(st.data())
def test_no_bytes_make_reading_an_array_fail_in_another_way(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    np.save(path, np.arange(4, dtype=np.float32))
    changed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    with contextlib.suppress(BadObject):
        assert read_npy(path).size <= 16


def test_a_reply_has_a_bound_in_objects_and_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl.client.flowergate.arrivals.MOST_OBJECTS", 10)
    with pytest.raises(BadObject, match="more than 10 objects"):
        Arrival(wire.Tree("a" * 64, tuple(wire.Tree(f"{number:064x}") for number in range(10))), Parcel({}), tmp_path)
    monkeypatch.setattr("fl.client.flowergate.arrivals._SPARE_BYTES", 900)
    chunk = closed("ArrayChunk", (), bytes(1000))
    tree, _ = forged(chunk)
    with pytest.raises(BadObject, match="more bytes"):
        Arrival(tree, Parcel({}), tmp_path).take(tree.object_id, chunk)


def test_one_chunk_in_many_arrays_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl.client.flowergate.arrivals._SPARE_BYTES", 4000)
    chunk = closed("ArrayChunk", (), bytes(500))
    named = sha256(chunk).hexdigest()
    body = f'{{"dtype": "", "shape": [], "stype": "numpy.ndarray", "arraychunk_ids": [{",".join("0" * 100)}]}}'
    array = closed("Array", [named], body.encode())
    array_id = sha256(array).hexdigest()
    record, records, message = reply_around("ArrayRecord", f'{{"w": "{array_id}"}}'.encode(), (array_id,))
    with pytest.raises(BadObject, match="arrays of more bytes"):
        arrived(tmp_path, chunk, array, record, records, message)


def test_an_object_has_the_id_of_its_bytes_and_belongs_to_the_reply(tmp_path: Path) -> None:
    chunk = closed("ArrayChunk", (), b"x")
    tree, _ = forged(chunk)
    arrival = Arrival(tree, Parcel({}), tmp_path)
    with pytest.raises(BadObject, match="another id"):
        arrival.take(tree.object_id, chunk + b"y")
    with pytest.raises(BadObject, match="not part"):
        arrival.take("f" * 64, chunk)


def test_trees_are_walked_children_first_and_not_too_deep() -> None:
    assert list(ids_in(tree_of("a" * 64, "b" * 64, "c" * 64))) == ["c" * 64, "b" * 64, "a" * 64]
    with pytest.raises(BadObject, match="deep"):
        list(ids_in(tree_of(*["a" * 64] * 9)))
    with pytest.raises(BadObject, match="no id"):
        list(ids_in(wire.Tree("../etc/passwd")))


def test_lists_and_bytes_among_metrics_are_left_out() -> None:
    items = decode(wire.Items, bytes.fromhex("0a0e0a03616c6c1207aa010408021004") + encode(wire.Items()))
    assert values_of(items.items) == {}


def test_local_tensors_of_any_shape_that_a_creator_writes_fill_no_memory(tmp_path: Path) -> None:
    averaged = TensorSpec("w", "F32", (2,), AVERAGED)
    count = TensorSpec("count", "I64", (), LOCAL)
    model = {"w": np.zeros(2, np.float32)}
    first = LocalTensors(Schema((averaged, count)), tmp_path / "a.npz").beside(model)
    assert list(first) == ["w", "count"] and first["count"] == 0
    for shape in ((2**32 - 1,), (2**32 - 1, 2**32 - 1), (2**20, 9)):
        huge = TensorSpec("huge", "I64", shape, LOCAL)
        with pytest.raises(BadInput) as refused:
            LocalTensors(Schema((averaged, huge)), tmp_path / "b.npz").beside(model)
        assert refused.value.code == "LOCAL_TOO_LARGE"
        app: Any = SimpleNamespace(project=SimpleNamespace(name="wards"))
        setting: Any = SimpleNamespace(rules=SimpleNamespace(schema=Schema((averaged, huge))))
        with pytest.raises(BadInput) as refused:
            FlowerRound(app, setting, SimpleNamespace())._first(1, huge)  # type: ignore[arg-type]
        assert refused.value.code == "LOCAL_TOO_LARGE"
