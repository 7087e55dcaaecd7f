"""What is counted of clients, by whoever shows the numbers to the operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Answered:
    route: str
    method: str
    status: int
    seconds: float
    bytes_in: int
    bytes_out: int


class Tally(Protocol):
    def connected(self) -> None: ...

    def left(self) -> None: ...

    def turned_away(self, reason: str) -> None: ...

    def answered(self, answered: Answered) -> None: ...
