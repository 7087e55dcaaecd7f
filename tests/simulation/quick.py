"""Pure functions of bytes, each computed once for all simulated nodes: signature checks and decoding.

All nodes of a simulation live in one process and see the same frames. What one of them has computed from bytes
alone is what every other would compute, so remembering it changes nothing but the time that a seed takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from chain import keys
from consensus import messages
from node.ports import Channel

REMEMBERED = 100_000


def _remembering_verify(known: dict[tuple[bytes, bytes, bytes], bool]) -> Callable[[bytes, bytes, bytes], bool]:
    original = keys.verify

    def verify(public: bytes, message: bytes, signature: bytes) -> bool:
        key = (public, message, signature)
        found = known.get(key)
        if found is None:
            if len(known) >= REMEMBERED:
                known.clear()
            found = known[key] = original(public, message, signature)
        return found

    return verify


def _remembering_decode(known: dict[tuple[int, bytes], object]) -> Callable[[Channel, bytes], object]:
    original = messages.from_frame

    def from_frame(channel: Channel, frame: bytes) -> object:
        key = (int(channel), frame)
        found = known.get(key)
        if found is None:
            if len(known) >= REMEMBERED:
                known.clear()
            found = known[key] = original(channel, frame)
        return found

    return from_frame


def _everywhere(original: object, name: str) -> list[Any]:
    """Every loaded module that knows the function under this name."""
    return [module for module in list(sys.modules.values()) if getattr(module, name, None) is original]


@contextmanager
def remembered() -> Iterator[None]:
    replaced: list[tuple[Any, str, object]] = []
    remembering: tuple[tuple[object, str, object], ...] = (
        (keys.verify, "verify", _remembering_verify({})),
        (messages.from_frame, "from_frame", _remembering_decode({})),
    )
    for original, name, replacement in remembering:
        for module in _everywhere(original, name):
            replaced.append((module, name, original))
            setattr(module, name, replacement)
    try:
        yield
    finally:
        for module, name, original in replaced:
            setattr(module, name, original)
