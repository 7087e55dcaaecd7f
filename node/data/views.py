"""Maps of files that are read again and again, so that each is mapped once."""

from __future__ import annotations

import threading
from collections import OrderedDict

_KEPT = 64
"""Maps that stay after their last reader; each holds a descriptor, whoever reads it."""


class Views:
    """For any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._views: OrderedDict[bytes, memoryview] = OrderedDict()

    def get(self, cid: bytes) -> memoryview | None:
        with self._guard:
            if (view := self._views.get(cid)) is None:
                return None
            self._views.move_to_end(cid)
            # One of its own, for a reader may release it.
            return view[:]

    def put(self, cid: bytes, view: memoryview) -> None:
        with self._guard:
            self._views[cid] = view[:]
            if len(self._views) > _KEPT:
                self._views.popitem(last=False)

    def forget(self, cid: bytes) -> None:
        with self._guard:
            self._views.pop(cid, None)
