"""The messages of Flower's fleet calls, as 1.40 to 1.42 have them, and the records that messages carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fl.client.flowergate.protobuf import Kind, On


@dataclass(frozen=True, slots=True)
class Node:
    node_id: Annotated[int, On(1, Kind.UINT)] = 0


@dataclass(frozen=True, slots=True)
class RegisterNode:
    public_key: Annotated[bytes, On(1, Kind.BYTES)] = b""


@dataclass(frozen=True, slots=True)
class ActivateNode:
    public_key: Annotated[bytes, On(1, Kind.BYTES)] = b""
    heartbeat_interval: Annotated[float, On(2, Kind.DOUBLE)] = 0.0


@dataclass(frozen=True, slots=True)
class NodeIs:
    """Which node is meant: what registering and activating answer, and what deactivating and unregistering ask."""

    node_id: Annotated[int, On(1, Kind.UINT)] = 0


@dataclass(frozen=True, slots=True)
class Nothing:
    """An answer that says no more than that it was heard."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    node: Annotated[Node | None, On(1, Node)] = None
    heartbeat_interval: Annotated[float, On(2, Kind.DOUBLE)] = 0.0


@dataclass(frozen=True, slots=True)
class Heard:
    success: Annotated[bool, On(1, Kind.BOOL)] = False


@dataclass(frozen=True, slots=True)
class Failure:
    """What an app that raised an exception is answered with."""

    code: Annotated[int, On(1, Kind.SINT)] = 0
    reason: Annotated[str, On(2, Kind.TEXT)] = ""


@dataclass(frozen=True, slots=True)
class Metadata:
    run_id: Annotated[int, On(1, Kind.UINT)] = 0
    message_id: Annotated[str, On(2, Kind.TEXT)] = ""
    src_node_id: Annotated[int, On(3, Kind.UINT)] = 0
    dst_node_id: Annotated[int, On(4, Kind.UINT)] = 0
    reply_to_message_id: Annotated[str, On(5, Kind.TEXT)] = ""
    group_id: Annotated[str, On(6, Kind.TEXT)] = ""
    ttl: Annotated[float, On(7, Kind.DOUBLE)] = 0.0
    message_type: Annotated[str, On(8, Kind.TEXT)] = ""
    created_at: Annotated[float, On(9, Kind.DOUBLE)] = 0.0
    src_task_id: Annotated[int | None, On(10, Kind.UINT)] = None
    dst_task_id: Annotated[int | None, On(11, Kind.UINT)] = None


@dataclass(frozen=True, slots=True)
class Content:
    """A record dictionary on the wire: always empty there, since its records come as objects."""


@dataclass(frozen=True, slots=True)
class Message:
    metadata: Annotated[Metadata | None, On(1, Metadata)] = None
    content: Annotated[Content | None, On(2, Content)] = None
    error: Annotated[Failure | None, On(3, Failure)] = None


@dataclass(frozen=True, slots=True)
class Tree:
    object_id: Annotated[str, On(1, Kind.TEXT)] = ""
    children: Annotated[tuple[Tree, ...], On(2, Tree)] = ()


@dataclass(frozen=True, slots=True)
class PullMessages:
    node: Annotated[Node | None, On(1, Node)] = None


@dataclass(frozen=True, slots=True)
class PulledMessages:
    messages: Annotated[tuple[Message, ...], On(2, Message)] = ()
    trees: Annotated[tuple[Tree, ...], On(3, Tree)] = ()


@dataclass(frozen=True, slots=True)
class PushMessages:
    node: Annotated[Node | None, On(1, Node)] = None
    messages: Annotated[tuple[Message, ...], On(2, Message)] = ()
    trees: Annotated[tuple[Tree, ...], On(3, Tree)] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """An entry of a map, where zeros are written: of which message, and 0 for well."""

    key: Annotated[str | None, On(1, Kind.TEXT)] = None
    value: Annotated[int | None, On(2, Kind.UINT)] = None


@dataclass(frozen=True, slots=True)
class PushedMessages:
    results: Annotated[tuple[Result, ...], On(2, Result)] = ()
    objects_to_push: Annotated[tuple[str, ...], On(3, Kind.TEXT)] = ()
    session_id: Annotated[str, On(4, Kind.TEXT)] = ""


@dataclass(frozen=True, slots=True)
class GetRun:
    node: Annotated[Node | None, On(1, Node)] = None
    run_id: Annotated[int, On(2, Kind.UINT)] = 0


