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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from aiohttp import web

from chain.batch import Batch, SignedBatch, batch_digest, sign_batch
from chain.block import block_digest
from chain.certificate import Certificate, Executed, Finalize, ValidatorSet, VoteKind, assemble, sign_vote
from chain.cid import cid_text
from chain.codec import decode, encode, pack, unpack
from chain.genesis import Genesis, genesis_header
from chain.keys import SigningKey
from chain.light import HandOver, ReceiptBundle, StateBundle
from chain.log import EMPTY, Frontier, frontier_at, prove
from chain.transaction import id_of
from chain.tree import StateTree
from fl.accounts import free_account
from fl.aggregation import Aggregation, AggregationRules, Update
from fl.blobs import BlobKind, Demand, check_blob
from fl.client.networkfile import NetworkFile, network_of, render_network
from fl.errors import CODES, DecidedBy, PendingJob, Refused
from fl.execution import AggregationTask
from fl.jobs import CreateJob
from fl.machine import genesis_state
from fl.records import JobRules, Member, Role
from fl.rounds import SubmitUpdate, entries_of
from fl.state import EVENTS, MAX_VALUE_BYTES, RECEIPTS, State, joined_key, member_key
from fl.tensors.closing import payload_fingerprint
from fl.tensors.encodings import Place
from fl.transactions import read
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
    dies_after: str = ""
    """A pattern of paths: it does what it is asked there, and dies before it says so."""
    frozen_at: int | None = None
    forges: bool = False
    forges_heads: bool = False
    refuses: str = ""
    swallows: bool = False
    tells_entries: Callable[[list[bytes]], list[bytes]] = lambda leaves: leaves
    """What it makes of the log of a round."""
    tells_batch: Callable[[SignedBatch], SignedBatch] = lambda signed: signed
    tells_genesis: Callable[[Genesis], Genesis] = lambda genesis: genesis
    tells_head: Callable[[Certificate], Certificate] = lambda certificate: certificate
    tells_hand_overs: Callable[[list[HandOver]], list[HandOver]] = lambda hand_overs: hand_overs
    tells_state: Callable[[StateBundle], StateBundle] = lambda bundle: bundle
    tells_receipt: Callable[[ReceiptBundle], ReceiptBundle] = lambda bundle: bundle
    asked: int = 0
    redirected: int = 0
    submitted: list[bytes] = field(default_factory=list)

    @property
    def name(self) -> str:
        return validator(self.index).name


