"""Walking over the tiles of all updates of a round, for rules that look at them at once.

Pieces of work run on any threads. Memory that one of them needs is taken over by the next one on the same thread, so
that there is as much of it as there are threads, however many tiles: 4 bytes × updates × the widest tile for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl.rules.rule import ClosedUpdates

T = TypeVar("T")


class Rooms(Generic[T]):
    """Working memory, one for each piece of work that runs at a time."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._free: list[T] = []

    @contextmanager
    def one(self) -> Iterator[T]:
        try:
            room = self._free.pop()
        except IndexError:
            room = self._make()
        yield room
        self._free.append(room)

    def all(self) -> list[T]:
        """Once no work is going on."""
        return self._free


def over_tiles(
    updates: ClosedUpdates,
    work: Callable[[NDArray[np.float32], slice], None],
    positions: Sequence[int] | None = None,
) -> None:
    """Does the work for every tile: the values, one row an update, and where in the flat vector they stand. Of the
    updates at these positions, in their order, or of all."""
    edges = updates.edges
    rows = range(updates.count) if positions is None else positions
    widest = max(stop - start for start, stop in pairwise(edges))
    rooms = Rooms(lambda: np.empty(len(rows) * widest, np.float32))

    def piece(tile: int) -> int:
        start, stop = edges[tile], edges[tile + 1]
        with rooms.one() as room:
            # A part of the room, so that rows of a narrower tile lie close as well.
            values = room[: len(rows) * (stop - start)].reshape(len(rows), stop - start)
            updates.tile(tile, rows, values)
            work(values, slice(start, stop))
        return 0

    for _ in updates.spread([partial(piece, tile) for tile in range(len(edges) - 1)]):
        pass
