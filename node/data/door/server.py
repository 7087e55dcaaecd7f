"""The data process's servers: the public one over TCP, the operator's over a Unix socket."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from chain.unixfs import LEAF_BYTES
from node.data.blobs import BlobStore
from node.data.door.api import DoorApi, DoorTally, Obtain
from node.data.door.permits import Ask, Permits
from node.data.door.routes import BLOBS, DOCUMENT, OPERATOR
from node.ports import Clock, Offload
from node.rpc import openapi
from node.rpc.connection import Door
from node.rpc.desk import Desk, Reception
from node.rpc.limits import RpcLimits
from node.rpc.listening import RpcConfig, listen_tcp, listen_unix
from node.rpc.requests import to_json
from node.rpc.table import Table

log = logging.getLogger("quorate.data")

DOOR_SOCKET = "data.sock"
DOOR_LIMITS = replace(RpcLimits(), connections=256, bodies_bytes=24 * LEAF_BYTES)
"""Each connection may hold a quarter of a MiB that has come and was not asked for yet. Two dozen leaves on their way
keep a disk busy; more would only take memory."""


class BlobDoor:
    """What `open_door` returns."""

    def __init__(self, api: DoorApi, tally: DoorTally, public: Door, operator: Door | None) -> None:
        self.api = api
        self._tally = tally
        self._public = public
        self._operator = operator

    @property
    def address(self) -> tuple[str, int]:
        return self._public.address

    def figures(self) -> dict[str, int]:
        return self._tally.figures()

    async def close(self, patience_s: float = 2.0) -> None:
        """Gives answers under way a moment, and closes every connection."""
        await self._public.close(patience_s)
        if self._operator is not None:
            await self._operator.close(patience_s)
        self.api.streaming.shutdown(wait=True, cancel_futures=True)


async def open_door(
    store: BlobStore, clock: Clock, offload: Offload, chain: bytes, ask: Ask, obtain: Obtain, config: RpcConfig
) -> BlobDoor:
    """Answers from here on. `ask` is put a question for each leave, so whoever answers it keeps answers for a moment.
    Raises CannotListen, and ssl.SSLError or OSError for TLS files that cannot be used."""
    tally = DoorTally()
    reception = Reception(config.limits, tally, clock)
    api = DoorApi(store, offload, Permits(chain, clock, ask), reception, obtain)
    api.openapi = to_json(openapi.document((*BLOBS, DOCUMENT), "1"))
    tls = config.tls()
    desk = Desk(api, Table((*BLOBS, DOCUMENT)), reception, config.cors)
    public = Door(listen_tcp(config.host, config.port), desk.answer, config.limits, tally, tls)
    operator = None
    if config.admin_socket is not None:
        try:
            listener = listen_unix(os.fspath(config.admin_socket))
        except Exception:
            await public.close(0)
            raise
        trusted = Desk(api, Table(OPERATOR), reception, trusted=True)
        operator = Door(listener, trusted.answer, config.limits, tally)
    if tls is None and config.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("blobs are given and taken in the clear: no TLS is configured", extra={"host": config.host})
    return BlobDoor(api, tally, public, operator)
