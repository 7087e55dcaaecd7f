"""Where clients are listened for, and with which certificate."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from node.ports import PortError
from node.rpc.limits import RpcLimits

BACKLOG = 128


class CannotListen(PortError):
    """The address or the path is taken, or not ours to take."""

    code = "CANNOT_LISTEN"


@dataclass(frozen=True, slots=True)
class RpcConfig:
    """Where to listen; port 0 takes any that is free. Raises ValueError for what cannot be meant."""

    host: str = "127.0.0.1"
    port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    admin_socket: Path | None = None
    cors: tuple[str, ...] = ()
    """Origins whose pages may read answers; none unless named."""
    limits: RpcLimits = field(default_factory=RpcLimits)
    door_url: str = ""
    """At which clients reach the door for blobs, where it is not the address that it listens on."""

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("a TLS certificate and its key go together")

    def tls(self) -> ssl.SSLContext | None:
        """Raises ssl.SSLError or OSError for files that cannot be used."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.tls_cert, self.tls_key)
        return context


def listen_tcp(host: str, port: int) -> socket.socket:
    """Raises CannotListen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror}; check [rpc] listen") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror}; check [rpc] listen") from error
    return listener


def listen_unix(path: str) -> socket.socket:
    """Only this user can connect, from the first moment on. A socket that a killed process left is replaced: the lock
    of the data directory says that it is nobody's. Raises CannotListen."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        if os.path.lexists(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {path}: {error.strerror or error}; check the data directory") from error
    finally:
        os.umask(mask)
    return listener
