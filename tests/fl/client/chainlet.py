"""A chain of four nodes for a client to talk to: real state, proofs and certificates behind real HTTP, no consensus.

Every accepted transaction becomes a block at once. A node can be told to misbehave; the chain itself never does.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from chain.block import block_digest
from chain.certificate import Certificate, Executed, Finalize, ValidatorSet, VoteKind, assemble, sign_vote
from chain.cid import cid_text
from chain.codec import decode, encode, unpack
from chain.genesis import Genesis, genesis_header
from chain.keys import SigningKey
from chain.light import HandOver, ReceiptBundle, StateBundle
from chain.log import EMPTY, Frontier, frontier_at, prove
from chain.tree import StateTree
from fl.accounts import free_account
from fl.blobs import BlobKind, Demand, check_blob
from fl.client.networkfile import NetworkFile, network_of, render_network
from fl.errors import CODES, DecidedBy, PendingJob, Refused
from fl.execution import AggregationTask
from fl.jobs import CreateJob
from fl.machine import genesis_state
from fl.records import JobRules
from fl.rounds import SubmitUpdate
from fl.state import RECEIPTS, State
from fl.tensors.encodings import Place, decode_update
from fl.tensors.model import build_model, parse_model
from fl.transactions import read_body, read_transaction
from fl.updates import form_of
from tests.fl.builders import Ledger, make_genesis, result_item, signing_key, validator
from tests.fl.client.blobdoor import Door

NODES = 4


@dataclass
class Face:
    """One node as clients see it, and what is wrong with it."""

    index: int
    door: Door
    url: str = ""
    down: bool = False
    busy: bool = False
    frozen_at: int | None = None
    forges: bool = False
    refuses: str = ""
    swallows: bool = False
    asked: int = 0
    redirected: int = 0
    submitted: list[bytes] = field(default_factory=list)

    @property
    def name(self) -> str:
        return validator(self.index).name


class Chainlet:
    def __init__(self, trainers: int = 4) -> None:
        self.faces = [Face(index, Door(self._speaks_for)) for index in range(NODES)]
        self.ledger: Ledger
        self.tree: StateTree
        self.receipt_of: dict[bytes, int] = {}
        self.frontiers: dict[int, Frontier] = {}
        self.sets: list[ValidatorSet] = []
        self.generations = [""]
        self.hand_overs: list[HandOver] = []
        self.executed: list[bytes] = []
        self.listeners: set[asyncio.Event] = set()
        self.stopping = False
        self._trainers = trainers
        self._runners: list[web.AppRunner] = []

    # The chain

    async def start(self) -> None:
        for face in self.faces:
            await face.door.start()
            app = web.Application(client_max_size=8 * 1024 * 1024)
            app.add_routes(self._routes(face))
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            face.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._runners.append(runner)
        genesis = make_genesis(NODES, self._trainers)
        members = tuple(replace(each, rpc=face.url) for each, face in zip(genesis.validators, self.faces, strict=True))
        genesis = replace(genesis, validators=members, time_ms=time.time_ns() // 1_000_000)
        self.ledger = Ledger(genesis, genesis_state(genesis), time_ms=genesis.time_ms)
        self.tree = StateTree(self.ledger.state.items(), 0)
        self.sets = [genesis.validator_set]
        self.frontiers = {0: EMPTY}
        self.block()

    async def stop(self) -> None:
        self.stopping = True
        for listener in self.listeners:
            listener.set()
        await asyncio.sleep(0)
        for runner in self._runners:
            await runner.cleanup()
        for face in self.faces:
            await face.door.stop()

    def _speaks_for(self, account: bytes, key: bytes) -> bool:
        known = self.ledger.account(account)
        return self.ledger.member(account) is not None and (known.key if known else key) == key

    def spread(self, data: bytes | memoryview, kind: BlobKind, owner: bytes = b"") -> bytes:
        """As the swarm would: every node has it from here on."""
        for face in self.faces:
            cid = face.door.hold(data, kind, owner)
        return cid

    def blob(self, cid: bytes) -> bytes:
        return bytes(self.faces[0].door.whole[cid].data)

    @property
    def genesis(self) -> Genesis:
        return self.ledger.genesis

    @property
    def height(self) -> int:
        return self.ledger.height

    def block(self, *transactions: bytes, **changes: Any) -> None:
        before = len(self.ledger.receipts)
        state = dict(self.ledger.state)
        aggregations = len(self.ledger.aggregations)
        outcome = self.ledger.block(*transactions, **changes)
        self.tree.apply(self.height, outcome.writes, {key: state.get(key) for key in outcome.writes})
        for cid, model in self.ledger.models.items():
            if cid not in self.faces[0].door.whole:
                self.spread(model, BlobKind.MODEL)
        for index, receipt in enumerate(self.ledger.receipts[before:], before):
            self.receipt_of[receipt.tx_id] = index
        self.frontiers[self.height] = decode(Frontier, self.ledger.state.get(RECEIPTS, encode(EMPTY)), 4096)
        self.executed += transactions
        for task in self.ledger.aggregations[aggregations:]:
            self._aggregate(task)
        for listener in self.listeners:
            listener.set()

    def _aggregate(self, task: AggregationTask) -> None:
        """The weighted mean in float64: near enough for a client, which never computes it."""
        rules = self.ledger.rules(task.job)
        base = parse_model(rules.schema, self.blob(task.base_model))
        total, weight = {name: np.zeros(array.shape) for name, array in base.items()}, 0
        for data in self.executed:
            tx = read_transaction(data, self.genesis.params)
            _, body = read_body(tx)
            if isinstance(body, SubmitUpdate) and (body.job, body.round) == (task.job, task.round):
                payload = body.payload or self.blob(body.cid)
                update = decode_update(form_of(rules, body.group), Place(body.job, body.round, tx.sender), payload)
                share = min(body.examples, rules.cap)
                weight += share
                for name, array in update.items():
                    total[name] += share * array.astype(np.float64)
        model = build_model(rules.schema, {name: base[name] + total[name] / weight for name in base})
        self.block(items=[result_item(task, self.spread(model, BlobKind.MODEL))])

    def hand_over(self) -> None:
        """The next epoch begins, with other keys."""
        generation = "b" * len(self.sets)
        members = tuple(replace(validator(index, generation), rpc=self.faces[index].url) for index in range(NODES))
        following = ValidatorSet(len(self.sets), members)
        header = replace(
            genesis_header(self.genesis), epoch=len(self.sets) - 1, height=self.height, next_set=following.digest()
        )
        final = self._signed(VoteKind.FINALIZE, Finalize(9, block_digest(header)))
        self.hand_overs.append(HandOver(header, final, following))
        self.sets.append(following)
        self.generations.append(generation)
        self.block()

    def _signed(self, kind: VoteKind, subject: object) -> Certificate:
        validators, generation = self.sets[-1], self.generations[-1]
        return assemble(
            validators,
            [
                sign_vote(
                    signing_key(f"{generation}consensus/{signer}"),
                    self.genesis.chain_id,
                    kind,
                    validators.epoch,
                    encode(subject),
                    signer,
                )
                for signer in range(validators.quorum)
            ],
        )

    def certificate(self, height: int, root: bytes | None = None) -> Certificate:
        root = self.tree.root_at(height) if root is None else root
        return self._signed(VoteKind.EXECUTED, Executed(height, b"%032d" % height, root))

    def state_bundle(self, key: bytes, height: int) -> StateBundle:
        value, proof = self.tree.prove(height, key, self.ledger.state.get)
        return StateBundle(height, self.certificate(height), key, value, proof)

    def receipt_bundle(self, index: int, height: int) -> ReceiptBundle:
        frontier = self.frontiers[height]

        def node(level: int, place: int) -> bytes:
            return self.ledger.nodes[RECEIPTS, level, place]

        assert frontier == frontier_at(frontier.size, node)
        return ReceiptBundle(
            encode(self.ledger.receipts[index]),
            index,
            prove(frontier.size, index, node),
            frontier,
            self.state_bundle(RECEIPTS, height),
        )

    # The nodes

    def _routes(self, face: Face) -> list[web.RouteDef]:
        def route(method: str, path: str, handler: Any) -> web.RouteDef:
            async def guarded(request: web.Request) -> web.StreamResponse:
                face.asked += 1
                if face.down:
                    assert request.transport is not None
                    request.transport.abort()
                    return web.Response()
                if face.busy:
                    return _problem("BUSY", 503)
                answer: web.StreamResponse = await handler(face, request)
                return answer

            return web.route(method, path, guarded)

        return [
            route("GET", "/v1/genesis", self._genesis),
            route("GET", "/v1/checkpoint", self._checkpoint),
            route("GET", "/v1/state/{key}", self._state),
            route("*", "/v1/blobs{rest:.*}", self._redirect),
            route("POST", "/v1/transactions", self._submit),
            route("GET", "/v1/transactions/{id}/receipt", self._receipt),
            route("GET", "/v1/events/ws", self._events),
        ]

    def _height(self, face: Face) -> int:
        return self.height if face.frozen_at is None else face.frozen_at

    async def _genesis(self, face: Face, request: web.Request) -> web.Response:
        genesis = replace(self.genesis, name="forged") if face.forges else self.genesis
        return web.Response(body=encode(genesis))

    async def _checkpoint(self, face: Face, request: web.Request) -> web.Response:
        height = self._height(face)
        return web.json_response(
            {
                "certificate": _text(encode(self.certificate(height))),
                "handovers": [_text(encode(each)) for each in self.hand_overs],
            }
        )

    async def _state(self, face: Face, request: web.Request) -> web.Response:
        bundle = self.state_bundle(bytes.fromhex(request.match_info["key"]), self._height(face))
        if face.forges:
            bundle = replace(bundle, value=b"\x90")
        return web.json_response({"bundle": _text(encode(bundle))})

    async def _redirect(self, face: Face, request: web.Request) -> web.Response:
        face.redirected += 1
        return web.Response(status=307, headers={"Location": face.door.url + request.path_qs})

    async def _submit(self, face: Face, request: web.Request) -> web.Response:
        transactions = unpack(await request.read(), 4 * 1024 * 1024)
        assert isinstance(transactions, tuple)
        (data,) = transactions
        assert isinstance(data, bytes)
        if face.refuses:
            return _refusal(Refused(face.refuses))
        face.submitted.append(data)
        tx = None
        try:
            checked = self.ledger.check(data)
            tx = checked.id
            if tx not in self.receipt_of:
                self._judge(face, checked.demand)
                now_ms = time.time_ns() // 1_000_000
                free_account(State(self.ledger.state.get), checked.tx, now_ms, self.genesis.params.nonce_window)
        except PendingJob:
            return _refusal(Refused("UNKNOWN_JOB"))
        except Refused as refused:
            return _refusal(refused)
        if not face.swallows and tx not in self.receipt_of:
            self._swarm(face, checked.demand)
            self.block(data)
        return web.json_response({"answers": [{"id": tx.hex(), "status": "available"}]})

    def _judge(self, face: Face, demand: Demand | None) -> None:
        if demand is None:
            return
        held = face.door.whole.get(demand.claim.cid)
        if held is None:
            raise Refused("BLOB_MISSING")
        check_blob(demand, held.data)

    def _swarm(self, face: Face, demand: Demand | None) -> None:
        if demand is not None:
            held = face.door.whole[demand.claim.cid]
            self.spread(held.data, held.kind, held.owner)

    async def _receipt(self, face: Face, request: web.Request) -> web.Response:
        index = self.receipt_of.get(bytes.fromhex(request.match_info["id"]))
        height = self._height(face)
        if index is None or self.ledger.receipts[index].height > height:
            return _problem("NO_RECEIPT", 404)
        bundle = self.receipt_bundle(index, height)
        if face.forges:
            bundle = replace(bundle, receipt=bundle.receipt[:-1] + b"\x7f")
        return web.json_response({"bundle": _text(encode(bundle))})

    async def _events(self, face: Face, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        moved = asyncio.Event()
        self.listeners.add(moved)
        try:
            while not (socket.closed or self.stopping):
                await asyncio.wait_for(moved.wait(), 30)
                moved.clear()
                await socket.send_str(json.dumps({"type": "event"}))
        except (ConnectionError, TimeoutError):
            pass
        finally:
            self.listeners.discard(moved)
        return socket


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _problem(code: str, status: int) -> web.Response:
    return web.json_response({"code": code, "title": code, "status": status, "detail": code}, status=status)


def _refusal(refused: Refused) -> web.Response:
    return _problem(refused.code, 400 if CODES[refused.code].decided_by is DecidedBy.BYTES else 409)


class Running:
    """A chainlet in a thread of its own, so that plain and async clients meet the same thing."""

    def __init__(self, chain: Chainlet, directory: Path) -> None:
        self.chain = chain
        self.directory = directory
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(chain.start())

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def run(self, work: Any) -> Any:
        """Await something on the chain's own loop."""
        return self._call(work)

    def do(self, act: Any, *args: Any, **changes: Any) -> Any:
        """Call something of the chain on the chain's own loop."""

        async def call() -> Any:
            return act(*args, **changes)

        return self._call(call())

    def stop(self) -> None:
        self._call(self.chain.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def faces(self) -> list[Face]:
        return self.chain.faces

    def network_file(self, network: NetworkFile | None = None) -> Path:
        path = self.directory / "consortium.toml"
        path.write_text(render_network(network or network_of(self.chain.genesis)))
        return path

    def settings(self, name: str | None = "trainer-000", home: str = "home", **changes: Any) -> dict[str, Any]:
        """Arguments of `connect`."""
        return {
            "network": self.network_file(),
            "key": signing_key(name) if name is not None else None,
            "home": self.directory / home,
            "patience_s": 1.0,
            **changes,
        }

    def create(self, rules: JobRules, model: bytes = b"") -> bytes:
        """The id of a job that exists from here on."""
        creator = self.chain.ledger.actor("creator")
        creator.nonce = len([each for each in self.chain.ledger.receipts if each.sender == creator.account])
        valid_until_ms = time.time_ns() // 1_000_000 + 60_000
        data = creator.sign(CreateJob(rules, model), valid_until_ms=valid_until_ms)
        self.do(self.chain.block, data)
        receipt = self.chain.ledger.receipts[-1]
        assert receipt.status == "ok", receipt.status
        return receipt.job


@contextlib.contextmanager
def running(directory: Path, trainers: int = 4) -> Iterator[Running]:
    chain = Running(Chainlet(trainers), directory)
    try:
        yield chain
    finally:
        chain.stop()


def key_of(name: str) -> SigningKey:
    return signing_key(name)


__all__ = ["NODES", "Chainlet", "Face", "Running", "cid_text", "key_of", "running"]
