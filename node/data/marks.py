"""From when on nothing is swept: what comes or is touched after the mark outlives the sweep that it is for."""

from __future__ import annotations

from node.data.errors import StaleMark


class Mark:
    def __init__(self) -> None:
        self._token: int | None = None
        self._touched: set[bytes] = set()

    def set(self, token: int) -> int:
        """In place of an earlier one."""
        self._token = token
        self._touched.clear()
        return token

    def touch(self, cid: bytes) -> None:
        if self._token is not None:
            self._touched.add(cid)

    def spares(self, cid: bytes) -> bool:
        return cid in self._touched

    def check(self, token: int) -> None:
        if token != self._token:
            raise StaleMark("these roots belong to a mark that another one or a restart has replaced")

    def end(self) -> None:
        self._token = None
        self._touched.clear()
