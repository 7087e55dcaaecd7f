"""The RPC fuzzed from its own OpenAPI document: a real process, requests that fit it and requests that do not.

No fault of the server, no hang, no growth; what it answers is what the document says. Refusals that ask to come again
are problem documents that say when.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from chain.cid import raw_cid
from chain.codec import pack
from fl.errors import CODES
from fl.evaluation import SubmitEvaluation
from fl.ingest import MESSAGE_BYTES, REFUSED, read_answers, submission
from fl.jobs import CreateJob, JoinJob, StopJob
from fl.rounds import SubmitUpdate
from node.data.door.routes import BLOBS
from node.rpc.problems import PROBLEMS
from node.rpc.requests import JSON, MSGPACK
from node.rpc.server import public_document
from tests.fl.builders import actor, make_rules
from tests.simulation.cluster import genesis_of

HANG_S = 120
GROWTH_BYTES = 64 * 1024 * 1024
"""Buffers, caches and the fragments between them; a leak of one body a request would be far more."""
COME_AGAIN = frozenset({429, 503, 507})
FORBIDDEN = frozenset({500, 502, 504})

CHECKS = [
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]

schema = schemathesis.openapi.from_dict(public_document("fuzzed"))
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])

AT_THE_DOOR = frozenset(route.path.replace("...}", "}") for route in BLOBS)

chance = random.Random(1)


@schemathesis.serializer(MSGPACK)
def as_msgpack(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Arrays of byte strings made of what was generated, or that itself: half of them can be read."""
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else json.dumps(value).encode()
    cut = chance.randrange(len(data) + 1)
    return pack((data[:cut], data[cut:])) if chance.random() < 0.5 else data


@dataclass
class Served:
    url: str
    door: str
    """Where the routes lead that answer with another address."""
    pid: int
    known: dict[str, str]
    """Values of path parameters that there is something to find by."""

    def resident_bytes(self) -> int:
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.node.rpc.host", str(tmp_path_factory.mktemp("fuzzed"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        known = json.loads(process.stdout.readline())
        yield Served(known.pop("url"), known.pop("door"), process.pid, known)
        assert process.poll() is None, "the server has died"
    finally:
        process.stdin.close()
        assert process.wait(HANG_S) == 0


def check_refusal(status: int, headers: Mapping[str, str], body: bytes) -> None:
    assert status not in FORBIDDEN, body
    if status >= 400:
        assert headers["Content-Type"] == "application/problem+json", body
        assert json.loads(body)["status"] == status
    if status in COME_AGAIN:
        assert int(headers["Retry-After"]) >= 1


def fuzz(case: Case, served: Served) -> None:
    for name in case.path_parameters or {}:
        if name in served.known and chance.random() < 0.5:
            case.path_parameters[name] = served.known[name]
    url = served.door if case.operation.path in AT_THE_DOOR else served.url
    response = case.call(base_url=url, timeout=HANG_S)
    # What does not fit the schema as text may, once it is msgpack.
    checks = [check for check in CHECKS if case.media_type != MSGPACK or check is not negative_data_rejection]
    case.validate_response(response, checks=checks)
    headers = {name.title(): text[0] for name, text in response.headers.items()}
    check_refusal(response.status_code, headers, response.content)


UNBOUND = settings(deadline=None, suppress_health_check=list(HealthCheck))


@schema.parametrize()
@settings(UNBOUND, max_examples=10, derandomize=True)
def test_what_the_document_says_is_what_is_answered(case: Case, served: Served) -> None:
    fuzz(case, served)


@pytest.mark.nightly
@schema.parametrize()
@settings(UNBOUND, max_examples=1_000)
def test_what_the_document_says_is_what_is_answered_at_length(case: Case, served: Served) -> None:
    fuzz(case, served)


def mutated(data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randrange(4)):
        place = chance.randrange(len(changed))
        match chance.randrange(3):
            case 0:
                changed[place] ^= 1 << chance.randrange(8)
            case 1:
                del changed[place : place + chance.randrange(1, 40)]
            case 2:
                changed[place:place] = chance.randbytes(chance.randrange(1, 40))
        changed = changed or bytearray(b"\x00")
    return bytes(changed)


@pytest.mark.parametrize("rounds", [150, pytest.param(5_000, marks=pytest.mark.nightly)])
def test_transactions_with_flipped_bits_get_a_code_each(served: Served, rounds: int) -> None:
    chain_id = genesis_of(1).chain_id
    people = [actor(name, chain_id) for name in ("creator", "trainer-000", "registrar", "nobody")]
    job = bytes.fromhex(served.known["job"])
    bodies = [
        CreateJob(make_rules(name="fuzzed"), b""),
        JoinJob(job, bytes(32)),
        JoinJob(job, bytes(32), role="evaluator"),
        SubmitEvaluation(job, 1, raw_cid(b"x"), 1, (0,)),
        StopJob(bytes(32)),
        SubmitUpdate(job, 1, b"\x01\x55\x12\x20" + bytes(32), 1, (0,), 0, raw_cid(b"x"), b"x"),
    ]
    with requests.Session() as session:
        for _ in range(rounds):
            valid_until_ms = time.time_ns() // 1_000_000 + chance.choice((-1, 1_000, 60_000, 10**12))
            batch = [
                mutated(chance.choice(people).sign(chance.choice(bodies), valid_until_ms=valid_until_ms))
                for _ in range(chance.choice((1, 1, 1, 20)))
            ]
            response = session.post(
                f"{served.url}/v1/transactions",
                data=pack(tuple(batch)),
                headers={"Content-Type": MSGPACK},
                timeout=HANG_S,
            )
            check_refusal(response.status_code, response.headers, response.content)
            answers = response.json().get("answers", [response.json()])
            assert len(answers) == len(batch)
            assert all("status" in answer or answer["code"] in CODES for answer in answers)


