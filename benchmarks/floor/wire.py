"""Sockets between the processes of the floor: one for each direction of each pair, blocking, filled in place."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from struct import Struct

from chain.keys import SigningKey
from node.ports.identity import BULK_PROTOCOL, LinkIdentity, link_key_of

_INDEX = Struct("!I")
_LENGTH = Struct("!I")
_WRITE_BYTES = 256 * 1024

CLIENT = 2**32 - 1


def listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=128)


def link_key(index: int) -> SigningKey:
    return SigningKey.from_seed(b"link" + index.to_bytes(28, "big"))


def dial(port: int, own: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(_INDEX.pack(own))
    return connection


class Peers:
    """What a validator of the floor sends on and what it receives from."""

    def __init__(self, own: int, listener: socket.socket, ports: Sequence[int]) -> None:
        keys = [link_key(index).public for index in range(len(ports))]
        identity = LinkIdentity(link_key(own), [key for key in keys if key != keys[own]], BULK_PROTOCOL)
        plain = {other: dial(port, own) for other, port in enumerate(ports) if other != own}
        accepted: dict[int, socket.socket] = {}
        while len(accepted) < len(ports):
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            (index,) = _INDEX.unpack(received(connection, _INDEX.size))
            accepted[index] = connection
        self.client = accepted.pop(CLIENT)
        self.targets: dict[int, ssl.SSLSocket] = {}
        self.sources: dict[int, ssl.SSLSocket] = {}
        # In one order everywhere, or two processes would wait for each other's half of a handshake.
        for source in range(len(ports)):
            for target in range(len(ports)):
                if source == own != target:
                    self.targets[target] = identity.client().wrap_socket(plain[target])
                elif target == own != source:
                    self.sources[source] = identity.server().wrap_socket(accepted[source], server_side=True)
        for index, each in [*self.targets.items(), *self.sources.items()]:
            assert link_key_of(each, BULK_PROTOCOL) == keys[index]


def fill(connection: socket.socket, view: memoryview) -> None:
    while view:
        count = connection.recv_into(view)
        if not count:
            raise ConnectionResetError("the other side is gone")
        view = view[count:]


def received(connection: socket.socket, size_bytes: int) -> bytearray:
    data = bytearray(size_bytes)
    fill(connection, memoryview(data))
    return data


def send(connection: socket.socket, view: memoryview) -> None:
    while view:
        view = view[connection.send(view[:_WRITE_BYTES]) :]


def send_frame(connection: socket.socket, frame: bytes | bytearray) -> None:
    connection.sendall(_LENGTH.pack(len(frame)))
    send(connection, memoryview(frame))


def receive_frame(connection: socket.socket) -> bytearray:
    (size_bytes,) = _LENGTH.unpack(received(connection, _LENGTH.size))
    return received(connection, size_bytes)
