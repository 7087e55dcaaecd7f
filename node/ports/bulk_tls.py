"""The asking end of a bulk connection: TLS through a buffer of its own, so that the kernel is asked for many records
at a time.

A TLS socket asks it for each record twice, for its five bytes of header and then for the rest, which costs as much as
the decryption. The answering end stays such a socket: writing gains nothing by a buffer.
"""

from __future__ import annotations

import socket
import ssl
import time

_ROOM_BYTES = 128 * 1024


class BufferedTls:
    """The client's side over a connected blocking socket, which it closes. Not for several threads at once."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext) -> None:
        self._plain = plain
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._came, self._goes)
        self._room = memoryview(bytearray(_ROOM_BYTES))

    def settimeout(self, seconds: float) -> None:
        """Of one wait for the socket."""
        self._plain.settimeout(seconds)

    def shake_hands(self, within_s: float) -> None:
        until = time.monotonic() + within_s
        while True:
            try:
                self.session.do_handshake()
                return self._flush()
            except ssl.SSLWantReadError:
                self._flush()
            if not self._fill():
                raise ConnectionResetError("the peer closed the connection")
            if time.monotonic() > until:
                raise TimeoutError("the handshake takes too long")

    def recv_into(self, view: memoryview, /) -> int:
        """At most a record; 0 once the other side has closed."""
        while True:
            try:
                return self.session.read(len(view), view)  # type: ignore[return-value]
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fill():
                    return 0
            except ssl.SSLZeroReturnError:
                return 0

    def sendall(self, data: bytes, /) -> None:
        view = memoryview(data)
        while view:
            view = view[self.session.write(view) :]
        self._flush()

    def close(self) -> None:
        self._plain.close()

    def _fill(self) -> int:
        count = self._plain.recv_into(self._room)
        self._came.write(self._room[:count])
        return count

    def _flush(self) -> None:
        if self._goes.pending:
            self._plain.sendall(self._goes.read())
