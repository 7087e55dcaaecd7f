"""A network in memory: every frame, delay, loss and reconnection is drawn from one seed and hashed as it
happens.

Links behave as the real ones do. A frame keeps its order within a peer and channel, unless the conditions say
that it may not. While a direction is blocked its frames wait; if that lasts, the link goes down, what was
under way is gone, and once the way is free the two connect again. Endpoints have names of their own, for two
of them may share a key (twins).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct

from consensus.messages import FRAME_LIMIT
from node.ports import Channel, Down, Frame, LinkEvent, Peer, PeerAddress, Up
from node.ports.inbox import Inbox
from tests.simulation.loop import Crash, Stuck, drawn_from

DETECTION_SECONDS = (3.0, 6.0)
"""How long a silent link is taken for a living one."""

RECONNECT_SECONDS = (0.02, 0.5)
PENALTY_SECONDS = 5.0
PENALTY_LIMIT_SECONDS = 300.0

QUEUE_FRAMES = 4_096
"""Frames that may be under way on a link and channel. Beyond it, CONSENSUS loses its oldest, DATA what is
offered."""

INBOX_FRAMES = 200_000
_SAME_ORDER_SECONDS = 1e-6
_EVENT = Struct("<dHHBI")

Tap = Callable[[float, str, str, Channel, bytes], None]
"""Sees every frame when it is delivered: time, from, to, channel, bytes."""

Wrapper = Callable[[Peer, Channel, bytes], Iterable[tuple[Peer, Channel, bytes]]]
"""What a Byzantine node sends instead of a frame that its honest part wanted to send."""


@dataclass(frozen=True, slots=True)
class Conditions:
    delay_ms: float = 5.0
    jitter_ms: float = 2.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """Share of the frames that may overtake others, held back by up to four times the jitter and the
    delay."""


class _Wire:
    """One direction between two endpoints."""

    __slots__ = (
        "arrived",
        "blocked",
        "clogged_until",
        "conditions",
        "held",
        "last",
        "link",
        "sent",
        "source",
        "target",
    )

    def __init__(self, link: _Link, source: Endpoint, target: Endpoint, conditions: Conditions) -> None:
        self.link = link
        self.source = source
        self.target = target
        self.conditions = conditions
        self.blocked: object = None
        self.clogged_until = 0.0
        self.held: list[tuple[Channel, bytes]] = []
        self.last = [0.0, 0.0]
        self.sent = [0, 0]
        self.arrived = [0, 0]


class _Link:
    """Both directions, and whether the two endpoints hold it for alive."""

    __slots__ = ("attempt", "generation", "up", "wires")

    def __init__(self, a: Endpoint, b: Endpoint, forth: Conditions, back: Conditions) -> None:
        self.up = False
        self.generation = 0
        self.attempt: asyncio.TimerHandle | None = None
        self.wires = (_Wire(self, a, b, forth), _Wire(self, b, a, back))


class Endpoint:
    """A place on the network, the same through all incarnations of the node that lives there."""

    def __init__(self, number: int, name: str, key: Peer, link_key: bytes) -> None:
        self.number = number
        self.name = name
        self.key = key
        self.link_key = link_key
        self.links: SimulatedLinks | None = None
        self.wrapper: Wrapper | None = None
        self.wires: dict[Peer, list[_Wire]] = {}
        self.penalties: dict[Peer, tuple[float, float]] = {}
        """Until when, and how long it was, by the peer that is punished."""

    def accepts(self, other: Endpoint, now: float) -> bool:
        links = self.links
        if links is None or not links.open or self.penalties.get(other.key, (0.0, 0.0))[0] > now:
            return False
        address = links.peers.get(other.key)
        return address is not None and address.link_key == other.link_key


class Network:
    def __init__(self, seed: int, conditions: Conditions | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._random = drawn_from(seed, "network")
        self._conditions = conditions or Conditions()
        self._endpoints: dict[str, Endpoint] = {}
        self._links: dict[tuple[str, str], _Link] = {}
        self._wires: dict[tuple[str, str], _Wire] = {}
        self._hash = sha256()
        self._taps: list[Tap] = []
        self.delivered = 0
        self.punishments: list[tuple[str, Peer, str]] = []
        """Who punished which peer, and why."""

    def join(self, name: str, key: Peer, link_key: bytes | None = None) -> Endpoint:
        endpoint = Endpoint(len(self._endpoints), name, key, link_key or key)
        for other in self._endpoints.values():
            link = _Link(other, endpoint, self._conditions, self._conditions)
            self._links[other.name, name] = link
            for wire in link.wires:
                self._wires[wire.source.name, wire.target.name] = wire
                wire.source.wires.setdefault(wire.target.key, []).append(wire)
        self._endpoints[name] = endpoint
        return endpoint

    def event_hash(self) -> str:
        """Equal for two runs if and only if both delivered the same frames at the same times in the same
        order."""
        return self._hash.hexdigest()

    def tap(self, tap: Tap) -> None:
        self._taps.append(tap)

    def wrap(self, name: str, wrapper: Wrapper | None) -> None:
        self._endpoints[name].wrapper = wrapper

    def inject(self, name: str, peer: Peer, channel: Channel, frame: bytes) -> bool:
        """Sends as if the node there had, past its wrapper."""
        return self._post(self._endpoints[name], peer, channel, frame)

    def set_conditions(self, conditions: Conditions, source: str | None = None, target: str | None = None) -> None:
        """For one direction, for all from or to one endpoint, or for all."""
        if source is not None and target is not None:
            self._wires[source, target].conditions = conditions
            return
        for wire in self._wires.values():
            if source in (None, wire.source.name) and target in (None, wire.target.name):
                wire.conditions = conditions

    def block(self, source: str, target: str) -> None:
        """Frames of this direction wait; the link goes down if that lasts."""
        wire = self._wires[source, target]
        if wire.blocked is None:
            wire.blocked = object()
            self._loop.call_later(self._random.uniform(*DETECTION_SECONDS), self._give_up, wire, wire.blocked)

    def unblock(self, source: str, target: str) -> None:
        wire = self._wires[source, target]
        wire.blocked = None
        held, wire.held = wire.held, []
        for channel, frame in held:
            self._transmit(wire, channel, frame)
        self._consider(wire.link)

    def partition(self, *groups: Iterable[str]) -> None:
        """Blocks both directions between all members of different groups."""
        group_of = {name: number for number, group in enumerate(groups) for name in group}
        for source, target in self._wires:
            if source in group_of and target in group_of and group_of[source] != group_of[target]:
                self.block(source, target)

    def heal(self) -> None:
        for source, target in self._wires:
            self.unblock(source, target)
        for wire in self._wires.values():
            wire.clogged_until = 0.0

    def clog(self, source: str, target: str, seconds: float) -> None:
        """Nothing sent in this direction arrives earlier than that."""
        wire = self._wires[source, target]
        wire.clogged_until = max(wire.clogged_until, self._loop.time() + seconds)

    def cut(self, a: str, b: str) -> None:
        """The link goes down at once; it will be dialled again."""
        link = self._wires[a, b].link
        self._down(link)
        self._consider(link)

    def attach(self, endpoint: Endpoint, links: SimulatedLinks) -> None:
        for link in self._links_of(endpoint):
            self._down(link)
        endpoint.links = links
        self.reconsider(endpoint)

    def detach(self, endpoint: Endpoint) -> None:
        """The incarnation is gone; its peers learn of it when they notice."""
        endpoint.links = None
        for link in self._links_of(endpoint):
            if link.up:
                seconds = self._random.uniform(0.0, DETECTION_SECONDS[1])
                self._loop.call_later(seconds, self._notice, link, link.generation)

    def reconsider(self, endpoint: Endpoint) -> None:
        """Its set of peers has changed."""
        now = self._loop.time()
        for link in self._links_of(endpoint):
            if link.up and not all(wire.source.accepts(wire.target, now) for wire in link.wires):
                self._down(link)
            self._consider(link)

    def punish(self, endpoint: Endpoint, peer: Peer, reason: str) -> None:
        self.punishments.append((endpoint.name, peer, reason))
        seconds = min(2 * endpoint.penalties.get(peer, (0.0, PENALTY_SECONDS / 2))[1], PENALTY_LIMIT_SECONDS)
        endpoint.penalties[peer] = (self._loop.time() + seconds, seconds)
        for wire in endpoint.wires.get(peer, ()):
            self._down(wire.link)
            self._loop.call_later(seconds, self._consider, wire.link)

    def send(self, endpoint: Endpoint, peer: Peer, channel: Channel, frame: bytes) -> bool:
        if endpoint.wrapper is None:
            return self._post(endpoint, peer, channel, frame)
        for other, lane, replaced in endpoint.wrapper(peer, channel, frame):
            self._post(endpoint, other, lane, replaced)
        return True

    def _post(self, endpoint: Endpoint, peer: Peer, channel: Channel, frame: bytes) -> bool:
        sent = False
        for wire in endpoint.wires.get(peer, ()):
            if wire.link.up:
                sent |= self._transmit(wire, channel, frame)
        return sent

    def _transmit(self, wire: _Wire, channel: Channel, frame: bytes) -> bool:
        if wire.blocked is not None:
            if len(wire.held) >= QUEUE_FRAMES:
                if channel is Channel.DATA:
                    return False
                del wire.held[0]
            wire.held.append((channel, frame))
            return True
        if channel is Channel.DATA and wire.sent[channel] - wire.arrived[channel] >= QUEUE_FRAMES:
            return False
        number = wire.sent[channel] = wire.sent[channel] + 1
        conditions, draw, loop = wire.conditions, self._random.random, self._loop
        copies = 1
        if conditions.loss and draw() < conditions.loss:
            copies = 0
        if conditions.duplicate and draw() < conditions.duplicate:
            copies += 1
        while copies:
            copies -= 1
            when = loop.time() + (conditions.delay_ms + conditions.jitter_ms * draw()) / 1000
            if conditions.reorder and draw() < conditions.reorder:
                when += 4 * (conditions.delay_ms + conditions.jitter_ms) * draw() / 1000
            else:
                when = max(when, wire.last[channel] + _SAME_ORDER_SECONDS, wire.clogged_until)
                wire.last[channel] = when
            loop.call_at(when, self._deliver, wire, wire.link.generation, channel, frame, number)
        return True

    def _deliver(self, wire: _Wire, generation: int, channel: Channel, frame: bytes, number: int) -> None:
        link, links = wire.link, wire.target.links
        if link.generation != generation or links is None:
            return
        wire.arrived[channel] = max(wire.arrived[channel], number)
        if wire.sent[channel] - number > QUEUE_FRAMES:
            return
        self.delivered += 1
        now = self._loop.time()
        self._note(now, wire.source.number, wire.target.number, channel, frame)
        for tap in self._taps:
            tap(now, wire.source.name, wire.target.name, channel, frame)
        links.inbox.put(channel, Frame(wire.source.key, channel, frame))
        if len(links.inbox) > INBOX_FRAMES:
            raise Stuck(f"{wire.target.name} does not take its frames")

    def _note(self, now: float, source: int, target: int, kind: int, data: bytes) -> None:
        self._hash.update(_EVENT.pack(now, source, target, kind, len(data)))
        self._hash.update(data)

    def _links_of(self, endpoint: Endpoint) -> list[_Link]:
        return [wire.link for wires in endpoint.wires.values() for wire in wires]

    def _give_up(self, wire: _Wire, block: object) -> None:
        if wire.blocked is block:
            self._down(wire.link)

    def _notice(self, link: _Link, generation: int) -> None:
        if link.generation == generation:
            self._down(link)

    def _down(self, link: _Link) -> None:
        if not link.up:
            return
        link.up = False
        link.generation += 1
        for wire in link.wires:
            wire.held.clear()
            self._turn(wire, Down)

    def _turn(self, wire: _Wire, turn: type[Up] | type[Down]) -> None:
        links = wire.target.links
        if links is None or not links.open:
            return
        self._note(self._loop.time(), wire.source.number, wire.target.number, 2 + (turn is Up), b"")
        for channel in Channel:
            links.inbox.put(channel, turn(wire.source.key, channel))

    def _ready(self, link: _Link) -> bool:
        now = self._loop.time()
        return not link.up and all(
            wire.blocked is None and wire.source.accepts(wire.target, now) for wire in link.wires
        )

    def _consider(self, link: _Link) -> None:
        if link.attempt is None and self._ready(link):
            link.attempt = self._loop.call_later(self._random.uniform(*RECONNECT_SECONDS), self._connect, link)

    def _connect(self, link: _Link) -> None:
        link.attempt = None
        if not self._ready(link):
            return
        link.up = True
        link.generation += 1
        for wire in link.wires:
            wire.sent = [0, 0]
            wire.arrived = [0, 0]
            self._turn(wire, Up)


class SimulatedLinks:
    """The Links of one incarnation."""

    def __init__(self, network: Network, endpoint: Endpoint) -> None:
        self._network = network
        self.endpoint = endpoint
        self.peers: dict[Peer, PeerAddress] = {}
        self.open = False
        self.powered = True
        self.inbox = Inbox()

    async def start(self, peers: Mapping[Peer, PeerAddress]) -> None:
        self._check()
        self.open = True
        self.peers = {peer: address for peer, address in peers.items() if peer != self.endpoint.key}
        self._network.attach(self.endpoint, self)

    async def update(self, peers: Mapping[Peer, PeerAddress]) -> None:
        self._check()
        self.peers = {peer: address for peer, address in peers.items() if peer != self.endpoint.key}
        self._network.reconsider(self.endpoint)

    def send(self, peer: Peer, channel: Channel, frame: bytes) -> bool:
        self._check()
        if len(frame) > FRAME_LIMIT[channel]:
            raise ValueError(f"a frame of {len(frame)} bytes is over the limit of its channel")
        return self._network.send(self.endpoint, peer, channel, frame)

    async def receive(self) -> LinkEvent:
        self._check()
        return await self.inbox.get()

    @property
    def waiting(self) -> int:
        return len(self.inbox)

    def punish(self, peer: Peer, reason: str) -> None:
        self._check()
        self._network.punish(self.endpoint, peer, reason)

    async def close(self) -> None:
        self._check()
        self.open = False
        if self.endpoint.links is self:
            self._network.reconsider(self.endpoint)

    def cut_power(self) -> None:
        self.powered = self.open = False
        if self.endpoint.links is self:
            self._network.detach(self.endpoint)

    def _check(self) -> None:
        if not self.powered:
            raise Crash
