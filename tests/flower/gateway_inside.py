"""Runs inside an environment with Flower: the gateway's bytes beside those that Flower makes. Raises if any differ."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.cli.build import build_fab_from_disk
from flwr.cli.utils import build_pathspec
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fl.client.flowergate import wire
from fl.client.flowergate.arrivals import Arrival
from fl.client.flowergate.fab import build
from fl.client.flowergate.objects import CHUNK_BYTES, ids_in
from fl.client.flowergate.parcels import ArraysRecord, MetricsRecord, Parcel, SettingsRecord
from fl.client.flowergate.patterns import Patterns
from fl.client.flowergate.protobuf import decode, encode

DTYPES = ["float32", "float64", "float16", "int64", "int32", "uint8", "bool"]


def arrays_of(chance: np.random.Generator) -> dict[str, Any]:
    found = {}
    for number in range(chance.integers(1, 5)):
        shape = tuple(int(each) for each in chance.integers(1, 5, chance.integers(0, 4)))
        found[f"layer.{number}.weight"] = np.asarray(chance.normal(size=shape) * 9).astype(chance.choice(DTYPES))
    return found


def check_objects(seed: int, arrays: dict[str, Any]) -> None:
    settings = {"lr": 0.25, "name": "ä", "on": True, "rounds": -3, "many": 2**63 + seed}
    metrics = {"loss": 0.5 * seed, "num-examples": seed}
    theirs = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "config": ConfigRecord(settings),
            "metrics": MetricRecord(metrics),
        }
    )
    ours = Parcel(
        {"arrays": ArraysRecord(arrays), "config": SettingsRecord(settings), "metrics": MetricsRecord(metrics)}
    )
    tree = ours.addressed(wire.Metadata()).tree.children[0]
    assert tree.object_id == theirs.object_id
    contents = {named: ours.content(named) for named in ids_in(tree)}
    assert contents == {named: each.deflate() for named, each in get_all_nested_objects(theirs).items()}
    back = inflate_object_from_contents(tree.object_id, contents)
    assert all(np.array_equal(back["arrays"][name].numpy(), array) for name, array in arrays.items())
    assert dict(back["config"]) == settings and dict(back["metrics"]) == metrics


def check_legacy(arrays: dict[str, Any]) -> None:
    from flwr.common import FitIns, ndarrays_to_parameters
    from flwr.compat.common.recorddict_compat import fitins_to_recorddict

    config = {"server_round": 3}
    theirs = fitins_to_recorddict(FitIns(ndarrays_to_parameters(list(arrays.values())), config), keep_input=True)
    listed = {str(place): array for place, array in enumerate(arrays.values())}
    ours = Parcel(
        {"fitins.parameters": ArraysRecord(listed, is_described=False), "fitins.config": SettingsRecord(config)}
    )
    assert ours.addressed(wire.Metadata()).tree.children[0].object_id == theirs.object_id


def check_reply(arrays: dict[str, Any]) -> None:
    """What Flower makes is read by us."""
    from flwr.app import Message
    from flwr.app.metadata import Metadata

    content = RecordDict({"arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()})})
    message = Message(metadata=Metadata(1, "", 2, 3, "x", "1", 4.0, 5.0, "train"), content=content)
    objects = {named: each.deflate() for named, each in get_all_nested_objects(message).items()}
    with tempfile.TemporaryDirectory() as directory:
        arrival = Arrival(tree_of(message), Parcel({}), Path(directory))
        for named, each in objects.items():
            arrival.take(named, each)
        record = arrival.records()["arrays"]
        assert isinstance(record, ArraysRecord)
        assert all(np.array_equal(record.arrays[name], array) for name, array in arrays.items())


def tree_of(found: Any) -> wire.Tree:
    return wire.Tree(found.object_id, tuple(tree_of(each) for each in (found.children or {}).values()))


def check_chunks() -> None:
    data = np.random.default_rng(1).normal(size=CHUNK_BYTES // 4).astype(np.float32)
    check_objects(1, {"big": np.concatenate([data, data, data])})
    check_objects(2, {"zeros": np.zeros(CHUNK_BYTES, np.float32)})
    assert len(ArrayChunk(memoryview(b"x")).deflate()) == len(b"ArrayChunk  1\0x")


def check_messages(chance: random.Random) -> None:
    number, text = lambda: chance.choice([0, 1, 2**32, 2**64 - 1]), lambda: chance.choice(["", "a" * 64, "ü"])
    told = {
        "run_id": number(),
        "message_id": text(),
        "src_node_id": number(),
        "dst_node_id": number(),
        "reply_to_message_id": text(),
        "group_id": text(),
        "ttl": chance.choice([0.0, 43200.0]),
        "message_type": text(),
        "created_at": chance.random(),
    }
    if chance.random() < 0.5:
        told["src_task_id"] = number()
    theirs: Any = message_pb2.Message(metadata=message_pb2.Metadata(**told))
    ours: Any = wire.Message(wire.Metadata(**told))
    same(ours, theirs)
    tree, their_tree = wire.Tree("a", (wire.Tree("b"), wire.Tree("c", (wire.Tree("d"),)))), message_pb2.ObjectTree()
    their_tree.ParseFromString(encode(tree))
    same(tree, their_tree)
    same(
        wire.PulledMessages((ours,), (tree,)),
        fleet_pb2.PullMessagesResponse(messages_list=[theirs], message_object_trees=[their_tree]),
    )
    same(
        wire.PushedMessages((wire.Result("x", 0),), ("a", "b"), "session"),
        fleet_pb2.PushMessagesResponse(results={"x": 0}, objects_to_push=["a", "b"], session_id="session"),
    )
    same(wire.Heard(True), heartbeat_pb2.SendNodeHeartbeatResponse(success=True))
    same(wire.NodeIs(number := told["run_id"]), fleet_pb2.ActivateNodeResponse(node_id=number))
    same(
        wire.PulledObject(True, True, b"abc"),
        message_pb2.PullObjectResponse(object_found=True, object_available=True, object_content=b"abc"),
    )
    same(wire.FabIs(wire.Fab("h", b"c")), fab_pb2.GetFabResponse(fab=fab_pb2.Fab(hash_str="h", content=b"c")))
    run = run_pb2.Run(run_id=4, fab_id="a/b", fab_version="1", fab_hash="h", series_id=5)
    run.status.status = "running"
    run.override_config["lr"].double = 0.5
    run.override_config["name"].string = "x"
    run.override_config["on"].bool = False
    run.override_config["rounds"].sint64 = -3
    values = {
        "lr": wire.Scalar(double=0.5),
        "name": wire.Scalar(string="x"),
        "on": wire.Scalar(truth=False),
        "rounds": wire.Scalar(sint64=-3),
    }
    overrides = tuple(wire.Override(name, value) for name, value in values.items())
    same(
        wire.RunIs(wire.Run(4, "a/b", "1", overrides, "h", wire.RunStatus("running"), 5)),
        run_pb2.GetRunResponse(run=run),
    )
    pushed = fleet_pb2.PushMessagesRequest(
        messages_list=[theirs], message_object_trees=[their_tree], clientapp_runtime_list=[0.5]
    )
    pushed.node.node_id = 8
    pushed.messages_list[0].content.SetInParent()
    found = decode(wire.PushMessages, pushed.SerializeToString())
    assert found == wire.PushMessages(wire.Node(8), (wire.Message(ours.metadata, wire.Content()),), (tree,))


def same(ours: Any, theirs: Any) -> None:
    data = theirs.SerializeToString(deterministic=True)
    assert encode(ours) == data, (ours, theirs)
    assert decode(type(ours), data) == ours


def check_patterns(chance: random.Random) -> None:
    parts = ["a", "b.py", "*", "**", "*.py", "?", "[ab]", "test_*", "build"]
    paths = [
        "/".join(chance.choice(["a", "b", "ab", "b.py", "test_a.py", "build"]) for _ in range(n)) for n in (1, 2, 3)
    ]
    text = chance.choice(["", "/"]) + "/".join(chance.choice(parts) for _ in range(chance.randint(1, 3)))
    text += chance.choice(["", "", "/"])
    for path in paths:
        assert Patterns([text]).fit(path) == build_pathspec([text]).match_file(path), (text, path)


def main() -> None:
    for seed in range(40):
        arrays = arrays_of(np.random.default_rng(seed))
        check_objects(seed, arrays)
        check_legacy(arrays)
        check_reply(arrays)
        check_messages(random.Random(seed))
    check_chunks()
    for seed in range(3000):
        check_patterns(random.Random(seed))
    for app in sys.argv[1:]:
        assert build(Path(app)).content == build_fab_from_disk(Path(app)), app
    print("the same")


if __name__ == "__main__":
    main()