def some_transactions(served: Served) -> list[bytes]:
    chain_id = genesis_of(1).chain_id
    people = [actor(name, chain_id) for name in ("creator", "trainer-000", "nobody")]
    job = bytes.fromhex(served.known["job"])
    bodies = [CreateJob(make_rules(name="streamed"), b""), JoinJob(job, bytes(32)), StopJob(bytes(32))]
    valid_until_ms = time.time_ns() // 1_000_000 + 60_000
    return [person.sign(body, valid_until_ms=valid_until_ms) for person in people for body in bodies]


async def stream_mutated(served: Served, rounds: int) -> None:
    seeds = some_transactions(served)
    closed = 0
    async with aiohttp.ClientSession() as session:
        for _ in range(rounds):
            batch = [mutated(chance.choice(seeds)) for _ in range(chance.choice((1, 1, 20)))]
            message = submission(batch)
            whole = chance.random() < 0.5
            message = message if whole else mutated(message)
            async with session.ws_connect(f"{served.url}/v1/ingest?wait=available", max_msg_size=2**22) as stream:
                await stream.send_bytes(message)
                said = await stream.receive(HANG_S)
                if said.type is aiohttp.WSMsgType.CLOSE:
                    assert not whole and said.data == 1008 and said.extra.startswith("MALFORMED_BODY: ")
                    closed += 1
                    continue
                for answer in read_answers(said.data):
                    known = answer.code in CODES or answer.code in PROBLEMS
                    assert known if answer.status == REFUSED else answer.code == "" and answer.id
    assert closed


@pytest.mark.parametrize("rounds", [150, pytest.param(5_000, marks=pytest.mark.nightly)])
def test_streamed_messages_with_flipped_bits_are_answered_or_end_the_stream(served: Served, rounds: int) -> None:
    asyncio.run(stream_mutated(served, rounds))
    assert requests.get(f"{served.url}/v1/health", timeout=HANG_S).status_code == 200


async def stream_hostile(served: Served, rounds: int) -> None:
    hostile = (
        pack(tuple(chance.randbytes(120) for _ in range(1_000))),
        b"\x9f" + b"\x90" * (MESSAGE_BYTES - 1),
        bytes(MESSAGE_BYTES + 1),
        pack((chance.randbytes(MESSAGE_BYTES - 16),)),
    )
    async with aiohttp.ClientSession() as session:
        for _ in range(rounds):
            for message in hostile:
                async with session.ws_connect(f"{served.url}/v1/ingest", max_msg_size=2**22) as stream:
                    await stream.send_bytes(message)
                    await stream.receive(HANG_S)


@pytest.mark.parametrize("rounds", [20, pytest.param(500, marks=pytest.mark.nightly)])
def test_nothing_grows_with_the_messages_that_are_streamed(served: Served, rounds: int) -> None:
    asyncio.run(stream_hostile(served, 10))
    before = served.resident_bytes()
    asyncio.run(stream_hostile(served, rounds))
    assert served.resident_bytes() - before < GROWTH_BYTES


@pytest.mark.parametrize("rounds", [150, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_bytes_that_are_hardly_http_are_answered_or_dropped(served: Served, rounds: int) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    body = pack((bytes(100),))
    plain = b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Type: application/msgpack\r\n"
    seeds = (
        plain + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        plain + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
        b"GET /v1/blocks?limit=3&cursor=1 HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n" * 3,
        b"GET /v1/events/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x81\x85abcdefghi",
        b"GET /v1/ingest HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        b"\x82\xfe" + len(body).to_bytes(2, "big") + bytes(4) + body,
    )
    for _ in range(rounds):
        with socket.create_connection((host, int(port)), timeout=HANG_S) as one, suppress(ConnectionError):
            one.sendall(mutated(chance.choice(seeds)))
            one.settimeout(0.02)
            with suppress(TimeoutError):
                first = one.recv(65536)
                assert not first or first.split()[1] not in (b"500", b"502", b"504"), first
    assert requests.get(f"{served.url}/v1/health", timeout=HANG_S).status_code == 200


@pytest.mark.parametrize("rounds", [20, pytest.param(500, marks=pytest.mark.nightly)])
def test_nothing_grows_with_the_bodies_that_are_sent(served: Served, rounds: int) -> None:
    hostile = [
        (pack(tuple(chance.randbytes(4_000) for _ in range(1_000))), MSGPACK),
        (b"\x9f" + b"\x90" * 3_000_000, MSGPACK),
        (b"[" * 1_000_000, JSON),
        (b"[" + b"[]," * 300_000 + b"[]]", JSON),
        (b'{"transactions":["' + b"A" * 1_000_000 + b'"]}', JSON),
    ]

    def send() -> None:
        for data, media in hostile:
            with suppress(requests.ConnectionError):
                response = requests.post(
                    f"{served.url}/v1/transactions", data=data, headers={"Content-Type": media}, timeout=HANG_S
                )
                check_refusal(response.status_code, response.headers, response.content)
        for path in ("/v1/openapi.json", "/metrics", "/v1/blocks?limit=100", "/v1/genesis"):
            assert requests.get(served.url + path, timeout=HANG_S).status_code == 200

    for _ in range(5):
        send()
    before = served.resident_bytes()
    for _ in range(rounds):
        send()
    assert served.resident_bytes() - before < GROWTH_BYTES
