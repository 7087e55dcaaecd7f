"""What a core is given at each step, and what it asks of the world in return.

The order of IO is the caller's contract: nothing in `send` or `acks` may leave before everything in `persist` of
this and of all earlier outputs is durable. `events` are for the fellow cores of the same validator and do not wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ALL = -1
"""Destination of a message that goes to every other validator."""


@dataclass(frozen=True, slots=True)
class Now:
    """Two clocks: one that never goes back, for waiting, and the wall's, for the times in headers."""

    mono_ms: int
    wall_ms: int


@dataclass(frozen=True, slots=True)
class Send:
    to: int
    message: object


@dataclass(slots=True)
class Output:
    persist: list[object] = field(default_factory=list)
    send: list[Send] = field(default_factory=list)
    events: list[object] = field(default_factory=list)
    acks: list[object] = field(default_factory=list)

    def extend(self, other: Output) -> None:
        self.persist += other.persist
        self.send += other.send
        self.events += other.events
        self.acks += other.acks

    def __bool__(self) -> bool:
        return bool(self.persist or self.send or self.events or self.acks)


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """An authenticated peer sent what no honest one can: its link is to be dropped, with back-off."""

    peer: int
    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    peer: int
    message: object


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A link to this validator was established, or established again: it may have missed anything."""

    peer: int


@dataclass(frozen=True, slots=True)
class Tick:
    """A deadline may have passed."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that must never happen to an honest validator: it stops and says so."""

    code: str
    sentence: str