@dataclass(frozen=True, slots=True)
class Scalar:
    double: Annotated[float | None, On(1, Kind.DOUBLE)] = None
    sint64: Annotated[int | None, On(8, Kind.SINT)] = None
    truth: Annotated[bool | None, On(13, Kind.BOOL)] = None
    string: Annotated[str | None, On(14, Kind.TEXT)] = None


@dataclass(frozen=True, slots=True)
class Override:
    """An entry of a map: a value of the app's configuration that this run sets otherwise."""

    key: Annotated[str | None, On(1, Kind.TEXT)] = None
    value: Annotated[Scalar | None, On(2, Scalar)] = None


@dataclass(frozen=True, slots=True)
class RunStatus:
    status: Annotated[str, On(1, Kind.TEXT)] = ""


@dataclass(frozen=True, slots=True)
class Run:
    run_id: Annotated[int, On(1, Kind.UINT)] = 0
    fab_id: Annotated[str, On(2, Kind.TEXT)] = ""
    fab_version: Annotated[str, On(3, Kind.TEXT)] = ""
    override_config: Annotated[tuple[Override, ...], On(4, Override)] = ()
    fab_hash: Annotated[str, On(5, Kind.TEXT)] = ""
    status: Annotated[RunStatus | None, On(10, RunStatus)] = None
    series_id: Annotated[int, On(18, Kind.UINT)] = 0


@dataclass(frozen=True, slots=True)
class RunIs:
    run: Annotated[Run | None, On(1, Run)] = None


@dataclass(frozen=True, slots=True)
class GetFab:
    node: Annotated[Node | None, On(1, Node)] = None
    hash_str: Annotated[str, On(2, Kind.TEXT)] = ""
    run_id: Annotated[int, On(3, Kind.UINT)] = 0


@dataclass(frozen=True, slots=True)
class Fab:
    hash_str: Annotated[str, On(1, Kind.TEXT)] = ""
    content: Annotated[bytes, On(2, Kind.BYTES)] = b""


@dataclass(frozen=True, slots=True)
class FabIs:
    fab: Annotated[Fab | None, On(1, Fab)] = None


@dataclass(frozen=True, slots=True)
class PushObject:
    node: Annotated[Node | None, On(1, Node)] = None
    run_id: Annotated[int, On(2, Kind.UINT)] = 0
    object_id: Annotated[str, On(3, Kind.TEXT)] = ""
    object_content: Annotated[bytes, On(4, Kind.BYTES)] = b""
    session_id: Annotated[str, On(5, Kind.TEXT)] = ""


@dataclass(frozen=True, slots=True)
class PushedObject:
    stored: Annotated[bool, On(1, Kind.BOOL)] = False


@dataclass(frozen=True, slots=True)
class PullObject:
    node: Annotated[Node | None, On(1, Node)] = None
    run_id: Annotated[int, On(2, Kind.UINT)] = 0
    object_id: Annotated[str, On(3, Kind.TEXT)] = ""


@dataclass(frozen=True, slots=True)
class PulledObject:
    object_found: Annotated[bool, On(1, Kind.BOOL)] = False
    object_available: Annotated[bool, On(2, Kind.BOOL)] = False
    object_content: Annotated[bytes, On(3, Kind.BYTES)] = b""


@dataclass(frozen=True, slots=True)
class Confirm:
    node: Annotated[Node | None, On(1, Node)] = None
    run_id: Annotated[int, On(2, Kind.UINT)] = 0
    message_object_id: Annotated[str, On(3, Kind.TEXT)] = ""


# Records


@dataclass(frozen=True, slots=True)
class Value:
    """Of a metric or of a setting, if it is one value: lists are skipped."""

    double: Annotated[float | None, On(1, Kind.DOUBLE)] = None
    sint64: Annotated[int | None, On(2, Kind.SINT)] = None
    uint64: Annotated[int | None, On(3, Kind.UINT)] = None
    truth: Annotated[bool | None, On(4, Kind.BOOL)] = None
    string: Annotated[str | None, On(5, Kind.TEXT)] = None


@dataclass(frozen=True, slots=True)
class Item:
    key: Annotated[str, On(1, Kind.TEXT)] = ""
    value: Annotated[Value | None, On(2, Value)] = None


@dataclass(frozen=True, slots=True)
class Items:
    """The body of a metric record and of a config record."""

    items: Annotated[tuple[Item, ...], On(1, Item)] = ()
