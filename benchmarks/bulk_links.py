"""Bulk connections between two processes of this machine: how many MiB/s one carries, beside bare TLS sockets.

    python -m benchmarks.bulk_links [--leaves 4096] [--rounds 3]

Both ways in one run, by turns: leaves of 1 MiB asked for through the Bulk port, a few under way, from one mapped file;
and the same bytes written by a loop of `send` and read by a loop of `recv_into` over a TLS 1.3 socket of the same
ciphers, with nothing else around. `--hash` lets the receiver hash each leaf as a swarm does.
"""

from __future__ import annotations

import argparse
import asyncio
import mmap
import multiprocessing
import socket
import statistics
import tempfile
import time
from hashlib import sha256
from multiprocessing.connection import Connection

from chain.keys import SigningKey
from node.ports import Buffer, Peer, PeerAddress
from node.ports.bulk import TlsBulk
from node.ports.identity import BULK_PROTOCOL, LinkIdentity

MIB = 1024 * 1024
CHAIN = bytes(32)
KEYS = [SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2)]
UNDER_WAY = 4
FILE_LEAVES = 64
BARE_BUFFER = 256 * 1024


def mapped() -> memoryview:
    with tempfile.TemporaryFile() as file:
        for number in range(FILE_LEAVES):
            file.write(bytes([number]) * MIB)
        file.flush()
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def serve_bulk(pipe: Connection) -> None:
    async def main() -> None:
        blob = mapped()

        def serve(peer: Peer, request: bytes) -> Buffer:
            start = int(request) % FILE_LEAVES * MIB
            return blob[start : start + MIB]

        bulk = TlsBulk(KEYS[0], KEYS[0].public, CHAIN, ("127.0.0.1", 0))
        pipe.send(await bulk.start({KEYS[1].public: PeerAddress(KEYS[1].public, "", 0)}, serve))
        await asyncio.to_thread(pipe.recv)
        await bulk.close()

    asyncio.run(main())


def serve_bare(pipe: Connection) -> None:
    blob = mapped()
    context = LinkIdentity(KEYS[0], [KEYS[1].public], BULK_PROTOCOL).server()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        while (leaves := pipe.recv()) is not None:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                for number in range(leaves):
                    start = number % FILE_LEAVES * MIB
                    view = blob[start : start + MIB]
                    while view:
                        view = view[connection.send(view) :]


def through_port(port: int, leaves: int, hashed: bool) -> float:
    def take(data: memoryview) -> bool:
        return not hashed or bool(sha256(data).digest())

    async def main() -> float:
        peer = KEYS[0].public
        bulk = TlsBulk(KEYS[1], KEYS[1].public, CHAIN, ("127.0.0.1", 0))
        await bulk.start({peer: PeerAddress(peer, "127.0.0.1", port)}, lambda peer, request: b"")
        await bulk.leaf(peer, b"0", MIB, take)
        numbers = iter(range(leaves))

        async def pull() -> None:
            for number in numbers:
                await bulk.leaf(peer, b"%d" % number, MIB, take)

        began = time.perf_counter()
        await asyncio.gather(*(pull() for _ in range(UNDER_WAY)))
        took = time.perf_counter() - began
        await bulk.close()
        return leaves / took

    return asyncio.run(main())


def bare(port: int, leaves: int, hashed: bool) -> float:
    context = LinkIdentity(KEYS[1], [KEYS[0].public], BULK_PROTOCOL).client()
    buffer = bytearray(MIB)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as connection:
        began = time.perf_counter()
        for _ in range(leaves):
            view = memoryview(buffer)
            while view:
                count = connection.recv_into(view)
                if not count:
                    raise ConnectionResetError("the other process ended")
                view = view[count:]
            if hashed:
                sha256(buffer).digest()
        return leaves / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hash", action="store_true")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    servers = []
    ports: list[int] = []
    for target in (serve_bulk, serve_bare):
        here, there = context.Pipe()
        server = context.Process(target=target, args=(there,), daemon=True)
        server.start()
        servers.append(server)
        pipes.append(here)
        ports.append(here.recv())
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(arguments.rounds):
        rates[0].append(through_port(ports[0], arguments.leaves, arguments.hash))
        pipes[1].send(arguments.leaves)
        rates[1].append(bare(ports[1], arguments.leaves, arguments.hash))
    for pipe, server in zip(pipes, servers, strict=True):
        pipe.send(None)
        server.join(5)
    for name, found in zip(("bulk port", "bare TLS"), rates, strict=True):
        print(f"{name:10} {statistics.median(found):7.0f} MiB/s  ({min(found):.0f} to {max(found):.0f})")


if __name__ == "__main__":
    main()