class Chainlet:
    def __init__(self, trainers: int = 4) -> None:
        self.faces = [Face(index, Door(self._speaks_for, self._audits)) for index in range(NODES)]
        self.ledger: Ledger
        self.tree: StateTree
        self.receipt_of: dict[bytes, int] = {}
        self.frontiers: dict[int, dict[bytes, Frontier]] = {}
        self.sets: list[ValidatorSet] = []
        self.generations = [""]
        self.hand_overs: list[HandOver] = []
        self.batches: dict[bytes, SignedBatch] = {}
        self.miscomputes: Callable[[bytes], bytes] = lambda model: model
        """What a quorum that lies makes of a new model."""
        self.listeners: set[asyncio.Event] = set()
        self.stopping = False
        self._trainers = trainers
        self._runners: list[web.AppRunner] = []

    # The chain

    async def start(self) -> None:
        for face in self.faces:
            await self._open(face)
        genesis = make_genesis(NODES, self._trainers)
        members = tuple(replace(each, rpc=face.url) for each, face in zip(genesis.validators, self.faces, strict=True))
        genesis = replace(genesis, validators=members, time_ms=time.time_ns() // 1_000_000)
        self.ledger = Ledger(genesis, genesis_state(genesis), time_ms=genesis.time_ms)
        self.tree = StateTree(self.ledger.state.items(), 0)
        self.sets = [genesis.validator_set]
        self.frontiers = {0: self._frontiers()}
        self.block()

    async def _open(self, face: Face) -> None:
        await face.door.start()
        app = web.Application(client_max_size=8 * 1024 * 1024)
        app.add_routes(self._routes(face))
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        face.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._runners.append(runner)

    async def open_archive(self) -> Face:
        """A node that is no validator, and holds all that the last validator does."""
        face = Face(NODES, Door(self._speaks_for, self._audits))
        face.door.whole.update(self.faces[-1].door.whole)
        await self._open(face)
        self.faces.append(face)
        return face

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

    def _audits(self, account: bytes) -> bool:
        member = self.ledger.member(account)
        return member is not None and Role.AUDITOR in member.roles

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
        planned = self.ledger.input(*transactions, **changes)
        contents = changes.get("batches") or ((transactions,) if transactions else ())
        batches = tuple(
            (self._batch(each), readings) for each, (_, readings) in zip(contents, planned.batches, strict=True)
        )
        outcome = self.ledger.execute(replace(planned, batches=batches))
        self.tree.apply(self.height, outcome.writes, {key: state.get(key) for key in outcome.writes})
        for cid, model in self.ledger.models.items():
            if cid not in self.faces[0].door.whole:
                self.spread(model, BlobKind.MODEL)
        for index, receipt in enumerate(self.ledger.receipts[before:], before):
            self.receipt_of[receipt.tx_id] = index
        self.frontiers[self.height] = self._frontiers()
        for task in self.ledger.aggregations[aggregations:]:
            self._aggregate(task)
        for listener in self.listeners:
            listener.set()

    def _aggregate(self, task: AggregationTask) -> None:
        """As validators do it."""
        rules = self.ledger.rules(task.job)
        sums = Aggregation(AggregationRules(task.job, task.round, rules, self.ledger.job(task.job).completed + 1))
        for index, entry in enumerate(entries_of(self.ledger.leaves, task.job, task.round, task.size)):
            reading = read(self.batches[entry.batch].batch.transactions[entry.index], self.genesis.params)
            tx, body = reading.tx, reading.body
            assert isinstance(body, SubmitUpdate)
            payload = body.payload or self.blob(body.cid)
            header = form_of(rules, body.group).header(Place(body.job, body.round, tx.sender))
            values = payload_fingerprint(payload, len(header))
            sums.add(Update(index, body.round, entry.member, entry.weight, entry.group, payload, values))
        optimizer = self.ledger.job(task.job).optimizer
        moments = self.blob(optimizer) if optimizer else None
        closing = sums.finish(task.log_root, self.blob(task.base_model), moments)
        parts = closing.moments()
        new_moments = None if parts is None else b"".join(parts)
        left = b"" if new_moments is None else self.spread(new_moments, BlobKind.OPTIMIZER)
        model = self.spread(self.miscomputes(b"".join(closing.model(new_moments))), BlobKind.MODEL)
        outcome = closing.closed(model, task.base_model, left)
        record = self.spread(outcome.record, BlobKind.RECORD)
        self.block(items=[result_item(task, model, optimizer=left, record=record)])

    def certify(self, writes: dict[bytes, object]) -> None:
        """A quorum that lies signs a state with these records in it, which no execution has led to."""
        before = {key: self.ledger.state.get(key) for key in writes}
        changed: dict[bytes, bytes | None] = {key: encode(record) for key, record in writes.items()}
        self.ledger.state.update({key: encode(record) for key, record in writes.items()})
        self.ledger.height += 1
        self.tree.apply(self.height, changed, before)
        self.frontiers[self.height] = self.frontiers[self.height - 1]

    def _frontiers(self) -> dict[bytes, Frontier]:
        rows = {name: self.ledger.state.get(name, encode(EMPTY)) for name in (RECEIPTS, EVENTS)}
        return {name: decode(Frontier, row, 4096) for name, row in rows.items()}

    def _batch(self, transactions: tuple[bytes, ...]) -> bytes:
        height = self.height + 1
        batch = Batch(self.genesis.chain_id, 0, 0, len(self.batches), height, height + 100, transactions)
        digest = batch_digest(batch)
        self.batches[digest] = sign_batch(signing_key("consensus/0"), batch)
        return digest

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

    def entry_bundle(self, log: bytes, index: int, height: int) -> ReceiptBundle:
        """Of the log of receipts, or of events."""
        frontier = self.frontiers[height][log]

        def node(level: int, place: int) -> bytes:
            return self.ledger.node(log, level, place)

        assert frontier == frontier_at(frontier.size, node)
        entries: list[Any] = self.ledger.receipts if log == RECEIPTS else self.ledger.events
        proof = prove(frontier.size, index, node)
        return ReceiptBundle(encode(entries[index]), index, proof, frontier, self.state_bundle(log, height))

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
                if face.dies_after and fnmatch(request.path, face.dies_after):
                    face.down = face.door.down = True
                    assert request.transport is not None
                    request.transport.abort()
                return answer

            return web.route(method, path, guarded)

        return [
            route("GET", "/v1/genesis", self._genesis),
            route("GET", "/v1/checkpoint", self._checkpoint),
            route("GET", "/v1/state/{key}", self._state),
            route("*", "/v1/blobs{rest:.*}", self._redirect),
            route("POST", "/v1/transactions", self._submit),
            route("GET", "/v1/transactions/{id}", self._standing),
            route("GET", "/v1/transactions/{id}/receipt", self._receipt),
            route("GET", "/v1/events/ws", self._events),
            route("GET", "/v1/events", self._list_events),
            route("GET", "/v1/events/{index}/proof", self._event),
            route("GET", "/v1/jobs/{job}/rounds/{round}/updates/raw", self._entries),
            route("GET", "/v1/batches/{digest}/raw", self._raw_batch),
            route("GET", "/v1/jobs/{job}/members", self._members),
            route("GET", "/v1/members", self._list_members),
        ]

    def _height(self, face: Face) -> int:
        return self.height if face.frozen_at is None else face.frozen_at

    async def _genesis(self, face: Face, request: web.Request) -> web.Response:
        genesis = replace(self.genesis, name="forged") if face.forges else self.genesis
        return web.Response(body=encode(face.tells_genesis(genesis)))

    async def _checkpoint(self, face: Face, request: web.Request) -> web.Response:
        certificate = self.certificate(self._height(face))
        if face.forges_heads:
            certificate = replace(certificate, subject=certificate.subject[:-1] + b"!")
        return web.json_response(
            {
                "certificate": _text(encode(face.tells_head(certificate))),
                "handovers": [_text(encode(each)) for each in face.tells_hand_overs(self.hand_overs)],
            }
        )

    async def _state(self, face: Face, request: web.Request) -> web.Response:
        bundle = self.state_bundle(bytes.fromhex(request.match_info["key"]), self._height(face))
        if face.forges:
            bundle = replace(bundle, value=b"\x90")
        return web.json_response({"bundle": _text(encode(face.tells_state(bundle)))})

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
            tx = checked.reading.id
            if tx not in self.receipt_of:
                self._judge(face, checked.demand)
                now_ms = time.time_ns() // 1_000_000
                free_account(State(self.ledger.state.get), checked.reading.tx, now_ms, self.genesis.params.nonce_window)
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

    async def _standing(self, face: Face, request: web.Request) -> web.Response:
        identity = request.match_info["id"]
        index = self.receipt_of.get(bytes.fromhex(identity))
        if index is not None and self.ledger.receipts[index].height <= self._height(face):
            return web.json_response({"id": identity, "status": "proven"})
        if any(id_of(data).hex() == identity for data in face.submitted):
            return web.json_response({"id": identity, "status": "available"})
        return _problem("UNKNOWN_TRANSACTION", 404)

    async def _receipt(self, face: Face, request: web.Request) -> web.Response:
        index = self.receipt_of.get(bytes.fromhex(request.match_info["id"]))
        height = self._height(face)
        if index is None or self.ledger.receipts[index].height > height:
            return _problem("NO_RECEIPT", 404)
        bundle = self.entry_bundle(RECEIPTS, index, height)
        if face.forges:
            bundle = replace(bundle, receipt=bundle.receipt[:-1] + b"\x7f")
        return web.json_response({"bundle": _text(encode(face.tells_receipt(bundle)))})

    async def _entries(self, face: Face, request: web.Request) -> web.Response:
        job, number = bytes.fromhex(request.match_info["job"]), int(request.match_info["round"])
        size = self.ledger.round(job, number).updates.size
        leaves = [encode(entry) for entry in entries_of(self.ledger.leaves, job, number, size)]
        first, limit = int(request.query["cursor"]), int(request.query["limit"])
        return web.Response(body=pack(tuple(face.tells_entries(leaves)[first : first + limit])))

    async def _members(self, face: Face, request: web.Request) -> web.Response:
        prefix, after = joined_key(bytes.fromhex(request.match_info["job"]), b""), request.query.get("cursor", "")
        rows = sorted(key[len(prefix) :].hex() for key in self.ledger.state if key.startswith(prefix))
        # Short pages, so that there are several.
        page = [account for account in rows if account >= after][:3]
        following = page[-1] if len(page) == 3 else None
        return web.json_response({"members": [{"account": account} for account in page[:2]], "next": following})

    async def _list_members(self, face: Face, request: web.Request) -> web.Response:
        prefix, height = member_key(b""), self._height(face)
        found = {key: self.state_bundle(key, height).value for key in self.ledger.state if key.startswith(prefix)}
        members = [
            {
                "account": key[len(prefix) :].hex(),
                "name": member.name,
                "roles": list(member.roles),
                "organisation": member.organisation,
                "registrar": False,
                "revoked": member.revoked,
            }
            for key, value in sorted(found.items())
            if value is not None and (member := decode(Member, value, MAX_VALUE_BYTES))
        ]
        return web.json_response({"members": members, "next": None})

    async def _raw_batch(self, face: Face, request: web.Request) -> web.Response:
        signed = self.batches[bytes.fromhex(request.match_info["digest"])]
        return web.Response(body=encode(face.tells_batch(signed)))

    async def _list_events(self, face: Face, request: web.Request) -> web.Response:
        query, events = request.query, self.ledger.events
        below = sum(event.height < int(query.get("from_height", 0)) for event in events)
        first, kinds = max(int(query.get("from", 0)), below), query["kinds"].split(",")
        listed = [
            {"index": index, "height": event.height, "round": event.round}
            for index, event in enumerate(events)
            if index >= first and event.kind in kinds and event.job.hex() == query["job"]
        ][: int(query["limit"])]
        following = listed[-1]["index"] + 1 if len(listed) == int(query["limit"]) else len(events)
        return web.json_response({"events": listed, "next": following, "head": len(events)})

    async def _event(self, face: Face, request: web.Request) -> web.Response:
        bundle = self.entry_bundle(EVENTS, int(request.match_info["index"]), self._height(face))
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
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

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
