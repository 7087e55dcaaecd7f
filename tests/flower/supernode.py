"""A SuperNode for tests, as far as its calls go: signed as Flower signs them, with a body of one's own where wanted."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fl.client.flowergate import wire
from fl.client.flowergate.desk import Desk
from fl.client.flowergate.door import MEDIA_TYPE, opened_door
from fl.client.flowergate.forms import Records
from fl.client.flowergate.objects import ids_in
from fl.client.flowergate.parcels import Parcel, Record, Shipment
from fl.client.flowergate.protobuf import decode, encode
from fl.client.flowergate.visitors import Visitors

T = TypeVar("T")

FAB = b"a bundle"
RUN = wire.Run(run_id=77, fab_id="hospital/digits", fab_version="1.0.0", fab_hash="ab" * 32, series_id=78)


class Clock:
    """Monotonic seconds that stand still until they are moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Gateway:
    """A desk behind a door on a free port."""

    def __init__(
        self, directory: Path, form: Records = Records.MESSAGE, visitors: Visitors | None = None, hold_s: float = 0.05
    ) -> None:
        self.clock = Clock()
        self.desk = Desk(RUN, FAB, form, visitors or Visitors(), directory, self.clock, hold_s)
        self._runner: web.AppRunner

    async def __aenter__(self) -> Gateway:
        self._runner = await opened_door(self.desk, "127.0.0.1", 0, None)
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()


class Refused(Exception):
    def __init__(self, status: int, told: Mapping[str, Any]) -> None:
        super().__init__(f"{status} {told['detail']}")
        self.status = status


class SuperNode:
    def __init__(self, gateway: Gateway | str, key: ec.EllipticCurvePrivateKey | None = None) -> None:
        self._url = gateway if isinstance(gateway, str) else gateway.url
        self.run_id = RUN.run_id
        self.key = key or ec.generate_private_key(ec.SECP384R1())
        self.public = public_of(self.key)
        self.node_id = 0
        self._session = aiohttp.ClientSession()

    async def __aenter__(self) -> SuperNode:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @property
    def node(self) -> wire.Node:
        return wire.Node(self.node_id)

    def signed(self, age_s: float = 0.0) -> dict[str, str]:
        time = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
        return {
            "content-type": MEDIA_TYPE,
            "flwr-public-key": b64encode(self.public).decode(),
            "flwr-timestamp": time,
            "flwr-signature": b64encode(self.key.sign(time.encode(), ec.ECDSA(SHA256()))).decode(),
        }

    async def post(
        self, call: str, body: bytes | AsyncIterator[bytes], headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        sent = self.signed() if headers is None else dict(headers)
        async with self._session.post(f"{self._url}/v1/fleet/{call}", data=body, headers=sent) as reply:
            return reply.status, await reply.read()

    async def call(self, name: str, message: Any, answer: type[T]) -> T:
        status, body = await self.post(name, encode(message))
        if status != 200:
            raise Refused(status, json.loads(body))
        return decode(answer, body)

    # What a SuperNode does

    async def start(self) -> None:
        await self.call("register-node", wire.RegisterNode(self.public), wire.NodeIs)
        found = await self.call("activate-node", wire.ActivateNode(self.public, 30.0), wire.NodeIs)
        self.node_id = found.node_id

    async def pull(self) -> tuple[wire.Metadata, wire.Tree] | None:
        found = await self.call("pull-messages", wire.PullMessages(self.node), wire.PulledMessages)
        if not found.messages:
            return None
        metadata = found.messages[0].metadata
        assert metadata is not None
        self.run_id = metadata.run_id
        return metadata, found.trees[0]

    async def objects(self, tree: wire.Tree) -> dict[str, bytes]:
        found = {}
        for named in ids_in(tree):
            reply = await self.call("pull-object", wire.PullObject(self.node, self.run_id, named), wire.PulledObject)
            assert reply.object_found and reply.object_available
            found[named] = reply.object_content
        return found

    def reply_to(self, metadata: wire.Metadata, records: Mapping[str, Record], **changed: Any) -> Shipment:
        told: dict[str, Any] = {
            "run_id": metadata.run_id,
            "src_node_id": metadata.dst_node_id,
            "dst_node_id": metadata.src_node_id,
            "reply_to_message_id": metadata.message_id,
            "group_id": metadata.group_id,
            "ttl": metadata.ttl,
            "message_type": metadata.message_type,
            "created_at": metadata.created_at + 1,
        }
        return Parcel(records).addressed(wire.Metadata(**{**told, **changed}))

    async def push(self, reply: Shipment) -> wire.PushedMessages:
        message = wire.PushMessages(self.node, (wire.Message(reply.metadata, wire.Content()),), (reply.tree,))
        return await self.call("push-messages", message, wire.PushedMessages)

    async def put(self, session: str, named: str, content: bytes) -> bool:
        message = wire.PushObject(self.node, self.run_id, named, content, session)
        return (await self.call("push-object", message, wire.PushedObject)).stored

    async def send(self, reply: Shipment) -> None:
        """All of it."""
        pushed = await self.push(reply)
        for named in pushed.objects_to_push:
            assert await self.put(pushed.session_id, named, reply.content(named) or b"")


def public_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
